import numpy as np
import pytest
import torch
from weight_files.spoiled import SPOILED, WEIGHTS, good, torch_bytes, with_namespace

from muwa.weight_files.reading import differences, misfit, plain_names, read_state_dict, shapes


def same(found):
    return set(found) == set(WEIGHTS) and all(torch.equal(found[name], WEIGHTS[name]) for name in WEIGHTS)


def test_weights_are_read_from_every_format_and_from_every_usual_place(tmp_path):
    assert all(same(read_state_dict(path)) for path in good(tmp_path))
    for tree in ({"model_state_dict": WEIGHTS}, {"model": WEIGHTS}, {"model": {"state_dict": WEIGHTS}}):
        (tmp_path / "nested.pth").write_bytes(torch_bytes(tree))
        assert same(read_state_dict(tmp_path / "nested.pth"))


@pytest.mark.parametrize(
    "form",
    [
        "module.{}",
        "_orig_mod.{}",
        "module._orig_mod.{}",
        "_orig_mod.module.{}",
        "_fsdp_wrapped_module.{}",
        "model.{}",
        "model._orig_mod.{}",
        "_forward_module.{}",
    ],
)
def test_what_wrappers_add_to_names_is_removed(tmp_path, form):
    wrapped = {form.format(name): tensor for name, tensor in WEIGHTS.items()}
    (tmp_path / "w.pt").write_bytes(torch_bytes({"state_dict": wrapped}))
    assert same(read_state_dict(tmp_path / "w.pt"))


def test_names_that_only_look_wrapped_stay():
    one = torch.ones(1)
    names = ["model.vision_tower.a", "lm_head.weight", "encoder.module.b"]
    assert list(plain_names(dict.fromkeys(names, one))) == names
    assert list(plain_names({"visual._orig_mod.proj": one})) == ["visual.proj"]


@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}])
def test_a_foreign_object_is_named_without_torchs_advice(tmp_path, options):
    (tmp_path / "c.pt").write_bytes(with_namespace(**options))
    with pytest.raises(
        ValueError, match="c.pt: cannot be read as weights alone: it holds argparse.Namespace, "
    ) as caught:
        read_state_dict(tmp_path / "c.pt")
    said = str(caught.value)
    assert said.endswith("where it was made, save the weights anew: torch.save(model.state_dict(), FILE)")
    assert not {"\x1b", "\n"} & set(said)
    assert not [word for word in ("weights_only", "safe_globals", "trust", "Re-running") if word in said]


def test_several_foreign_objects_are_counted(tmp_path):
    tree = {
        "w": WEIGHTS,
        "best": np.float64(3.0),
        "model": torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU()),
    }
    (tmp_path / "many.pt").write_bytes(torch_bytes(tree))
    with pytest.raises(
        ValueError, match=r"it holds numpy\S*\.scalar, numpy\.dtype, torch\.nn\S*Sequential and 2 more, whose"
    ):
        read_state_dict(tmp_path / "many.pt")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_another_protocol_is_named(tmp_path):
    (tmp_path / "p.pt").write_bytes(torch_bytes(WEIGHTS, pickle_protocol=4))
    with pytest.raises(ValueError, match=r"written with pickle protocol 4, want torch.save's own \(2\)"):
        read_state_dict(tmp_path / "p.pt")


@pytest.mark.parametrize("name", ["empty.bin", "page.safetensors", "pointer.bin", "cut.pt"])
def test_a_spoiled_file_is_called_what_it_is(tmp_path, name):
    (tmp_path / name).write_bytes(SPOILED[name][0])
    with pytest.raises(ValueError, match=f"{name}: the file {SPOILED[name][1]}"):
        read_state_dict(tmp_path / name)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ([1, 2], r"holds a list, want weights by name"),
        (
            {"epoch": 3},
            r"no weights in it; looked at its top and under model_state_dict, .*found epoch \(int\)",
        ),
        ({}, "no weights in it; .*found nothing"),
    ],
)
def test_a_file_without_weights_says_what_it_holds(tmp_path, tree, message):
    (tmp_path / "t.pt").write_bytes(torch_bytes(tree))
    with pytest.raises(ValueError, match=f"t.pt: {message}"):
        read_state_dict(tmp_path / "t.pt")


def test_differences_worked_by_hand():
    wanted = {"a": (2,), "b": (1,), "c": (1,), "d": (1,), "e": (4, 2)}
    found = {"e": (2, 4), "a": (2,), "x": (1,)}
    assert (
        misfit(found, wanted)
        == "3 missing: b, c, d; 1 unexpected: x; 1 of another shape: e (2, 4), want (4, 2)"
    )
    assert misfit(wanted, wanted) == ""
    assert differences(list("abcd"), [], []) == "4 missing: a, b, c, ..."
    assert shapes(WEIGHTS) == {"visual.proj": (2, 3), "logit_scale": ()}
