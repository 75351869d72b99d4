"""Several values where a command line gives one: only what the setting takes is offered."""

import pytest
from conftest import CONF

from muwa.cli.several import takes
from muwa.command_line import adapted


@pytest.mark.parametrize(("word", "offered"), [
    ("seed=0,1", []),
    ("learning_rate=1e-6,1e-5", []),
    ("runtime.progress=true,false", []),
    ("layer_search.max_evals=3,4", []),
    ("task.limits.forget_pairs=1,2", []),
    ("model=clip,sd", []),
    ("name=a,b", ["'name=\"a,b\"' for one text with a comma"]),
    ("stages=unlearn,eval", ["'stages=[unlearn,eval]' for a list"]),
    ("eval=forget,retain", ["'eval=[forget,retain]' for a list"]),
    ("patches=a,b", ["'patches=[a,b]' for a list"]),
    ("questions.identity=a,b", ["'questions.identity=[a,b]' for a list"]),
    ("task.identity='Ada',Bo", ["\"task.identity=['Ada',Bo]\" for a list", "\"task.identity=\\\"'Ada',Bo\\\"\" for one text with a comma"]),
    ("+foo=1,2", ["'+foo=[1,2]' for a list", "'+foo=\"1,2\"' for one text with a comma"]),
])  # fmt: skip
def test_what_the_setting_takes_is_offered(word, offered):
    with pytest.raises(ValueError, match="Hydra reads several values here") as caught:
        adapted([word])
    said = f"Type {', '.join(offered)}, or add -m" if offered else "Add -m"
    assert str(caught.value) == f"{word}: Hydra reads several values here. {said} for one run each"


def test_a_config_of_the_user_counts(tmp_path):
    (tmp_path / "task").mkdir()
    (tmp_path / "task" / "mine.yaml").write_text("kinds: [a]\nwidth: 3\n")
    assert takes("task.kinds", ["a", "b"], [CONF, tmp_path])
    assert not takes("task.width", ["a", "b"], [CONF, tmp_path])
    assert takes("task.elsewhere", ["a", "b"], [CONF, tmp_path])
