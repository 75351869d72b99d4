"""Write files and folders whole or not at all: under a name of their own first, then renamed.

A draft has a name that no other file can have, so that it never overwrites a user's file and two processes
never write the same one.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from muwa.errors import message_of

SUFFIX = ".draft"


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A file to write in place of `path`. It takes that name when the block ends without an error.

    The file is flushed to disk first, and its mode follows the umask, whatever wrote it. After an error the
    draft is removed, and what was at `path` stays.
    """
    draft = draft_of(path)
    try:
        draft.touch(exist_ok=False)
        yield draft
        draft.chmod(file_mode())
        _flush(draft)
        os.replace(draft, path)
    except BaseException as error:
        with suppress(OSError):
            draft.unlink()
        raise_with_path(error, path)
        raise


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill in place of `path`. What is at `path` is removed when the new one is there.

    See `new_file`.
    """
    draft = draft_of(path)
    try:
        draft.mkdir()
        yield draft
        mode = file_mode()
        for file in draft.rglob("*"):
            if file.is_file() and not file.is_symlink():
                file.chmod(mode)
                _flush(file)
        if path.exists() or path.is_symlink():
            former = draft_of(path)
            os.replace(path, former)
            os.replace(draft, path)
            remove(former)
        else:
            os.replace(draft, path)
    except BaseException as error:
        shutil.rmtree(draft, ignore_errors=True)
        raise_with_path(error, path)
        raise


def raise_with_path(error: BaseException, path: Path) -> None:
    """Raise OSError with the path if a file could not be written.

    A full disk is an error without a name. Nobody knows the name of a draft, which is another's.
    """
    named = isinstance(error, OSError) and error.filename is not None
    if isinstance(error, OSError) and error.strerror and (not named or SUFFIX in str(error.filename)):
        raise OSError(error.errno, error.strerror, str(path)) from error
    if isinstance(error, SafetensorError):
        raise OSError(f"{path}: could not be written ({message_of(error)})") from error


def check_writable(setting: str, folder: Path) -> None:
    """Raise if nothing can be written to a folder, or below the one above it where it is not there yet.

    Args:
        setting: What names the folder, for the message: "paths.cache".

    Raises:
        ValueError: Says why.
    """
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    try:
        os.rmdir(tempfile.mkdtemp(dir=there))
    except OSError as error:
        raise ValueError(
            f"{setting}={folder}: cannot be written ({error.strerror}); want a folder that can be"
        ) from error


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all. Its folder is made if it does not exist."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with new_file(path) as draft:
        draft.write_text(text, encoding="utf-8")


def remove(path: Path) -> None:
    """Remove a file or a folder; nothing if there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def file_mode() -> int:
    """The mode of a new file under the umask of this process."""
    umask = os.umask(0o077)
    os.umask(umask)
    return 0o666 & ~umask


def draft_of(path: Path) -> Path:
    """A name beside `path` that no file has."""
    return path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}{SUFFIX}")


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
