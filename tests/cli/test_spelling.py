"""Misspelt settings and choices get one line with the nearest names; what could be right is left to Hydra."""

import re
import time

import pytest
from conftest import CONF

from muwa.cli.spelling import check_spelling


@pytest.mark.parametrize(("word", "said"), [
    ("sead=1", "sead=1: 'sead' is no setting or group; nearest: seed"),
    ("stage=[eval]", "'stage' is no setting or group; nearest: stages"),
    ("method=slugg", "'slugg' is no choice of method; nearest: method=slug"),
    ("method=ga,slugg", "'slugg' is no choice of method; nearest: method=slug"),
    ("eval=[forget,mai]", "'mai' is no choice of eval; nearest: eval=mia"),
    ("experiment=tabel1", "'tabel1' is no choice of experiment; nearest: experiment=table1"),
    ("task.identiy=A", "'identiy' is no setting of task; nearest: task.identity"),
    ("layer_search.max_eval=3", "'max_eval' is no setting of layer_search; nearest: layer_search.max_evals"),
    ("eval.mia.sead=1", "'mia.sead' is no setting of eval; nearest: eval.mia.seed, eval.mia.seeds"),
    ("runtime.devcie=cuda", "'devcie' is no setting of runtime; nearest: runtime.device"),
    ("model=SD", "'SD' is no choice of model; nearest: model=sd"),
    ("identity=A", "identity=A: 'identity' is no setting or group; nearest: questions.identity, task.identity"),
    ("device=cuda", "'device' is no setting or group; nearest: runtime.device, "),
    ("limits.forget_pairs=8", "'limits.forget_pairs' is no setting or group; nearest: task.limits.forget_pairs"),
    ("zzzzzz=1", "'zzzzzz' is no setting or group; --help lists them"),
])  # fmt: skip
def test_one_line_with_the_nearest(word, said):
    with pytest.raises(ValueError, match=re.escape(said)) as told:
        check_spelling(word, [CONF])
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("word", [
    "seed=1", "method=slug", "method=ga,ft", "eval=[forget,mia]", "task.identity=A", "task.limits.forget_pairs=16",
    "+anything.at.all=1", "~eval.soft_prompt", "hydra.job.name=x", "hydra/launcher=slurm", "experiment=null",
    "eval.rewording.descriptions.Kael=[a]", "classifier.texts={a: [b]}", "layer_search.relative_steps=[0.1]",
    "/eval@_global_.eval=[forget]",
])  # fmt: skip
def test_what_could_be_right_is_left_to_hydra(word):
    check_spelling(word, [CONF])


def test_own_groups_choices_and_settings_are_known(tmp_path):
    for name, text in {"method/mine": "strength: 1\n", "colour/red": "shade: dark\n"}.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / f"{name}.yaml").write_text(text)
    for word in ("method=mine", "method.strength=2", "colour=red", "colour.shade=light"):
        check_spelling(word, [CONF, tmp_path])
    with pytest.raises(ValueError, match="'shad' is no setting of colour; nearest: colour.shade"):
        check_spelling("colour.shad=1", [CONF, tmp_path])


def test_it_takes_no_time_that_is_felt():
    started = time.process_time()
    for word in ("eval.mia.seeds=1", "task.identity=A", "model=sd"):
        check_spelling(word, [CONF])
    assert time.process_time() - started < 0.5
