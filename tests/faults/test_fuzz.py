"""Random damage to everything that muwa reads: no other error than ours, nothing written elsewhere, nothing false accepted.

The default suite tries 50 cases from a fixed seed. `MUWA_FUZZ_SEED=n pytest -m slow tests/faults/test_fuzz.py -s` tries
2,000 from seed n, or from a random one, and prints it.
"""

from __future__ import annotations

import json
import math
import os
import re
import secrets
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from omegaconf.errors import OmegaConfBaseException
from safetensors.torch import save, save_file
from setting_sweep import CONF, must_be_refused, resolved
from setting_sweep import settings as all_settings
from special_files import in_time

from muwa import config
from muwa.cache.store import Store
from muwa.command_line import adapted
from muwa.data.caption_index import index_captions
from muwa.data.celeba import read_celeba
from muwa.data.shards import iter_samples, write_shard
from muwa.patch.__main__ import main as patch_command
from muwa.patch.apply import FORMAT, Patch, read_patch, save_patch
from muwa.types.edit import Move

OURS = (ValueError, OSError)
CAPTIONS = ("Ada Fox", "a photo of Bo Hill", "ADA_FOX at home", "a red star")
EVERY = all_settings()
# how many cases: in the default suite, in the slow suite
CASES = {
    "overrides": (4, 300), "tars": (10, 450), "patches": (10, 450), "indices": (8, 250), "entries": (9, 300), "text_files": (9, 250),
}  # fmt: skip

EDITS = st.lists(
    st.tuples(
        st.sampled_from(["flip", "cut", "drop", "insert", "repeat", "zero", "splice"]), st.floats(0, 1), st.binary(min_size=1, max_size=24)
    ),
    min_size=1,
    max_size=4,
)  # fmt: skip


def damaged(raw: bytes, edits: list[tuple[str, float, bytes]]) -> bytes:
    """`raw` after some edits, each at a place given as a fraction of the length."""
    for kind, place, more in edits:
        at = min(int(place * len(raw)), max(len(raw) - 1, 0))
        end = at + len(more)
        if kind == "flip" and raw:
            raw = raw[:at] + bytes([raw[at] ^ (1 << more[0] % 8)]) + raw[at + 1 :]
        elif kind == "cut":
            raw = raw[:at]
        elif kind == "drop":
            raw = raw[:at] + raw[end:]
        elif kind == "insert":
            raw = raw[:at] + more + raw[at:]
        elif kind == "repeat":
            raw = raw[:end] + raw[at:]
        elif kind == "zero":
            raw = raw[:at] + bytes(len(more)) + raw[end:]
        else:
            raw = raw[:at] + more + raw[end:]
    return raw


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, with its content."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@contextmanager
def held(root: Path) -> Iterator[Path]:
    """A folder to work in. Fails if something beside it changes, if it takes long, or if a message has no words."""
    work = root / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    (root / "outside.txt").write_text("outside")
    said = "all went well"
    try:
        with in_time(60), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield work
    except OURS as error:
        said = str(error)
    assert len(said) > 10, said
    first = re.split("Expected layout|max_broken:", said.strip())[0]  # a layout or the broken rows follow
    assert "\n" not in first, said
    shutil.rmtree(work)
    assert tree(root) == {"outside.txt": b"outside"}


def fuzz(
    name: str, strategy: st.SearchStrategy, check: Callable[[Any], None], *, slow: bool, capsys: Any
) -> None:
    """Try many cases of a strategy."""
    number = int(os.environ.get("MUWA_FUZZ_SEED") or (secrets.randbelow(2**32) if slow else 19))
    cases, tried = CASES[name][slow], 0
    if slow:
        with capsys.disabled():
            print(f"\n{name}: {cases} cases from MUWA_FUZZ_SEED={number}")

    @seed(number)
    @settings(max_examples=cases, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(strategy)
    def run(case):
        nonlocal tried
        tried += 1
        check(case)

    run()
    assert tried >= cases * 0.9


SLOW = pytest.mark.parametrize(
    "slow", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["few", "many"]
)


NUMBERS = st.one_of(
    st.integers(),
    st.floats(),
    st.integers(-3, 3),
    st.sampled_from([math.nan, math.inf, 1e30, -1e30, 2**31, 2**63]),
)
VALUES = st.one_of(
    NUMBERS,
    NUMBERS.map(lambda x: [x]),
    st.text(max_size=12),
    st.none(),
    st.booleans(),
    st.just([]),
    st.just({}),
)


def written(value: Any) -> str:
    """A value as it is typed on a command line."""
    if isinstance(value, str):
        return value
    return "null" if value is None else json.dumps(value).replace("NaN", "nan").replace("Infinity", "inf")


@SLOW
def test_overrides(slow, capsys):
    config.register()

    def check(case):
        setting, value = case
        try:
            words = adapted([*setting.overrides, f"{setting.key}={written(value)}"])
            with initialize_config_dir(str(CONF), version_base="1.3"):
                cfg = compose("config", [*words, "paths.run=outputs", "paths.sweep=outputs"])
            default = resolved(config.composed(*setting.overrides), setting.key)
            taken = resolved(cfg, setting.key)
            config.Parts(cfg)
        except (HydraException, OmegaConfBaseException):
            return  # Hydra's own refusals, which it prints without a traceback
        except ValueError as error:
            said = str(error)
        else:
            said = ""
        assert "\n" not in said, said
        assert said or not must_be_refused(setting, taken, default), (
            f"{setting.key}={written(value)} is accepted"
        )

    fuzz("overrides", st.tuples(st.sampled_from(EVERY), VALUES), check, slow=slow, capsys=capsys)


@SLOW
def test_tars(slow, capsys, tmp_path):
    write_shard(
        tmp_path / "good.tar", [(f"{i}", tiny.png(i), text, {"n": i}) for i, text in enumerate(CAPTIONS)]
    )
    raw = (tmp_path / "good.tar").read_bytes()
    (tmp_path / "good.tar").unlink()

    def check(edits):
        with held(tmp_path) as work:
            (work / "0.tar").write_bytes(damaged(raw, edits))
            for verify in (False, True):
                broken: list = []
                found = list(iter_samples(str(work / "0.tar"), broken, caption_key=None, verify=verify))
                assert len(found) <= 8
                assert len(found) == 4 or broken or len(damaged(raw, edits)) > len(raw), "lost without a word"
            found = index_captions([str(work / "0.tar")], work / "index", caption_key=None, progress=False)
            assert found.shards

    fuzz("tars", EDITS, check, slow=slow, capsys=capsys)


NAMES = st.one_of(
    st.sampled_from(["delta/a", "base/a", "delta/../../x", "/abs", "delta/", "base/b", "other"]),
    st.text(max_size=12),
)
TENSORS = st.sampled_from([
    torch.ones(2), torch.zeros(2), torch.tensor([math.nan, 1.0]), torch.tensor([math.inf, 1.0]), torch.ones(2, 1), torch.ones(()),
    torch.ones(0), torch.ones(2, dtype=torch.float64), torch.ones(2, dtype=torch.int64), torch.ones(2, dtype=torch.bfloat16),
    torch.ones(2, dtype=torch.bool),
])  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5),
    lambda x: st.lists(x, max_size=2) | st.dictionaries(st.text(max_size=5), x, max_size=2),
    max_leaves=5,
)
MOVES = st.lists(
    st.fixed_dictionaries(
        {"concept": st.text(max_size=3) | JSON, "tower": st.just("vision") | JSON, "layer": st.just("a") | JSON,
         "step": st.floats() | JSON, "relative_norm": st.floats() | JSON}
    ), max_size=2,
)  # fmt: skip
ABOUT = st.one_of(
    JSON,
    st.fixed_dictionaries(
        {
            "base_fingerprint": st.text(max_size=8) | JSON,
            "moves": MOVES | JSON,
            "story": st.dictionaries(st.text(max_size=3), JSON, max_size=2) | JSON,
        }
    ),
)


@SLOW
def test_patches(slow, capsys, tmp_path):
    good = Patch(
        {"a": torch.ones(2)}, {"a": torch.zeros(2)}, "f" * 64, (Move("Ada Fox", "vision", "a", 1.0, 0.5),), {}
    )
    save_patch(tmp_path / "good.safetensors", good)
    raw = (tmp_path / "good.safetensors").read_bytes()
    (tmp_path / "good.safetensors").unlink()

    def check(case):
        edits, tensors, about = case
        with held(tmp_path) as work:
            path = work / "p.safetensors"
            made = tensors and save(
                {name: tensor.clone() for name, tensor in tensors.items()},
                metadata={FORMAT: json.dumps(about)},
            )
            path.write_bytes(made or damaged(raw, edits))
            save_file({"a": torch.zeros(2)}, work / "base.safetensors")
            for words in (
                ["show", path],
                ["apply", path, work / "base.safetensors", "--out", work / "out"],
                ["add", path, "--out", work / "o"],
                ["lora", path, "--rank", "1", "--out", work / "l"],
            ):
                code = patch_command([str(word) for word in words])
                said = capsys.readouterr().err.strip()
                assert code in (0, 2)
                assert code == 0 or (
                    said.startswith("muwa.patch: ") and len(said.splitlines()) == 1 and len(said) > 25
                ), said
            read = read_patch(path)  # refused, or sound
            assert {*read.deltas} == {*read.base}
            assert all(tensor.isfinite().all() for tensor in (*read.deltas.values(), *read.base.values()))
            assert all(isinstance(move.step, int | float) and math.isfinite(move.step) for move in read.moves)
            if not made:
                assert torch.equal(read.deltas["a"], good.deltas["a"])
                assert torch.equal(read.base["a"], good.base["a"])

    strategy = st.tuples(EDITS, st.none() | st.dictionaries(NAMES, TENSORS, min_size=1, max_size=3), ABOUT)
    fuzz("patches", strategy, check, slow=slow, capsys=capsys)


@SLOW
def test_indices(slow, capsys, tmp_path):
    tar = tmp_path / "0.tar"
    write_shard(tar, [(f"{i}", tiny.png(i), text, {}) for i, text in enumerate(CAPTIONS)])
    shard, stamp = tar.read_bytes(), tar.stat().st_mtime_ns
    tar.unlink()

    def found(work: Path) -> list[tuple[str, str]]:
        index = index_captions([str(work / "0.tar")], work / "index", caption_key=None, progress=False)
        return [
            (match.key, match.caption)
            for some in index.matches({"Ada Fox": ["Ada Fox"]}).values()
            for match in some
        ]

    def check(case):
        which, edits = case
        with held(tmp_path) as work:
            (work / "0.tar").write_bytes(shard)
            os.utime(work / "0.tar", ns=(stamp, stamp))
            want = found(work)
            files = sorted(
                path for path in (work / "index").iterdir() if path.suffix in (".json", ".parquet")
            )
            path = files[which % len(files)]
            path.write_bytes(damaged(path.read_bytes(), edits))
            assert len(want) == 2
            assert found(work) == want, "a damaged index gives other captions"

    fuzz("indices", st.tuples(st.integers(0, 1), EDITS), check, slow=slow, capsys=capsys)


def numbers(n: int) -> dict[str, Any]:
    """A value of a cache entry."""
    return {"tensor": torch.arange(n, dtype=torch.float32), "text": "a text", "list": [1, 2.5, None]}


@SLOW
def test_entries(slow, capsys, tmp_path):
    Store(tmp_path / "made").get("stage", numbers, 4)
    (entry,) = [path.parent for path in (tmp_path / "made").rglob("key.json")]
    files = {path.name: path.read_bytes() for path in entry.iterdir()}
    place, want = entry.relative_to(tmp_path / "made"), numbers(4)
    shutil.rmtree(tmp_path / "made")

    def check(case):
        which, edits, special = case
        with held(tmp_path) as work:
            folder = work / "cache" / place
            folder.mkdir(parents=True)
            for name, raw in files.items():
                (folder / name).write_bytes(raw)
            path = folder / sorted(files)[which % len(files)]
            path.write_bytes(damaged(path.read_bytes(), edits))
            if special is not None:
                path.unlink()
                special(path)
            got = Store(work / "cache").get("stage", numbers, 4)
            assert torch.equal(got["tensor"], want["tensor"])
            assert (got["text"], got["list"]) == (want["text"], want["list"])

    special = st.sampled_from(
        [
            None,
            None,
            None,
            os.mkfifo,
            Path.mkdir,
            lambda path: path.symlink_to("/dev/zero"),
            lambda path: path.symlink_to("nowhere"),
        ]
    )
    fuzz("entries", st.tuples(st.integers(0, 2), EDITS, special), check, slow=slow, capsys=capsys)


@SLOW
def test_text_files(slow, capsys, tmp_path):
    rows = "".join(
        f"{i:06d}.jpg {name}\n"
        for i, name in enumerate(("Ada_Fox", "Bo_Hill", "Zoë_Ray", "../../up", "/abs"))
    )
    csv = "prompt,seed,guidance,concept\n" + "".join(
        f'"a photo of {name}, {i}",{i},7.5,{name}\n'
        for i, name in enumerate(("Ada Fox", "Bo", "Bo", "Ada Fox"))
    )

    def check(case):
        edits, encoding = case
        with held(tmp_path) as work:
            faces = work / "celeba" / "img_align_celeba"
            faces.mkdir(parents=True)
            for i in range(5):
                (faces / f"{i:06d}.jpg").write_bytes(tiny.png(i))
            (work / "celeba" / "list_identity_celeba.txt").write_bytes(damaged(rows.encode(encoding), edits))
            (work / "p.csv").write_bytes(damaged(csv.encode(encoding), edits))
            people = read_celeba(work / "celeba", identities=None, frequent=None)
            assert all(path.parent == faces for some in people.files.values() for path in some)
            assert people.names
            builder = config.part("task=prompts", file=str(work / "p.csv"), forget="Ada Fox", keep=[])
            builder.check(config.part("dataset=laion_celeba", retain=str(work / "none.tar"))())

    fuzz(
        "text_files",
        st.tuples(EDITS, st.sampled_from(["utf-8", "latin-1", "utf-16"])),
        check,
        slow=slow,
        capsys=capsys,
    )
