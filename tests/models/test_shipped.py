"""A pipeline and a vision-language model load although their tower carries patches, and know their original."""

import json
import shutil

import chained
import pytest
import tiny_sd
from safetensors.torch import load_file, save_file

from muwa import config
from muwa.library import load_clip
from muwa.patch.__main__ import main
from muwa.patch.ledger import RECORD

DEEP = "transformer.resblocks.2.mlp.c_proj.weight"
VISION = "visual.transformer.resblocks.1.mlp.c_proj.weight"
FUSED = "visual.transformer.resblocks.0.attn.in_proj_weight"


def load(family, **settings):
    return config.part(f"model={family}", **settings)()


@pytest.fixture(scope="module", params=["sd", "vlm"])
def shipped(request, tmp_path_factory):
    """(Family, the unedited model, the states of two requests, the folders of these states)."""
    family, tensors = (
        request.param,
        {"sd": ([DEEP], [DEEP]), "vlm": ([VISION], [FUSED, VISION])}[request.param],
    )
    tmp_path = tmp_path_factory.mktemp(family)
    model = load(family)
    paths, states = chained.chain(tmp_path, model, *tensors)
    from muwa.models.diffusion.loading import MINIATURE as SD
    from muwa.models.vlm.loading import MINIATURE as LLAVA

    folders = [{"sd": SD, "vlm": LLAVA}[family]]
    for i, path in enumerate(paths):
        out = tmp_path / f"on{i + 1}"
        assert main(["apply", str(path), str(folders[-1]), "--out", str(out)]) == 0
        folders.append(out)
    return family, model, states, folders


def test_it_takes_up_where_the_folder_stands(shipped):
    family, model, states, (_, *folders) = shipped
    for count, folder in enumerate(folders, 1):
        found = load(family, path=str(folder))
        assert [one.names for one in found.requests] == [(name,) for name in chained.NAMES[:count]]
        assert found.unedited.fingerprint == model.fingerprint
        assert found.fingerprint != model.fingerprint
        clip, wanted = next(iter(found.clips.values())), next(iter(states[count - 1].clips.values()))
        for name, weight in wanted.weights.items():
            rounding = 2e-3 if name in (DEEP, VISION, FUSED) else 0  # the folder holds half precision
            assert (clip.weights[name] - weight).abs().max() <= rounding, name


def test_other_changes_than_those_of_the_record_are_refused_as_before(shipped, tmp_path):
    family, _, _, folders = shipped
    folder = tmp_path / "changed"
    shutil.copytree(folders[-1], folder)
    file = folder / {"sd": "text_encoder/model.safetensors", "vlm": "model.safetensors"}[family]
    weights = load_file(file)
    name = next(key for key in weights if "layers.0.layer_norm1.bias" in key)
    save_file({**weights, name: weights[name] + 1}, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="muwa_patch.json: does not fit the weights"):
        load(family, path=str(folder))
    record = json.loads((folder / RECORD).read_text())
    del record["weights"]
    (folder / RECORD).write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"the miniature is not the (text_encoder|vision tower) of"):
        load(family, path=str(folder))
    (folder / RECORD).unlink()
    with pytest.raises(ValueError, match=r"the miniature is not the (text_encoder|vision tower) of"):
        load(family, path=str(folder))


def test_the_second_text_encoder_of_xl_is_taken_up_too(tmp_path):
    model = tiny_sd.xl()
    model.pipeline.save_pretrained(tmp_path / "base")
    second = "text_encoder_2/transformer.resblocks.0.mlp.c_fc.weight"
    paths, states = chained.chain(tmp_path, model, [second], [second, DEEP])
    for i, path in enumerate(paths):
        on = tmp_path / (f"on{i}" if i else "base")
        assert main(["apply", str(path), str(on), "--out", str(tmp_path / f"on{i + 1}")]) == 0
    clips = {"text_encoder": load_clip, "text_encoder_2": tiny_sd.second_clip}
    found = load("sdxl", path=str(tmp_path / "on2"), clips=clips, dtype="fp32")
    assert [len(one.made_on) for one in found.requests] == [0, 1]
    for name, clip in found.clips.items():
        assert clip.weights_fingerprint == states[-1].clips[name].weights_fingerprint
        assert found.unedited.clips[name].weights_fingerprint == model.clips[name].weights_fingerprint


def test_a_clip_knows_its_requests_from_its_folder_or_beside_its_file(tmp_path):
    from muwa.models.clip.open_clip import MINIATURE

    (path,), _ = chained.chain(tmp_path, load_clip(), [DEEP])
    assert main(["apply", str(path), str(MINIATURE), "--out", str(tmp_path / "folder")]) == 0
    folder = load("clip", name=f"local-dir:{tmp_path / 'folder'}")
    assert [one.names for one in folder.requests] == [("Ada Fox",)]
    assert load("clip").requests == ()
    random = load_clip("ViT-S-32-alt", None)
    file = tmp_path / "own.safetensors"
    save_file(dict(random.weights), file)
    (path,), (state,) = chained.chain(tmp_path, random, [DEEP])
    assert main(["apply", str(path), str(file), "--out", str(tmp_path / "file")]) == 0
    found = load("clip", name="ViT-S-32-alt", pretrained=str(tmp_path / "file" / file.name))
    assert found.weights_fingerprint == state.weights_fingerprint
    assert [one.names for one in found.requests] == [("Ada Fox",)]
    assert load("clip", name="ViT-S-32-alt", pretrained=str(file)).requests == ()
