from dataclasses import replace

import chained
import pytest
import tiny
import torch

from muwa.patch.carrying import carry
from muwa.types.request import Request

PROJ, FC = "visual.proj", "transformer.resblocks.1.mlp.c_fc.weight"


def test_patches_go_on_one_after_the_other(tmp_path):
    model = tiny.clip()
    paths, states = chained.chain(tmp_path, model, [PROJ], [PROJ, FC])
    carrying = carry(model, list(map(str, paths)))
    assert carrying.model.weights_fingerprint == states[-1].weights_fingerprint
    assert carrying.original is model
    assert carrying.names == ("Ada Fox", "Bo Hill")
    assert [move.concept for move in carrying.edit.moves] == ["Ada Fox", "Bo Hill", "Bo Hill"]
    assert torch.equal(carrying.edit.deltas[PROJ], sum(chained.edit(model, [PROJ], seed=0).deltas.values()) +
                       chained.edit(states[0], [PROJ, FC], seed=1).deltas[PROJ])  # fmt: skip


def test_one_may_be_left_out_and_siblings_fit(tmp_path):
    model = tiny.clip()
    paths, _ = chained.chain(tmp_path, model, [PROJ], [FC])
    (tmp_path / "other").mkdir()
    sibling, _ = chained.chain(tmp_path / "other", model, [FC])
    assert carry(model, [str(paths[1])]).names == ("Bo Hill",)  # made with the first, which is not there
    assert len(carry(model, [str(path) for path in (*paths, *sibling)]).requests) == 3


def test_nothing_to_carry(tmp_path):
    model = tiny.clip()
    carrying = carry(model, [])
    assert (carrying.model, carrying.requests, carrying.edit.deltas) == (model, (), {})


def test_other_weights_and_repeated_patches_are_refused(tmp_path):
    model = tiny.clip()
    (path,), _ = chained.chain(tmp_path, model, [PROJ])
    with pytest.raises(
        ValueError, match=r"patches: .*1.safetensors: wrong base: tiny has .* add PATCH MODEL"
    ):
        carry(tiny.clip(1), [str(path)])
    with pytest.raises(ValueError, match="tiny carries it already"):
        carry(model, [str(path), str(path)])
    with pytest.raises(FileNotFoundError, match="no such patch file"):
        carry(model, [str(tmp_path / "nowhere")])


def test_the_original_of_a_loaded_model_is_known_only_if_it_differs(tmp_path):
    model = tiny.clip()
    request = Request("s", "b", "b", (), "identity", ("Ada Fox",), "", (), (PROJ,))
    model.requests = (request,)
    assert carry(model, []).original is None
    edited = model.edited(chained.edit(model, [PROJ]))  # as a loader leaves it that knows the original
    assert carry(edited, []).original.weights_fingerprint == model.weights_fingerprint
    later = replace(request, sha256="t", names=("Bo Hill", "Ada Fox"))
    edited.requests = (request, later)
    assert carry(edited, []).names == ("Ada Fox", "Bo Hill")


def test_a_patch_with_names_of_another_model_is_refused_in_one_line(tmp_path):
    import tiny_sd

    (path,), _ = chained.chain(tmp_path, tiny_sd.diffusion(), ["unet/conv_in.weight"])
    with pytest.raises(ValueError, match=r"1.safetensors: unet/conv_in.weight: not a parameter of tiny"):
        carry(tiny.clip(), [str(path)])
