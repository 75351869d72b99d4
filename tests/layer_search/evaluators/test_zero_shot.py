import copy
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch

from muwa.cache.store import Store
from muwa.eval.measure import evaluate
from muwa.layer_search.evaluators.zero_shot import Judge
from muwa.models.clip.embeddings import Features
from muwa.types.data import Classes, Split
from muwa.types.edit import Edit
from muwa.types.search import Layer, Part


@pytest.mark.parametrize(("name", "tower"), [
    ("visual.transformer.resblocks.0.mlp.c_fc.weight", "vision"), ("visual.proj", "vision"), ("text_projection", "text"),
    ("transformer.resblocks.1.attn.in_proj_weight", "text"),
])  # fmt: skip
def test_encoding_one_tower_anew_gives_what_encoding_everything_gives(tmp_path, name, tower):
    model, probe = tiny.clip(), tiny.split()
    delta = 0.3 * torch.randn(model.weights[name].shape, generator=torch.Generator().manual_seed(0))
    edited = model.edited(Edit({name: delta}, ()))
    layer = Layer(name, tower, 0.5, (Part(name),), (Part(name),))
    judge = Judge(model, probe, Features(model), [layer])
    embeddings = judge.suffix(tower)(layer, lambda step: {name: step * delta}, 1.0)
    changed = judge(tower, embeddings(1.0))
    for one, rates in ((model, judge()), (edited, changed), (model, judge(tower, embeddings(0.0)))):
        full = evaluate(one, tiny.judged(probe), store=Store(tmp_path))
        for ours, theirs in (("forget_top1", "forget/top1"), ("forget_top5", "forget/top5"), ("forget_cosine", "forget/cosine"),
                             ("retain_top1", "retain/top1"), ("utility_top1", "utility/top1")):  # fmt: skip
            assert rates[ours] == pytest.approx(full[theirs].value, abs=1e-6), ours
    assert changed["forget_cosine"] != judge()["forget_cosine"]


def anew(network, pictures):
    """(n, names) cosines by open_clip's own methods; names embedded as the mean over templates."""
    with torch.no_grad():
        pixels = tiny.pixels(pictures.images)
        images = network.encode_image(pixels, normalize=True)
        rows = []
        for name in pictures.classes.names:
            prompts = [template.format(name) for template in pictures.classes.templates]
            rows.append(network.encode_text(tiny.tokenize(prompts), normalize=True).mean(0))
    names = torch.stack(rows)
    return (images @ (names / names.norm(dim=-1, keepdim=True)).T).numpy()


@pytest.mark.parametrize(
    ("name", "tower"), [("visual.proj", "vision"), ("transformer.resblocks.0.mlp.c_fc.weight", "text")]
)
def test_rates_are_those_of_the_edited_network_itself(name, tower):
    model = tiny.clip()
    many = Classes(tiny.NAMES, ("a photo of {}", "{}."))
    things = Classes(("cat", "dog", "pony"), ("a {}",))
    probe = Split(replace(tiny.pictures([0, 1, 2, 3, 4, 5, 6, 7]), classes=many), replace(tiny.pictures([1, 2, 3, 4, 5, 6]), classes=many),
                  replace(tiny.pictures([0, 1, 2, 1, 0]), classes=things))  # fmt: skip
    delta = 0.5 * torch.randn(model.weights[name].shape, generator=torch.Generator().manual_seed(1))
    network = copy.deepcopy(model._towers.model)
    with torch.no_grad():
        network.get_parameter(name).add_(delta)
    layer = Layer(name, tower, 0.5, (Part(name),), (Part(name),))
    judge = Judge(model, probe, Features(model), [layer])
    rates = judge(tower, judge.suffix(tower)(layer, lambda step: {name: step * delta}, 1.0)(1.0))
    for kind in ("forget", "retain", "utility"):
        pictures = getattr(probe, kind)
        cosines, labels = anew(network, pictures), np.array(pictures.labels)
        ranks = [list(np.argsort(-row)).index(label) for row, label in zip(cosines, labels, strict=True)]
        assert rates[f"{kind}_top1"] == pytest.approx(np.mean(np.array(ranks) < 1))
        if kind == "forget":
            assert rates["forget_top5"] == pytest.approx(np.mean(np.array(ranks) < 5))
            assert rates["forget_cosine"] == pytest.approx(np.mean(cosines[range(len(labels)), labels]), abs=1e-6)


@pytest.mark.parametrize("kind", [
    "retain", "utility",
    "forget",
])  # fmt: skip
def test_a_probe_without_pictures_of_a_kind_is_a_rate_of_0(kind):
    probe = replace(tiny.split(), **{kind: tiny.pictures([])})
    for layers in ([], tiny.clip().layers("tensor")):
        assert Judge(tiny.clip(), probe, Features(tiny.clip()), layers)()[f"{kind}_top1"] == 0.0
