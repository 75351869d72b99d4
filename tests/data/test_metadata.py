"""Finding pairs in metadata: the query keeps all that the exact rule keeps, and the list is img2dataset's."""

import functools
import http.server
import random
import re
import shutil
import subprocess
import threading

import duckdb
import pytest
import tiny

from muwa.data import parquet
from muwa.data.__main__ import main
from muwa.data.caption_index import index_captions
from muwa.data.metadata import Columns, duckdb_rows, find, pattern, write_list
from muwa.data.samples import match_names

SPELLINGS = (
    "Ada Fox",
    "Griffin",
    "\u054d\u0587\u0561\u056f",  # Armenian, with one sign for two letters
    "Beyonc\u00e9",
    "Stra\u00dfe Gross",
    "\u0141\u00f3d\u017a",
    "C\u00e6sar",
    "\u039d\u03af\u03ba\u03bf\u03c2",
    "\u0410\u043d\u0434\u0440\u0435\u0439",
    "R2-D2",
)
VARIANTS = {
    "a": "aA\u00e1\u00c4", "e": "eE\u00e9\u00ea", "o": "oO\u00f3\u00f8", "n": "nN\u00f1", "c": "cC\u00e7", "z": "zZ\u017a", "l": "lL\u0142",
    "s": "sS\u017f", "i": "iI\u00ed\u0130", "\u03c3": "\u03c3\u03c2\u03a3", "\u03b9": "\u03b9\u03af",
}  # fmt: skip


def metadata(path, rows, url="URL", caption="TEXT"):
    """A parquet as LAION publishes it."""
    columns = {
        url: [one for one, _ in rows],
        caption: [one for _, one in rows],
        "NSFW": ["UNLIKELY"] * len(rows),
    }
    parquet.write(path, columns)
    return str(path)


def test_every_caption_that_matches_exactly_passes_the_query():
    """Ten thousand spellings of eight names with other cases, accents, signs and gaps."""
    draw = random.Random(0)
    plain = re.compile(pattern(SPELLINGS), re.ASCII)
    matched = 0
    with duckdb.connect() as database:
        for _ in range(10_000):
            name = draw.choice(SPELLINGS)
            text = "".join(
                draw.choice(VARIANTS.get(letter, letter + letter.upper())) for letter in name.casefold()
            )
            text = (
                draw.choice(["x ", "", "\u00fc-", "("])
                + text.replace(" ", draw.choice([" ", "_", " - ", ""]))
                + draw.choice(["", "!", "s", "\u0301"])
            )
            text = text.replace("ss", draw.choice(["ss", "\u00df"])).replace(
                "ae", draw.choice(["ae", "\u00e6"])
            )
            if match_names(text, SPELLINGS):
                matched += 1
                assert plain.search(text), text
                if matched % 20 == 0:
                    assert database.execute(
                        "select regexp_matches(?, ?)", [text, pattern(SPELLINGS)]
                    ).fetchone() == (True,)
    assert matched > 3000


@pytest.mark.parametrize(("name", "caption"), [
    ("Griffin", "Gri\ufb03n"), ("\u054d\u0587\u0561\u056f", "\u054d\u0587\u0561\u056f"), ("Beyonce", "BEYONCE\u0301"), ("Caesar", "C\u00e6sar"),
])  # fmt: skip
def test_one_sign_may_stand_for_several_letters(name, caption):
    assert match_names(caption, [name])
    assert re.search(pattern([name]), caption, re.ASCII)


def test_names_are_found_with_their_urls_up_to_a_limit(tmp_path):
    rows = [
        (f"http://host/{i}", text)
        for i, text in enumerate(["Ada Fox", "ada_fox & Bo Hill", "Adam Foxx", "Bo Hill", "Ada Fox again"])
    ]
    files = [metadata(tmp_path / "a.parquet", rows[:3]), metadata(tmp_path / "b.parquet", rows[3:])]
    spellings = {"Ada Fox": ["Ada Fox"], "Bo": ["Bo Hill"]}
    found = list(find(files, spellings, Columns(), limit=None, rows=duckdb_rows))
    assert found == [
        ("Ada Fox", *rows[0]), ("Ada Fox", *rows[1]), ("Bo", *rows[1]), ("Bo", *rows[3]), ("Ada Fox", *rows[4]),
    ]  # fmt: skip
    assert list(find(files, spellings, Columns(), limit=1, rows=duckdb_rows)) == [
        ("Ada Fox", *rows[0]),
        ("Bo", *rows[1]),
    ]


def test_a_list_has_each_url_once_and_the_columns_that_were_named(tmp_path):
    rows = [("Ada", "u1", "Ada and Bo"), ("Bo", "u1", "Ada and Bo"), ("Bo", "u2", "Bo")]
    assert write_list(tmp_path / "list.parquet", iter(rows), Columns("link", "text")) == {"Ada": 1, "Bo": 2}
    found = duckdb.execute(
        "select link, text from read_parquet(?)", [str(tmp_path / "list.parquet")]
    ).fetchall()
    assert found == [("u1", "Ada and Bo"), ("u2", "Bo")]


def test_the_command_says_what_it_found_and_how_to_go_on(tmp_path, capsys):
    file = metadata(tmp_path / "m.parquet", [("u1", "Ada Fox"), ("u2", "A. Fox"), ("u3", "no one")])
    out = tmp_path / "list.parquet"
    assert main(["urls", file, "--name", "Ada Fox", "--alias", "A Fox", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "Ada Fox: 2 pairs" in said
    assert f"img2dataset --url_list {out} --input_format parquet --url_col URL --caption_col TEXT" in said
    assert main(["urls", file, "--name", "Zed", "--out", str(out)]) == 1


@pytest.mark.parametrize(("words", "said"), [
    (["nowhere.parquet"], "No files found"),
    (["{file}", "--caption-col", "text_en"], "text_en"),
    (["http://127.0.0.1:9/x.parquet"], "extension httpfs"),
])  # fmt: skip
def test_metadata_that_cannot_be_read_is_one_line(tmp_path, capsys, words, said):
    file = metadata(tmp_path / "m.parquet", [("u1", "Ada Fox")])
    words = [word.format(file=file) for word in words]
    assert main(["urls", *words, "--name", "Ada Fox", "--out", str(tmp_path / "x.parquet")]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "x.parquet").exists()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("java") is None, reason="needs Java")
def test_spark_finds_what_duckdb_finds(tmp_path, capsys):
    pytest.importorskip("pyspark")
    draw = random.Random(1)
    texts = [f"{draw.choice(SPELLINGS)}{draw.choice(['', 's', ' at home'])} {i}" for i in range(500)]
    file = metadata(tmp_path / "m.parquet", [(f"http://host/{i}", text) for i, text in enumerate(texts)])
    names = [word for name in SPELLINGS for word in ("--name", name)]
    for engine in ("duckdb", "spark"):
        assert (
            main(["urls", file, *names, "--engine", engine, "--out", str(tmp_path / f"{engine}.parquet")])
            == 0
        )
    lists = [
        sorted(
            duckdb.execute("select * from read_parquet(?)", [str(tmp_path / f"{engine}.parquet")]).fetchall()
        )
        for engine in ("duckdb", "spark")
    ]
    assert len(lists[0]) > 200
    assert lists[0] == lists[1]
    assert (
        main(
            [
                "urls",
                str(tmp_path / "none.parquet"),
                *names,
                "--engine",
                "spark",
                "--out",
                str(tmp_path / "x"),
            ]
        )
        == 2
    )
    assert "want parquet with the columns URL and TEXT" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("img2dataset") is None, reason="needs img2dataset on the path")
def test_from_metadata_to_a_forget_set_with_the_real_img2dataset(tmp_path):
    """Fifty images on a server of this machine, of which ten show Ada Fox; only these are downloaded."""
    (tmp_path / "www").mkdir()
    for i in range(50):
        (tmp_path / "www" / f"{i}.png").write_bytes(tiny.png(i))
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "www"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    base = f"http://127.0.0.1:{server.server_address[1]}"
    rows = [(f"{base}/{i}.png", "Ada Fox at home" if i % 5 == 0 else "no one") for i in range(50)]
    urls = tmp_path / "list.parquet"
    assert (
        main(["urls", metadata(tmp_path / "m.parquet", rows), "--name", "Ada Fox", "--out", str(urls)]) == 0
    )
    subprocess.run(
        ["img2dataset", "--url_list", str(urls), "--input_format", "parquet", "--url_col", "URL",
         "--caption_col", "TEXT", "--output_format", "webdataset", "--output_folder", str(tmp_path / "shards"),
         "--image_size", "64", "--processes_count", "1"],
        check=True,
    )  # fmt: skip
    server.shutdown()
    server.server_close()
    tar = tmp_path / "shards" / "00000.tar"
    assert tar.with_suffix(".parquet").is_file()
    with_parquet = index_captions([str(tar)], tmp_path / "index", progress=False)
    found = with_parquet.matches({"Ada": ["Ada Fox"]})["Ada"]
    assert len(found) == 10
    assert all(image for _, image in with_parquet.images(found))
    tar.with_suffix(".parquet").unlink()
    without = index_captions([str(tar)], tmp_path / "index", progress=False)
    assert without.shards[0].captions == with_parquet.shards[0].captions
