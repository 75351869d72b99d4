import inspect
import re
from collections.abc import Mapping

import pytest
from conftest import CONF
from hydra.errors import ConfigCompositionException
from hydra.utils import get_class, get_object
from omegaconf import OmegaConf
from setting_sweep import GIVEN

from muwa import config

FILES = sorted(
    path.relative_to(CONF).with_suffix("") for path in CONF.glob("**/*.yaml") if path.parent != CONF
)


def choice(file):
    """The override that picks a file of muwa/conf/."""
    group, name = file.parent.as_posix(), file.name
    return f"{group}=[{name}]" if group in ("eval", "logger") else f"{group}={name}"


@pytest.mark.parametrize("file", FILES, ids=str)
def test_every_file_of_conf_composes_and_builds(composed, file):
    overrides = [choice(file), *GIVEN.get(file.name, [])]
    if file.parts[0] == "hydra":
        cfg = composed(*overrides, hydra=True)
        assert cfg.hydra.runtime.choices[file.parent.as_posix()] == file.name
        if file.name == "slurm":
            assert get_class(cfg.hydra.launcher._target_).__name__ == "SlurmLauncher"
    parts = config.build(config.composed(*overrides))
    assert set(parts) == set(config.PARTS)


@pytest.mark.parametrize("file", FILES, ids=str)
def test_every_file_says_what_it_is_and_what_to_type(file):
    head = [line for line in (CONF / f"{file}.yaml").read_text().splitlines() if not line.startswith("# @")][
        0
    ]
    assert head.startswith(f"# {file.parent.as_posix()}="), head
    assert file.name in head


def nodes(cfg):
    """Every node of a config that names a function, with its key."""
    for key, node in cfg.items():
        if isinstance(node, Mapping):
            if "_target_" in node:
                yield key, node
            yield from nodes(node)


@pytest.mark.parametrize("file", [file for file in FILES if file.parts[0] != "hydra"], ids=str)
def test_a_setting_has_one_default(file):
    """What the YAML gives has no default in the signature, and what the YAML leaves out has one."""
    cfg = OmegaConf.to_container(config.composed(choice(file), *GIVEN.get(file.name, [])), resolve=True)
    groups = {group: cfg[group] for group in (*config.PARTS, "layer_search", "gradient_source", "classifier")}
    seen = 0
    for key, node in nodes(groups):
        target = node["_target_"]
        if not target.startswith("muwa."):
            continue
        seen += 1
        parameters = inspect.signature(get_object(target)).parameters
        twice = [
            name
            for name in node
            if name in parameters and parameters[name].default is not inspect.Parameter.empty
        ]
        assert not twice, f"{key}: {target} has a default of its own for {', '.join(twice)}"
        if inspect.isclass(get_object(target)):
            lacking = [
                name
                for name, one in parameters.items()
                if one.default is inspect.Parameter.empty
                and one.kind is not one.VAR_KEYWORD
                and name not in node
            ]
            assert not lacking, f"{key}: muwa/conf/{file}.yaml gives no default for {', '.join(lacking)}"
    assert seen > 5


@pytest.mark.parametrize("file", [file for file in FILES if file.parts[0] == "experiment"], ids=str)
def test_an_experiment_has_the_last_word_over_the_file_it_changes(composed, file):
    assert composed(choice(file)).name == file.name
    assert composed(choice(file), "name=mine").name == "mine"


def test_baselines_that_fine_tune_share_their_learning_rate(composed):
    for method in ("ft", "ga", "gaft", "salun", "task_arithmetic"):
        assert composed(f"method={method}", "learning_rate=0.5").method.learning_rate == 0.5


def test_all_evidence_that_needs_no_twins_is_in_full(composed):
    every = set(composed("eval=full").eval)
    # prompts reads the file of task=prompts, which no other metric reads
    files = {path.stem for path in CONF.glob("eval/*.yaml")} - {"full", "retrain_gap", "prompts"}
    assert set().union(*(composed(f"eval=[{name}]").eval for name in files)) == every
    assert "retrain_gap" not in every
    assert set(composed("eval=[full,retrain_gap]").eval) == every | {"retrain_gap"}
    assert set(composed("eval=full", "~eval.relearning").eval) == every - {"relearning"}


def test_a_misspelt_key_is_an_error_that_gives_it(composed):
    with pytest.raises(ConfigCompositionException) as caught:
        composed("layer_search.frist_step=0.2")
    assert "layer_search.frist_step" in str(caught.value)
    with pytest.raises(ConfigCompositionException) as caught:
        composed("runtime.devcie=cuda")
    assert "runtime.devcie" in str(caught.value)


def test_an_added_key_that_no_function_takes_is_an_error(composed):
    with pytest.raises(
        ValueError, match=r"method: muwa.methods.slug.Slug\(\) got an unexpected keyword argument 'rate'"
    ):
        config.build(composed("method=slug", "+method.rate=1"))
    with pytest.raises(
        ValueError, match=r"^layer_search: muwa.layer_search.bisection.ParetoBisect\(\) .*'depth'"
    ):
        config.build(composed("+layer_search.depth=1"))


def test_a_missing_value_is_named(composed):
    with pytest.raises(
        ValueError, match="no value was given for layer_search.layer.*add layer_search.layer=VALUE"
    ):
        config.build(composed("layer_search=fixed"))


def test_choices_that_do_not_go_together_are_named(composed):
    """A LLaVA's search asks for other spellings of names; a style has none."""
    wanted = "this layer_search reads task.aliases (layer_search.aliases), and this task has no such setting"
    with pytest.raises(ValueError, match=rf"^{re.escape(wanted)}: .* Take task=celeba|object, or another"):
        config.build(composed("model=vlm", "task=style"))


def test_an_unknown_stage_is_named(composed):
    with pytest.raises(ValueError, match="stages: got 'train', want some of curate, unlearn, eval, report"):
        config.build(composed("stages=[train]"))


def test_the_folder_of_a_run_is_checked(tmp_path):
    with pytest.raises(ValueError, match="no .hydra/config.yaml in it; want the folder of a run"):
        config.read_run(tmp_path, trusted=(), commands=False)


@pytest.mark.parametrize(("where", "value", "said", "trust"), [
    ("method._target_", "subprocess.call", "method._target_ is subprocess.call, which is not .* --trust subprocess", {"trusted": ["subprocess"]}),
    ("model._target_", "muwa.config.os.system", "which is not a part of muwa.*--trust posix", {"trusted": ["posix"]}),
    ("task.limits._target_", "antigravity.fly", "task.limits._target_ is antigravity.fly", {"trusted": ["antigravity"]}),
    ("dataset.shards", ["a.tar", "pipe:touch /tmp/x"], "dataset.shards.1 runs a command. .*--trust-commands", {"commands": True}),
])  # fmt: skip
def test_the_config_of_a_strangers_run_makes_no_more_than_parts_of_muwa(
    composed, tmp_path, where, value, said, trust
):
    cfg = composed()
    (tmp_path / ".hydra").mkdir()
    file = tmp_path / ".hydra" / "config.yaml"
    OmegaConf.save(cfg, file)
    nothing = {"trusted": (), "commands": False}
    assert config.read_run(tmp_path, **nothing).seed == 0
    OmegaConf.update(cfg, where, value)
    OmegaConf.save(cfg, file)
    with pytest.raises(ValueError, match=said):
        config.read_run(tmp_path, **nothing)
    assert config.read_run(tmp_path, **{**nothing, **trust}).seed == 0


def test_a_part_has_the_defaults_of_conf_and_the_changes_asked_for():
    search = config.part("layer_search=fixed", layer="visual.proj", relative_step=0.2)
    assert (search.layer, search.relative_step, search.granularity) == ("visual.proj", 0.2, "tensor")
    assert set(config.part("eval=[forget,retain]")) == {"forget", "retain"}
    assert config.part("method=ga", epochs=3).epochs == 3


def test_a_part_refuses_what_does_not_exist():
    with pytest.raises(
        ValueError, match=r"method: muwa.methods.ga.GA\(\) got an unexpected keyword argument 'epoch'"
    ):
        config.part("method=ga", epoch=3)
    with pytest.raises(
        ValueError, match=r"eval=\[forget\]: holds forget; change the settings of one of them instead"
    ):
        config.part("eval=[forget]", seeds=3)


def test_a_target_that_does_not_exist_is_named(composed):
    with pytest.raises(
        ValueError, match=r"method: Error locating target 'muwa.methods.slug.unlearn'.*that exists"
    ):
        config.build(composed("method._target_=muwa.methods.slug.unlearn"))


@pytest.mark.parametrize(("name", "text", "said"), [
    ("lacks_a_class", "x = 1", "{tmp_path}/lacks_a_class.py has no 'Mine'"),
    ("lacks_a_package", "import nosuchpackage\nMine = 1", "ModuleNotFoundError: No module named 'nosuchpackage'"),
    ("misspelt_python", "class Mine\n", "SyntaxError: expected ':' (misspelt_python.py, line 1)"),
    ("fails", "Mine = 1 / 0", "ZeroDivisionError: division by zero"),
])  # fmt: skip
def test_why_a_target_of_ones_own_cannot_be_had_is_said(composed, monkeypatch, tmp_path, name, text, said):
    (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    wanted = f"method: Error locating target '{name}.Mine' ({said.format(tmp_path=tmp_path)}); want a class or function that exists"
    with pytest.raises(ValueError, match=f"^{re.escape(wanted)}$"):
        config.build(composed(f"method._target_={name}.Mine"))


def test_an_installation_without_the_defaults_says_how_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(config, "CONF", tmp_path / "conf")
    with pytest.raises(
        FileNotFoundError, match=r"no such folder, want the defaults of muwa; install it with pip"
    ):
        config.composed("method=ga", "name=elsewhere")


def test_the_task_of_a_prompt_file_chooses_its_metrics_and_the_command_line_has_the_last_word(composed):
    assert set(composed("model=sd", "task=prompts").eval) == {"prompts"}
    assert set(composed("task=prompts", "model=sd15").eval) == {"prompts"}
    assert set(composed("model=sd", "task=prompts", "eval=[prompts,token_attack]").eval) == {
        "prompts",
        "token_attack",
    }
    assert "token_attack" in composed("eval=[attacks]").eval
    assert set(composed("model=sd").eval) == {"canvas", "clip_score", "lookalike", "distances"}


def test_no_logger_is_a_list_and_no_measure_is_refused(composed):
    assert config.Parts(composed("logger=[]"))["logger"] == {}
    assert config.Parts(composed("eval=[]", "stages=[unlearn]"))["eval"] == {}
    for words in (["eval=[]"], ["eval=[forget]", "~eval.forget"]):
        with pytest.raises(ValueError, match=r"^eval: got no measure, want some .*, or stages=\[unlearn\]$"):
            config.Parts(composed(*words))
