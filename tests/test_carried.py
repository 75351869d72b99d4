"""A service in small: two requests in a row on the miniature CLIP, the first taken back, every state measured."""

import json
import logging
import re
from dataclasses import replace

import pytest
from conftest import SMALL
from omegaconf import OmegaConf

from muwa import config, pipeline
from muwa.gradients import export
from muwa.gradients.export import from_run
from muwa.models.clip.open_clip import MINIATURE
from muwa.patch.__main__ import main
from muwa.patch.apply import read_patch
from muwa.patch.files import read_file
from muwa.patch.ledger import file_digest, requests_on
from muwa.patch.weights import weights_fingerprint
from muwa.types.stages import only_measures

QUICK = (*SMALL, "layer_search.candidates=1", "layer_search.max_evals=6", "whitening=inputs")
KAEL, EDDA = "Kael Lindqvar", "Edda Everlane"
WEIGHTS = "open_clip_model.safetensors"
LITTLE = 0.25  # few samples and a short search: two of eight held-out images may be left


@pytest.fixture(scope="module")
def service(miniature, tmp_path_factory):
    """(run(name, *overrides) -> its folder and results.json, the folder of everything)."""
    out = tmp_path_factory.mktemp("service")

    def run(name, *overrides, given=()):
        config.register()
        words = [f"dataset.root={miniature}", f"paths.outputs={out}", *QUICK, *overrides]
        cfg = config.composed(*words).copy()
        cfg.paths.run = str(out / name)
        settings = config.settings(cfg) | {"given": list(given)}
        pipeline.run(config.build(cfg), settings)
        (out / name / ".hydra").mkdir(exist_ok=True)
        OmegaConf.save(cfg, out / name / ".hydra" / "config.yaml")
        return out / name, json.loads((out / name / "results.json").read_text())

    return run, out


@pytest.fixture(scope="module")
def story(service):
    """Two requests, each on the folder that the last one left: (patches, folders, results)."""
    run, out = service
    first, one = run("first", "task.identity=Kael_Lindqvar")
    patches, folders = [first / "patch.safetensors"], [MINIATURE, out / "on1", out / "on2"]
    assert main(["apply", str(patches[0]), str(folders[0]), "--out", str(folders[1])]) == 0
    second, two = run("second", "task.identity=Edda_Everlane", f"model.name=local-dir:{folders[1]}")
    patches.append(second / "patch.safetensors")
    assert main(["apply", str(patches[1]), str(folders[1]), "--out", str(folders[2])]) == 0
    return patches, folders, (one, two)


@pytest.mark.whole
def test_the_second_request_keeps_the_first_forgotten_and_says_so(story):
    _patches, _folders, (one, two) = story
    after = two["metrics"]["after"]
    assert max(after[f"{what}/top1"]["value"] for what in ("forget", "earlier", "so_far")) <= LITTLE
    both = (after["forget/top1"]["value"] + after["earlier/top1"]["value"]) / 2
    assert after["so_far/top1"]["value"] == pytest.approx(both)
    assert set(after["earlier/top1"]["by_name"]) == {KAEL}
    assert set(after["so_far/top1"]["by_name"]) == {KAEL, EDDA}
    assert KAEL not in after["retain/top1"]["by_name"]
    assert KAEL in one["metrics"]["after"]["retain/top1"]["by_name"] or one["task"]["names"] == [KAEL]
    assert [row["names"] for row in two["requests"]] == [[KAEL]]
    assert two["requests"][0]["recognised"]["earlier/top1"]["before"] <= LITTLE
    assert one["requests"] == []
    assert all("earlier_top1" in row for row in two["trace"])
    assert two["task"]["retain_pairs_left_out"] >= one["task"]["retain_pairs_left_out"]


BASE, RESULT = (
    "Fingerprint of the base: the model before",
    "Fingerprint of the result: the whole edited model",
)


def row(card, first):
    """The fingerprints or digests in the row of a card that begins with `first`."""
    (line,) = [line for line in card.read_text().splitlines() if line.startswith(f"| {first}")]
    return re.findall(r"`([0-9a-f]{64})`", line)


@pytest.mark.whole
def test_what_one_card_gives_as_its_result_is_the_base_of_the_next(story, service, capsys):
    """The miniature is stored in fp16, so the folder's weights differ from those that the run measured in fp32."""
    _, out = service
    _patches, folders, (one, two) = story
    cards = [out / "first/card.md", out / "second/card.md"]
    shipped = [folders[1] / "README.md", folders[2] / "README.md"]
    assert row(cards[0], RESULT) == row(shipped[0], RESULT) == row(cards[1], BASE)
    assert row(cards[0], RESULT) == [weights_fingerprint(read_file(folders[1] / WEIGHTS))]
    assert row(cards[0], RESULT) != [one["edited"]["weights"]]
    assert row(cards[1], RESULT) == [weights_fingerprint(read_file(folders[2] / WEIGHTS))]
    assert row(cards[1], BASE) == [two["edited"]["base"]]
    assert row(cards[1], "Patches on that base") == row(cards[0], "SHA-256 of the patch")
    last = shipped[1].read_text().rpartition("### What was changed: patch 2")[2]
    assert f"| {RESULT}, base of the next request | `{row(cards[1], RESULT)[0]}` |" in last
    page = (out / "first/report.html").read_text()
    assert row(cards[0], RESULT)[0] in page
    assert main(["list", str(folders[1])]) == 0
    assert f"base of the next request: {row(cards[0], RESULT)[0]}" in capsys.readouterr().out


@pytest.mark.whole
def test_the_cards_say_how_much_was_changed_and_whose_name_the_pictures_get_now(story, service):
    _, out = service
    _, _, (one, _) = story
    text, after = (out / "first/card.md").read_text(), one["metrics"]["after"]["forget/top1"]
    every = sum(tensor.numel() for tensor in read_file(MINIATURE / WEIGHTS).values())
    changed = one["cost"]["parameters"]
    assert f"Changed: {changed:,.0f} of the {every:,} numbers that make up the model" in text
    assert sum(after["guessed"].values()) == after["n"] == 8
    assert after["guessed"].get(KAEL, 0) == round(8 * after["value"])
    most = next(name for name in after["guessed"] if name != KAEL)
    assert f"these names most often: {most} ({after['guessed'][most]} of 8)" in text
    assert one["metrics"]["before"]["forget/top1"]["guessed"] == {KAEL: 8}


@pytest.mark.whole
def test_the_patch_records_the_state_that_it_was_made_on(story):
    patches, folders, _ = story
    first, second = (read_patch(path) for path in patches)
    state = second.provenance["state"]
    assert state["origin"] == first.base_fingerprint
    assert [one["sha256"] for one in state["patches"]] == [file_digest(patches[0])]
    assert "state" not in first.provenance
    assert [one.names for one in requests_on(folders[2])] == [(KAEL,), (EDDA,)]


@pytest.mark.whole
def test_the_gradients_of_a_later_request_are_exported_as_they_were_taken(story, service, monkeypatch):
    _, out = service
    _, _, (_, two) = story
    gradients = from_run(out / "second", None, trusted=(), commands=False)
    assert gradients.origin["model"] == two["provenance"]["model"]["fingerprint"]
    assert gradients.n_forget == two["task"]["forget_pairs"][EDDA]
    taken = export.recipe_of
    both = {"retain_gradient": True}  # its mean is over the pairs that the request left
    monkeypatch.setattr(export, "recipe_of", lambda *of_run: replace(taken(*of_run), **both))
    gradients = from_run(out / "second", None, trusted=(), commands=False)
    assert gradients.n_retain == two["task"]["retain_pairs"]


@pytest.mark.whole
def test_taking_the_first_back_leaves_the_second_bit_for_bit(story, service, capsys):
    run, out = service
    patches, folders, _ = story
    off = out / "off"
    words = ["remove", str(patches[0]), str(folders[2]), "--out", str(off), "--others", str(patches[1])]
    assert main(words) == 0
    assert main(["verify", str(off), str(patches[1]), "--base", str(MINIATURE)]) == 0
    _, found = run("back", "stages=[eval]", f"model.name=local-dir:{off}", "base={name: miniature}",
                   "task.identity=[Kael_Lindqvar,Edda_Everlane]", given=["task.identity"])  # fmt: skip
    rates = found["metrics"]["after"]["forget/top1"]["by_name"]
    assert rates[KAEL]["value"] > 0.9
    assert rates[EDDA]["value"] <= LITTLE


@pytest.mark.whole
def test_what_was_shipped_is_measured_without_an_edit(story, service, capsys):
    run, _ = service
    patches, _, _ = story
    folder, found = run("shipped", "stages=[eval]", f"patches=[{patches[0]},{patches[1]}]")
    before, after = found["metrics"]["before"], found["metrics"]["after"]
    assert found["task"]["names"] == [KAEL, EDDA]  # by the patches' own records
    assert before["forget/top1"]["value"] > 0.9
    assert after["forget/top1"]["value"] <= LITTLE
    assert [move["concept"] for move in found["edit"]["moves"]] == [KAEL, EDDA]
    assert [row["names"] for row in found["requests"]] == [[KAEL], [EDDA]]
    assert {path.name for path in folder.iterdir()} == {
        ".hydra",
        "card.md",
        "figures",
        "metrics.jsonl",
        "report.html",
        "results.json",
    }
    assert capsys.readouterr().out.splitlines()[-1].endswith(f"{folder}: report.html, card.md, results.json")
    page = (folder / "report.html").read_text()
    assert "Requests so far" in page
    assert "Saved as" not in page


@pytest.mark.whole
def test_an_edited_folder_is_measured_with_and_without_its_base(story, service, caplog):
    run, _ = service
    _, folders, _ = story
    model = f"model.name=local-dir:{folders[2]}"
    with caplog.at_level(logging.WARNING):
        _, alone = run("alone", "stages=[eval]", model)
    assert "its unedited weights are not known" in caplog.text
    assert alone["metrics"]["before"] == alone["metrics"]["after"]
    assert alone["provenance"]["base"] is None
    _, compared = run("compared", "stages=[eval]", model, "base={name: miniature}")
    assert compared["metrics"]["before"]["forget/top1"]["value"] > 0.9
    assert compared["metrics"]["after"] == alone["metrics"]["after"]


@pytest.mark.slow
def test_a_third_request_goes_on_from_patches_in_memory(story, service):
    run, _ = service
    patches, _, _ = story
    _, found = run("third", "task.identity=Lior_Garrowby", f"patches=[{patches[0]},{patches[1]}]",
                   "layer_search.max_evals=2")  # fmt: skip
    assert [row["names"] for row in found["requests"]] == [[KAEL], [EDDA]]
    assert found["metrics"]["before"]["earlier/top1"]["value"] <= LITTLE


@pytest.mark.parametrize(("overrides", "message"), [
    (["stages=[eval]"], "the miniature carries no patch, so there is nothing to compare; give patches"),
    (["stages=[eval]", "task=object", "patches=[{patch}]"], "want patches of the kind object, .*some of the kind identity"),
    (["base={{name: miniature}}"], r"base: is for stages=\[eval\]"),
    (["stages=[eval]", "patches=[{patch}]", "base={{nmae: miniature}}"], "base: .*unexpected keyword argument 'nmae'"),
])  # fmt: skip
@pytest.mark.whole
def test_what_cannot_be_measured_is_refused(overrides, message, story, service):
    run, _ = service
    patches, _, _ = story
    with pytest.raises(ValueError, match=message):
        run("refused", *(one.format(patch=patches[0]) for one in overrides))


@pytest.mark.whole
def test_nothing_to_compare_is_refused_even_if_names_are_given(service):
    run, _ = service
    with pytest.raises(ValueError, match="carries no patch, so there is nothing to compare"):
        run("refused", "stages=[eval]", given=["task.identity"])


def test_only_eval_alone_is_a_measurement():
    assert only_measures(["eval", "report"])
    assert not only_measures(["unlearn", "eval"])
    assert not only_measures(["curate", "eval"])
    assert not only_measures(["report"])
