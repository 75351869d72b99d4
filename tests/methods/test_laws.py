"""Laws that every method obeys, found in muwa/conf/method: what it leaves alone, what it repeats, what it refuses.

A new method needs an entry in `CASES`, and one in `OUT_OF_RANGE` or `ANY_VALUE` for each new name of a setting.
"""

import functools
import re
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_sd
import tiny_vlm
from conftest import CONF
from hydra.utils import get_class
from omegaconf import OmegaConf
from records import part
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.modules.module import register_module_forward_pre_hook

from muwa.cache.store import Store
from muwa.methods.base import make_edit
from muwa.models.clip.embeddings import Features
from muwa.models.diffusion.image_generation import ImageGenerator
from muwa.patch.__main__ import main
from muwa.patch.apply import Patch, apply_patch, read_patch, remove_patch, write_patch
from muwa.run import Run
from muwa.types.data import Split, Task
from muwa.types.edit import Edit

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # of the tiny pipeline's scheduler
METHODS = sorted(
    path.stem for path in (Path(__file__).parents[2] / "muwa" / "conf" / "method").glob("*.yaml")
)

FAMILIES = {"clip": tiny.clip, "diffusion": tiny_sd.diffusion, "vlm": tiny_vlm.vlm}


@functools.cache
def model_of(family: str) -> Any:
    """The tiny model of a family, made once."""
    return FAMILIES[family]()


def undecodable_retain_pair(task: Task) -> Task:
    """The gradient of the forget pairs can be taken, that of the retain pairs cannot."""
    images = (*task.retain.images[:-1], b"no image")
    return replace(task, retain=replace(task.retain, images=images))


def undecodable_probe_image(task: Task) -> Task:
    """What is computed before the first evaluation can be, the evaluation cannot."""
    utility = replace(task.probe.utility, images=(*task.probe.utility.images[:-1], b"no image"))
    return replace(task, probe=Split(task.probe.forget, task.probe.retain, utility))


def full_disk(event: str, row: object) -> None:
    """A log on a disk without space."""
    with open("/dev/full", "w") as file:
        file.write(event)


@dataclass(frozen=True)
class Case:
    """How a method is tried: small, with an edit as its result; and how it is made to fail after it has begun.

    Args:
        settings: Of the method, beside the defaults of its YAML.
        others: Families that it cannot edit with these settings.
        failing: Settings with which it fails.
        failing_task, failing_run: A task or a run with which it fails.
        error: What it says then.
        zero: Settings with which its edit changes nothing.
    """

    settings: Mapping[str, Any]
    others: tuple[str, ...] = ("diffusion", "vlm")
    failing: Mapping[str, Any] = field(default_factory=dict)
    failing_task: Callable[[Task], Task] | None = None
    failing_run: Run = field(default_factory=Run)
    error: str = "cannot identify image file"
    zero: Mapping[str, Any] | None = None

    @property
    def family(self) -> str:
        """The family that it is tried on."""
        return "diffusion" if "clip" in self.others else "clip"

    @property
    def model(self) -> Any:
        """The tiny model of that family."""
        return model_of(self.family)


def tuned(**settings: Any) -> Case:
    """A method that goes down a loss: its loss is not finite at a huge learning rate."""
    steps = {name: 3 for name in ("epochs", "iterations") if name in settings}
    return Case(
        settings,
        failing={"learning_rate": 1e30, **steps},
        error="method.learning_rate: the loss is (nan|inf|-inf) at step",
    )


SEARCH = part("layer_search=grid", layers=["visual.proj"], relative_steps=[0.1], rule="paper")
NO_STEP = part("layer_search=fixed", layer="visual.proj", relative_step=0.0, rule="paper")
TRAINING = {"epochs": 1, "learning_rate": 1e-3, "batch_size": 4, "rule": "first"}
RETAIN = {"failing_task": undecodable_retain_pair}
PROBE = {"failing_task": undecodable_probe_image}
UNET = {"others": ("clip", "vlm")}
CASES = {
    "slug": Case({"layer_search": SEARCH, "batch_size": 4}, **RETAIN, zero={"layer_search": NO_STEP}),
    "slug_subspace": Case(
        {"layer_search": SEARCH, "batch_size": 4}, **RETAIN, zero={"layer_search": NO_STEP}
    ),
    "slug_whitened": Case(
        {"layer_search": SEARCH, "batch_size": 4}, **RETAIN, zero={"layer_search": NO_STEP}
    ),
    "slug_layers": Case({"k": 2, "max_evals": 2, "rule": "first", "batch_size": 4}, **RETAIN),
    "slug_iterative": Case({"layer_search": SEARCH, "rounds": 2, "rule": "first", "batch_size": 4}, **RETAIN),
    "ft": tuned(**TRAINING),
    "ga": tuned(**TRAINING),
    "gaft": tuned(**TRAINING),
    "salun": tuned(**TRAINING),
    "task_arithmetic": tuned(**TRAINING, scales=[0.5]),
    "ssd": Case({"batch_size": 4, "strengths": [0.5], "rule": "first"}, **RETAIN),
    "razor": Case({"rounds": 1, "max_evals": 2, "batch_size": 4, "rule": "first"}, **RETAIN),
    "nullspace": Case({"strengths": [1.0], "rule": "first"}, **PROBE),
    "lip": Case(
        {
            "pictures": 2,
            "dream_steps": 2,
            "noise": [0.1],
            "copies": 2,
            "layers": 3,
            "epochs": 1,
            "rule": "first",
        },
        **PROBE,
    ),
    "uce": Case({}, **UNET, failing_run=Run(log=full_disk), error="No space left on device"),
    "esd": replace(tuned(iterations=2, batch_size=2, sampling_steps=3), **UNET),
    "concept_ablation": replace(tuned(iterations=2, batch_size=2, pictures=3), **UNET),
}

ANY_VALUE = {"jointly", "seed"}  # settings without a range
# Setting -> a value out of its range for every method that has it, and what the refusal says if not "method.<setting>".
OUT_OF_RANGE = {
    "alpha": (-1.0,),
    "anchor": ("Ada Fox",),
    "batch_size": (0,),
    "confidence": (1.0,),
    "copies": (0,),
    "criterion": ("top3",),
    "damping": (0.0,),
    "dream_steps": (0,),
    "energy": (1.0,),
    "epochs": (0,),
    "erase_scale": (0.0,),
    "eta": (-1.0,),
    "evals_per_epoch": (0,),
    "first_step": (0.0,),
    "forget_loss": ("l2", "loss: got 'l2'"),
    "forget_weight": (0.0,),
    "gradients": (part("gradient_source=answer"), "method.gradients|gradient_source"),
    "granularity": ("block",),
    "input_power": (2.0,),
    "iterations": (0,),
    "k": (0,),
    "lamb": (0.0,),
    "layer_search": (part("layer_search=grid", towers=[], relative_steps=[0.1]), "layer_search.towers"),
    "layers": (0,),
    "learning_rate": (0.0,),
    "max_evals": (0,),
    "micro_batch_size": (0,),
    "mismatch_weight": (-1.0,),
    "noise": ([],),
    "output_damping": (0.0,),
    "output_power": (-1.0,),
    "patience": (-1,),
    "pick": ("largest",),
    "pictures": (0,),
    "precision": ("fp16",),
    "preserve_scale": (-1.0,),
    "prior_weight": (-1.0,),
    "rank": (0,),
    "retain_loss": ("l2", "loss: got 'l2'"),
    "rounds": (0,),
    "rule": ("paper",),
    "sampling_steps": (0,),
    "scales": ([0.0],),
    "share": (0.0,),
    "start_guidance": (0.5,),
    "step": (0.0,),
    "strengths": ([-1.0],),
    "subspace": ("inputs",),
    "target": (1.0,),
    "templates": (["a person"],),
    "threshold": (1.5,),
    "variant": ("y",),
    "weight_decay": (-1.0,),
    "weights": ("some",),
}


def method(name: str, **changed: Any) -> Any:
    return part(f"method={name}", **{**CASES[name].settings, **changed})


def make(name: str) -> Edit:
    """The edit of a method."""
    return make_edit(method(name), CASES[name].model, tiny.task(), Run())


made = functools.cache(make)


def raw(tensor: Tensor) -> bytes:
    return tensor.detach().numpy().tobytes()


def bits(model: Any) -> dict[str, bytes]:
    """Every weight of a model, by name."""
    found = {f"{encoder}/{n}": w for encoder, clip in model.clips.items() for n, w in clip.weights.items()}
    if model.observer is ImageGenerator:
        for component in ("unet", "text_encoder", "vae"):
            found |= {f"{component}/{n}": w for n, w in model.weights(component).items()}
    return {key: raw(weight) for key, weight in found.items()}


@contextmanager
def counted():
    """Yields a list that gets an entry for every forward of any module, in any model."""
    forwards: list[int] = []
    handle = register_module_forward_pre_hook(lambda module, inputs: forwards.append(1))
    try:
        yield forwards
    finally:
        handle.remove()


def test_every_method_of_the_config_is_tried():
    assert len(METHODS) >= 16
    assert set(METHODS) == set(CASES)
    settings = {one.name for name in METHODS for one in fields(part(f"method={name}"))}
    assert settings == ANY_VALUE | set(OUT_OF_RANGE)


@pytest.mark.parametrize("name", METHODS)
def test_the_model_keeps_its_bits(name):
    model = CASES[name].model
    before = bits(model)
    assert len(before) > 40
    assert make(name).deltas
    assert bits(model) == before


@pytest.mark.parametrize("name", METHODS)
def test_the_model_keeps_its_bits_when_the_method_fails_midway(name):
    case = CASES[name]
    task = case.failing_task(tiny.task()) if case.failing_task else tiny.task()
    before = bits(case.model)
    with counted() as forwards, pytest.raises((ValueError, OSError), match=case.error):
        make_edit(method(name, **case.failing), case.model, task, case.failing_run)
    assert forwards  # it had begun
    assert bits(case.model) == before


@pytest.mark.parametrize("name", METHODS)
def test_the_same_inputs_give_the_same_bytes(name, tmp_path):
    """Also on another copy of the model, and with a cache."""
    once, copy = made(name), FAMILIES[CASES[name].family]()
    again = make_edit(method(name), copy, tiny.task(), Run(Store(tmp_path)))
    assert list(again.deltas) == list(once.deltas)
    assert again.moves == once.moves
    assert again.samples == once.samples
    for key, delta in once.deltas.items():
        assert raw(again.deltas[key]) == raw(delta), key


@pytest.mark.parametrize("name", METHODS)
def test_a_step_of_zero_is_the_identity(name):
    model, edit = CASES[name].model, made(name)
    still = replace(edit, deltas={key: 0 * delta for key, delta in edit.deltas.items()})
    assert bits(model.edited(still)) == bits(model)
    assert bits(model.edited(edit)) != bits(model)


@pytest.mark.parametrize("name", [name for name in METHODS if name in CASES and CASES[name].zero])
def test_a_setting_of_zero_is_the_identity(name):
    case = CASES[name]
    edit = make_edit(method(name, **case.zero), case.model, tiny.task(), Run())
    assert edit.moves
    assert bits(case.model.edited(edit)) == bits(case.model)


def refusal(name: str, model: Any, folder: Path, **changed: Any) -> tuple[str, int, int]:
    """(What `check` raises; forward passes before it; what the cache saw before it: events and files)."""
    store = Store(folder)
    with counted() as forwards, pytest.raises(ValueError) as caught:  # noqa: PT011 - the caller looks at it
        method(name, **changed).check(model, tiny.task(), Run(store))
    return str(caught.value), len(forwards), len(store.events) + len(list(folder.iterdir()))


@pytest.mark.parametrize(
    ("name", "family"), [(name, other) for name in METHODS for other in CASES[name].others]
)
def test_another_family_of_models_is_refused_before_any_compute(name, family, tmp_path):
    message, forwards, cache = refusal(name, model_of(family), tmp_path)
    assert re.search(r"got .+, want ", message)
    assert (forwards, cache) == (0, 0)


def record(name):
    """The class of a method, without composing a config."""
    return get_class(OmegaConf.load(CONF / "method" / f"{name}.yaml")["_target_"])


@pytest.mark.parametrize(
    ("name", "setting"),
    [(name, one.name) for name in METHODS for one in fields(record(name)) if one.name not in ANY_VALUE],
)
def test_a_setting_out_of_range_is_refused_before_any_compute(name, setting, tmp_path):
    value, *wanted = OUT_OF_RANGE[setting]
    message, forwards, cache = refusal(name, CASES[name].model, tmp_path, **{setting: value})
    assert re.search(wanted[0] if wanted else rf"method\.{setting}", message)
    assert (forwards, cache) == (0, 0)


def put_on_and_taken_off(patch: Patch, path: Path, model: Any, base: Any) -> tuple[Mapping, Mapping]:
    """The weights that a patch touches, after it was put on the model's weights and after it was taken off again."""
    if model.observer is Features:
        put_on = apply_patch(base.weights, patch)
        return put_on, remove_patch({**base.weights, **put_on}, patch)
    folders = [path.with_name(name) for name in ("base", "edited", "restored")]
    model.pipeline.save_pretrained(folders[0])
    assert main(["apply", str(path), str(folders[0]), "--out", str(folders[1])]) == 0
    assert main(["remove", str(path), str(folders[1]), "--out", str(folders[2])]) == 0
    files = [load_file(folder / "unet" / "diffusion_pytorch_model.safetensors") for folder in folders[1:]]
    put_on, taken_off = ({f"unet/{name}": weight for name, weight in file.items()} for file in files)
    return put_on, taken_off


@pytest.mark.parametrize("name", METHODS)
def test_an_edit_is_written_read_put_on_and_taken_off_bit_for_bit(name, tmp_path):
    model, edit, path = CASES[name].model, made(name), tmp_path / "patch.safetensors"
    base = model.patch_base(edit)
    write_patch(path, edit, base)
    patch = read_patch(path)
    assert sorted(patch.deltas) == sorted(edit.deltas)
    assert patch.moves == edit.moves
    put_on, taken_off = put_on_and_taken_off(patch, path, model, base)
    edited = model.edited(edit).patch_base(edit).weights
    for key, delta in edit.deltas.items():
        assert raw(patch.deltas[key]) == raw(delta), key
        assert raw(put_on[key]) == raw(edited[key]), key
        assert raw(taken_off[key]) == raw(base.weights[key]), key
