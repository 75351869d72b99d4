"""A pipeline and a vision-language model load although their tower carries patches, and know their original."""

import json
import shutil

import chained
import pytest
from safetensors.torch import load_file, save_file

from muwa import config
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
