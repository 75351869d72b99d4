import random
import re
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file
from weight_files.spoiled import RAW, SPOILED, WEIGHTS, good, torch_bytes, with_namespace

from muwa.settings.signatures import check_value
from muwa.types.ranges import Source
from muwa.weight_files.diagnosis import check_file, fault, foreign_objects, is_patch, pickle_protocol
from muwa.weight_files.reading import read_tree


@pytest.mark.parametrize("name", SPOILED)
def test_a_file_that_is_not_what_its_name_says_is_called_what_it_is(tmp_path, name):
    content, message = SPOILED[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"(?s)^model.path: .*{name}: the file {message}") as caught:
        check_file(tmp_path / name, "model.path: ")
    assert "\n" not in str(caught.value)


def test_good_files_have_no_fault(tmp_path):
    for path in good(tmp_path):
        assert fault(path) is None
        assert foreign_objects(path) == []


def test_a_header_whose_length_begins_as_a_pickle_does_is_none(tmp_path):
    """The first byte of a safetensors file is the lowest of its header's length: 0x80 for 128 and 384 bytes."""
    for padding in range(0, 512, 8):
        save_file({"a": torch.ones(1)}, tmp_path / "a.safetensors", {"x": "y" * padding})
        if (tmp_path / "a.safetensors").read_bytes()[0] == 0x80:
            break
    assert (tmp_path / "a.safetensors").read_bytes()[0] == 0x80
    assert fault(tmp_path / "a.safetensors") is None


def test_what_is_not_there_and_what_is_no_file(tmp_path):
    (tmp_path / "link.bin").symlink_to(tmp_path / "gone")  # as a hub cache whose blob was removed
    assert fault(tmp_path / "none.bin") == "is not there"
    assert fault(tmp_path / "link.bin") == f"is a link to {tmp_path / 'gone'}, which is not there"
    assert fault(tmp_path) == "is a folder, want a file of weights"


def test_a_real_torchscript_archive_is_one(tmp_path):
    with pytest.warns(FutureWarning):
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "program.pt")
    assert "TorchScript program" in fault(tmp_path / "program.pt")


class Own:
    """A class of whoever saved the file."""


@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}, {"pickle_protocol": 4}])
def test_foreign_objects_are_named_and_not_made(tmp_path, options):
    (tmp_path / "c.pt").write_bytes(with_namespace(**options))
    assert foreign_objects(tmp_path / "c.pt") == ["argparse.Namespace"]
    (tmp_path / "own.pt").write_bytes(torch_bytes({"a": Own(), "b": torch.ones(1), "c": Own()}, **options))
    assert foreign_objects(tmp_path / "own.pt") == [f"{Own.__module__}.Own"]
    (tmp_path / "whole.pt").write_bytes(torch_bytes(torch.nn.Linear(2, 2), **options))
    assert foreign_objects(tmp_path / "whole.pt") == ["torch.nn.modules.linear.Linear"]


def test_the_protocol_of_a_pickle(tmp_path):
    for protocol in (2, 4):
        (tmp_path / "p.pt").write_bytes(torch_bytes(WEIGHTS, pickle_protocol=protocol))
        assert pickle_protocol(tmp_path / "p.pt") == protocol


def test_it_needs_no_torch():
    code = "import muwa.weight_files.diagnosis, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def refusal(path):
    """What `read_tree` says of a file, if it refuses it."""
    try:
        read_tree(path)
    except ValueError as error:
        return str(error)
    return None


@pytest.mark.parametrize("ending", [".pt", ".safetensors"])
@pytest.mark.parametrize("seed", range(40))
def test_spoiled_bytes_end_in_a_finding_or_in_none_but_never_in_another_error(tmp_path, seed, ending):
    raw = bytearray(torch_bytes(WEIGHTS) if ending == ".pt" else RAW)
    draw = random.Random(seed)
    for _ in range(draw.choice((1, 3, 30, 300))):
        raw[draw.randrange(len(raw))] = draw.randrange(256)
    path = tmp_path / f"a{ending}"
    path.write_bytes(raw)
    found = fault(path)
    assert found is None or found.startswith("is ")
    assert all(isinstance(name, str) for name in foreign_objects(path))
    assert pickle_protocol(path) in (None, *range(256))
    said = refusal(path)
    assert said is None or re.match(f"{path}: (the file is|cannot be read as weights alone: )", said)


def test_a_patch_in_place_of_a_model_is_called_so(tmp_path):
    save_file({"delta/a": torch.ones(1)}, tmp_path / "p", metadata={"muwa.patch/1": "{}"})
    save_file({"a": torch.ones(1)}, tmp_path / "m", metadata={"format": "pt"})
    (tmp_path / "t").write_text("text")
    assert is_patch(tmp_path / "p")
    assert not any(map(is_patch, (tmp_path / "m", tmp_path / "t", tmp_path, tmp_path / "none")))
    for path in (str(tmp_path / "p"), f"local-dir:{tmp_path}/p"):
        with pytest.raises(
            ValueError, match=r"model.path: got .*this file is a muwa patch, which goes to patches="
        ):
            check_value("model.path", Source, path)
