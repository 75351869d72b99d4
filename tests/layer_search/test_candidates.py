"""Where a search by outputs starts: the front, or the best steps of a search of the CLIP."""

from dataclasses import fields, replace

import pytest
import tiny
import tiny_sd
from layer_search.examples import pipeline, pipeline_gradients, random_gradients
from records import part

from muwa.layer_search.candidates import StartingPoint, clip_search, starting_points
from muwa.layer_search.pareto import scored_layers
from muwa.layer_search.steps import ratio
from muwa.run import Run
from muwa.types.search import Layer


def points(model, gradients, task=None, **settings):
    search = part("layer_search=generation", **settings)
    scored = scored_layers(model, gradients, "tensor")
    return starting_points(search, model, gradients, task or tiny.task(), "Ada Fox", scored), scored


def test_depth_is_the_mean_of_the_layers_depths() -> None:
    layers = {name: Layer(name, "text", depth, (), ()) for name, depth in (("a", 0.25), ("b", 0.75))}
    assert StartingPoint(layers, 0.1).depth == 0.5


def test_start_ratio_takes_the_front_from_the_first_step() -> None:
    got, scored = points(pipeline(), pipeline_gradients(), start="ratio", first_step=0.3)
    assert [point.layers["text_encoder"].name for point in got] == list(scored.front)
    assert {point.first_step for point in got} == {0.3}


def test_two_encoders_are_paired_in_the_order_of_their_fronts() -> None:
    model = tiny_sd.xl()
    gradients = {encoder: random_gradients(clip) for encoder, clip in model.clips.items()}
    got, scored = points(model, gradients, start="ratio")
    first, second = scored.fronts["text_encoder"], scored.fronts["text_encoder_2"]
    names = [tuple(layer.name for layer in point.layers.values()) for point in got]
    assert names == list(zip(first, second, strict=False))
    assert scored.front == (*first, *(f"text_encoder_2/{name}" for name in second))


def test_start_clip_takes_the_layers_that_keep_most_at_the_steps_found_on_the_clip() -> None:
    got, _ = points(pipeline(), pipeline_gradients(), start="clip")
    clip, gradients = pipeline().clip, pipeline_gradients()["text_encoder"]
    found = clip_search("tensor", "text", "top1")(clip, {"": gradients}, tiny.task(), "Ada Fox", run=Run())
    best: dict[str, float] = {}
    for row in found.trace:
        if row.feasible:
            best[row.candidate.name] = max(row.kept, best.get(row.candidate.name, 0.0))
    layers = [point.layers["text_encoder"] for point in got]
    assert {layer.name for layer in layers} == set(best)
    kept = [best[layer.name] for layer in layers]
    assert kept == sorted(kept, reverse=True)
    for point, layer in zip(got, layers, strict=True):
        lambdas = [row.step for row in found.trace if row.candidate.name == layer.name and row.feasible
                   and row.kept == best[layer.name]]  # fmt: skip
        assert point.first_step == lambdas[0] / ratio(clip, gradients, layer)


def test_a_clip_search_without_a_feasible_step_falls_back_to_the_front(monkeypatch) -> None:
    infeasible = clip_search("tensor", "text", "top5")
    everyone = replace(tiny.task(), probe=replace(tiny.split(), forget=tiny.pictures(list(range(8)))))
    monkeypatch.setattr(
        "muwa.layer_search.candidates.clip_search", lambda *_: replace(infeasible, max_evals=1)
    )
    got, scored = points(pipeline(), pipeline_gradients(), everyone, start="clip", first_step=0.3)
    assert [point.layers["text_encoder"].name for point in got] == list(scored.front)
    assert {point.first_step for point in got} == {0.3}


@pytest.mark.parametrize(("names", "criterion"), [(8, "top1"), (21, "top5"), (20, "top1")])
def test_among_few_names_the_first_guess_decides(monkeypatch, names, criterion) -> None:
    asked = []

    def search(granularity, tower, criterion):
        asked.append((granularity, tower, criterion))
        return clip_search(granularity, tower, criterion)

    monkeypatch.setattr("muwa.layer_search.candidates.clip_search", search)
    forget = tiny.split().forget
    classes = replace(
        forget.classes, names=(*tiny.NAMES, *(f"Nobody {i}" for i in range(names - len(tiny.NAMES))))
    )
    probe = replace(tiny.split(), forget=replace(forget, classes=classes))
    points(pipeline(), pipeline_gradients(), replace(tiny.task(), probe=probe), start="clip")
    assert asked == [("tensor", "text", criterion)]


def test_the_clip_search_has_the_settings_of_the_paper() -> None:
    """Those that count are those of layer_search=pareto_bisect too; the towers are the encoder's.

    The rule is "constrained" with whitened gradients too, so that all layers of the front are ranked; `stranger` and
    `candidates` are for the rule "margin" alone.
    """
    got, want = clip_search("tensor", "vision", "top5"), part("layer_search=pareto_bisect")
    for field in fields(got):
        if field.name not in ("rule", "towers", "stranger", "candidates"):
            assert getattr(got, field.name) == getattr(want, field.name), field.name
    assert got.towers == ("vision",)
    assert got.acceptance(whitened=True).rule == got.acceptance(whitened=False).rule == "constrained"


def test_a_task_without_images_starts_on_the_front() -> None:
    task = replace(tiny.task(), kind="prompts")
    got, scored = points(pipeline(), pipeline_gradients(), task, start=None, first_step=0.3)
    assert [point.layers["text_encoder"].name for point in got] == list(scored.front)
    assert {point.first_step for point in got} == {0.3}
