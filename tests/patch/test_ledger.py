import json

import chained
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from muwa.patch import ledger
from muwa.patch.__main__ import main
from muwa.patch.apply import read_patch

PROJ, OUT = "visual.proj", "transformer.resblocks.1.attn.out_proj.weight"


def base_of(folder, model, name="open_clip_model.safetensors"):
    folder.mkdir()
    save_file({key: tensor.contiguous() for key, tensor in model.weights.items()}, folder / name)
    return folder


@pytest.fixture
def carried(tmp_path):
    """(Patches of the same tensor, the folder that carries both, the model)."""
    model = tiny.clip()
    paths, _ = chained.chain(tmp_path, model, [PROJ], [PROJ, OUT])
    folder = base_of(tmp_path / "base", model)
    for i, path in enumerate(paths):
        out = tmp_path / f"on{i + 1}"
        assert main(["apply", str(path), str(folder), "--out", str(out)]) == 0
        folder = out
    return paths, folder, model


def test_the_record_tells_every_request(carried):
    paths, folder, model = carried
    first, second = ledger.requests_on(folder)
    assert first.sha256 == ledger.file_digest(paths[0])
    assert first.base_fingerprint == first.origin == second.origin == model.weights_fingerprint
    assert (first.made_on, second.made_on) == ((), (first.sha256,))
    assert (first.names, second.names, second.task) == (("Ada Fox",), ("Bo Hill",), "identity")
    assert (set(second.tensors), second.layers, second.method) == (
        {PROJ, OUT},
        (PROJ, OUT),
        "muwa.methods.slug",
    )
    assert second.when.endswith("+00:00")
    assert first.title == f"Ada Fox (patch {first.sha256[:12]})"


def test_the_fingerprint_after_each_request_is_what_the_next_patch_was_made_on(carried):
    paths, folder, _model = carried
    rows = json.loads((folder / ledger.RECORD).read_text())
    file = "open_clip_model.safetensors"
    assert rows["patches"][0]["weights"][file] == read_patch(paths[1]).base_fingerprint
    assert rows["weights"] == rows["patches"][1]["weights"] == {file: ledger.file_fingerprint(folder / file)}


def test_a_record_that_does_not_fit_the_weights_is_refused_in_one_line(carried, capsys):
    _, folder, _ = carried
    file = folder / "open_clip_model.safetensors"
    weights = load_file(file)
    save_file({**weights, "ln_final.bias": weights["ln_final.bias"] + 1}, file)
    with pytest.raises(
        ValueError, match=r"muwa_patch.json: does not fit the weights: open_clip_model.safetensors has"
    ):
        ledger.requests_on(folder)
    assert main(["list", str(folder)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "delete the record to take them as they are" in error
    file.unlink()
    with pytest.raises(ValueError, match="open_clip_model.safetensors is not there"):
        ledger.requests_on(folder)


def test_a_record_of_an_earlier_version_is_read_and_cannot_be_checked(carried, capsys):
    _, folder, _ = carried
    path = folder / ledger.RECORD
    old = {"sha256", "base_fingerprint", "moves", "story", "edited", "left_out", "unedited"}
    rows = [{k: v for k, v in row.items() if k in old} for row in json.loads(path.read_text())["patches"]]
    path.write_text(json.dumps({"format": ledger.FORMAT, "patches": rows}))
    assert [one.names for one in ledger.requests_on(folder)] == [("Ada Fox",), ("Bo Hill",)]
    assert main(["list", str(folder)]) == 0
    assert "of an earlier version and cannot be checked" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["{", "[]", '{"patches": [{}]}', '{"patches": 3}'])
def test_a_damaged_record_is_refused(tmp_path, text):
    (tmp_path / ledger.RECORD).write_text(text)
    with pytest.raises(ValueError, match=r"muwa_patch.json: not a record of muwa's patches"):
        ledger.read_ledger(tmp_path)


def test_another_format_is_refused(tmp_path):
    (tmp_path / ledger.RECORD).write_text('{"format": "muwa.patch.record/9", "patches": []}')
    with pytest.raises(ValueError, match="got the format 'muwa.patch.record/9', want 'muwa.patch.record/1'"):
        ledger.read_ledger(tmp_path)


def test_a_record_beside_another_file_is_not_that_files(carried, tmp_path):
    _, folder, model = carried
    save_file(
        {key: tensor.contiguous() for key, tensor in model.weights.items()}, folder / "other.safetensors"
    )
    assert ledger.requests_on(folder / "other.safetensors") == ()
    assert len(ledger.requests_on(folder / "open_clip_model.safetensors")) == 2
    assert ledger.requests_on(tmp_path / "nowhere") == ledger.requests_on("org/model") == ()


def test_the_list_names_each_request_and_what_was_taken_off(carried, tmp_path, capsys):
    paths, folder, _ = carried
    words = ["remove", str(paths[0]), str(folder), "--out", str(tmp_path / "off"), "--others", str(paths[1])]
    assert main(words) == 0
    capsys.readouterr()
    assert main(["list", str(folder)]) == main(["list", str(tmp_path / "off")]) == 0
    said = capsys.readouterr().out
    assert "2 patches; its record fits the weights" in said
    assert "1 patch; its record fits" in said
    assert "  1  Ada Fox\n" in said
    assert "identity · slug · visual.proj · " in said
    assert "made on top of 1" in said
    assert "taken off 20" in said
    assert ledger.file_digest(paths[0]) in said
    assert main(["list", str(tmp_path / "base")]) == 0
    assert "carries no patch that a record tells of" in capsys.readouterr().out


def test_the_origin_of_a_patch_on_other_components_is_its_own_base(carried):
    _, folder, _ = carried
    requests = ledger.requests_on(folder)
    assert ledger.state_of(requests, ["unet/conv_in.weight"], "f")["origin"] == "f"
    assert ledger.state_of(requests, ["visual.proj"], "f")["origin"] == requests[0].origin
    assert ledger.state_of(requests, ["visual.proj", "unet/conv_in.weight"], "f")["origin"] == ""


def test_tensors_are_compared_across_the_names_of_both_libraries():
    keys = ledger.tensor_keys
    assert keys(["transformer.resblocks.3.attn.in_proj_weight"]) >= keys(
        ["text_model.encoder.layers.3.self_attn.q_proj.weight"]
    )
    assert keys(["text_encoder_2/text_projection"]) == {"text_encoder_2/text_projection.weight"}
    assert not keys(["text_projection"]) & keys(["text_encoder_2/text_projection"])
    assert keys(["unet/conv_in.weight"]) == {"unet/conv_in.weight"}


def test_the_fingerprint_of_a_file_is_that_of_its_weights_in_any_exact_dtype(tmp_path):
    model = tiny.clip()
    half = {key: tensor.half() for key, tensor in model.weights.items()}
    exact = model.with_weights({key: tensor.float() for key, tensor in half.items()})
    save_file(half, tmp_path / "half.safetensors")
    torch.save(half, tmp_path / "half.pt")
    for name in ("half.safetensors", "half.pt"):
        assert ledger.file_fingerprint(tmp_path / name) == exact.weights_fingerprint
    changed = {PROJ: torch.zeros_like(model.weights[PROJ])}
    assert (
        ledger.file_fingerprint(tmp_path / "half.pt", changed)
        == exact.with_weights(changed).weights_fingerprint
    )
