from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
import torch

from muwa import config
from muwa.gradients.__main__ import main
from muwa.gradients.base import GradientSource, Recipe
from muwa.gradients.export import check_one_clip, from_run, recipe_of
from muwa.gradients.files import read_gradients
from muwa.gradients.mean import ClipGradients, mean_gradients, origin
from muwa.run import Run

RUN = Path("run")
RECIPE = Recipe("cosine", "contrastive", 4, 0, "fp32")


class TinyTask:
    """The task of `tiny`, on any data set."""

    def check(self, dataset):
        pass

    def __call__(self, dataset, *, progress):
        return tiny.task()


@dataclass(frozen=True)
class Other(GradientSource):
    """A source that is not the CLIP's."""


@pytest.mark.parametrize("method", ["slug", "slug_subspace", "slug_whitened"])
def test_the_recipe_of_a_run_is_that_of_its_method(method):
    record = config.part(f"method={method}", batch_size=4, precision="bf16", micro_batch_size=2)
    both = method != "slug_whitened"
    assert recipe_of(record, RUN) == Recipe("cosine", "contrastive", 4, 0, "bf16", 2, retain_gradient=both)


@pytest.mark.parametrize("method", ["salun", "razor", "slug_layers", "slug_iterative"])
def test_every_method_that_takes_mean_gradients_can_export_them(method):
    assert recipe_of(config.part(f"method={method}", batch_size=4), RUN) == RECIPE


@pytest.mark.parametrize("method", ["ga", "ssd", "nullspace", "uce"])
def test_a_method_that_takes_none_says_so(method):
    with pytest.raises(ValueError, match="takes no mean gradients to export"):
        recipe_of(config.part(f"method={method}"), RUN)


def test_a_method_without_gradients_of_a_clip_has_nothing_to_export():
    answer = config.part("method=slug", gradients=config.part("gradient_source=answer"))
    with pytest.raises(
        ValueError,
        match="run: its gradients are AnswerGradients, want a run of gradient_source=clip to export",
    ):
        recipe_of(answer, RUN)
    with pytest.raises(
        ValueError, match=r"run: its method \(SimpleNamespace\) takes no mean gradients to export"
    ):
        recipe_of(SimpleNamespace(forget_loss="cosine"), RUN)
    with pytest.raises(ValueError, match="run: its gradients are Other"):
        recipe_of(SimpleNamespace(recipe=RECIPE, gradients=Other()), RUN)


def test_a_file_is_for_a_model_with_one_clip():
    check_one_clip(SimpleNamespace(clips={"text_encoder": None}), RUN)
    with pytest.raises(ValueError, match=r"run: its model has 2 encoders \(a, b\), want one: a file holds"):
        check_one_clip(SimpleNamespace(clips={"a": None, "b": None}), RUN)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A finished run on the tiny model, its cache still empty."""

    method = SimpleNamespace(recipe=RECIPE, gradients=ClipGradients())
    parts = {
        "model": tiny.clip,
        "dataset": lambda: SimpleNamespace(prepare=lambda check: check(None)),
        "task": TinyTask(),
        "method": method,
    }
    cfg = SimpleNamespace(patches=[], paths=SimpleNamespace(cache=str(tmp_path / "cache")))
    monkeypatch.setattr(config, "read_run", lambda folder, **allowed: cfg)
    monkeypatch.setattr(config, "build", lambda cfg: parts)
    return RUN


def test_an_exported_file_holds_the_gradients_of_the_run(run, tmp_path, capsys):
    file = tmp_path / "g.safetensors"
    assert main(["export", str(run), str(file)]) == 0
    assert f"{file}: " in capsys.readouterr().out
    model, task = tiny.clip(), tiny.task()
    got = read_gradients(file, origin(model, task, tiny.NAMES[0], RECIPE))
    want = mean_gradients(model, task, tiny.NAMES[0], RECIPE, Run())
    assert all(torch.equal(got.forget[name], g) for name, g in want.forget.items())
    assert all(torch.equal(got.retain[name], g) for name, g in want.retain.items())


def test_a_name_that_the_run_did_not_forget_is_an_error_of_one_line(run, tmp_path, capsys):
    with pytest.raises(ValueError, match="run: --concept is 'Bo Hill', want one of Ada Fox"):
        from_run(run, "Bo Hill", trusted=(), commands=False)
    assert main(["export", str(run), str(tmp_path / "g"), "--concept", "Bo Hill"]) == 2
    assert capsys.readouterr().err == "muwa.gradients: run: --concept is 'Bo Hill', want one of Ada Fox\n"
    assert not (tmp_path / "g").exists()


def test_the_gradients_of_a_real_run_come_out_of_its_cache(default_run, tmp_path):
    folder, _ = default_run
    entries = sorted((folder.parents[2] / "cache").glob("gradients/*/*/value.json"))
    file = tmp_path / "g.safetensors"
    assert main(["export", str(folder), str(file)]) == 0
    gradients = read_gradients(file, None)
    cfg = config.read_run(folder, trusted=(), commands=False)
    assert gradients.origin["losses"] == f"{cfg.method.forget_loss}/{cfg.method.retain_loss}"
    assert gradients.forget.keys() == config.build(cfg)["model"]().weights.keys()
    assert gradients.retain == {}  # the default's search needs none
    assert (
        sorted((folder.parents[2] / "cache").glob("gradients/*/*/value.json")) == entries
    )  # nothing was computed
