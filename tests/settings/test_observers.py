"""Measures that do not fit the model are refused from the config, as they would be on the loaded model."""

import pytest
import yaml
from conftest import CONF
from hydra.utils import get_object

from muwa import config
from muwa.settings.observers import check_measures
from muwa.settings.source_signatures import class_value, returned_class

MEASURES = {
    f"{path.stem}.{key}": node["_target_"]
    for path in sorted((CONF / "eval").glob("*.yaml"))
    for key, node in yaml.safe_load(path.read_text()).items()
    if isinstance(node, dict) and "_target_" in node
}
MODELS = ("clip", "clip_hf", "sd", "vlm")


def name_of(kind):
    return f"{kind.__module__}.{kind.__qualname__}"


@pytest.mark.parametrize("target", sorted({*MEASURES.values()}))
def test_what_the_source_says_of_a_measure_is_what_its_class_says(target):
    kind = get_object(target)
    assert class_value(target, "observes") == name_of(kind.observes)
    assert (class_value(target, "reads_prompts") is True) == kind.reads_prompts
    assert class_value(name_of(kind.observes), "family") == kind.observes.family


@pytest.mark.parametrize("model", MODELS)
def test_what_the_source_says_of_a_model_is_what_its_class_says(model):
    target = yaml.safe_load((CONF / f"model/{model}.yaml").read_text())["_target_"]
    assert class_value(returned_class(target), "observer") == name_of(
        get_object(returned_class(target)).observer
    )


def test_the_kinds_of_a_task_are_read_too():
    assert class_value("muwa.data.prompt_task.ForgetPrompts", "kinds") == ("prompts",)
    assert class_value("muwa.data.tasks.ForgetObjects", "kinds") == ("object",)
    assert class_value("muwa.data.tasks.ForgetObjects", "nothing") is None
    assert class_value("nowhere.Nothing", "kinds") is returned_class("nowhere.Nothing") is None


VLM, CLIP, SD = "a vision-language model", "a CLIP", "a text-to-image model"


@pytest.mark.parametrize(("words", "said"), [
    (["model=vlm", "eval=[canvas]"], f"eval.canvas: the model is {VLM}.*want {SD} .*fit: eval=.answer_attacks,answers,ben"),
    (["model=vlm", "eval=[answers,forget]"], f"eval.forget: the model is {VLM}.*want {CLIP}.*answers"),
    (["eval=[quality]"], rf"eval.clip_score: the model is {CLIP}.*want {SD}.*fit: eval=.*forget,.*retain"),
    (["task=prompts"], rf"task=prompts: the model is {CLIP} \(model=clip, .*, want {SD} \(model=sd, sd15, sdxl"),
    (["model=sd", "task=prompts", "eval=[canvas]"],
     r"eval.canvas: task=prompts has no images.*fit: eval=.prompts,token_attack.*leave it out: ~eval.canvas"),
])  # fmt: skip
def test_what_does_not_fit_is_said_with_what_fits(words, said, composed):
    with pytest.raises(ValueError, match=f"^{said}"):
        config.Parts(composed(*words))


METHODS = {
    f"{path.parent.name}={path.stem}": node["_target_"]
    for group in ("method", "gradient_source", "layer_search")
    for path in sorted((CONF / group).glob("*.yaml"))
    if "_target_" in (node := yaml.safe_load(path.read_text()))
}


@pytest.mark.parametrize("target", sorted({*METHODS.values()}))
def test_what_the_source_says_of_a_method_is_what_its_class_says(target):
    kind = get_object(target)
    assert class_value(target, "observes") == (kind.observes and name_of(kind.observes))


ALL = "slug, slug_subspace, slug_whitened"
OTHERS = "ft, ga, gaft, lip, nullspace, razor, salun"


@pytest.mark.parametrize(("words", "said"), [
    (["model=vlm", "method=uce"], rf"method=uce: the model is {VLM} \(.*want {SD} \(.*; choices that fit: method={ALL}$"),
    (["model=sd", "method=ga"],
     rf"method=ga: the model is {SD} \(.*want {CLIP} \(.*fit: method=concept_ablation, esd, {ALL}, uce$"),
    (["method=esd"], rf"method=esd: the model is {CLIP}.*want {SD} .*fit: method={OTHERS}, slug, slug_iterative, slug_layers, "
                     r"slug_subspace, slug_whitened, ssd, task_arithmetic$"),
    (["gradient_source=margin"], rf"gradient_source: the model is {CLIP}.*want {VLM}.*fit: gradient_source=clip$"),
    (["model=sd", "gradient_source=answer"],
     rf"gradient_source: the model is {SD}.*want {VLM}.*fit: gradient_source=clip, prompts$"),
    (["model=vlm", "layer_search=grid"],
     rf"layer_search=grid: the model is {VLM}.*want {CLIP}.*fit: layer_search=answering, answering_by_gain$"),
    (["model=sd", "layer_search=answering"],
     rf"layer_search: the model is {SD}.*want {VLM}.*fit: layer_search=generation, generation_by_gain$"),
])  # fmt: skip
def test_a_method_that_does_not_fit_is_said_with_what_fits(words, said, composed):
    with pytest.raises(ValueError, match=f"^{said}"):
        config.Parts(composed(*words))


@pytest.mark.parametrize(("words", "method"), [
    (["model=vlm", "method=uce", "stages=[eval]"], "UCE"), (["model=sd", "method=ga", "stages=[curate]"], "GA"),
    (["method=esd", "layer_search=generation", "model=sd", "gradient_source=answer"], "ESD"),  # reads no gradients
])  # fmt: skip
def test_what_is_not_used_may_be_of_another_family(words, method, composed):
    assert type(config.Parts(composed(*words))["method"]).__name__ == method


@pytest.mark.parametrize("words", [
    ["eval=full"], ["model=sd", "eval=full"], ["model=vlm", "eval=full"], ["model=sd", "task=prompts"],
    ["model=sd", "task=prompts", "eval=[prompts,token_attack]"], ["eval=[canvas]", "stages=[unlearn]"],
    *([f"model={model}"] for model in MODELS[1:]),
])  # fmt: skip
def test_what_fits_passes(words, composed):
    cfg = composed(*words, *(["model.path=x"] if words == ["model=clip_hf"] else []))
    assert {*config.Parts(cfg)["eval"]} == {*cfg.eval}


def test_the_choices_that_are_named_fit(composed):
    for model in ("clip", "sd", "vlm"):
        for words in (["eval=[quality]"], ["eval=[forget]"], ["eval=[answers]"]):
            try:
                config.Parts(composed(f"model={model}", *words))
            except ValueError as error:
                named = str(error).partition("eval=[")[2].partition("]")[0]
                assert named
                config.Parts(composed(f"model={model}", f"eval=[{named}]"))


def test_what_the_source_does_not_tell_is_passed():
    for model in ({"_target_": "elsewhere.load"}, {}, None):
        forget = {"forget": {"_target_": MEASURES["forget.forget"]}}
        assert check_measures({"model": model, "task": {}, "eval": forget}, [CONF]) is None
    clip, answers = {"_target_": "muwa.models.clip.open_clip.load"}, {"_target_": MEASURES["answers.answers"]}
    own = {"own": {"_target_": "elsewhere.Own"}, "none": None}
    assert check_measures({"model": clip, "task": {}, "eval": own}, [CONF]) is None
    with pytest.raises(
        ValueError, match=f"eval.answers: the model is {CLIP}"
    ):  # what the source tells is not passed
        check_measures({"model": clip, "task": {}, "eval": {**own, "answers": answers}}, [CONF])
