"""The message of an error, for the terminal."""

from __future__ import annotations


def message_of(error: BaseException) -> str:
    """The message of an error. One of the operating system is given by file and reason, not by number.

    >>> message_of(FileNotFoundError(2, "No such file or directory", "a.safetensors"))
    'a.safetensors: No such file or directory'
    >>> message_of(KeyError("a name"))
    'a name'

    Signs that steer a terminal, as a stranger's file may hold, are shown as escapes:

    >>> message_of(ValueError("a\\x1b[2J"))
    'a\\\\x1b[2J'
    """
    text = _text_of(error)
    return "".join(sign if sign.isprintable() or sign == "\n" else ascii(sign)[1:-1] for sign in text)


def _text_of(error: BaseException) -> str:
    """The message of an error as it is."""
    if isinstance(error, OSError) and error.strerror:
        files = [str(name) for name in (error.filename, error.filename2) if name is not None]
        return ": ".join([*files, error.strerror])
    if isinstance(error, KeyError) and error.args:
        return str(error.args[0])
    if isinstance(error, UnicodeError):
        return f"a text file that is not UTF-8 ({error}); want UTF-8"
    return str(error) or type(error).__name__
