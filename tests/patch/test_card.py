"""The card is parsed as Markdown and, on the report's page, as HTML: what a stranger wrote stays text."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from hydra.utils import get_object
from markdown_it import MarkdownIt

from muwa.patch.apply import Patch
from muwa.patch.card import (
    FOLDER,
    HUB,
    RUN,
    TEMPLATES,
    base_metadata,
    card_metadata,
    card_text,
    escaped,
    patch_entry,
    read_results,
    told,
)
from muwa.types.edit import Move

ROOT = Path(__file__).parents[2]

PATCH = Patch(
    {"a": torch.ones(2)},
    {"a": torch.zeros(2)},
    "f" * 64,
    (Move("Ada Fox", "text", "a", 2.0, 0.25),),
    {"task": "identity", "names": ["Ada Fox"], "model": "tiny", "method": "muwa.methods.slug"},
)
RESULT = "Fingerprint of the result: the whole edited model, base of the next request"
ODD = "<script>x</script> **b** [a](http://e.org) | `c` ![i](d) www.e.org x@e.org\n# head"


def by_name(bo, cy):
    """The rates of two other names."""
    return {"Bo Hill": {"value": bo, "n": 4}, "Cy Dale": {"value": cy, "n": 6}}


def results(**changed):
    """A results.json: 0 of 8 after the edit, 7 of 10 others before and 6 of 10 after."""
    reading = {"unit": "rate", "reads": "fraction", "capped": False, "counted": "held-out images"}
    forget = {**reading, "better": "lower", "role": "forgotten", "n": 8, "label": "the model's first guess"}
    kept = {**reading, "better": "higher", "role": "kept", "n": 10, "label": "The other names"}
    return {
        "edit": {"moves": [{"concept": "Ada Fox", "tower": "text", "layer": "a", "step": 2.0, "relative_norm": 0.25}]},
        "metrics": {
            "before": {
                "forget/top1": {**forget, "value": 1.0, "low": 0.676, "high": 1.0},
                "retain/top1": {**kept, "value": 0.7, "low": 0.4, "high": 0.9, "by_name": by_name(1.0, 0.5)},
            },
            "after": {
                "forget/top1": {**forget, "value": 0.0, "low": 0.0, "high": 0.324},
                "retain/top1": {**kept, "value": 0.6, "low": 0.3, "high": 0.8, "by_name": by_name(0.75, 0.5)},
            },
        },
        "changes": {"retain/top1": {"value": -0.0004, "low": -0.2, "high": 0.1, "paired": True}},
        "verdict": {
            "kind": "unsure",
            "headline": "Forgotten.",
            "findings": [{"kind": "unsure", "text": "The other names.", "metric": "retain/top1"}],
            "rules": {"kept_points": 5.0, "forget_high": 0.5},
            "kinds": {"forget/top1": "good", "retain/top1": "unsure"},
        },
        "request": {"id": "17", "operator": "Example Ltd", "date": None, "basis": None},
        "edited": {"result": "b" * 64, "fingerprint": "c" * 64},
        "cost": {"parameters": 65536},
        "provenance": {"measures": ["forget", "retain", "neighbours"], "observer": "Features"},
        **changed,
    }  # fmt: skip


def card(place=RUN, run=None, *, base=None, files=None, patch=PATCH):
    """The card of the patch, without its metadata; a run's card has none."""
    run = told(results()) if run is None else run
    text = card_text([patch_entry(patch, "d" * 64, run)], place, base=base or {}, files=files or {})
    assert text.startswith("# " if place == RUN else "---\n")
    return text if place == RUN else text.split("\n---\n", 1)[1]


def cells(text, first):
    """The cells of the rows of all tables whose first cell is `first`, as plain text."""
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    rows, row = [], []
    for token in tokens:
        if token.type == "tr_open":
            row = []
        elif token.type == "inline":
            row.append("".join(child.content for child in token.children))
        elif token.type == "tr_close":
            rows.append(row)
            row = []
    return [row for row in rows if row[0] == first]


def test_the_card_tells_who_asked_what_was_changed_and_what_was_measured():
    text = card()
    assert cells(text, "Request") == [["Request", "17"]]
    assert cells(text, "Carried out by") == [["Carried out by", "Example Ltd"]]
    assert cells(text, "Date") == [["Date", "not stated; the operator fills it in: request.date=..."]]
    assert cells(text, "To be forgotten") == [["To be forgotten", "Ada Fox (identity)"]]
    assert cells(text, "Size of the change")[0][1].startswith("25.0 % of the layer's own size")
    assert cells(text, "Numbers changed") == [["Numbers changed", "65,536"]]
    assert cells(text, "SHA-256 of the patch") == [["SHA-256 of the patch", "d" * 64]]
    assert cells(text, "Fingerprint of the base: the model before this request") == [
        ["Fingerprint of the base: the model before this request", "f" * 64]
    ]
    assert cells(text, RESULT) == [[RESULT, "b" * 64]]
    assert cells(text, "Method") == [["Method", "slug"]]
    assert cells(text, "forget/top1") == [
        [
            "forget/top1",
            "fraction",
            "100.0 % (67.6 to 100.0)",
            "0.0 % (0.0 to 32.4)",
            "",
            "8",
            "lower",
            "forgotten",
        ]
    ]
    assert cells(text, "retain/top1") == [
        ["retain/top1", "fraction", "70.0 % (40.0 to 90.0)", "60.0 % (30.0 to 80.0)",
         "0.0 points (-20.0 to +10.0)", "10", "higher", "not shown"]
    ]  # fmt: skip


def test_the_card_says_how_much_was_changed_in_plain_numbers():
    """65,536 of 16,777,216 numbers: 1 of 256, 0.39 %."""
    about = {**results()["provenance"], "model": {"parameters": 16_777_216}}
    text = card(run=told(results(provenance=about)))
    assert (
        "- Changed: 65,536 of the 16,777,216 numbers that make up the model (0.39 %), all in 1 layer, in the part "
        "that reads text. All other numbers in the model are as they were." in text
    )
    assert cells(text, "Numbers changed") == [["Numbers changed", "65,536 of 16,777,216"]]
    assert "- Changed: 65,536 numbers, all in 1 layer, in the part that reads text." in card()


def test_the_card_says_whose_name_the_pictures_get_now():
    """8 pictures: 3, 2, 1 and 1 for four other names, 1 without a name; three names are listed."""
    found = results()
    guessed = {"Bo Hill": 3, "Cy Dale": 2, "Di Elm": 1, "Ed Fir": 1, "": 1}
    found["metrics"]["after"]["forget/top1"]["guessed"] = guessed
    said = "The model now gives the pictures of the person these names most often: "
    end = "others (1), no name (1 of 8)."
    assert f"- {said}Bo Hill (3 of 8), Cy Dale (2 of 8), Di Elm (1 of 8), {end}" in card(run=told(found))
    assert "Bo Hill" not in card(HUB, told(found))  # what is public names no other person
    assert f"{said}3 or more other names" in card(HUB, told(found))
    found["metrics"]["after"]["forget/top1"]["guessed"] = {"Ada Fox": 6, "Bo Hill": 2}
    assert f"{said}Bo Hill (2 of 8); the right name 6 of 8." in card(run=told(found))
    assert said not in card()  # results of earlier versions did not count it


def test_a_card_without_the_models_files_says_where_the_result_stands():
    found = results(edited={"weights": "b" * 64, "fingerprint": "c" * 64})
    ((_, text),) = cells(card(run=told(found)), RESULT)
    assert text == "not known here: README.md of the edited folder has it"


def test_the_card_of_a_later_request_names_the_patches_before_it():
    found = results(requests=[{"sha256": "1" * 64}, {"sha256": "2" * 64}])
    assert cells(card(run=told(found)), "Patches on that base") == [
        ["Patches on that base", f"{'1' * 64}, {'2' * 64}"]
    ]
    assert cells(card(), "Patches on that base") == []


def test_the_first_part_says_what_was_measured_in_counts():
    text = card()
    first = text[text.index("## In short") : text.index("## What was not measured")]
    assert "**These tests do not show that the aim was reached" in first
    assert "- Not shown: The other names." in first
    assert (
        "Before the change, Ada Fox was the model's first guess in 8 of 8 held-out images; after it, in 0 of 8. "
        "With 8 tested, the true rate could be up to about 1 in 3." in first
    )
    assert "0 of 1 tests of what should stay show a loss of no more than 5 percentage points." in first
    assert "The single other name or class that lost most: 4 of 4 → 3 of 4 held-out images." in first
    assert "Changed: 65,536 numbers, all in 1 layer, in the part that reads text." in first
    assert "the part that reads pictures was not changed" in first
    assert "Bo Hill" not in text  # a card is handed to others
    assert [row[1:] for row in cells(text, "To be forgotten: the model's first guess")] == [
        ["8 of 8", "0 of 8 held-out images", "0 to 32 %", "forgotten"]
    ]
    assert [row[1:] for row in cells(text, "The other names")] == [
        ["7 of 10", "6 of 10 held-out images", "0.0 points (-20.0 to +10.0)", "not shown"]
    ]
    assert "forgotten is at most 0 % of cases, with an interval that ends at 50 % or below" in text
    headings = [line for line in text.splitlines() if line.startswith("## ")]
    assert headings == [
        "## In short", "## What was not measured", "## Known limits", "## The request", "## What was measured",
        "## What this card cannot know", "## How to check it, how to undo it", "## Technical annex",
    ]  # fmt: skip


def test_where_samples_are_tried_several_times_no_rate_is_told_as_a_count():
    """5.5 of 10 is no count, so the samples were tried several times each, also where all or none succeeded."""
    found = results()
    found["metrics"]["after"]["retain/top1"]["value"] = 0.55
    text = card(run=told(found))
    tried = "of the tries with"
    assert f"in 100.0 % {tried} 8 held-out images; after it, in 0.0 % {tried} 8." in text
    assert f"lost most: 100.0 % {tried} 4 → 75.0 % {tried} 4 held-out images." in text


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("good", "In these tests the aim was reached"),
        ("bad", "**These tests show that the aim was not reached"),
    ],
)
def test_the_outcome_is_that_of_the_verdict(kind, said):
    found = results()
    found["verdict"] = {**found["verdict"], "kind": kind}
    assert said in card(run=told(found))


def test_what_is_still_recognised_is_counted_where_forgetting_is():
    """Unlearning accuracy: 19 of 20 images show something else, so 1 of 20 still shows the target."""
    found = results()
    rate = {**found["metrics"]["after"]["forget/top1"], "better": "higher", "n": 20, "label": "generated"}
    found["metrics"]["before"]["forget/top1"] = {**rate, "value": 0.1, "low": 0.03, "high": 0.3}
    found["metrics"]["after"]["forget/top1"] = {**rate, "value": 0.95, "low": 0.76, "high": 0.99}
    text = card(run=told(found))
    assert "Ada Fox was generated in 18 of 20 held-out images; after it, in 1 of 20. " in text
    assert "could be up to about 1 in 4." in text
    assert [row[3] for row in cells(text, "To be forgotten: generated")] == ["1 to 24 %"]


@pytest.mark.parametrize(
    ("tower", "measures", "said"),
    [
        ("text", [], "as well as before: the part that reads pictures was not changed."),
        ("vision", [], "apart from others without the name was not measured."),
        (
            "both",
            ["linear_probe"],
            "apart from others without the name was measured: see the technical annex.",
        ),
    ],
)
def test_whether_pictures_can_be_told_apart_is_known_measured_or_not(tower, measures, said):
    moved = Patch(
        PATCH.deltas, PATCH.base, "f" * 64, (Move("Ada Fox", tower, "a", 2.0, 0.25),), PATCH.provenance
    )
    run = told(results(provenance={"measures": measures, "observer": "Features"}))
    text = card(run=run, patch=moved)
    assert said in text
    listed = "- whether pictures of the person can still be told apart without the name\n"
    assert (listed in text) == (tower == "vision")


def test_a_second_patch_can_change_the_part_that_reads_pictures():
    moved = Patch(PATCH.deltas, PATCH.base, "f" * 64, (Move("Bo Hill", "vision", "b", 2.0, 0.25),), {})
    entries = [patch_entry(PATCH, "d" * 64, told(results())), patch_entry(moved, "d" * 64, None)]
    text = card_text(entries, FOLDER, base={}, files={})
    assert "the part that reads pictures was not changed" not in text


def test_no_other_name_lost():
    found = results()
    found["metrics"]["after"]["retain/top1"]["by_name"]["Bo Hill"]["value"] = 1.0
    assert "No single other name was recognised less often than before." in card(run=told(found))
    del found["metrics"]["before"]["retain/top1"]["by_name"]
    assert "The worst single other name is not known." in card(run=told(found))


def test_several_names_and_what_is_no_person():
    both = {"names": ["Ada Fox", "Bo Hill"], "task": "style"}
    text = card(patch=Patch(PATCH.deltas, PATCH.base, "f" * 64, PATCH.moves, both))
    assert "Ada Fox, Bo Hill were the model's first guess" in text
    assert "can train these concepts back in" in text


def test_what_was_not_measured_is_what_the_run_left_out():
    text = card()
    assert "whether another wording of the name" in text
    assert "whether people or things that look alike" not in text  # neighbours was measured
    assert "How few steps it takes was not measured." in text
    measured = told(results(provenance={"measures": ["rewording", "relearning"], "observer": "Features"}))
    text = card(run=measured)
    assert "whether another wording of the name" not in text
    assert "How few steps it took is in the technical annex." in text
    assert "what it read" not in text
    told_by_words = told(results(provenance={"measures": [], "observer": "QuestionAnswering"}))
    assert "may still answer from what it read" in card(run=told_by_words)
    drawn = told(results(provenance={"measures": [], "observer": "ImageGenerator"}))
    assert "Soft prompt:" in card(run=drawn)


def test_a_card_without_results_says_so():
    text = card_text([patch_entry(PATCH, "d" * 64, None)], HUB, base={}, files={}, target="org/x")
    metadata = yaml.safe_load(text.split("---")[1])
    assert metadata["library_name"] == "muwa"
    assert not {"base_model", "license"} & set(metadata)
    assert "The run's results were not given with the patch" in text
    assert "- anything: the results of the run are not known" in text
    assert "python -m muwa.patch pull org/x --out patch.safetensors" in text


def test_the_hub_is_not_told_who_asked():
    text = card(HUB)
    assert "Example Ltd" not in text
    assert "The request" not in text
    assert "Example Ltd" in card(FOLDER)


def test_a_folders_card_names_its_files_and_the_licence_of_the_base():
    base = {
        "license": "openrail",
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "id": "org/base",
    }
    entry = {**patch_entry(PATCH, "d" * 64, None), "unedited": {"old|.bin": "why"}}
    text = card_text([entry], FOLDER, base=base, files={"model.safetensors": "e" * 64})
    metadata = yaml.safe_load(text.split("---")[1])
    assert {key: metadata[key] for key in ("license", "library_name", "pipeline_tag", "base_model")} == {
        "license": "openrail", "library_name": "diffusers", "pipeline_tag": "text-to-image", "base_model": "org/base",
    }  # fmt: skip
    assert cells(text, "model.safetensors") == [["model.safetensors", "e" * 64]]
    assert "openrail, as the base's own card says (org/base)" in text
    assert "**Unedited copies of the weights are in this folder: `old¦.bin`" in text
    on_the_hub = card_text([entry], HUB, base=base, files={}, target="x")
    assert yaml.safe_load(on_the_hub.split("---")[1])["library_name"] == "muwa"


def test_two_patches_have_a_part_each():
    other = Patch(
        PATCH.deltas, PATCH.base, "0" * 64, (Move("Bo Hill", "text", "b", 1.0, 0.1),), {"names": ["Bo Hill"]}
    )
    entries = [patch_entry(PATCH, "d" * 64, None), patch_entry(other, "e" * 64, None)]
    text = card_text(entries, FOLDER, base={}, files={})
    assert "# Unlearning card: Ada Fox, Bo Hill" in text
    assert text.index("# Patch 1 of 2: Ada Fox") < text.index("# Patch 2 of 2: Bo Hill")
    assert text.count("## Technical annex") == 1


@pytest.mark.parametrize("field", ["id", "operator", "date", "basis"])
def test_free_text_is_text(field):
    """In Markdown: no HTML, no link, no image, no emphasis, no heading, no new row or cell."""
    plain = card()
    text = card(run=told(results(request={field: ODD})))
    reader = MarkdownIt("commonmark", {"html": True, "linkify": False}).enable("table")

    def shape(card):
        kinds = [token.type for token in reader.parse(card)]
        inner = [child.type for token in reader.parse(card) for child in token.children or ()]
        return kinds, sorted(set(inner))

    assert shape(text) == shape(plain)
    label = {"id": "Request", "operator": "Carried out by", "date": "Date", "basis": "Legal or other basis"}[
        field
    ]
    assert cells(text, label) == [[label, " ".join(ODD.split())]]


def test_names_layers_and_verdicts_are_text_too():
    odd = Patch(
        PATCH.deltas, PATCH.base, "f" * 64, (Move(ODD, "text", "`a`|<b>", 2.0, 0.25),), {"names": [ODD]}
    )
    run = told(results())
    run["verdict"]["headline"] = ODD
    for place in (RUN, FOLDER, HUB):
        text = card(place, run, patch=odd)
        html = MarkdownIt("commonmark", {"html": True}).enable("table").render(text)
        for tag in ("<script", "<b>", "<a ", "<img"):
            assert tag not in html


def test_escapes_by_hand():
    assert escaped("a_b *c* $x$ ~d~") == r"a\_b \*c\* \$x\$ \~d\~"
    assert escaped("http://e.org, www.e.org, x@e.org") == r"http\://e.org, www\.e.org, x\@e.org"
    assert escaped("a‮b\x00\tc") == "ab c"  # no letters that turn the text around
    assert escaped(None) == "not stated"
    assert escaped("GDPR, article 17 (1) - b.") == "GDPR, article 17 (1) - b."


def test_results_of_another_edit_are_refused(tmp_path):
    path = tmp_path / "results.json"
    assert read_results(PATCH, path, required=False) is None
    with pytest.raises(FileNotFoundError, match="--results .*results.json: no such file"):
        read_results(PATCH, path, required=True)
    for text, message in (
        ("{", "not a results.json of muwa"),
        ("{}", "not a results.json of muwa"),
        ("[]", "not a results.json of muwa"),
        (
            json.dumps({"metrics": {}, "edit": {"moves": []}}),
            "the results are of another edit than the patch's",
        ),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_results(PATCH, path, required=False)
    path.write_text(json.dumps(results()))
    assert read_results(PATCH, path, required=False) == told(results())


def test_results_of_earlier_versions_make_a_card():
    old = {
        "edit": results()["edit"],
        "metrics": {"before": {}, "after": {"forget/top1": {"value": 0.0, "n": 8, "better": "lower"}}},
    }
    text = card(run=told(old))
    assert cells(text, "forget/top1") == [["forget/top1", "", "", "0.0 %", "", "8", "lower", "not judged"]]


def test_the_metadata_of_the_base_is_read_from_its_own_card(tmp_path):
    assert base_metadata(tmp_path) == {}
    assert base_metadata("the miniature") == {}
    assert base_metadata("") == {}  # not the folder that muwa runs in
    assert base_metadata("org/nowhere-at-all") == {}
    (tmp_path / "README.md").write_text("---\nlicense: mit\nlibrary_name: open_clip\nother: 1\n---\n# x")
    assert base_metadata(tmp_path) == {"license": "mit", "library_name": "open_clip"}
    (tmp_path / "README.base.md").write_text("---\nlicense: openrail\nbase_model: org/x\n---\n")
    assert base_metadata(tmp_path) == {"license": "openrail", "id": "org/x"}  # README.md is muwa's card then
    (tmp_path / "README.md").write_text("---\nlicense: [\n---\n")
    assert card_metadata(tmp_path / "README.md") == {}


def test_what_is_called_not_measured_can_be_measured():
    """Every check is a measure of muwa/conf/eval, and every kind of output is one that a model gives."""
    checks = yaml.safe_load((TEMPLATES / "checks.yaml").read_text())
    measures = {
        name: get_object(node["_target_"]).observes.__name__
        for path in (ROOT / "muwa/conf/eval").glob("*.yaml")
        for name, node in yaml.safe_load(path.read_text()).items()
        if name != "defaults"
    }
    assert len(measures) > 20
    for observer, found in checks["outputs"].items():
        assert measures.get(found["told_apart"].get("measure"), observer) == observer
        assert found["aim"]
        for name in found["not_measured"]:
            assert measures[name] == observer
        assert found["limits"]
