"""What a weight file really is, read from its bytes. Nothing in it is unpickled, and torch is not imported.

A file may not be what its name says: empty, cut off, a web page, the pointer of a large-file store, or the
file of another library. Every loader asks `fault` before it reads, so that all say it in the same words.
"""

from __future__ import annotations

import json
import os
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

PICKLED = (".bin", ".pt", ".pth", ".ckpt")  # names of files that torch.save writes
SAVE_WEIGHTS = "torch.save(model.state_dict(), FILE)"

_AGAIN = "fetch or copy it again"
_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"
# What reading a damaged zip or pickle raises, depending on which bytes are damaged.
_DAMAGE = (
    ValueError, OSError, LookupError, EOFError, RuntimeError, MemoryError, OverflowError,
    zipfile.BadZipFile, zlib.error, struct.error,
)  # fmt: skip
# The first bytes of files that are no weights for torch -> what they are, and what to do.
_MAGIC = (
    (b"\x89HDF", "an HDF5 file (Keras or TensorFlow); want the model's PyTorch weights"),
    (b"GGUF", "a GGUF file (llama.cpp); want the model's PyTorch weights, which are not quantised"),
    (b"\x1f\x8b", "a gzip archive; unpack it and give the weight file in it"),
    (b"\xfd7zXZ", "an xz archive; unpack it and give the weight file in it"),
    (b"Rar!", "a rar archive; unpack it and give the weight file in it"),
    (b"\x93NUMPY", "a numpy array; want the model's weights by name"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
)
# Globals that tensors and plain values are made of, so that no message names them.
_PLAIN = ("collections.OrderedDict", "_codecs.encode", "copyreg._reconstructor", "copy_reg._reconstructor")
_VALUES = ("set", "frozenset", "dict", "list", "tuple", "int", "float", "complex", "bool", "str", "bytes")
_MODULES = ("torch.nn.modules.", "torch.optim.")


def fault(path: Path) -> str | None:
    """Why a file cannot hold the weights that its name promises, or None if nothing speaks against it.

    Only the beginning of the file and its table of contents are read.

    Returns:
        A clause that follows the file's name: "is an empty file: fetch or copy it again".
    """
    if not path.exists():
        return (
            f"is a link to {os.readlink(path)}, which is not there" if path.is_symlink() else "is not there"
        )
    if path.is_dir():
        return "is a folder, want a file of weights"
    with path.open("rb") as file:
        start = file.read(1024)
        if (other := _not_weights(start, path.stat().st_size)) is not None:
            return f"is {other}"
        if path.suffix == ".safetensors":
            return _fault_of_safetensors(file, start, path.stat().st_size)
        return _fault_of_pickled(path, file, start) if path.suffix in PICKLED else None


def check_file(path: Path, where: str = "") -> None:
    """Raise if a file is not what its name says (`fault`).

    Args:
        where: The setting that names the file, as it stands before it: "model.pretrained=".

    Raises:
        ValueError: Says what the file is, and what to do.
    """
    if (found := fault(path)) is not None:
        raise ValueError(f"{where}{path}: the file {found}")


def is_patch(path: Path) -> bool:
    """Whether a file is a patch of muwa: a safetensors file whose metadata says so (`muwa.patch.apply`)."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(100_000_000, path.stat().st_size):
            return False
        try:
            metadata = json.loads(file.read(length)).get("__metadata__", {})
        except (ValueError, AttributeError, RecursionError):
            return False
    return isinstance(metadata, dict) and any(key.startswith("muwa.patch/") for key in metadata)


def _not_weights(start: bytes, size: int) -> str | None:
    """What a file is that holds no weights of any kind, by its first bytes."""
    if not size:
        return f"empty (0 bytes): {_AGAIN}"
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n")
    if text[:15].lower().startswith((b"<!doctype html", b"<html", b"<head")):
        return "a web page (HTML), not weights: take the address of the file itself, and log in if it asks"
    if start.startswith(b"version https://git-lfs.github.com/spec/"):
        return f"a Git LFS pointer{_pointed_size(start)}, not the weights: `git lfs pull` in its folder"
    if b"annex/objects/" in start and size < 1024:
        return "a git-annex pointer, not the weights: `git annex get FILE` in its folder"
    if size < 100_000 and _is_text(start):
        line = start.decode(errors="replace").split("\n")[0].strip()
        return f"a text, not weights ({line[:100]}); give or fetch the weight file itself"
    return next((what for magic, what in _MAGIC if start.startswith(magic)), None)


def _pointed_size(pointer: bytes) -> str:
    """The size that a Git LFS pointer gives, in words."""
    for line in pointer.decode(errors="replace").splitlines():
        key, _, value = line.partition(" ")
        if key == "size" and value.isdigit():
            return f" to a file of {int(value) / 1e6:,.1f} MB"
    return ""


def _is_text(start: bytes) -> bool:
    """Whether the first bytes are UTF-8 text without control characters; the last letter may be cut."""
    try:
        text = start.decode() if len(start) < 1024 else start[:1021].decode(errors="ignore")
    except UnicodeDecodeError:
        return False
    return all(sign.isprintable() or sign in "\t\r\n" for sign in text)


def _fault_of_safetensors(file: IO[bytes], start: bytes, size: int) -> str | None:
    """What is wrong with a file called .safetensors: its header does not describe its bytes."""
    if start[8:9] != b"{" and (start.startswith(_ZIP) or start[:1] == _PICKLE):
        return "is a torch file (pickle) with the name of a safetensors file: rename it to .pt or .bin"
    length = int.from_bytes(start[:8], "little")
    if len(start) < 8 or not 2 <= length <= 100_000_000 or start[8:9] != b"{":
        return f"is no safetensors file (it begins with {start[:8]!r}): {_AGAIN}"
    if 8 + length > size:
        return f"is cut off: {size:,} bytes, its header alone has {8 + length:,}; {_AGAIN}"
    file.seek(8)
    try:
        header = json.loads(file.read(length))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return f"is a safetensors file whose header cannot be read: {_AGAIN}"
    whole = 8 + length + max(ends, default=0)
    if whole > size:
        return f"is cut off: {size:,} of {whole:,} bytes are there; {_AGAIN}"
    return None


def _fault_of_pickled(path: Path, file: IO[bytes], start: bytes) -> str | None:
    """What is wrong with a file called .pt, .pth, .bin or .ckpt, unless torch has to say it."""
    if start[8:9] == b"{" and _fault_of_safetensors(file, start, path.stat().st_size) is None:
        return "is a safetensors file with the name of a torch file: rename it to .safetensors"
    if start.startswith(_ZIP):
        if not _is_zip(path):
            return f"is cut off (a zip without its end): {_AGAIN}"
        try:
            names = _records(path)
        except _DAMAGE:
            return f"is a zip archive whose table cannot be read: {_AGAIN}"
        if any(name.endswith("/constants.pkl") for name in names):
            return (
                "is a TorchScript program, not weights; take the weights out of it: "
                "torch.save(torch.jit.load(FILE, map_location='cpu').state_dict(), NEW_FILE)"
            )
        if not any(name.endswith("data.pkl") for name in names):
            return (
                f"is a zip archive of {', '.join(names[:3])}, not weights; unpack it and give the file in it"
            )
        return None
    if start[:1] != _PICKLE:
        return f"is no torch file (it begins with {start[:8]!r}): {_AGAIN}"
    return None


def _is_zip(path: Path) -> bool:
    """Whether a file ends as a zip does. `zipfile` itself raises where a damaged end names other volumes."""
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:
        return False


def _records(path: Path) -> list[str]:
    with zipfile.ZipFile(path) as archive:
        return archive.namelist()


def foreign_objects(path: Path) -> list[str]:
    """The classes and functions that a pickled file names besides those that tensors are made of.

    Returns:
        Their dotted names ("argparse.Namespace"), each once, in the order of the file. The file is only
        disassembled; nothing in it runs.
    """
    return [name for name in dict.fromkeys(_globals(path)) if not _is_plain(name)]


def _is_plain(name: str) -> bool:
    """Whether a global is one that tensors and plain values are made of."""
    module, _, last = name.rpartition(".")
    if module in ("builtins", "__builtin__"):
        return last in _VALUES
    return name in _PLAIN or (name.startswith("torch.") and not name.startswith(_MODULES))


def _globals(path: Path) -> Iterator[str]:
    """The dotted names of all globals in the pickles of a torch file, of its zip or of its older format."""
    try:
        if _is_zip(path):
            with zipfile.ZipFile(path) as archive:
                names = [name for name in archive.namelist() if name.endswith("data.pkl")]
                for name in names:
                    with archive.open(name) as stream:
                        yield from _globals_of_pickle(stream)
            return
        with path.open("rb") as file:
            for _ in range(4):  # the older format: a number, its version, the machine, then the object
                yield from _globals_of_pickle(file)
    except _DAMAGE:
        return  # the end of what is a pickle


def _globals_of_pickle(stream: IO[bytes]) -> Iterator[str]:
    """The dotted names of the globals of one pickle, up to its end."""
    strings: list[str] = []  # the last strings that were pushed: STACK_GLOBAL takes its names from the stack
    memo: dict[int, str] = {}
    for opcode, argument, _ in pickletools.genops(stream):
        if opcode.name == "GLOBAL":
            yield str(argument).replace(" ", ".")
        elif opcode.name == "STACK_GLOBAL" and len(strings) > 1:
            yield ".".join(strings[-2:])
        elif opcode.name in ("MEMOIZE", "BINPUT", "LONG_BINPUT") and strings:
            memo[len(memo) if argument is None else int(argument)] = strings[-1]
        elif opcode.name in ("BINGET", "LONG_BINGET") and argument in memo:
            strings.append(memo[argument])
        elif isinstance(argument, str):
            strings.append(argument)


def pickle_protocol(path: Path) -> int | None:
    """The protocol of the pickle of a torch file that is a zip, or None if it gives none."""
    try:
        with zipfile.ZipFile(path) as archive:
            name = next(one for one in archive.namelist() if one.endswith("data.pkl"))
            with archive.open(name) as stream:
                start = stream.read(2)
    except (StopIteration, *_DAMAGE):
        return None
    return start[1] if start[:1] == _PICKLE and len(start) == 2 else None
