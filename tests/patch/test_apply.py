import hashlib
import json
from dataclasses import replace

import open_clip
import pytest
import tiny
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from muwa.models.clip.model import Clip, Towers
from muwa.patch.__main__ import main
from muwa.patch.apply import (
    FORMAT,
    add_patches,
    apply_patch,
    read_patch,
    remove_patch,
    save_patch,
    write_patch,
)
from muwa.patch.files import read_weights
from muwa.types.edit import Edit, Move

NAMES = ("visual.proj", "transformer.resblocks.1.attn.out_proj.weight")
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def edit(model, names=NAMES, *, size=0.3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    deltas = {name: size * torch.randn(model.weights[name].shape, generator=generator) for name in names}
    return Edit(deltas, tuple(Move("Ada Fox", "vision", name, 1.5, 0.1) for name in names))


def in_dtype(dtype):
    """The tiny model with every weight rounded to `dtype`, and those weights in it."""
    model = tiny.clip()
    weights = {name: tensor.to(dtype) for name, tensor in model.weights.items()}
    return model.with_weights({name: tensor.float() for name, tensor in weights.items()}), weights


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def bits(a, b):
    """Whether two sets of tensors are equal bit for bit."""
    return set(a) == set(b) and all(
        torch.equal(a[n].view(torch.uint8), b[n].view(torch.uint8)) for n in a if a[n].ndim
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_apply_then_remove_restores_the_base_bit_for_bit(tmp_path, dtype):
    model, weights = in_dtype(dtype)
    write_patch(tmp_path / "p", edit(model), model)
    patch = read_patch(tmp_path / "p")
    edited = {**weights, **apply_patch(weights, patch)}
    assert not bits(edited, weights)
    assert bits({**edited, **remove_patch(edited, patch)}, weights)


def test_subtracting_the_delta_would_not_restore_it():
    model = tiny.clip()
    delta = edit(model, size=1000.0).deltas[NAMES[0]]
    weight = model.weights[NAMES[0]]
    assert not torch.equal(weight + delta - delta, weight)


def test_the_edited_weights_are_base_plus_delta_in_fp32(tmp_path):
    model, weights = in_dtype(torch.float16)
    write_patch(tmp_path / "p", edit(model), model)
    applied = apply_patch(weights, read_patch(tmp_path / "p"))
    for name, delta in edit(model).deltas.items():
        assert torch.equal(applied[name], (weights[name].float() + delta).half())
    assert torch.equal(model.edited(edit(model)).weights[NAMES[0]].half(), applied[NAMES[0]])


def test_any_other_base_is_refused(tmp_path):
    model = tiny.clip()
    write_patch(tmp_path / "p", edit(model), model)
    patch = read_patch(tmp_path / "p")
    with pytest.raises(
        ValueError, match=r"wrong base: .*the patch was made for .*2 of the 2 tensors to edit differ"
    ):
        apply_patch(tiny.clip(1).weights, patch)
    touched = {**model.weights, "ln_final.weight": model.weights["ln_final.weight"] + 1e-3}
    with pytest.raises(ValueError, match=r"wrong base: .*0 of the 2 tensors to edit differ"):
        apply_patch(touched, patch)
    with pytest.raises(ValueError, match=r"wrong base: .*these weights have no visual.proj"):
        apply_patch({n: w for n, w in model.weights.items() if n != "visual.proj"}, patch)


def test_a_patch_is_applied_once_and_removed_once(tmp_path):
    model = tiny.clip()
    write_patch(tmp_path / "p", edit(model), model)
    patch = read_patch(tmp_path / "p")
    edited = {**model.weights, **apply_patch(model.weights, patch)}
    with pytest.raises(ValueError, match="the patch is applied already"):
        apply_patch(edited, patch)
    with pytest.raises(ValueError, match="the patch is not on these weights"):
        remove_patch(model.weights, patch)
    edited["ln_final.weight"] = edited["ln_final.weight"] + 1
    with pytest.raises(ValueError, match="something else was changed too"):
        remove_patch(edited, patch)


def test_the_same_edit_is_the_same_file(tmp_path):
    for name in ("a", "b"):
        write_patch(tmp_path / name, edit(tiny.clip()), tiny.clip(), {"x": 1})
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    assert not list(tmp_path.glob("*.draft"))


def test_patches_of_one_base_add_up(tmp_path):
    model = tiny.clip()
    edits = [edit(model, NAMES, seed=1), edit(model, NAMES[:1], seed=2)]
    for i, one in enumerate(edits):
        write_patch(tmp_path / str(i), one, model)
    both = add_patches([read_patch(tmp_path / str(i)) for i in range(2)])
    assert torch.equal(both.deltas[NAMES[0]], edits[0].deltas[NAMES[0]] + edits[1].deltas[NAMES[0]])
    assert torch.equal(both.deltas[NAMES[1]], edits[0].deltas[NAMES[1]])
    assert len(both.moves) == 3
    applied = {**model.weights, **apply_patch(model.weights, both)}
    assert bits({**applied, **remove_patch(applied, both)}, dict(model.weights))
    write_patch(tmp_path / "x", edits[0], tiny.clip(1))
    with pytest.raises(ValueError, match="made for 2 different bases"):
        add_patches([read_patch(tmp_path / "0"), read_patch(tmp_path / "x")])


def test_a_file_that_is_no_patch_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such patch file; a run writes one"):
        read_patch(tmp_path / "none")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(ValueError, match=r"text: the file is a text, not weights \(hello\)"):
        read_patch(tmp_path / "text")
    save_file({"a": torch.ones(1)}, tmp_path / "other")
    with pytest.raises(ValueError, match="not a muwa patch .its metadata has nothing"):
        read_patch(tmp_path / "other")


@pytest.fixture
def folder(tmp_path):
    """An open_clip-like folder in fp16 with other files, and a patch for it."""
    model, weights = in_dtype(torch.float16)
    (tmp_path / "base" / "more").mkdir(parents=True)
    save_file(
        weights, tmp_path / "base" / "open_clip_model.safetensors", metadata={"format": "pt", "by": "us"}
    )
    (tmp_path / "base" / "open_clip_config.json").write_text("{}")
    (tmp_path / "base" / "more" / "vocab.txt").write_text("a b")
    write_patch(tmp_path / "p.safetensors", edit(model), model)
    return tmp_path


def test_the_command_line_edits_a_folder_and_restores_it(folder, capsys):
    patch, base, out, back = (str(folder / name) for name in ("p.safetensors", "base", "out", "back"))
    assert main(["apply", patch, base, "--out", out]) == 0
    assert "2 tensors edited" in capsys.readouterr().out
    assert (folder / "out" / "more" / "vocab.txt").read_text() == "a b"
    changed = load_file(folder / "out" / "open_clip_model.safetensors")
    assert {tensor.dtype for tensor in changed.values()} == {torch.float16}
    assert main(["remove", patch, out, "--out", back]) == 0
    assert digest(folder / "back" / "open_clip_model.safetensors") == digest(
        folder / "base" / "open_clip_model.safetensors"
    )


def test_the_command_line_overwrites_nothing_and_leaves_no_partial_folder(folder, capsys):
    patch, base = str(folder / "p.safetensors"), str(folder / "base")
    before = digest(folder / "base" / "open_clip_model.safetensors")
    assert main(["apply", patch, base, "--out", base]) == 2
    assert "exists already; --out wants a new or empty folder" in capsys.readouterr().err
    assert main(["remove", patch, base, "--out", str(folder / "out")]) == 2
    assert "the patch is not on these weights" in capsys.readouterr().err
    assert not (folder / "out").exists()
    assert digest(folder / "base" / "open_clip_model.safetensors") == before


def test_a_pickled_checkpoint_is_edited_as_safetensors(folder):
    weights = read_weights(folder / "base")
    torch.save({"state_dict": {f"module.{n}": w for n, w in weights.items()}, "epoch": 1}, folder / "old.pt")
    assert (
        main(["apply", str(folder / "p.safetensors"), str(folder / "old.pt"), "--out", str(folder / "out")])
        == 0
    )
    want = apply_patch(weights, read_patch(folder / "p.safetensors"))
    assert bits(load_file(folder / "out" / "old.safetensors"), {**weights, **want})


def test_show_in_a_pipe_cuts_no_name(folder, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    one = read_patch(folder / "p.safetensors")
    name, layer = (
        "Maria Antonia von und zu Hohenlohe-Langenburg",
        "visual.transformer.resblocks.11.attn.in_proj_weight",
    )
    (move, *_) = one.moves
    save_patch(folder / "long", replace(one, moves=(replace(move, concept=name, layer=layer),)))
    assert main(["show", str(folder / "long")]) == 0
    (row,) = [line for line in capsys.readouterr().out.splitlines() if name in line]
    assert layer in row


def test_the_command_line_adds_and_shows(folder, capsys):
    patch = str(folder / "p.safetensors")
    assert main(["add", patch, patch, "--out", str(folder / "sum")]) == 0
    one, two = read_patch(folder / "p.safetensors"), read_patch(str(folder / "sum"))
    assert torch.equal(two.deltas[NAMES[0]], 2 * one.deltas[NAMES[0]])
    assert main(["show", patch]) == 0
    shown = capsys.readouterr().out
    assert "visual.proj" in shown
    assert one.base_fingerprint in shown
    assert json.loads(json.dumps(dict(one.provenance)))["searches"] == []


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_file_in_any_dtype_is_edited_and_restored_byte_for_byte(tmp_path, dtype):
    model, weights = in_dtype(dtype)
    patch, base, out, back = (str(tmp_path / name) for name in ("p", "base.safetensors", "out", "back"))
    save_file(weights, base, metadata={"by": "us"})
    write_patch(tmp_path / "p", edit(model), model)
    assert main(["apply", patch, base, "--out", out]) == 0
    edited = load_file(tmp_path / "out" / "base.safetensors")
    assert [name for name in weights if not torch.equal(edited[name], weights[name])] == sorted(
        NAMES, key=list(weights).index
    )
    assert {tensor.dtype for tensor in edited.values()} == {dtype}
    assert main(["remove", patch, f"{out}/base.safetensors", "--out", back]) == 0
    assert (tmp_path / "back" / "base.safetensors").read_bytes() == (
        tmp_path / "base.safetensors"
    ).read_bytes()


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_pickled_file_is_edited_and_restored_bit_for_bit(tmp_path, suffix, dtype):
    model, weights = in_dtype(dtype)
    torch.save(weights, tmp_path / f"base{suffix}")
    write_patch(tmp_path / "p", edit(model), model)
    patch, out = str(tmp_path / "p"), str(tmp_path / "out")
    assert main(["apply", patch, str(tmp_path / f"base{suffix}"), "--out", out]) == 0
    assert not bits(load_file(f"{out}/base.safetensors"), weights)
    assert main(["remove", patch, f"{out}/base.safetensors", "--out", str(tmp_path / "back")]) == 0
    assert bits(load_file(tmp_path / "back" / "base.safetensors"), weights)


def test_only_the_patch_that_was_applied_can_be_removed(tmp_path):
    model = tiny.clip()
    for i, names in enumerate((NAMES[:1], NAMES[1:], NAMES[:1])):
        write_patch(tmp_path / str(i), edit(model, names, seed=i), model)
    one, two, other = (read_patch(tmp_path / str(i)) for i in range(3))
    edited = {**model.weights, **apply_patch(model.weights, one)}
    for wrong in (two, other):
        with pytest.raises(ValueError, match="the patch is not on these weights"):
            remove_patch(edited, wrong)
    both = {**model.weights, **apply_patch(model.weights, add_patches([one, two]))}
    with pytest.raises(
        ValueError, match=f"something else was changed too: .*the base's is {one.base_fingerprint[:12]}"
    ):
        remove_patch(both, one)


def test_a_second_patch_on_an_edited_model_is_refused_with_how_to_join_them(tmp_path):
    model = tiny.clip()
    for i in range(2):
        write_patch(tmp_path / str(i), edit(model, NAMES[i : i + 1], seed=i), model)
    edited = {**model.weights, **apply_patch(model.weights, read_patch(tmp_path / "0"))}
    with pytest.raises(ValueError, match="wrong base: .* python -m muwa.patch add PATCH MODEL --out DIR"):
        apply_patch(edited, read_patch(tmp_path / "1"))


def test_the_file_depends_on_the_edit_and_not_on_the_order_it_was_made_in(tmp_path):
    model = tiny.clip()
    one = edit(model)
    write_patch(tmp_path / "a", one, model)
    write_patch(tmp_path / "b", Edit(dict(reversed(one.deltas.items())), one.moves), model)
    write_patch(tmp_path / "c", edit(model, seed=1), model)
    assert digest(tmp_path / "a") == digest(tmp_path / "b") != digest(tmp_path / "c")


def test_the_command_line_says_what_is_wrong(folder, capsys):
    base = str(folder / "base")
    for patch, message in (
        ("none", "no such patch file"),
        ("base/open_clip_config.json", "the file is a text, not weights"),
        ("base/open_clip_model.safetensors", "not a muwa patch"),
    ):
        for command in (
            ["apply", str(folder / patch), base, "--out", str(folder / "out")],
            ["show", str(folder / patch)],
        ):
            assert main(command) == 2
            assert message in capsys.readouterr().err
    write_patch(folder / "x", edit(tiny.clip(1)), tiny.clip(1))
    assert main(["apply", str(folder / "x"), base, "--out", str(folder / "out")]) == 2
    assert "muwa.patch: wrong base" in capsys.readouterr().err
    assert main(["add", str(folder / "p.safetensors"), str(folder / "x"), "--out", str(folder / "sum")]) == 2
    assert "made for 2 different bases" in capsys.readouterr().err
    assert (
        main(["apply", str(folder / "p.safetensors"), str(folder / "none"), "--out", str(folder / "out")])
        == 2
    )
    assert "no such file or folder, want a model" in capsys.readouterr().err
    assert not (folder / "out").exists()
    assert not (folder / "sum").exists()


@pytest.mark.parametrize("name", ["open_clip_pytorch_model.bin", "pytorch_model.bin"])
def test_a_folder_with_pickled_weights_is_edited_and_restored(tmp_path, name):
    model, weights = in_dtype(torch.float32)
    (tmp_path / "base").mkdir()
    torch.save(weights, tmp_path / "base" / name)
    write_patch(tmp_path / "p", edit(model), model)
    assert main(["apply", str(tmp_path / "p"), str(tmp_path / "base"), "--out", str(tmp_path / "out")]) == 0
    assert main(["remove", str(tmp_path / "p"), str(tmp_path / "out"), "--out", str(tmp_path / "back")]) == 0
    assert bits(read_weights(tmp_path / "back"), weights)


@pytest.mark.parametrize("name", ["text.safetensors", "text.pt", "list.pt"])
def test_a_base_that_is_no_checkpoint_is_exit_code_2(folder, name, capsys):
    (folder / "text.safetensors").write_text("this is no checkpoint")
    (folder / "text.pt").write_text("this is no checkpoint")
    torch.save([1, 2], folder / "list.pt")
    assert (
        main(["apply", str(folder / "p.safetensors"), str(folder / name), "--out", str(folder / "out")]) == 2
    )
    assert name in capsys.readouterr().err


def test_a_patch_that_changes_nothing_is_applied_and_removed(tmp_path):
    model = tiny.clip()
    write_patch(tmp_path / "p", Edit({}, ()), model)
    patch = read_patch(tmp_path / "p")
    assert apply_patch(model.weights, patch) == {}
    assert remove_patch(model.weights, patch) == {}


def test_a_patch_of_a_resnet_fits_the_checkpoint_it_was_made_for(tmp_path, capsys):
    text = {"context_length": 16, "vocab_size": 64, "layers": 1, "width": 32, "heads": 2}
    network = open_clip.CLIP(16, {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8}, text)
    model = Clip(
        Towers(network, network.encode_image, network.encode_text),
        tiny.prepare,
        tiny.tokenize,
        source="resnet",
    )
    save_file(
        {name: tensor.contiguous() for name, tensor in network.state_dict().items()},
        tmp_path / "base.safetensors",
    )
    write_patch(tmp_path / "p", edit(model, ["visual.layer1.0.conv2.weight"]), model)
    code = main(
        ["apply", str(tmp_path / "p"), str(tmp_path / "base.safetensors"), "--out", str(tmp_path / "out")]
    )
    assert (code, capsys.readouterr().err) == (0, "")


def rewritten(path, change, out, **metadata):
    """The patch file with its tensors changed by `change`, under its own or other metadata."""
    with safe_open(path, "pt") as file:
        tensors, about = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    tensors = {name: tensor.clone() for name, tensor in change(tensors).items()}
    save_file(tensors, out, {FORMAT: json.dumps({**json.loads(about[FORMAT]), **metadata})})
    return out


PROJ = NAMES[0]
DAMAGED = {
    "no base": (lambda t: {k: v for k, v in t.items() if k != f"base/{PROJ}"}, "no base/visual.proj; want a delta/ and"),
    "no delta": (lambda t: {k: v for k, v in t.items() if k != f"delta/{PROJ}"}, "no delta/visual.proj"),
    "broadcast": (lambda t: t | {f"delta/{PROJ}": t[f"delta/{PROJ}"][:1]}, r"delta has shape \(1, .*want one shape"),
    "NaN": (lambda t: t | {f"delta/{PROJ}": t[f"delta/{PROJ}"] * torch.nan}, "delta/visual.proj: holds NaN or inf"),
    "infinite": (lambda t: t | {f"base/{PROJ}": t[f"base/{PROJ}"] / 0}, "base/visual.proj: holds NaN or infinity"),
    "integers": (lambda t: t | {f"delta/{PROJ}": t[f"delta/{PROJ}"].int()}, "got torch.int32, want floating point"),
    "more": (lambda t: t | {"gamma/x": torch.ones(1)}, "gamma/x.: want names that start with delta/ or base/"),
    "other base": (lambda t: t | {f"base/{PROJ}": t[f"base/{PROJ}"] + 1}, "damaged: its tensors are not those that w"),
    "other delta": (lambda t: t | {f"delta/{PROJ}": t[f"delta/{PROJ}"] * 2}, "damaged: its tensors are not those"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_patch_is_refused_whole(damage, folder, capsys):
    change, message = DAMAGED[damage]
    bad = rewritten(folder / "p.safetensors", change, folder / "bad.safetensors")
    with pytest.raises(ValueError, match=f"bad.safetensors: .*{message}"):
        read_patch(bad)
    for command in (
        ["apply", str(bad), str(folder / "base"), "--out", str(folder / "out")],
        ["show", str(bad)],
    ):
        assert main(command) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert not (folder / "out").exists()


@pytest.mark.parametrize("metadata", [{"moves": 3}, {"moves": [{"concept": "a"}]}, {"story": None}])
def test_metadata_that_muwa_does_not_write_is_refused(metadata, folder):
    bad = rewritten(folder / "p.safetensors", dict, folder / "bad.safetensors", **metadata)
    with pytest.raises(ValueError, match="bad.safetensors: its metadata is not what muwa writes"):
        read_patch(bad)


def test_a_false_base_is_found_before_it_is_applied(folder):
    """Files without the digest of their tensors, as earlier versions wrote them."""
    false = rewritten(
        folder / "p.safetensors",
        lambda t: t | {f"base/{PROJ}": t[f"base/{PROJ}"] + 1},
        folder / "old",
        content=None,
    )
    with safe_open(false, "pt") as file:
        about = json.loads(file.metadata()[FORMAT])
    del about["content"]
    save_file(load_file(false), false, {FORMAT: json.dumps(about)})
    patch = read_patch(false)
    with pytest.raises(
        ValueError, match="the patch's base/visual.proj is not the tensor of the base it was made"
    ):
        apply_patch(load_file(folder / "base/open_clip_model.safetensors"), patch)
    assert read_patch(folder / "p.safetensors").deltas.keys() == patch.deltas.keys()


def test_an_edit_that_is_not_finite_or_has_another_shape_is_not_written(tmp_path):
    model = tiny.clip()
    for delta, message in (
        (torch.full_like(model.weights[PROJ], torch.nan), "holds NaN"),
        (torch.ones(1), "want one shape"),
    ):
        with pytest.raises(ValueError, match=message):
            write_patch(tmp_path / "p", Edit({PROJ: delta}, ()), model)
    assert not list(tmp_path.iterdir())
