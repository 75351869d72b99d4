import pytest
from weight_files.spoiled import RAW, torch_bytes

from muwa.weight_files.components import weight_sets, weights_of


def folder(path, *names):
    """A folder with such files; weight files can be read."""
    path.mkdir(exist_ok=True)
    for name in names:
        content = {"safetensors": RAW, "bin": torch_bytes({})}.get(name.rpartition(".")[2], b"{}")
        (path / name).write_bytes(content)
    return path


SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
HALVES = ("model.fp16-00001-of-00002.safetensors", "model.fp16-00002-of-00002.safetensors")


@pytest.mark.parametrize(
    ("names", "taken", "variant"),
    [
        (["model.fp16.safetensors", "model.safetensors"], ["model.safetensors"], None),
        (["pytorch_model.bin", "model.safetensors"], ["model.safetensors"], None),
        (["pytorch_model.bin", "model.fp16.safetensors"], ["pytorch_model.bin"], None),
        (["model.fp16.safetensors", "pytorch_model.fp16.bin"], ["model.fp16.safetensors"], "fp16"),
        (["diffusion_pytorch_model.bf16.bin"], ["diffusion_pytorch_model.bf16.bin"], "bf16"),
        (
            ["diffusion_pytorch_model.non_ema.safetensors"],
            ["diffusion_pytorch_model.non_ema.safetensors"],
            "non_ema",
        ),
        ([*SHARDS, "model.safetensors.index.json"], list(SHARDS), None),
        ([*HALVES, "model.safetensors.index.fp16.json"], list(HALVES), "fp16"),
        (
            [*SHARDS, "model.fp16.safetensors"],
            ["model.fp16.safetensors"],
            "fp16",
        ),  # no index: shards are not whole
        (["model-00001-of-00001.fp16.bin", "pytorch_model.bin"], ["pytorch_model.bin"], None),
    ],
)
def test_the_plain_and_whole_copy_is_taken_first(tmp_path, names, taken, variant):
    found = weights_of(folder(tmp_path / "part", *names, "config.json"), "model.path")
    assert ([path.name for path in found.files], found.variant) == (taken, variant)
    assert found.pickled == taken[0].endswith(".bin")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "model.path: no weights in .*part; looked for model.safetensors .*found ..config.json"),
        (["flax_model.msgpack"], "no weights in .*flax_model.msgpack"),
        (SHARDS[:1], "1 of the 2 shards of model-00001-of-00002.safetensors are there"),
        (SHARDS, "are shards, but their index model.safetensors.index.json is not there"),
        (HALVES, "their index model.safetensors.index.fp16.json is not there"),
    ],
)
def test_what_is_missing_is_named(tmp_path, names, message):
    with pytest.raises(FileNotFoundError, match=message):
        weights_of(folder(tmp_path / "part", "config.json", *names), "model.path")
    with pytest.raises(FileNotFoundError, match="found no such folder"):
        weights_of(tmp_path / "none", "model.path")


def test_every_file_of_the_copy_is_looked_at(tmp_path):
    part = folder(tmp_path / "part", *SHARDS, "model.safetensors.index.json")
    (part / SHARDS[1]).write_bytes(b"")
    with pytest.raises(
        ValueError, match=r"model.path: .*model-00002-of-00002.safetensors: the file is empty"
    ):
        weights_of(part, "model.path")


def test_copies_are_in_the_order_in_which_they_are_taken(tmp_path):
    names = [
        "model.fp16.safetensors",
        "pytorch_model.bin",
        *SHARDS,
        "model.safetensors",
        "pytorch_model.fp16.bin",
    ]
    order = [(one.variant, one.files[0].name) for one in weight_sets(folder(tmp_path / "part", *names))]
    assert order == [
        (None, "model.safetensors"),
        (None, SHARDS[0]),
        (None, "pytorch_model.bin"),
        ("fp16", "model.fp16.safetensors"),
        ("fp16", "pytorch_model.fp16.bin"),
    ]
