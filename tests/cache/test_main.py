import json

import pytest
from filelock import FileLock

from muwa.cache.__main__ import main
from muwa.cache.store import Store


def add(x, y=1, *, bar=None):
    return x + y


def test_the_command_line_lists_explains_and_clears(tmp_path, capsys):
    store = Store(tmp_path)
    store.get("a/b", add, 1, 2)
    store.get("a/b", add, 1, 3)
    store.get("c", add, 1, 2)
    assert main(["ls", str(tmp_path)]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert sorted(row[1] for row in rows) == ["a/b", "a/b", "c"]
    one, two = [row[0] for row in rows if row[1] == "a/b"]
    assert main(["why", one, two, "--root", str(tmp_path)]) == 0
    different = [line.split()[1:3] for line in capsys.readouterr().out.splitlines() if line.startswith("* ")]
    assert different == [["argument", "y"]]
    assert main(["why", "zzzz", "--root", str(tmp_path)]) == 2
    assert "0 entries under" in capsys.readouterr().err
    for stage in ("a/b", "c"):  # what a stopped training and a killed process left
        (tmp_path / stage / f"{'0' * 64}.unfinished").mkdir()
        (tmp_path / stage / f"{'1' * 64}.77-ab.draft").mkdir()
        (tmp_path / stage / f"{'2' * 64}.lock").touch()
    (tmp_path / "a" / "b" / "mine.draft").mkdir()  # of the user
    assert main(["clear", str(tmp_path), "--stage", "a"]) == 0
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["mine.draft"]
    assert [path.parent.name for path in tmp_path.rglob("*.unfinished")] == ["c"]
    assert [json.loads(path.read_text())["stage"] for path in tmp_path.rglob("key.json")] == ["c"]


def test_one_key_is_explained_and_a_stage_is_listed_alone(tmp_path, capsys):
    store = Store(tmp_path)
    store.get("a/b", add, 1, 2)
    store.get("c", add, 1, 2)
    assert main(["ls", str(tmp_path), "--stage", "c"]) == 0
    ((key, stage, *_),) = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert stage == "c"
    assert main(["why", key, "--root", str(tmp_path)]) == 0
    shown = capsys.readouterr().out.splitlines()
    names = ["argument bar", "argument x", "argument y", "code", "function", "stage"]
    assert [line[2:26].strip() for line in shown] == names
    assert not [line for line in shown if line.startswith("*")]
    assert main(["why", "", "--root", str(tmp_path)]) == 2
    assert "2 entries under" in capsys.readouterr().err
    assert main(["clear", str(tmp_path)]) == 0
    assert not list(tmp_path.rglob("key.json"))


def test_an_entry_that_a_process_holds_is_left(tmp_path, capsys):
    Store(tmp_path).get("a", add, 1, 2)
    (folder,) = [path.parent for path in tmp_path.rglob("key.json")]
    with FileLock(f"{folder}.lock"):
        assert main(["clear", str(tmp_path)]) == 0
    assert "1 entries are in use and were left" in capsys.readouterr().err
    assert (folder / "value.json").is_file()


@pytest.mark.parametrize("command", ["ls", "clear"])
def test_a_folder_that_is_no_cache_is_left_alone(tmp_path, capsys, command):
    for name in ("key.json", "work.draft", f"{'0' * 64}.lock"):
        (tmp_path / name).write_text("mine")
    assert main([command, str(tmp_path)]) == 2
    assert (
        "not a cache of muwa (no muwa-cache.txt in it); want the folder of paths.cache"
        in capsys.readouterr().err
    )
    assert len(list(tmp_path.iterdir())) == 3
