import copy
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from layer_search.examples import layer_of, random_gradients
from records import part

from muwa.data.earlier import set_apart
from muwa.eval.measure import evaluate
from muwa.layer_search.choice import Acceptance
from muwa.layer_search.evaluators.zero_shot import (
    StepEvaluator,
    ZeroShotEvaluator,
    earlier_limit,
    stays_forgotten,
)
from muwa.layer_search.steps import edit_layers
from muwa.models.clip.embeddings import Features
from muwa.run import Run
from muwa.types.data import Classes, Split
from muwa.types.edit import Edit
from muwa.types.search import LAMBDA, NOTHING_EDITED, Layer, Part

RATES = {
    "forget_top1": "forget/top1", "forget_top5": "forget/top5", "forget_cosine": "forget/cosine",
    "retain_top1": "retain/top1", "utility_top1": "utility/top1",
}  # fmt: skip


@pytest.fixture(scope="module")
def measures():
    return part("eval=[forget,retain,utility,similarity]")


def measured(model, probe, measures):
    """The metrics of the report, on the probe images."""
    return evaluate(model.observe(Run()), tiny.judged(probe), measures)


@pytest.mark.parametrize(("name", "tower"), [
    ("visual.transformer.resblocks.0.mlp.c_fc.weight", "vision"), ("visual.proj", "vision"), ("text_projection", "text"),
    ("transformer.resblocks.1.attn.in_proj_weight", "text"),
])  # fmt: skip
def test_encoding_one_tower_anew_gives_what_encoding_everything_gives(name, tower, measures):
    model, probe = tiny.clip(), tiny.split()
    delta = 0.3 * torch.randn(model.weights[name].shape, generator=torch.Generator().manual_seed(0))
    edited = model.edited(Edit({name: delta}, ()))
    layer = Layer(name, tower, 0.5, (Part(name),), (Part(name),))
    evaluator = ZeroShotEvaluator(Features(model, Run()), probe, [layer])
    embeddings = evaluator.remaining_layers(tower)(layer, lambda step: {name: step * delta}, 1.0)
    changed = evaluator(tower, embeddings(1.0))
    for one, rates in ((model, evaluator()), (edited, changed), (model, evaluator(tower, embeddings(0.0)))):
        full = measured(one, probe, measures)
        for ours, theirs in RATES.items():
            assert rates[ours] == pytest.approx(full[theirs].value, abs=1e-6), ours
    assert changed["forget_cosine"] != evaluator()["forget_cosine"]


def anew(network, images):
    """(n, names) cosines by open_clip's own methods; names embedded as the mean over templates."""
    with torch.no_grad():
        pixels = tiny.pixels(images.images)
        features = network.encode_image(pixels, normalize=True)
        rows = []
        for name in images.classes.names:
            prompts = [template.format(name) for template in images.classes.templates]
            rows.append(network.encode_text(tiny.tokenize(prompts), normalize=True).mean(0))
    names = torch.stack(rows)
    return (features @ (names / names.norm(dim=-1, keepdim=True)).T).numpy()


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
    evaluator = ZeroShotEvaluator(Features(model, Run()), probe, [layer])
    embeddings = evaluator.remaining_layers(tower)(layer, lambda step: {name: step * delta}, 1.0)(1.0)
    rates = evaluator(tower, embeddings)
    for kind in ("forget", "retain", "utility"):
        images = getattr(probe, kind)
        cosines, labels = anew(network, images), np.array(images.labels)
        ranks = [list(np.argsort(-row)).index(label) for row, label in zip(cosines, labels, strict=True)]
        assert rates[f"{kind}_top1"] == pytest.approx(np.mean(np.array(ranks) < 1))
        if kind == "forget":
            assert rates["forget_top5"] == pytest.approx(np.mean(np.array(ranks) < 5))
            assert rates["forget_cosine"] == pytest.approx(
                np.mean(cosines[range(len(labels)), labels]), abs=1e-6
            )


@pytest.mark.parametrize("kind", ["retain", "utility", "forget"])
def test_a_probe_without_images_of_a_set_is_a_rate_of_0(kind):
    probe = replace(tiny.split(), **{kind: tiny.pictures([])})
    for layers in ([], tiny.clip().layers("tensor")):
        rates = ZeroShotEvaluator(Features(tiny.clip(), Run()), probe, layers)()
        assert rates[f"{kind}_top1"] == 0.0


@pytest.mark.parametrize("criterion", ["top1", "top5"])
def test_a_step_is_evaluated_logged_and_numbered_within_its_layer(criterion, measures):
    model, gradients, log = tiny.clip(), random_gradients(tiny.clip()), []
    probe = replace(tiny.split(), forget=tiny.pictures(list(range(8))))
    names = ("visual.proj", "text_projection")
    layers = [layer_of(model, name) for name in names]
    features = Features(model, Run(log=lambda event, fields: log.append((event, fields))))
    acceptance = Acceptance("constrained", criterion, 0.5, 1.0, 0.0)
    evaluator = StepEvaluator(features, gradients, probe, layers, concept="Ada Fox", acceptance=acceptance)
    before = evaluator.before()
    assert (before.candidate, before.iteration, before.step, before.relative_norm) == (
        NOTHING_EDITED,
        0,
        0.0,
        0.0,
    )
    rows = [evaluator(layer, step) for layer in layers for step in (0.1, 0.3)]
    assert evaluator.trace == rows
    assert [(row.candidate.name, row.iteration, row.step) for row in rows] == [
        (name, i, step) for name in names for i, step in ((1, 0.1), (2, 0.3))
    ]
    assert log == [("evaluation", {"concept": "Ada Fox", **row.record()}) for row in rows]
    for row, layer in zip(rows, (layer for layer in layers for _ in range(2)), strict=True):
        edit = edit_layers(model, {"": gradients}, {"": layer}, row.step, unit=LAMBDA, concept="Ada Fox")
        full = measured(model.edited(edit), probe, measures)
        assert row.relative_norm == edit.moves[0].relative_norm
        assert row.forgotten == pytest.approx(full[f"forget/{criterion}"].value)
        assert row.feasible == (row.forgotten <= 0.5)
        retain, utility = full["retain/top1"].value, full["utility/top1"].value
        assert row.kept == pytest.approx((retain + utility) / 2)
        assert row.kept_error == pytest.approx(
            0.5 * (retain * (1 - retain) / 7 + utility * (1 - utility) / 3) ** 0.5, abs=1e-9
        )
        assert row.closeness == pytest.approx(full["forget/cosine"].value, abs=1e-6)


def whitened_search(model, probe, acceptance, layer, steps):
    """(the evaluation before, those of some steps) by an acceptance, with random gradients."""
    gradients = random_gradients(model)
    evaluator = StepEvaluator(
        Features(model, Run()), gradients, probe, [layer], concept="Ada Fox", acceptance=acceptance
    )
    return evaluator.before(), [evaluator(layer, step) for step in steps], gradients


@pytest.mark.parametrize("name", ["visual.proj", "text_projection"])
def test_margins_are_measured_by_the_rule_margin_on_the_edited_network(name):
    """Against cosines by open_clip's own methods, before and after."""
    model, probe = tiny.clip(), tiny.split()
    layer = layer_of(model, name)
    acceptance = Acceptance("margin", "top5", 0.0, 1.0, 0.5)
    before, (row,), gradients = whitened_search(model, probe, acceptance, layer, [0.05])
    network = copy.deepcopy(model._towers.model)
    first = [anew(network, images) for images in (probe.forget, probe.retain, probe.utility)]
    with torch.no_grad():
        network.get_parameter(name).add_(0.05 * gradients.forget[name])
    then = [anew(network, images) for images in (probe.forget, probe.retain, probe.utility)]
    strangers = first[1][:, 0]  # others' images with the name to forget
    limit = strangers.mean() + 0.5 * strangers.std(ddof=1)
    for one, cosines in ((before, first), (row, then)):
        assert one.forget_bounds == pytest.approx({"Ada Fox": cosines[0][:, 0].mean() - limit}, abs=1e-6)

    def margins(cosines, images):
        own = cosines[range(len(images)), images.labels]
        others = cosines.copy()
        others[range(len(images)), images.labels] = -2
        return own - others.max(1)

    falls = [np.minimum(0, margins(then[i], images) - margins(first[i], images)).mean()
             for i, images in ((1, probe.retain), (2, probe.utility))]  # fmt: skip
    assert before.kept_margin == 0
    assert row.kept_margin == pytest.approx(np.mean(falls), abs=1e-6)
    assert row.kept_margin < 0


def test_a_clear_step_is_feasible_and_one_that_only_just_forgets_is_not():
    """No step takes the images 50 deviations below strangers', and none leaves them 50 above."""
    model, layer = tiny.clip(), layer_of(tiny.clip(), "visual.proj")
    everyone = replace(tiny.split(), forget=tiny.pictures([4, 4]))
    for target, stranger in ((0.0, -50.0), (0.0, 50.0), (0.25, -50.0)):
        acceptance = Acceptance("margin", "top1", target, 1.0, stranger)
        _, rows, _ = whitened_search(model, everyone, acceptance, layer, [0.1, 0.3, 1.0])
        for row in rows:
            assert row.feasible == (row.forgotten <= target and (target > 0 or stranger > 0))
            assert all((bound <= 0) == (stranger > 0) for bound in row.forget_bounds.values())
        assert any(row.forgotten <= target for row in rows)


@pytest.mark.parametrize("rule", ["constrained", "paper", "deepest"])
def test_other_rules_measure_no_margins(rule):
    layer = layer_of(tiny.clip(), "visual.proj")
    acceptance = Acceptance(rule, "top5", 0.0, 1.0, -50.0)
    before, (row,), _ = whitened_search(tiny.clip(), tiny.split(), acceptance, layer, [0.3])
    assert (before.kept_margin, before.forget_bounds) == (row.kept_margin, row.forget_bounds) == (None, {})
    assert row.feasible == (row.forgotten <= 0)
    assert "kept_margin" not in row.record()


def test_earlier_names_have_a_rate_and_must_not_come_back():
    model = tiny.clip()
    task = set_apart(tiny.task(), tiny.NAMES[1:4], (1, 2, 3, 9, 10, 11))
    name = "text_projection"
    layer = Layer(name, "text", 0.5, (Part(name),), (Part(name),))
    acceptance = Acceptance("constrained", "top1", 0.9, 1.0, 0.5)
    features = Features(model, Run())

    def evaluator(probe):
        gradients = random_gradients(model)
        return StepEvaluator(features, gradients, probe, [layer], concept="x", acceptance=acceptance)

    before = evaluator(task.probe).before()
    hits = []
    for images in task.probe.earlier:
        logits = features.images(images) @ features.classes(images.classes).T
        hits += (logits.argmax(1) == torch.tensor(images.labels)).tolist()
    assert before.metrics["earlier_top1"] == pytest.approx(sum(hits) / len(hits))
    assert before.metrics["earlier_top1"] <= before.metrics["earlier_top5"]
    assert "earlier_top1" not in evaluator(tiny.split()).before().metrics
    limit = earlier_limit({"earlier_top1": 0.25}, replace(acceptance, target=0.0))
    assert limit == ("earlier_top1", 0.25)  # no more than before
    assert stays_forgotten({"earlier_top1": 0.25}, limit)
    assert not stays_forgotten({"earlier_top1": 0.26}, limit)
    assert earlier_limit({"earlier_top1": 0.25}, acceptance) == ("earlier_top1", 0.9)
    assert stays_forgotten({}, None)


def test_a_step_that_brings_an_earlier_name_back_is_not_feasible():
    model = tiny.clip()
    task = set_apart(tiny.task(), tiny.NAMES[1:4], (1, 2, 3, 9, 10, 11))
    name = "text_projection"
    layer = Layer(name, "text", 0.5, (Part(name),), (Part(name),))
    seen = set()
    for target in (0.0, 1 - 1e-9):
        acceptance = Acceptance("constrained", "top1", target, 1.0, 0.5)
        evaluator = StepEvaluator(
            Features(model, Run()),
            random_gradients(model),
            task.probe,
            [layer],
            concept="x",
            acceptance=acceptance,
        )
        most = max(target, evaluator.before().metrics["earlier_top1"])
        for step in (-3.0, -1.0, 0.5, 1.0, 3.0):
            row = evaluator(layer, step * evaluator.ratio(layer))
            stays = row.metrics["earlier_top1"] <= most
            seen.add(stays)
            assert row.feasible == (row.forgotten <= target and stays)
    assert seen == {True, False}
