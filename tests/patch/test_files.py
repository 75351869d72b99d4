import json

import pytest
import tiny
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from weight_files.spoiled import SPOILED

from muwa.patch.files import find_checkpoint, read_tensors, read_weights, rewrite, rewrite_files, tensor_names


def sharded(folder, weights):
    """A Hugging Face folder of two shards with an index."""
    folder.mkdir()
    names = sorted(weights)
    parts = {f"model-0000{i + 1}-of-00002.safetensors": names[i::2] for i in range(2)}
    for file, own in parts.items():
        save_file({name: weights[name] for name in own}, folder / file, metadata={"format": "pt"})
    index = {"weight_map": {name: file for file, own in parts.items() for name in own}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture
def weights():
    return {name: tensor.half() for name, tensor in tiny.clip().weights.items()}


def test_weights_are_found_in_files_folders_and_shards(tmp_path, weights):
    save_file(weights, tmp_path / "one.safetensors")
    torch.save({"state_dict": {f"module.{n}": w for n, w in weights.items()}}, tmp_path / "one.pt")
    torch.save(weights, tmp_path / "one.bin")
    for name in ("open_clip_model.safetensors", "model.safetensors"):
        (tmp_path / name.split(".")[0]).mkdir()
        save_file(weights, tmp_path / name.split(".")[0] / name)
    sharded(tmp_path / "shards", weights)
    for base in ("one.safetensors", "one.pt", "one.bin", "open_clip_model", "model", "shards"):
        found = read_weights(tmp_path / base)
        assert set(found) == set(weights), base
        assert all(
            torch.equal(found[name], weights[name]) and found[name].dtype == torch.float16 for name in weights
        ), base


def test_missing_files_are_named(tmp_path, weights):
    with pytest.raises(
        FileNotFoundError, match="looked for open_clip_model.safetensors, .* found no such folder"
    ):
        find_checkpoint(tmp_path / "none")
    (tmp_path / "config.json").touch()
    with pytest.raises(FileNotFoundError, match=r"found \['config.json'\]"):
        find_checkpoint(tmp_path)
    with pytest.raises(FileNotFoundError, match="want a .safetensors, .pt, .pth or .bin file"):
        find_checkpoint(tmp_path / "config.json")
    (sharded(tmp_path / "shards", weights) / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(
        FileNotFoundError,
        match=r"index.json names model-00002-of-00002.safetensors, which is not there \(1 missing",
    ):
        find_checkpoint(tmp_path / "shards")


@pytest.mark.parametrize("name", ["one.safetensors", "one.pt"])
def test_some_tensors_of_a_file_are_read(tmp_path, weights, name):
    save = save_file if name.endswith("safetensors") else torch.save
    save(weights, tmp_path / name)
    assert sorted(tensor_names(tmp_path / name)) == sorted(weights)
    (found,) = read_tensors(tmp_path / name, {"visual.proj"}).items()
    assert found[0] == "visual.proj"
    assert torch.equal(found[1], weights["visual.proj"])


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path):
    for name in ("text.safetensors", "text.pt"):
        (tmp_path / name).write_text("hello")
        for read in (tensor_names, read_weights):
            with pytest.raises(ValueError, match=rf"{name}: the file is a text, not weights \(hello\)"):
                read(tmp_path / name)
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match=r"list.pt: not a checkpoint: it holds a list, want tensors by name"):
        read_weights(tmp_path / "list.pt")


def test_files_at_any_depth_are_rewritten_and_dropped_ones_left_out(tmp_path):
    deep = tmp_path / "base" / "unet"
    deep.mkdir(parents=True)
    save_file({"a": torch.zeros(2), "b": torch.zeros(1)}, deep / "model.safetensors")
    (deep / "old.bin").write_text("old")
    (tmp_path / "base" / "about.txt").write_text("words")
    changes = {deep / "model.safetensors": {"a": torch.ones(2)}}
    rewrite_files(tmp_path / "base", tmp_path / "out", changes, [deep / "old.bin"])
    files = [
        path.relative_to(tmp_path / "out").as_posix()
        for path in (tmp_path / "out").rglob("*")
        if path.is_file()
    ]
    assert sorted(files) == ["about.txt", "unet/model.safetensors"]
    found = load_file(tmp_path / "out" / "unet" / "model.safetensors")
    assert (found["a"].tolist(), found["b"].tolist()) == ([1, 1], [0])


def test_only_the_bytes_of_the_changed_tensor_change(tmp_path, weights):
    base = sharded(tmp_path / "shards", weights)
    (base / "config.json").write_text("{}")
    rewrite(base, tmp_path / "out", {"visual.proj": torch.zeros(weights["visual.proj"].shape)})
    assert {path.name for path in (tmp_path / "out").iterdir()} == {path.name for path in base.iterdir()}
    found = read_weights(tmp_path / "out")
    assert found["visual.proj"].dtype == torch.float16
    assert not found["visual.proj"].any()
    assert all(torch.equal(found[name], weights[name]) for name in weights if name != "visual.proj")
    raw = {path.name: path.read_bytes() for path in base.iterdir()}
    new = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    (changed,) = [name for name in raw if raw[name] != new[name]]
    differing = sum(a != b for a, b in zip(raw[changed], new[changed], strict=True))
    assert 0 < differing <= weights["visual.proj"].numel() * 2


def test_a_tensor_that_is_not_in_the_base_leaves_nothing_behind(tmp_path, weights):
    save_file(weights, tmp_path / "one.safetensors")
    with pytest.raises(KeyError, match=r"has no tensor visual.prj \(1 of the patch's tensors are missing\)"):
        rewrite(tmp_path / "one.safetensors", tmp_path / "out", {"visual.prj": torch.zeros(1)})
    assert [path.name for path in tmp_path.iterdir()] == ["one.safetensors"]


def test_an_empty_folder_is_taken_and_a_full_one_refused(tmp_path, weights):
    save_file(weights, tmp_path / "one.safetensors")
    (tmp_path / "out").mkdir()
    rewrite(tmp_path / "one.safetensors", tmp_path / "out", {})
    assert set(load_file(tmp_path / "out" / "one.safetensors")) == set(weights)
    with pytest.raises(FileExistsError, match="exists already; --out wants a new or empty folder"):
        rewrite(tmp_path / "one.safetensors", tmp_path / "out", {})


def test_metadata_and_other_files_stay_and_the_base_is_untouched(tmp_path, weights):
    base = tmp_path / "base"
    (base / "more").mkdir(parents=True)
    save_file(weights, base / "open_clip_model.safetensors", metadata={"format": "pt", "by": "us"})
    (base / "more" / "vocab.txt").write_text("a b")
    before = (base / "open_clip_model.safetensors").read_bytes()
    rewrite(base, tmp_path / "out", {"visual.proj": torch.zeros(weights["visual.proj"].shape)})
    with safe_open(tmp_path / "out" / "open_clip_model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "by": "us"}
    assert (tmp_path / "out" / "more" / "vocab.txt").read_text() == "a b"
    assert (base / "open_clip_model.safetensors").read_bytes() == before


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_pickle_keeps_its_dtypes_and_loses_its_wrapping(tmp_path, dtype):
    tree = {"module.a": torch.ones(2, dtype=dtype), "module.b": torch.arange(3), "module.c": torch.ones(2, 2)}
    torch.save({"state_dict": tree, "epoch": 3}, tmp_path / "old.pt")
    rewrite(tmp_path / "old.pt", tmp_path / "out", {"a": torch.full((2,), 1.5)})
    found = load_file(tmp_path / "out" / "old.safetensors")
    assert {name: tensor.dtype for name, tensor in found.items()} == {
        "a": dtype,
        "b": torch.int64,
        "c": torch.float32,
    }
    assert (found["a"].tolist(), found["b"].tolist()) == ([1.5, 1.5], [0, 1, 2])


def test_an_out_that_is_a_file_is_refused(tmp_path, weights):
    save_file(weights, tmp_path / "one.safetensors")
    (tmp_path / "out").write_text("mine")
    with pytest.raises(FileExistsError, match="exists already"):
        rewrite(tmp_path / "one.safetensors", tmp_path / "out", {})
    assert (tmp_path / "out").read_text() == "mine"


def test_a_pickle_with_tied_tensors_is_rewritten(tmp_path):
    tied = torch.ones(3)
    torch.save({"a": tied, "b": tied, "c": torch.ones(2)}, tmp_path / "old.pt")
    rewrite(tmp_path / "old.pt", tmp_path / "out", {"c": torch.zeros(2)})
    found = load_file(tmp_path / "out" / "old.safetensors")
    assert {name: tensor.tolist() for name, tensor in found.items()} == {
        "a": [1] * 3,
        "b": [1] * 3,
        "c": [0] * 2,
    }


def test_a_rewrite_that_fails_leaves_nothing_behind(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "one.safetensors")
    with pytest.raises(ValueError, match="a: got 12 bytes, want 8 as in the base: another shape"):
        rewrite(tmp_path / "one.safetensors", tmp_path / "out", {"a": torch.ones(3)})
    assert [path.name for path in tmp_path.iterdir()] == ["one.safetensors"]


def test_names_that_a_wrapper_changed_are_those_of_the_model(tmp_path, weights):
    torch.save({"state_dict": {f"module._orig_mod.{n}": w for n, w in weights.items()}}, tmp_path / "one.pt")
    assert set(read_weights(tmp_path / "one.pt")) == set(weights)
    torch.save(
        {f"model.{n}": w for n, w in weights.items()}, tmp_path / "two.bin"
    )  # a rewrite must keep these
    assert set(read_weights(tmp_path / "two.bin")) == {f"model.{n}" for n in weights}


@pytest.mark.parametrize("name", ["pointer.safetensors", "page.pt", "empty.bin"])
def test_a_base_that_is_not_what_its_name_says_is_called_what_it_is(tmp_path, name):
    content, message = SPOILED[name]
    (tmp_path / name).write_bytes(content)
    for read in (tensor_names, read_weights):
        with pytest.raises(ValueError, match=f"{name}: the file {message}"):
            read(tmp_path / name)


def test_a_users_folder_with_the_name_of_a_draft_stays(tmp_path, weights):
    save_file(weights, tmp_path / "base.safetensors")
    (tmp_path / "out.draft").mkdir()
    (tmp_path / "out.draft" / "mine.txt").write_text("mine")
    rewrite(tmp_path / "base.safetensors", tmp_path / "out", {})
    assert (tmp_path / "out.draft" / "mine.txt").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base.safetensors", "out", "out.draft"]
