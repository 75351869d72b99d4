import inspect
from collections.abc import Mapping

import pytest
from conftest import CONF
from hydra.errors import ConfigCompositionException
from hydra.utils import get_class, get_method
from omegaconf import OmegaConf

from muwa import config

GIVEN = {"fixed": ["layer_search.layer=visual.proj", "layer_search.step=1"]}
FILES = sorted(path.relative_to(CONF).with_suffix("") for path in CONF.glob("**/*.yaml") if path.parent != CONF)


def choice(file):
    """The override that picks a file of conf/."""
    group, name = file.parent.as_posix(), file.name
    return f"{group}=[{name}]" if group in ("eval", "logger") else f"{group}={name}"


@pytest.mark.parametrize("file", FILES, ids=str)
def test_every_file_of_conf_composes_and_builds(composed, file):
    overrides = [choice(file), *GIVEN.get(file.name, [])]
    cfg = composed(*overrides, hydra=True)
    if file.parts[0] == "hydra":
        assert get_class(cfg.hydra.launcher._target_).__name__ == "SlurmLauncher"
    parts = config.build(composed(*overrides))
    assert set(parts) == set(config.PARTS)


@pytest.mark.parametrize("file", FILES, ids=str)
def test_every_file_says_what_it_is_and_what_to_type(file):
    head = [line for line in (CONF / f"{file}.yaml").read_text().splitlines() if not line.startswith("# @")][0]
    assert head.startswith(f"# {file.parent.as_posix()}="), head
    assert file.name in head


def nodes(cfg):
    """Every node of a config that names a function, with its key."""
    for key, node in cfg.items():
        if isinstance(node, Mapping):
            if "_target_" in node:
                yield key, node
            yield from nodes(node)


AGREEING = [
    file
    for file in FILES
    if file.parts[0] not in ("hydra", "experiment", "model") and file.name not in ("laion_celeba", "unlearncanvas")
]


@pytest.mark.parametrize("file", AGREEING, ids=str)
def test_a_default_in_a_signature_is_the_one_in_the_yaml(composed, file):
    cfg = OmegaConf.to_container(composed(choice(file), *GIVEN.get(file.name, [])), resolve=True)
    for key, node in nodes({group: cfg[group] for group in (*config.PARTS, "layer_search")}):
        signature = inspect.signature(get_method(node["_target_"])).parameters
        for name, parameter in signature.items():
            if parameter.default is inspect.Parameter.empty or name not in node or callable(parameter.default):
                continue
            if name in ("layers", "steps", "step", "relative_step", "progress") or (key, name) == ("task", "limits"):
                continue
            default = parameter.default
            default = (
                list(default)
                if isinstance(default, tuple)
                else dict(default)
                if isinstance(default, Mapping)
                else default
            )
            assert node[name] == default, f"{key}.{name}"


@pytest.mark.parametrize("file", [file for file in FILES if file.parts[0] == "experiment"], ids=str)
def test_an_experiment_has_the_last_word_over_the_file_it_changes(composed, file):
    assert composed(choice(file)).name == file.name
    assert composed(choice(file), "name=mine").name == "mine"


def test_rivals_that_fine_tune_share_their_learning_rate(composed):
    for method in ("ft", "ga", "gaft", "salun", "task_arithmetic"):
        assert composed(f"method={method}", "learning_rate=0.5").method.learning_rate == 0.5


def test_all_evidence_that_needs_no_twins_is_in_full(composed):
    every = set(composed("eval=full").eval)
    files = {path.stem for path in CONF.glob("eval/*.yaml")} - {"full", "retrain_gap"}
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
        ValueError, match=r"method: muwa.methods.slug.unlearn\(\) got an unexpected keyword argument 'rate'"
    ):
        config.build(composed("+method.rate=1"))
    with pytest.raises(
        ValueError, match=r"method.layer_search: muwa.layer_search.bisection.pareto_bisect\(\) .*'depth'"
    ):
        config.build(composed("+layer_search.depth=1"))


def test_a_missing_value_is_named(composed):
    with pytest.raises(ValueError, match="no value was given for layer_search.layer.*add layer_search.layer=VALUE"):
        config.build(composed("layer_search=fixed"))


def test_an_unknown_stage_is_named(composed):
    with pytest.raises(ValueError, match="stages: got 'train', want some of curate, unlearn, eval, report"):
        config.build(composed("stages=[train]"))


def test_the_folder_of_a_run_is_checked(tmp_path):
    with pytest.raises(ValueError, match="no .hydra/config.yaml in it; want the folder of a run"):
        config.read_run(tmp_path)
