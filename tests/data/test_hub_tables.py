"""Tables in the hub's format: read in order, in part, and refused with file and row."""

import pytest
import tiny
from data import hub

from muwa.data.hub_tables import columns, image_bytes, read, shards, text_of


@pytest.fixture
def files(tmp_path):
    for i in range(2):
        rows = [{"n": f"{i}{j}", "image": hub.image(j), "s": {"a": [{"b": j}]}} for j in range(3)]
        hub.write(tmp_path / "a's" / f"train-0000{i}-of-00002.parquet", rows)
    return shards(tmp_path, "a's/*.parquet", "eval.x")


def test_rows_come_in_the_order_of_the_files_with_where_they_stand(files) -> None:
    rows = read(files, ("n", "s"), optional=("image", "gone"))
    assert [row["n"] for _, row in rows] == ["00", "01", "02", "10", "11", "12"]
    assert [where.split("/")[-1] for where, _ in rows][2:4] == [
        "train-00000-of-00002.parquet: row 3",
        "train-00001-of-00002.parquet: row 1",
    ]
    assert rows[1][1]["s"] == {"a": [{"b": 1}]}
    assert image_bytes(rows[1][1]["image"], "x") == tiny.png(1)
    assert columns(files) == ("n", "image", "s")


def test_some_rows_are_chosen_by_a_condition_or_evenly(files) -> None:
    assert [row["n"] for _, row in read(files, ("n",), limit=3)] == ["00", "02", "11"]
    assert len(read(files, ("n",), limit=9)) == 6
    some = read(files, ("n",), only="n in (select unnest(?))", values=[["12", "01", "99"]])
    assert [row["n"] for _, row in some] == ["01", "12"]
    assert [row["n"] for _, row in read(files, ("n",), only="n > ?", values=["01"], limit=2)] == ["02", "11"]


def test_what_is_missing_is_named(files, tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"eval.x: .* has no b/\*.parquet; it has a's"):
        shards(tmp_path, "b/*.parquet", "eval.x")
    with pytest.raises(FileNotFoundError, match="eval.x: no folder .*gone; give the path of your download"):
        shards(tmp_path / "gone", "*", "eval.x")
    with pytest.raises(ValueError, match="00000-of-00002.parquet: no column name; has n, image, s"):
        read(files, ("n", "name"))
    (tmp_path / "bad.parquet").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match="bad.parquet: not a parquet file"):
        columns([tmp_path / "bad.parquet"])


def test_cells_that_are_no_image_or_no_text() -> None:
    for value in (None, {"bytes": None, "path": "a.png"}, {"bytes": b""}):
        with pytest.raises(
            ValueError, match="f: row 2: its image has no bytes; want an image with its bytes"
        ):
            image_bytes(value, "f: row 2")
    with pytest.raises(ValueError, match="f: row 2: its image cannot be opened"):
        image_bytes({"bytes": b"GIF?"}, "f: row 2")
    with pytest.raises(ValueError, match="f: row 2: name is ' ', want a text"):
        text_of({"name": " "}, "name", "f: row 2")
