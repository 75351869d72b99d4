from dataclasses import replace

import numpy as np
import tiny
import tiny_sd
from layer_search.examples import random_gradients, whitened_gradients

from muwa.layer_search.gains import layer_gains
from muwa.layer_search.pareto import pareto, scored_layers
from muwa.layer_search.scores import layer_scores
from muwa.models.clip.layers import matrices
from muwa.types.search import LayerScore


def score(importance: float, alignment: float, tower: str = "vision") -> LayerScore:
    return LayerScore(importance, alignment, alignment, 1, 1, 1, tower)


def test_worked_by_hand():
    scores = {"a": score(3, 0.9), "b": score(2, 0.5), "c": score(1, 0.6), "d": score(0.5, 0.1)}
    assert pareto(scores, "vision") == ["a", "b", "d"]  # c is beaten by b: more important and less aligned


def test_ties_stay():
    scores = {
        "a": score(2, 0.5),
        "b": score(2, 0.5),
        "same importance": score(2, 0.9),
        "same alignment": score(1, 0.5),
    }
    assert set(pareto(scores, "vision")) == set(scores)


def test_each_tower_has_its_own_front_and_zero_importance_is_never_on_it():
    scores = {"v": score(1, 0.9), "t": score(9, 0.1, "text"), "dead": score(0, 0.0)}
    assert pareto(scores, "vision") == ["v"]
    assert pareto(scores, "text") == ["t"]
    assert pareto({}, "text") == []


def test_without_a_retain_gradient_the_front_is_empty():
    gradients = random_gradients(tiny.clip()).without_retain()
    scored = scored_layers(tiny.clip(), {"": gradients}, "tensor")
    assert scored.front == ()
    assert all(score.importance > 0 and score.alignment is None for score in scored.scores.values())


def test_equals_the_releases_all_pairs_rule():
    rng = np.random.default_rng(0)
    for _ in range(50):
        rows = {str(i): score(*(rng.integers(1, 6, 2) / 5)) for i in range(20)}
        naive = {
            a
            for a, x in rows.items()
            if not any(y.importance > x.importance and y.alignment < x.alignment for y in rows.values())
        }
        assert set(pareto(rows, "vision")) == naive


def test_a_model_is_scored_encoder_by_encoder():
    model = tiny_sd.xl()
    gradients = {encoder: random_gradients(clip) for encoder, clip in model.clips.items()}
    scored = scored_layers(model, gradients, "tensor")
    want, front = {}, []
    for encoder, clip in model.clips.items():
        of_encoder = gradients[encoder]
        scores = layer_scores(clip.weights, of_encoder.forget, of_encoder.retain, clip.layers("tensor"))
        prefix = "" if encoder == "text_encoder" else "text_encoder_2/"
        want |= {prefix + name: score for name, score in scores.items()}
        front += [prefix + name for name in pareto(scores, "text")]
        assert scored.layers[encoder] == {layer.name: layer for layer in clip.layers("tensor")}
    assert scored.scores == want
    assert scored.front == tuple(front)


def test_the_front_goes_tower_by_tower_in_the_order_given():
    gradients = {"": random_gradients(tiny.clip())}
    both = scored_layers(tiny.clip(), gradients, "qkv")
    backwards = scored_layers(tiny.clip(), gradients, "qkv", ["text", "vision"])
    vision, text = pareto(both.scores, "vision"), pareto(both.scores, "text")
    assert both.front == (*vision, *text)
    assert backwards.front == (*text, *vision)
    assert scored_layers(tiny.clip(), gradients, "qkv", ["text"]).front == tuple(text)


def test_whitened_gradients_give_each_matrix_a_gain_and_leave_slugs_scores_and_front():
    clip = tiny.clip()
    plain = random_gradients(clip)
    other = whitened_gradients(clip)
    before, after = (scored_layers(clip, {"": one}, "tensor") for one in (plain, other))
    gains = layer_gains(clip.weights, other.forget, other.whitened, clip.layers("tensor"))
    assert set(gains) == set(matrices(clip.weights))
    assert {name for name, score in after.scores.items() if score.gain is None} == set(before.scores) - set(
        gains
    )
    assert all(score.gain == gains[name] for name, score in after.scores.items() if name in gains)
    assert all(score.gain is None for score in before.scores.values())
    assert {name: replace(score, gain=None) for name, score in after.scores.items()} == before.scores
    assert after.front == before.front


def test_by_gain_takes_the_largest_first_of_the_towers_asked_for():
    clip = tiny.clip()
    scored = scored_layers(clip, {"": whitened_gradients(clip)}, "tensor")
    for towers in (["vision"], ["text"], ["text", "vision"]):
        want = [
            (score.gain, name)
            for name, score in scored.scores.items()
            if score.gain and score.tower in towers
        ]
        assert [layer.name for layer in scored.by_gain("", towers)] == [
            name for _, name in sorted(want, reverse=True)
        ]
    assert len(scored.by_gain("", ["vision", "text"])) == len(matrices(clip.weights))
    some = {
        name: replace(score, gain=0.0 if "mlp" in name else score.gain)
        for name, score in scored.scores.items()
    }
    assert not [
        layer for layer in replace(scored, scores=some).by_gain("", ["vision"]) if "mlp" in layer.name
    ]
    assert scored_layers(clip, {"": random_gradients(clip)}, "tensor").by_gain("", ["vision"]) == []


def test_the_gains_of_a_second_encoder_are_its_own():
    model = tiny_sd.xl()
    gradients = {encoder: whitened_gradients(clip) for encoder, clip in model.clips.items()}
    scored = scored_layers(model, gradients, "tensor")
    for encoder, prefix in (("text_encoder", ""), ("text_encoder_2", "text_encoder_2/")):
        layers = scored.by_gain(encoder, ["text"])
        gains = [scored.scores[prefix + layer.name].gain for layer in layers]
        assert len(gains) >= 9
        assert gains == sorted(gains, reverse=True)
