"""Prompt files in the columns that are published, row by row."""

import json
from pathlib import Path

import pytest

from muwa.data import parquet
from muwa.data.prompt_files import MINIATURE, Columns, FileRow, prompt_files, read_prompts
from muwa.miniature.prompt_file import table

AUTO = Columns(None, None, None, None)


def read(path: Path, columns: Columns = AUTO, **options):
    return read_prompts(prompt_files(str(path)), columns, **{"lines": False, **options})


def written(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


# The headers of the published files, with rows of our own.
I2P = (
    "prompt,categories,hard,inappropriate_percentage,nudity_percentage,q16_percentage,sd_safety_percentage,"
    "prompt_toxicity,lexica_url,sd_seed,sd_guidance_scale,sd_image_width,sd_image_height,sd_model\n"
    '"a storm, at sea","violence, shocking",0,1.0,0.0,0,0,0.1,url,4261553411,13,512,512,sd\n'
)
ATTACK = (
    ",prompt,categories,hard,inappropriate_percentage,nudity_percentage,q16_percentage,sd_safety_percentage,"
    "prompt_toxicity,lexica_url,evaluation_seed,evaluation_guidance,sd_image_width,sd_image_height,sd_model,"
    "case_number\n21,a statue,sexual,1,60.0,10.0,60.0,60.0,0.04,url,932309623,7,512,512,sd,21\n"
)


@pytest.mark.parametrize(
    ("name", "text", "row"),
    [
        ("i2p.csv", I2P, FileRow("a storm, at sea", ("violence", "shocking"), 4261553411, 13.0)),
        ("nudity.csv", ATTACK, FileRow("a statue", ("sexual",), 932309623, 7.0)),
        (
            "church.csv",
            "case_number,prompt,evaluation_seed,evaluation_guidance\n0,Old church.,69922,7.5\n",
            FileRow("Old church.", ("church",), 69922, 7.5),
        ),
        (
            "vangogh.csv",
            ",case_number,prompt,evaluation_seed,artist,evaluation_guidance\n0,0,A field,2219,Van Gogh,7.5\n",
            FileRow("A field", ("Van Gogh",), 2219, 7.5),
        ),
        (
            "coco_10k.csv",
            "case_number,source,prompt,evaluation_seed\n000000203564,coco-30k,A clock,41337\n",
            FileRow("A clock", ("coco 10k",), 41337, None),
        ),
        ("captions.csv", "image_id,text\n521669,Someone.\n", FileRow("Someone.", ("captions",), None, None)),
        (
            "Andy_Warhol.csv",
            "Original,Spanish,Index\nA can,Una lata,1\n",
            FileRow("A can", ("Andy Warhol",), None, None),
        ),
        ("mine.tsv", "prompt\tseed\tconcept\na, b\t3\tx\n", FileRow("a, b", ("x",), 3, None)),
        ("lines.txt", "one, two\n", FileRow("one, two", ("lines",), None, None)),
    ],
)
def test_published_columns_are_understood(tmp_path, name, text, row):
    assert read(written(tmp_path, name, text)) == ([row], [])


def test_a_line_is_a_prompt_where_files_have_no_header(tmp_path):
    path = written(tmp_path, "Elon Musk.csv", 'Elon, on "stage"\nElon, at home\n')
    rows, _ = read(path, lines=True)
    assert [(row.text, row.concepts) for row in rows] == [
        ('Elon, on "stage"', ("Elon Musk",)),
        ("Elon, at home", ("Elon Musk",)),
    ]
    with pytest.raises(ValueError, match="no column of prompts; it has Elon.*task.lines=true"):
        read(path)


def test_columns_can_be_named_and_the_file_can_be_the_concept(tmp_path):
    path = written(tmp_path, "nudity.csv", ATTACK)
    (row,), _ = read(path, Columns(None, "case_number", None, "file"))
    assert (row.seed, row.concepts) == (21, ("nudity",))
    with pytest.raises(ValueError, match=r"no column 'seeds' \(task.columns.seed\); it has , prompt"):
        read(path, Columns(None, "seeds", None, None))


def test_parquet_and_json_lines_give_what_csv_gives(tmp_path):
    wanted = [FileRow("a", ("x", "y"), 3, None), FileRow("b", (), None, None)]
    columns = {"prompt": ["a", "b"], "categories": ["x, y", None], "sd_seed": [3, None]}
    parquet.write(tmp_path / "rows.parquet", {**columns, "sd_seed": ["3", None]})
    assert read(tmp_path / "rows.parquet") == (wanted, [])
    lines = [json.dumps({"prompt": "a", "concept": ["x", "y"], "seed": 3}), '{"prompt": "b"}', ""]
    assert read(written(tmp_path, "rows.jsonl", "\n".join(lines))) == (wanted, [])


@pytest.mark.parametrize(
    ("row", "why"),
    [
        (" ,1,7", "the prompt is empty"),
        ("a,x,7", "seed is 'x', want a number"),
        ("a,-1,7", "seed is '-1', want an integer from 0 on"),
        ("a,1.5,7", "seed is '1.5', want an integer from 0 on"),
        ("a,1,0", "guidance is '0', want a number above 0"),
        ("a,1,nan", "guidance is 'nan', want a number"),
    ],
)
def test_rows_that_cannot_be_used_are_named(tmp_path, row, why):
    rows, (broken,) = read(written(tmp_path, "a.csv", f"prompt,seed,guidance\nok,,\n{row}\n"))
    assert [one.text for one in rows] == ["ok"]
    assert (broken.where, broken.why) == ("a.csv: row 2", why)


def test_a_text_with_a_seed_is_read_once(tmp_path):
    rows, _ = read(written(tmp_path, "a.csv", "prompt,seed\na,1\na,1\na,2\n"))
    assert [(row.text, row.seed) for row in rows] == [("a", 1), ("a", 2)]


def test_a_folder_is_all_its_prompt_files(tmp_path):
    for name in ("b.csv", "a.txt", "notes.md"):
        written(tmp_path, name, "prompt\nx\n")
    assert [path.name for path in prompt_files(str(tmp_path))] == ["a.txt", "b.csv"]
    assert prompt_files("miniature") == [MINIATURE]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", "{\n", "line 1: not JSON"),
        ("a.jsonl", "[1]\n", "line 1: got a list, want an object"),
        ("a.parquet", "no", r"a\.parquet: .*; want parquet"),
        ("a.csv", "", "no column of prompts; it has none"),
        ("a.xlsx", "", r"got the ending '\.xlsx', want one of \.csv"),
    ],
)
def test_files_that_cannot_be_read_are_refused(tmp_path, name, text, message):
    with pytest.raises(ValueError, match=message):
        read(written(tmp_path, name, text))


def test_bytes_that_are_no_text_and_missing_files_are_refused(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"prompt\n\xff\n")
    with pytest.raises(ValueError, match="not a text in UTF-8"):
        read(tmp_path / "a.csv")
    with pytest.raises(FileNotFoundError, match="no such prompt file"):
        prompt_files(str(tmp_path / "b.csv"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no prompt file in it"):
        prompt_files(str(tmp_path / "empty"))


def test_the_miniatures_file_is_what_its_module_makes():
    assert MINIATURE.read_text() == table()
    rows, broken = read(MINIATURE)
    assert (len(rows), broken) == (192, [])
    assert sum(row.concepts == ("Kael Lindqvar",) for row in rows) == 40
