"""An error as one line for the terminal: where, what was found, what was wanted."""

from __future__ import annotations


def one_line(error: BaseException) -> str:
    """The error in one line. An error of the operating system gets the file and the reason, not its number.

    >>> one_line(FileNotFoundError(2, "No such file or directory", "a.safetensors"))
    'a.safetensors: No such file or directory'
    >>> one_line(KeyError("a name"))
    'a name'
    """
    if isinstance(error, OSError) and error.strerror:
        files = [str(name) for name in (error.filename, error.filename2) if name is not None]
        return ": ".join([*files, error.strerror])
    if isinstance(error, KeyError) and error.args:
        return str(error.args[0])
    if isinstance(error, UnicodeError):
        return f"a text file that is not UTF-8 ({error}); want UTF-8"
    lines = [line.strip() for line in str(error).splitlines()]
    return " ".join(line for line in lines if line) or type(error).__name__
