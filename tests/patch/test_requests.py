"""Several patches on one model's files, in every layout: on top of each other, one taken off, all verified."""

import json
import shutil
from dataclasses import asdict

import chained
import pytest
import single_files
import tiny
import tiny_sd
import torch
from safetensors.torch import load_file, save_file

from muwa.patch.__main__ import main
from muwa.patch.apply import ADD, add_patches, read_patch
from muwa.patch.change import result_of
from muwa.patch.ledger import read_ledger, requests_on
from muwa.patch.weights import weights_fingerprint

PROJ, FC = "visual.proj", "transformer.resblocks.1.mlp.c_fc.weight"
FUSED, DEEP = "transformer.resblocks.2.attn.in_proj_weight", "transformer.resblocks.3.mlp.c_proj.weight"
CONV = "unet/conv_in.weight"
FILE = "open_clip_model.safetensors"


def muwa_patch(*words):
    return main([str(word) for word in words])


def write(path, weights, dtype=torch.float32):
    path.parent.mkdir(exist_ok=True)
    save_file({key: tensor.to(dtype).contiguous() for key, tensor in weights.items()}, path)
    return path.parent


def put_on(base, paths, tmp_path, command="apply"):
    """The folders after each patch."""
    folders = [base]
    for i, path in enumerate(paths):
        out = tmp_path / f"{command}{i + 1}"
        assert muwa_patch(command, path, folders[-1], "--out", out) == 0
        folders.append(out)
    return folders


def tensors_of(folder):
    return {
        f"{file.relative_to(folder)}/{key}": tensor
        for file in sorted(folder.rglob("*.safetensors"))
        for key, tensor in load_file(file).items()
    }


def same(a, b):
    one, other = tensors_of(a), tensors_of(b)
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_any_of_three_patches_on_one_tensor_comes_off_and_the_others_stay_bit_for_bit(dtype, tmp_path):
    model = tiny.clip()
    exact = model.with_weights({key: tensor.to(dtype).float() for key, tensor in model.weights.items()})
    paths, _ = chained.chain(tmp_path, exact, [PROJ], [PROJ, FC], [FC])
    base = write(tmp_path / "base" / FILE, model.weights, dtype)
    *_, edited = put_on(base, paths, tmp_path)
    assert muwa_patch("verify", edited, "--base", base, *paths) == 0
    for i, path in enumerate(paths):
        rest = [other for other in paths if other != path]
        off, alone = tmp_path / f"off{i}", tmp_path / f"alone{i}"
        assert muwa_patch("remove", path, edited, "--out", off, "--others", *rest) == 0
        assert muwa_patch("add", *rest, base, "--out", alone) == 0
        assert same(off, alone)
        assert muwa_patch("verify", off, *rest, "--base", base) == 0
        assert [one.names for one in requests_on(off)] == [(chained.NAMES[j],) for j in range(3) if j != i]
        assert muwa_patch("add", path, off, "--out", tmp_path / f"again{i}") == 0


def test_the_last_two_come_off_one_by_one_and_the_base_is_back(tmp_path):
    model = tiny.clip()
    paths, _ = chained.chain(tmp_path, model, [PROJ], [PROJ])
    base = write(tmp_path / "base" / FILE, model.weights)
    *_, edited = put_on(base, paths, tmp_path)
    assert muwa_patch("remove", paths[0], edited, "--out", tmp_path / "a", "--others", paths[1]) == 0
    assert muwa_patch("remove", paths[1], tmp_path / "a", "--out", tmp_path / "b", "--others", paths[0]) == 0
    assert (tmp_path / "b" / FILE).read_bytes() == (base / FILE).read_bytes()
    assert [path.name for path in (tmp_path / "b").iterdir()] == [FILE]


def test_the_last_request_comes_off_alone_with_and_without_a_record(tmp_path):
    model = tiny.clip()
    paths, _ = chained.chain(tmp_path, model, [PROJ], [PROJ])
    base = write(tmp_path / "base" / FILE, model.weights)
    _, first, both = put_on(base, paths, tmp_path)
    assert muwa_patch("remove", paths[1], both, "--out", tmp_path / "a") == 0
    assert same(tmp_path / "a", first)
    assert len(requests_on(tmp_path / "a")) == 1
    (both / "muwa_patch.json").unlink()
    assert muwa_patch("remove", paths[1], both, "--out", tmp_path / "b") == 0
    assert same(tmp_path / "b", first)
    assert muwa_patch("remove", paths[0], both, "--out", tmp_path / "c") == 2  # it is not on top


def test_what_remove_needs_is_said_in_one_line(tmp_path, capsys):
    model = tiny.clip()
    paths, _ = chained.chain(tmp_path, model, [PROJ], [PROJ], [FC])
    base = write(tmp_path / "base" / FILE, model.weights)
    *_, edited = put_on(base, paths, tmp_path)
    assert muwa_patch("remove", paths[0], edited, "--out", tmp_path / "a") == 2
    error = capsys.readouterr().err
    assert "other patches edit the same tensors" in error
    assert "Give them too: --others PATCH ...: Bo Hill" in error
    assert "Cy Reed" not in error
    assert muwa_patch("remove", paths[2], edited, "--out", tmp_path / "a") == 0  # alone on its tensor
    assert muwa_patch("remove", paths[2], tmp_path / "a", "--out", tmp_path / "b") == 2
    assert "its record does not name" in capsys.readouterr().err
    assert muwa_patch("remove", paths[0], edited, "--out", tmp_path / "c", "--others", paths[1]) == 0
    assert muwa_patch("remove", paths[1], tmp_path / "c", "--out", tmp_path / "d") == 2
    assert "so none holds its original. Give these too" in capsys.readouterr().err


def test_every_wrong_base_names_add(tmp_path, capsys):
    model = tiny.clip()
    first, _ = chained.chain(tmp_path, model, [PROJ])
    (tmp_path / "other").mkdir()
    sibling, _ = chained.chain(tmp_path / "other", model, [FC])  # made on the base too
    base = write(tmp_path / "base" / FILE, model.weights)
    (_, edited) = put_on(base, first, tmp_path)
    assert muwa_patch("apply", sibling[0], edited, "--out", tmp_path / "a") == 2
    error = capsys.readouterr().err
    assert "wrong base" in error
    assert ADD in error
    assert error.count("\n") == 1
    assert muwa_patch("add", sibling[0], edited, "--out", tmp_path / "a") == 0
    assert muwa_patch("verify", tmp_path / "a", "--base", base, *first, *sibling) == 0
    stranger, _ = chained.chain(tmp_path / "other", tiny.clip(1), [FC])
    assert muwa_patch("add", stranger[0], edited, "--out", tmp_path / "b") == 2
    assert ADD in capsys.readouterr().err
    with pytest.raises(ValueError, match="2 different bases") as error:
        add_patches([read_patch(first[0]), read_patch(stranger[0])])
    assert ADD in str(error.value)
    assert muwa_patch("apply", first[0], edited, "--out", tmp_path / "b") == 2
    assert "the patch is applied already" in capsys.readouterr().err


def test_patches_made_on_each_other_are_joined_into_one(tmp_path):
    model = tiny.clip()
    paths, states = chained.chain(tmp_path, model, [PROJ], [PROJ, FC])
    assert muwa_patch("add", *paths, "--out", tmp_path / "both") == 0
    both = read_patch(tmp_path / "both")
    assert both.base_fingerprint == model.weights_fingerprint
    assert torch.equal(both.base[PROJ], model.weights[PROJ])
    together = model.weights[PROJ] + both.deltas[PROJ]
    assert (together - states[-1].weights[PROJ]).abs().max() < 1e-6
    with pytest.raises(ValueError, match="none of the patches holds its original"):
        add_patches([read_patch(paths[1])])


def test_patches_come_off_that_have_the_names_of_both_libraries(tmp_path):
    model = tiny_sd.diffusion()
    base = tmp_path / "base"
    model.pipeline.save_pretrained(base)
    paths, _ = chained.chain(tmp_path, model, [FUSED, DEEP], [DEEP, CONV])
    *_, edited = put_on(base, paths, tmp_path)
    assert muwa_patch("verify", edited, "--base", base, *paths) == 0
    assert muwa_patch("remove", paths[0], edited, "--out", tmp_path / "off", "--others", paths[1]) == 0
    assert muwa_patch("verify", tmp_path / "off", "--base", base, paths[1]) == 0
    assert muwa_patch("verify", tmp_path / "off", "--base", base, *paths) == 1


def test_half_precision_twins_of_a_pipeline_carry_every_request(tmp_path, capsys):
    model = tiny_sd.diffusion()
    base = tmp_path / "base"
    model.pipeline.save_pretrained(base)
    plain = base / "text_encoder/model.safetensors"
    save_file(
        {k: t.half() for k, t in load_file(plain).items()}, base / "text_encoder/model.fp16.safetensors"
    )
    paths, _ = chained.chain(tmp_path, model, [DEEP], [DEEP])
    *_, edited = put_on(base, paths, tmp_path)
    assert "left out" not in capsys.readouterr().out
    assert muwa_patch("verify", edited, "--base", base, *paths) == 0
    assert muwa_patch("remove", paths[0], edited, "--out", tmp_path / "off", "--others", paths[1]) == 0
    assert muwa_patch("verify", tmp_path / "off", "--base", base, paths[1]) == 0


def test_a_single_file_carries_requests_too(tmp_path):
    model = tiny_sd.diffusion()
    clips = {"text_encoder": dict(model.clip.weights)}
    path = single_files.write(tmp_path / "one.safetensors", model.pipeline, "sd2", clips)
    paths, _ = chained.chain(tmp_path, model, [FUSED], [FUSED, CONV])
    assert muwa_patch("apply", paths[0], path, "--out", tmp_path / "a") == 0
    assert muwa_patch("apply", paths[1], tmp_path / "a/one.safetensors", "--out", tmp_path / "b") == 0
    assert len(requests_on(tmp_path / "b/one.safetensors")) == 2
    assert muwa_patch("verify", tmp_path / "b/one.safetensors", "--base", path, *paths) == 0
    words = [
        "remove",
        paths[0],
        tmp_path / "b/one.safetensors",
        "--out",
        tmp_path / "c",
        "--others",
        paths[1],
    ]
    assert muwa_patch(*words) == 0
    assert muwa_patch("verify", tmp_path / "c/one.safetensors", "--base", path, paths[1]) == 0


def test_verify_says_what_differs(tmp_path, capsys):
    model = tiny.clip()
    paths, _ = chained.chain(tmp_path, model, [PROJ])
    base = write(tmp_path / "base" / FILE, model.weights)
    (base / "notes.txt").write_text("hello")
    (_, edited) = put_on(base, paths, tmp_path)
    assert muwa_patch("verify", edited, "--base", base) == 1
    said = capsys.readouterr().out
    assert f"DIFFERS: {FILE}: {PROJ}: 512 of 512 values differ" in said
    assert "its record names 1 patch, 0 were given: Ada Fox" in said
    weights = load_file(edited / FILE)
    changed = {**weights, "ln_final.bias": weights["ln_final.bias"] + 1}
    save_file(
        {k: t for k, t in changed.items() if k != "logit_scale"} | {"more": torch.ones(1)}, edited / FILE
    )
    (edited / "notes.txt").write_text("other")
    (edited / "extra.bin").write_bytes(b"x")
    assert muwa_patch("verify", edited, "--base", base, *paths) == 1
    said = capsys.readouterr().out
    assert f"DIFFERS: {FILE}: ln_final.bias: 32 of 32 values differ, by at most 1\n" in said
    assert f"DIFFERS: {FILE}: logit_scale: is not here" in said
    assert f"{FILE}: more: is not in the base" in said
    assert "DIFFERS: extra.bin: is not in the base" in said
    assert "\n  notes.txt: is not the base's file" in f"\n{said}"
    save_file({key: tensor.half() for key, tensor in model.weights.items()}, edited / FILE)
    assert muwa_patch("verify", edited, "--base", base, *paths) == 1
    assert "got torch.float16 (32, 16), want torch.float32 (32, 16)" in capsys.readouterr().out
    assert muwa_patch("verify", edited, "--base", edited, *paths) == 2
    shutil.rmtree(edited)
    assert muwa_patch("verify", edited, "--base", base, *paths) == 2
    assert capsys.readouterr().err.count("\n") == 2


def results_of(path, **edited):
    """What a run writes beside its patch, as far as the card reads it."""
    moves = [asdict(move) for move in read_patch(path).moves]
    path.with_name("results.json").write_text(
        json.dumps({"edit": {"moves": moves}, "metrics": {"before": {}, "after": {}}, "edited": edited})
    )


def test_the_result_of_a_patch_is_the_base_of_the_next_one_in_a_pipeline_too(tmp_path):
    """The text encoder is a part of the CLIP that the patches are bound to: the run tells the CLIP's fingerprint."""
    model = tiny_sd.diffusion()
    model.pipeline.save_pretrained(tmp_path / "base")
    (first, second), _ = chained.chain(tmp_path, model, [DEEP], [FUSED])
    found = result_of(first, tmp_path / "base", model.clip.weights)
    assert found == {"result": read_patch(second).base_fingerprint, "stored": "float32"}
    results_of(first, **found)
    shutil.move(first, tmp_path / "run.safetensors")
    run = tmp_path / "run.safetensors"
    _, edited = put_on(tmp_path / "base", [run], tmp_path)
    assert read_ledger(edited).rows[-1]["result"] == found["result"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_result_is_that_of_the_weights_as_they_are_stored(dtype, tmp_path, capsys):
    model = tiny.clip()
    model = model.with_weights({key: tensor.to(dtype).float() for key, tensor in model.weights.items()})
    base = write(tmp_path / "base" / FILE, model.weights, dtype)
    (path,), (after,) = chained.chain(tmp_path, model, [PROJ])
    _, edited = put_on(base, [path], tmp_path)
    stored = weights_fingerprint(load_file(edited / FILE))
    found = result_of(path, base, model.weights)
    assert found == {"result": stored, "stored": str(dtype).removeprefix("torch.")}
    assert stored != after.weights_fingerprint
    capsys.readouterr()
    assert muwa_patch("list", edited) == 0
    assert f"fingerprint of the result, base of the next request: {stored}" in capsys.readouterr().out


def test_a_folder_that_stores_another_dtype_than_the_run_saw_does_not_take_over_its_result(tmp_path):
    model = tiny_sd.diffusion()
    model.pipeline.save_pretrained(tmp_path / "base")
    (path,), _ = chained.chain(tmp_path, model, [DEEP])
    results_of(path, result="f" * 64, stored="float16")
    _, edited = put_on(tmp_path / "base", [path], tmp_path)
    assert read_ledger(edited).rows[-1]["result"] == ""
    assert "not known here" in (edited / "README.md").read_text()


def test_after_a_patch_was_taken_off_no_result_is_told_that_held_with_it(tmp_path):
    model = tiny.clip()
    base = write(tmp_path / "base" / FILE, model.weights)
    paths, _ = chained.chain(tmp_path, model, [PROJ], [FC])
    *_, edited = put_on(base, paths, tmp_path)
    assert [len(row["result"]) for row in read_ledger(edited).rows] == [64, 64]
    assert muwa_patch("remove", paths[0], edited, "--out", tmp_path / "off", "--others", paths[1]) == 0
    assert "result" not in read_ledger(tmp_path / "off").rows[0]
