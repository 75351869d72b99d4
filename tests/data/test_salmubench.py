"""A small SALMUBench in its published layout, read and refused."""

import json

import pytest
import tiny
from data import hub

from muwa.data.salmubench import salmubench


def read(root, limit=None):
    return salmubench(root, limit=limit, setting="eval.salmubench.folder")


def test_rows_have_their_people_captions_and_facts(tmp_path) -> None:
    bench = read(hub.salmubench(tmp_path))
    forget = bench.splits["forget"]
    assert forget.who == ("1", "1", "2", "2")
    assert forget.pairs.captions == ("Ada Oslo", "Ada Oslo", "Bo Rome", "Bo spy")
    assert forget.pairs.images[2] == tiny.png(202)
    assert [bench.fact("forget", i) for i in (0, 3)] == [("Ada", "Oslo"), ("Bo", "spy")]
    assert bench.fact("retain_synth", 0) is None
    assert bench.splits["retain_synth"].who == ("1", "1", "", "", "")
    assert (bench.names["3"], bench.fragile) == ("Cy", {"d1.png"})
    assert len(read(tmp_path, limit=2).splits["forget"]) == 2


def test_faults_are_named(tmp_path) -> None:
    root = hub.salmubench(tmp_path)
    path = root / "data" / "holdout_identity-00000-of-00001.parquet"
    row = {"image": hub.image(1), "text": "Cy Bonn", "identity_id": "3", "file_name": "a.png"}

    def refused(rows, match):
        hub.write(path, rows)
        with pytest.raises(ValueError, match=match):
            read(root)

    refused(
        [row, {**row, "identity_id": None}], "00001.parquet: row 2: identity_id is empty; want the person"
    )
    refused([row, {**row, "text": ""}], "00001.parquet: row 2: text is '', want a text")
    refused([{**row, "image": None}], "00001.parquet: row 1: its image has no bytes")
    refused([{"image": hub.image(1), "text": "a"}], "no column identity_id, file_name; has image, text")
    path.unlink()
    with pytest.raises(FileNotFoundError, match="eval.salmubench.folder: .* has no data/holdout_identity-"):
        read(root)
    for name, text, match in (
        ("fragile_set_ids.json", "{}", "fragile_set_ids.json: want a list of file names, got a dict"),
        ("fragile_set_ids.json", "[", "fragile_set_ids.json: not JSON"),
        ("identities_metadata.json", json.dumps({"1": {}}), "metadata.json: 1: name is None, want a text"),
        ("identities_metadata.json", "[]", "want an object of objects by id, got a list"),
    ):
        hub.salmubench(root)
        (root / name).write_text(text)
        with pytest.raises(ValueError, match=match):
            read(root)
    (root / "identities_metadata.json").unlink()
    with pytest.raises(
        FileNotFoundError, match="no .*identities_metadata.json; want a download of SALMUBench"
    ):
        read(root)
