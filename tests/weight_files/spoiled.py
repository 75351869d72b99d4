"""Weight files that are not what their names say, made as they come about: file name -> (how to make it, what is said)."""

import argparse
import gzip
import io
import zipfile

import torch
from safetensors.torch import save, save_file

WEIGHTS = {"visual.proj": torch.ones(2, 3), "logit_scale": torch.tensor(1.0)}
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 1710540580\n"


def torch_bytes(content, **options):
    """What torch.save writes."""
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def zipped(**files):
    """A zip archive of texts."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, text in files.items():
            archive.writestr(name.replace("__", "/"), text)
    return buffer.getvalue()


RAW = save(WEIGHTS)
DEEP = (100_005).to_bytes(8, "little") + b'{"a":' + b"[" * 100_000
SPOILED = {
    "empty.safetensors": (b"", r"is empty \(0 bytes\): fetch or copy it again"),
    "empty.bin": (b"", r"is empty \(0 bytes\)"),
    "page.safetensors": (b"\n<!DOCTYPE html>\n<html><title>Sign in</title>", r"is a web page \(HTML\), not weights"),
    "page.pt": (b"<html><body>404</body></html>", r"is a web page \(HTML\), not weights"),
    "pointer.safetensors": (POINTER.encode(), r"is a Git LFS pointer to a file of 1,710.5 MB.*`git lfs pull`"),
    "pointer.bin": (POINTER.encode(), "is a Git LFS pointer"),
    "annex.bin": (b"/annex/objects/SHA256E-s5--ab.bin\n", "is a git-annex pointer.*`git annex get FILE`"),
    "denied.bin": (b'{"error":"Repository not found"}', r'is a text, not weights \(\{"error":"Repository not found"\}\)'),
    "cut.safetensors": (RAW[:-3], rf"is cut off: {len(RAW) - 3} of {len(RAW)} bytes are there"),
    "header.safetensors": (RAW[:20], r"is cut off: 20 bytes, its header alone has \d+"),
    "deep.safetensors": (DEEP, "is a safetensors file whose header cannot be read"),
    "noise.safetensors": (bytes(range(129, 229)), "is no safetensors file .it begins with"),
    "torch.safetensors": (torch_bytes(WEIGHTS), "is a torch file .pickle. with the name of a safetensors file: rename"),
    "safe.bin": (RAW, "is a safetensors file with the name of a torch file: rename it to .safetensors"),
    "cut.pt": (torch_bytes(WEIGHTS)[:-200], "is cut off .a zip without its end."),
    "table.pt": (torch_bytes(WEIGHTS).replace(b"PK\x01\x02", b"PK\x09\x09"), "is a zip archive whose table cannot be read"),
    "archive.pt": (zipped(readme="hello"), "is a zip archive of readme, not weights; unpack it"),
    "program.pt": (zipped(**{"x__data.pkl": "", "x__constants.pkl": ""}), "is a TorchScript program, not weights.*state_dict"),
    "packed.bin": (gzip.compress(b"x"), "is a gzip archive; unpack it"),
    "keras.bin": (b"\x89HDF\r\n\x1a\n" + bytes(20), "is an HDF5 file"),
    "quantised.bin": (b"GGUF\x03\x00\x00\x00" + bytes(20), "is a GGUF file"),
    "photo.pt": (b"\x89PNG\r\n\x1a\n" + bytes(20), "is a PNG image"),
    "noise.pt": (bytes(range(129, 229)), "is no torch file .it begins with"),
}  # fmt: skip


def good(folder):
    """Files that hold WEIGHTS: safetensors, and torch's zip and older formats."""
    save_file(WEIGHTS, folder / "one.safetensors")
    (folder / "one.pt").write_bytes(torch_bytes(WEIGHTS))
    (folder / "one.bin").write_bytes(torch_bytes(WEIGHTS, _use_new_zipfile_serialization=False))
    (folder / "one.ckpt").write_bytes(torch_bytes({"state_dict": WEIGHTS, "epoch": 3}))
    return [folder / f"one.{kind}" for kind in ("safetensors", "pt", "bin", "ckpt")]


def with_namespace(**options):
    """A checkpoint of a training script: its settings beside the weights."""
    return torch_bytes({"state_dict": WEIGHTS, "args": argparse.Namespace(lr=0.1)}, **options)
