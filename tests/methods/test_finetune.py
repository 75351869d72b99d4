import json
import os
from dataclasses import replace

import naive
import pytest
import tiny
import torch
from records import part

from muwa.cache.store import Store
from muwa.methods._edits import forget_pairs, retain_pairs
from muwa.methods._finetune import MAX_LOGIT_SCALE, FineTuning, Phase, Schedule, Stops, fine_tuned_edit, tune
from muwa.models.clip.embeddings import Features
from muwa.run import Run

SCHEDULE = Schedule(3, 4, 1e-3, 0.1, 0)
STOPS = Stops(0.0, "top5", None, 1)
SETTINGS = {
    "epochs": 3,
    "batch_size": 4,
    "learning_rate": 1e-3,
    "weight_decay": 0.1,
    "seed": 0,
    "patience": None,
}


def phases(task):
    return Phase(forget_pairs(task), "cosine", -1), Phase(retain_pairs(task), "contrastive")


def same(a, b):
    assert set(a) == set(b)
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_the_first_step_is_adams_worked_by_hand():
    """AdamW's first step is the decay and then the rate times the sign of the gradient; no decay for vectors."""
    model, pairs = tiny.clip(), forget_pairs(tiny.task())
    down = FineTuning(model, Schedule(1, 6, 1e-3, 0.1, 0), None, 1)
    down.step(tiny.pixels(pairs.images), tiny.tokenize(list(pairs.captions)), Phase(pairs, "cosine", -1))
    gradient = naive.gradient(naive.network(model), pairs, list(range(6)), "cosine")
    got = down.deltas()
    for name in ("visual.proj", "visual.transformer.resblocks.1.mlp.c_fc.weight", "ln_final.weight"):
        g, theta = gradient[name], model.weights[name]
        clear = g.abs() > 1e-5
        want = 1e-3 * g.sign() - (1e-4 * theta if theta.ndim >= 2 else 0)  # up the loss
        assert clear.float().mean() > 0.5
        assert (got[name] - want)[clear].abs().max() < 2e-6, name
    assert "logit_scale" not in got  # the cosine loss does not reach it


def test_the_rate_falls_along_half_a_cosine():
    model, pairs = tiny.clip(), forget_pairs(tiny.task())
    down = FineTuning(model, Schedule(1, 6, 1e-3, 0.0, 0), None, 4)
    rates = []
    for _ in range(4):
        down.step(tiny.pixels(pairs.images), tiny.tokenize(list(pairs.captions)), Phase(pairs, "cosine"))
        rates.append(down._adam.param_groups[0]["lr"])
    assert rates == pytest.approx([1e-3, 1e-3 * (2 + 2**0.5) / 4, 0.5e-3, 1e-3 * (2 - 2**0.5) / 4])


def test_what_is_masked_keeps_its_bits_whatever_the_decay():
    model, task = tiny.clip(), tiny.task()
    generator = torch.Generator().manual_seed(0)
    mask = {name: torch.rand(w.shape, generator=generator) < 0.5 for name, w in model.weights.items()}
    found = tune(model, phases(task), Schedule(2, 4, 1e-2, 0.5, 0), None, None, mask=mask, run=Run())[
        "deltas"
    ]["last"]
    assert len(found) > 40
    for name, delta in found.items():
        assert not delta[~mask[name]].any()
        assert delta[mask[name]].any() or not mask[name].any()


def test_the_logit_scale_stays_where_clip_keeps_it():
    model, pairs = tiny.clip(), tiny.pairs()
    down = FineTuning(model, Schedule(1, 12, 10.0, 0.0, 0), None, 2)
    down.step(tiny.pixels(pairs.images), tiny.tokenize(list(pairs.captions)), Phase(pairs, "contrastive", -1))
    down.step(tiny.pixels(pairs.images), tiny.tokenize(list(pairs.captions)), Phase(pairs, "contrastive", 1))
    assert down.weights["logit_scale"].item() == pytest.approx(MAX_LOGIT_SCALE)


def killed_after(epochs, store=None):
    """A run whose log stops the training as a kill would, in the epoch after `epochs`."""
    heard = []

    def log(event, row):
        heard.append(row)
        if len(heard) > epochs:
            raise KeyboardInterrupt

    return Run(store, log=log)


def test_a_killed_training_goes_on_and_ends_with_the_same_bytes(tmp_path):
    model, task = tiny.clip(), tiny.task()
    want = tune(model, phases(task), SCHEDULE, STOPS, task.probe, run=Run())
    state, logged = tmp_path / "state", []
    with pytest.raises(KeyboardInterrupt):
        tune(model, phases(task), SCHEDULE, STOPS, task.probe, state=state, run=killed_after(2))
    assert [path.name for path in state.iterdir()] == ["state.safetensors"]
    run = Run(log=lambda event, row: logged.append(row))
    got = tune(model, phases(task), SCHEDULE, STOPS, task.probe, state=state, run=run)
    assert (got["trace"], got["before"], got["samples"]) == (want["trace"], want["before"], want["samples"])
    assert logged == [row.record() for row in want["trace"]]
    assert set(got["deltas"]) == set(want["deltas"])
    for key in want["deltas"]:
        same(got["deltas"][key], want["deltas"][key])


def test_resuming_takes_only_the_epochs_that_are_left(tmp_path):
    model, task, steps = tiny.clip(), tiny.task(), []
    with pytest.raises(KeyboardInterrupt):
        tune(model, phases(task), SCHEDULE, STOPS, task.probe, state=tmp_path, run=killed_after(2))
    real = FineTuning.step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FineTuning, "step", lambda self, *args: (steps.append(self.done), real(self, *args)))
        tune(model, phases(task), SCHEDULE, STOPS, task.probe, state=tmp_path, run=Run())
    assert steps == list(range(10, 15))  # 2 + 3 steps per epoch; two epochs were done


def test_a_damaged_state_is_a_training_from_the_start(tmp_path):
    model, task = tiny.clip(), tiny.task()
    (tmp_path / "state.safetensors").write_bytes(b"half of it")
    got = tune(model, phases(task), replace(SCHEDULE, epochs=1), None, None, state=tmp_path, run=Run())
    assert got["deltas"]["last"]  # it trained
    again = tune(model, phases(task), replace(SCHEDULE, epochs=1), None, None, run=Run())
    same(got["deltas"]["last"], again["deltas"]["last"])


def test_the_store_holds_the_state_while_it_trains_and_drops_it_after(tmp_path):
    model, task = tiny.clip(), tiny.task()
    method, heard = part("method=gaft", rule="first", **SETTINGS), []

    def log(event, row):
        heard.append(row)
        if len(heard) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fine_tuned_edit(method, model, task, phases(task), Run(Store(tmp_path), log=log))
    (state,) = (tmp_path / "edit").glob("*.unfinished/state.safetensors")
    (note,) = (tmp_path / "edit").glob("*.unfinished/attempts.json")
    began = (
        json.loads(note.read_text())[0] - 2000
    )  # as if it had begun then, and its first epoch had taken 1,000 seconds
    note.write_text(json.dumps([began, 0.0]))
    os.utime(state, (began + 1000,) * 2)
    with pytest.raises(
        KeyboardInterrupt
    ):  # again, before it leaves anything: what the first left still counts, once
        fine_tuned_edit(method, model, task, phases(task), killed_after(0, Store(tmp_path)))
    store, rows = Store(tmp_path), []
    edit = fine_tuned_edit(
        method, model, task, phases(task), Run(store, log=lambda event, row: rows.append(row))
    )
    assert store.events["edit"] == "miss"
    assert len(rows) == 3
    assert not list((tmp_path / "edit").glob("*.unfinished"))
    assert store.saved == pytest.approx(1000, abs=2)
    (about,) = (tmp_path / "edit").glob("*/key.json")
    assert 1000 < json.loads(about.read_text())["seconds"] < 1100
    same(
        edit.deltas, fine_tuned_edit(method, model, task, phases(task), Run(Store(tmp_path / "fresh"))).deltas
    )


def test_both_rules_come_from_one_training_and_are_logged_alike(tmp_path):
    model, task, logged = tiny.clip(), tiny.task(), {}
    for rule in ("first", "best"):
        store, logged[rule] = Store(tmp_path), []
        run = Run(store, log=lambda event, row, rule=rule: logged[rule].append((event, row)))
        edit = fine_tuned_edit(part("method=gaft", rule=rule, **SETTINGS), model, task, phases(task), run)
        (search,) = edit.searches
        row = search.trace[search.chosen]
        again = tiny.clip().edited(edit)
        assert row.closeness == pytest.approx(float(cosine(again, task.probe.forget)), abs=1e-6)
        assert edit.moves[0].relative_norm == row.relative_norm
    assert store.events["edit"] == "hit"
    assert logged["first"] == logged["best"]
    assert [event for event, _ in logged["best"]] == ["evaluation"] * 3
    assert edit.samples == 3 * (6 + 10)


def cosine(model, pictures):
    features = Features(model, Run())
    return (
        (features.images(pictures) * features.classes(pictures.classes)[list(pictures.labels)]).sum(-1).mean()
    )


def test_patience_ends_a_training_that_has_forgotten():
    model, task = tiny.clip(), tiny.task()
    ascent = phases(task)[:1]

    def epochs(patience):
        schedule = replace(SCHEDULE, epochs=6, learning_rate=1e-2)
        found = tune(model, ascent, schedule, Stops(0.0, "top5", patience, 1), task.probe, run=Run())
        feasible = next(i for i, row in enumerate(found["trace"]) if row.feasible)
        return len(found["trace"]) - 1 - feasible, found["samples"] == 6 * len(found["trace"])

    assert [epochs(patience) for patience in (0, 2)] == [(0, True), (2, True)]
    assert epochs(None)[0] > 2


def test_several_judgements_an_epoch_are_evenly_spread():
    model, task = tiny.clip(), tiny.task()
    stops = Stops(0.0, "top5", None, 2)
    found = tune(model, phases(task), replace(SCHEDULE, epochs=1), stops, task.probe, run=Run())
    assert [row.iteration for row in found["trace"]] == [1, 2]  # after 3 of 5 steps, and after 5
    assert found["trace"][0].relative_norm < found["trace"][1].relative_norm


def test_a_loss_that_is_no_number_stops_and_leaves_the_model():
    model, task = tiny.clip(), tiny.task()
    with pytest.raises(ValueError, match="method.learning_rate: the loss is (nan|inf) at step"):
        tune(model, phases(task), Schedule(3, 4, 1e30, 0.1, 0), None, None, run=Run())
    same(model.weights, tiny.clip().weights)


def test_another_seed_is_another_order():
    model, task = tiny.clip(), tiny.task()
    schedules = [replace(SCHEDULE, seed=seed, epochs=1) for seed in (0, 1)]
    a, b = (tune(model, phases(task), one, None, None, run=Run())["deltas"]["last"] for one in schedules)
    assert any(not torch.equal(a[name], b[name]) for name in a)


def test_settings_are_checked_without_a_training():
    part("method=ga").check_fine_tuning()
    for settings, message in (
        ({"rule": "paper"}, "method.rule: got 'paper'"),
        ({"epochs": 0}, "method.epochs: got 0, want at least 1"),
        ({"patience": -1}, "method.patience: got -1, want at least 0"),
    ):
        with pytest.raises(ValueError, match=message):
            part("method=ga", **settings).check_fine_tuning()
