from dataclasses import dataclass, fields, replace

import pytest
import tiny
import torch
from methods.test_slug import two_names
from records import part

from muwa.cache.store import Store
from muwa.gradients.base import GradientSource, Recipe
from muwa.gradients.files import write_gradients
from muwa.gradients.mean import ClipGradients, mean_gradients
from muwa.gradients.whitening import WhitenedGradients, Whitening
from muwa.layer_search.base import LayerSearch
from muwa.layer_search.bisection import ParetoBisect
from muwa.methods.base import make_edit
from muwa.methods.slug_whitened import kept_margin, needed_rises
from muwa.run import Run
from muwa.runtime.distributed import Distributed
from muwa.types.search import LAMBDA, NOTHING_EDITED, Candidate, Evaluation, Search

RECIPE = Recipe("cosine", "contrastive", 4, 0, "fp32")
TWO = tiny.NAMES[:2]
FIXED = part("layer_search=fixed", layer="visual.proj", relative_step=0.02)


def whitened(**changed):
    return part("method=slug_whitened", **{"batch_size": 4, "damping": 0.1, **changed})


def bisect(**changed):
    return part("layer_search=pareto_bisect", **{"max_evals": 6, "candidates": 4, "stranger": 3.0, **changed})


FRONT = bisect(rule="constrained", max_evals=2)  # the search reads the Pareto front


def mean_cosine(model, pairs):
    with torch.no_grad():
        v = model.encode("vision", tiny.pixels(pairs.images))
        t = model.encode("text", tiny.tokenize(list(pairs.captions)))
    return (v * t).sum(-1).mean().item()


def test_one_name_is_slug_on_whitened_gradients():
    """The step is along G (C + d I)^-1 of the layer, by the source's own gradients and moments."""
    edit = make_edit(whitened(layer_search=FIXED), tiny.clip(), tiny.task(), Run())
    source = WhitenedGradients(ClipGradients(), Whitening(0.1, 0.1, 1.0, 0.0))
    found = source(tiny.clip(), tiny.task(), tiny.NAMES[0], RECIPE, Run())[""].forget["visual.proj"]
    weight = tiny.clip().weights["visual.proj"]
    torch.testing.assert_close(edit.deltas["visual.proj"], 0.02 * found * weight.norm() / found.norm())
    assert [(move.concept, move.layer) for move in edit.moves] == [(tiny.NAMES[0], "visual.proj")]


@pytest.mark.parametrize("jointly", [True, False])
def test_one_name_does_not_ask_how_names_are_joined(jointly):
    edits = [
        make_edit(whitened(layer_search=bisect(), jointly=one), tiny.clip(), tiny.task(), Run())
        for one in (True, jointly)
    ]
    assert edits[0].moves == edits[1].moves
    assert len(edits[0].searches) == 1
    assert edits[0].searches[0].rule == "margin"


def test_several_names_are_one_step_on_one_layer_that_raises_the_loss_of_each():
    model, task = tiny.clip(), two_names()
    edit = make_edit(whitened(layer_search=replace(FIXED, relative_step=0.003)), model, task, Run())
    assert list(edit.deltas) == ["visual.proj"]
    assert [move.concept for move in edit.moves] == list(TWO)
    assert len({(move.layer, move.step, move.relative_norm) for move in edit.moves}) == 1
    (search,) = edit.searches
    assert search.concept == "Ada Fox, Bo Hill"
    edited = model.edited(edit)
    falls = [mean_cosine(model, task.forget[name]) - mean_cosine(edited, task.forget[name]) for name in TWO]
    assert falls[0] == pytest.approx(falls[1], rel=0.2)  # the same rise of both losses was asked for
    assert min(falls) > 1e-4


def test_a_joint_search_evaluates_the_images_of_all_names():
    edit = make_edit(whitened(layer_search=bisect(), rounds=1), tiny.clip(), two_names(), Run())
    search = edit.searches[0]
    assert set(search.before.forget_bounds) == set(TWO)
    assert search.chosen is not None
    assert all(max(row.forget_bounds.values()) <= 0 for row in search.trace if row.feasible)


def test_not_jointly_each_name_has_its_own_search():
    task = two_names()
    edit = make_edit(whitened(layer_search=bisect(), jointly=False), tiny.clip(), task, Run())
    assert [search.concept for search in edit.searches] == list(TWO)
    assert [set(search.before.forget_bounds) for search in edit.searches] == [{TWO[0]}, {TWO[1]}]


@pytest.mark.parametrize(("settings", "samples"), [
    ({}, 12),
    ({"jointly": False}, 12),
    ({"output_power": 0.5}, 12 + 8),
    ({"output_power": 0.5, "jointly": False}, 12 + 8),
    ({"layer_search": FRONT}, 12 + 8),
    ({"layer_search": FRONT, "jointly": False}, 12 + 8),
    ({"layer_search": FRONT, "output_power": 0.5}, 12 + 8 + 8),
])  # fmt: skip
def test_samples_count_every_pass_with_gradients(settings, samples):
    """6 forget pairs per name; 12 retain pairs less 4 that mention a name, once for each use of their gradients."""
    edit = make_edit(whitened(**{"layer_search": FIXED, **settings}), tiny.clip(), two_names(), Run())
    assert edit.samples == samples


def events(run_of):
    """(edit, [the searches that were run, by their number of evaluations])."""
    log = []
    edit = run_of(Run(log=lambda event, fields: log.append(event)))
    return edit, log.count("gradients"), log.count("scores")


def test_more_rounds_take_more_searches_and_never_a_worse_step():
    task = two_names()
    kept = []
    for rounds in (1, 3):
        edit, gradients, scores = events(
            lambda run, rounds=rounds: make_edit(
                whitened(layer_search=bisect(), rounds=rounds), tiny.clip(), task, run
            )
        )
        assert gradients == scores == rounds
        assert len(edit.searches) == 1
        kept.append(kept_margin(edit.searches[0]))
    assert kept[1] >= kept[0]


def test_the_round_with_the_least_change_is_taken(monkeypatch):
    """The rises of later rounds are made up: of four directions, the edit is that of the best."""
    rises = iter([[1.5, 0.5], [0.5, 1.5], [0.2, 1.8], [1.0, 1.0]])
    found = []

    def made_up(before, search, names):
        found.append(kept_margin(search))
        return next(rises)

    monkeypatch.setattr("muwa.methods.slug_whitened.needed_rises", made_up)
    edit = make_edit(whitened(layer_search=bisect(), rounds=4), tiny.clip(), two_names(), Run())
    assert len(found) == 4
    assert found.index(max(found)) in (1, 2)  # neither the first nor the last
    assert kept_margin(edit.searches[0]) == max(found)


def test_a_search_without_margins_has_one_round():
    search = bisect(rule="constrained")
    _, gradients, scores = events(
        lambda run: make_edit(whitened(layer_search=search, rounds=4), tiny.clip(), two_names(), run)
    )
    assert (gradients, scores) == (1, 1)


def test_no_feasible_step_is_an_edit_of_nothing_with_its_search():
    edit, _, scores = events(
        lambda run: make_edit(whitened(layer_search=bisect(stranger=-99.0)), tiny.clip(), two_names(), run)
    )
    assert scores == 1
    assert (edit.deltas, edit.moves) == ({}, ())
    assert edit.searches[0].chosen is None


def chosen(before, after):
    """A search that chose a step with these bounds."""
    row = Evaluation(NOTHING_EDITED, 0, 0.0, LAMBDA, 0.0, False, 1.0, 1.0, 0.0, 0.5, {}, 0.0, before)
    step = replace(row, candidate=Candidate({"": "w"}, "vision"), kept_margin=-0.25, forget_bounds=after)
    return Search("a, b, c", "margin", "tensor", {}, (), row, (step,), 0, "")


def test_needed_rises_by_hand():
    """a fell from 0.4 to 0: all of it. b from 0.3 to -0.3: half. c from 0.1 to -0.9: a tenth, but 0.3 at least."""
    search = chosen({"a": 0.4, "b": 0.3, "c": 0.1}, {"a": 0.0, "b": -0.3, "c": -0.9})
    mean = (1 + 0.5 + 0.3) / 3
    assert needed_rises([1.0, 1.0, 1.0], search, ["a", "b", "c"]) == pytest.approx(
        [1 / mean, 0.5 / mean, 0.3 / mean]
    )
    mean = (2 + 0.5 * 0.5 + 0.3) / 3
    assert needed_rises([2.0, 0.5, 1.0], search, ["a", "b", "c"]) == pytest.approx(
        [2 / mean, 0.25 / mean, 0.3 / mean]
    )


def test_a_name_that_did_not_fall_far_enough_keeps_its_rise():
    """a is still recognised: more than all of its rise was needed. b rose. c was a stranger's before."""
    search = chosen({"a": 0.4, "b": 0.3, "c": -0.1}, {"a": 0.1, "b": 0.5, "c": -0.2})
    mean = (1 + 1 + 0.3) / 3
    assert needed_rises([1.0, 1.0, 1.0], search, ["a", "b", "c"]) == pytest.approx(
        [1 / mean, 1 / mean, 0.3 / mean]
    )


@pytest.mark.parametrize("search", [
    replace(chosen({"a": 1.0}, {"a": 0.0}), chosen=None), chosen({}, {}), chosen({"b": 1.0}, {"b": 0.0}),
])  # fmt: skip
def test_without_a_step_or_a_bound_of_every_name_nothing_is_known(search):
    assert needed_rises([1.0], search, ["a"]) is None


def test_kept_margin_is_that_of_the_chosen_step():
    assert kept_margin(chosen({}, {})) == -0.25
    assert kept_margin(replace(chosen({}, {}), chosen=None)) == -float("inf")
    search = chosen({}, {})
    assert kept_margin(replace(search, trace=(replace(search.trace[0], kept_margin=None),))) == -float("inf")


def test_a_search_on_other_gradients_is_another_search(tmp_path):
    """Read back with the same settings; searched anew on plain gradients, with other dampings and powers."""

    def searched(method):
        store = Store(tmp_path)
        make_edit(method, tiny.clip(), tiny.task(), Run(store))
        return store.events["search"]

    assert searched(whitened(layer_search=FIXED)) == "miss"
    assert searched(whitened(layer_search=FIXED)) == "hit"
    for changed in ({"damping": 0.2}, {"input_power": 0.5}, {"output_power": 0.5}):
        assert searched(whitened(layer_search=FIXED, **changed)) == "miss", changed
    assert searched(part("method=slug", layer_search=FIXED, batch_size=4)) == "miss"


def test_requests_share_gradients_and_moments(tmp_path):
    make_edit(whitened(layer_search=FRONT, output_power=0.5), tiny.clip(), tiny.task(), Run(Store(tmp_path)))
    store = Store(tmp_path)
    make_edit(
        whitened(layer_search=FRONT, output_power=0.5, damping=0.7),
        tiny.clip(),
        replace(tiny.task(), mentions=()),
        Run(store),
    )
    assert [
        store.events[stage]
        for stage in ("gradients/forget", "gradients/retain", "moments/inputs", "moments/outputs")
    ] == ["hit"] * 4


@dataclass(frozen=True)
class ReadsFront(ParetoBisect):
    """The same search, for which the retain gradient is taken."""

    def needs_retain_gradient(self, *, whitened):
        return True


@pytest.mark.parametrize("names", [1, 2])
def test_a_search_by_gain_takes_no_retain_gradient_and_finds_the_same_edit(tmp_path, names):
    task = two_names() if names == 2 else tiny.task()
    search = bisect()
    given = {field.name: getattr(search, field.name) for field in fields(search)}
    stores = [Store(tmp_path / name) for name in ("without", "with")]
    without, both = (
        make_edit(whitened(layer_search=one), tiny.clip(), task, Run(store))
        for one, store in zip((search, ReadsFront(**given)), stores, strict=True)
    )
    assert without.moves == both.moves
    assert all(torch.equal(delta, both.deltas[name]) for name, delta in without.deltas.items())
    assert both.samples - without.samples == len(task.retain_pairs())
    assert ["gradients/retain" in store.events for store in stores] == [False, True]
    (one,), (other,) = without.searches, both.searches
    assert (one.front, bool(other.front)) == ((), True)
    assert one.trace == other.trace
    unaligned = {"alignment": None, "cosine": None, "retain_norm": None}
    assert one.scores == {name: replace(score, **unaligned) for name, score in other.scores.items()}


def test_a_file_with_or_without_a_retain_gradient_gives_the_same_edit(tmp_path):
    model, task = tiny.clip(), tiny.task()
    want = make_edit(whitened(layer_search=bisect()), model, task, Run())
    found = mean_gradients(model, task, TWO[0], RECIPE, Run())
    for i, written in enumerate((found, found.without_retain())):
        write_gradients(tmp_path / f"g{i}", written)
        run = Run(Store(tmp_path / f"c{i}"), gradient_file=tmp_path / f"g{i}")
        edit = make_edit(whitened(layer_search=bisect()), model, task, run)
        assert edit.searches == want.searches
        assert all(torch.equal(delta, want.deltas[name]) for name, delta in edit.deltas.items())
        assert not [stage for stage in run.store.events if stage.startswith("gradients")]


@pytest.mark.parametrize("names", [1, 2])
def test_worker_ranks_take_gradients_and_moments_and_search_nothing(names):
    calls = []

    class Worker(GradientSource):
        def __call__(self, model, task, name, recipe, run):
            calls.append(name)

        def moments(self, model, task, recipe, run, *, outputs):
            calls.append(outputs)

    @dataclass(frozen=True)
    class Never(LayerSearch):
        def __call__(self, model, gradients, task, concept, *, run):
            raise AssertionError("a worker rank searches")

    task = two_names() if names == 2 else tiny.task()
    method = whitened(gradients=Worker(), layer_search=Never(), output_power=0.5)
    edit = make_edit(method, tiny.clip(), task, Run(distributed=Distributed(1, 2)))
    assert (edit.deltas, edit.searches, edit.moves) == ({}, (), ())
    assert calls == [*task.names, True]


@pytest.mark.parametrize(("settings", "message"), [
    ({"damping": 0.0}, "method.damping: got 0.0, want a number above 0"),
    ({"output_damping": 0.0}, "method.output_damping: got 0.0, want a number above 0"),
    ({"input_power": 2.0}, "method.input_power: got 2.0, want a power from 0 to 1"),
    ({"output_power": 2.0}, "method.output_power: got 2.0, want a power from 0 to 1"),
    ({"rounds": 0}, "method.rounds: got 0, want at least 1"),
    ({"batch_size": 0}, "method.batch_size: got 0"),
    ({"layer_search": bisect(candidates=0)}, "layer_search.candidates: got 0, want at least 1"),
])  # fmt: skip
def test_bad_settings_are_named_before_any_compute(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        make_edit(whitened(**settings), tiny.clip(), tiny.task(), Run(Store(tmp_path)))
    assert not list(tmp_path.rglob("value.json"))
