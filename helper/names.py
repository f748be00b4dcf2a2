"""Names of files and folders in any encoding: how they are recorded, found again and printed.

Python reads what the terminal's language cannot express as surrogates, byte by byte. On record a name is what UTF-8
makes of its bytes, so that it does not depend on the language that a run was started in.
"""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import sys


def recorded(text: str) -> str:
    """Names as they are in this process → as they are on record."""
    try:
        return os.fsencode(text).decode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # it holds one that has been on record
        return text


def local(text: str) -> str:
    """Names from a record, or from a source file → such as open files in this process."""
    try:
        os.fsencode(text)
        return text
    except UnicodeEncodeError:
        return os.fsdecode(text.encode("utf-8", "surrogateescape"))


def print_any_name() -> None:
    """Let stdout and stderr take names as they are, and escape what the terminal's language lacks."""
    codecs.register_error("any_name", _encoded)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            with contextlib.suppress(OSError):  # a stream that has been led elsewhere in the meantime
                stream.reconfigure(errors="any_name")


def _encoded(error: UnicodeError) -> tuple[str | bytes, int]:
    """What stands for letters that cannot be encoded: a name's own bytes, else ``\\u2026``."""
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        return codecs.lookup_error("backslashreplace")(error)
