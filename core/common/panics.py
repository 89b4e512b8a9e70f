"""Panics of libraries written in Rust, as errors. A panic is no Exception, so `except Exception` does not catch it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class LibraryPanic(Exception):
    """A library met what its authors thought impossible: a text or a file that it cannot take."""


@contextmanager
def panics_as_errors() -> Iterator[None]:
    """Raises LibraryPanic with the library's words where it panics. Everything else passes as it is."""
    try:
        yield
    except BaseException as error:
        # Each library has a class of its own, and none can be imported.
        if type(error).__name__ != "PanicException":
            raise
        raise LibraryPanic(why_of(error)) from error


def why_of(error: BaseException) -> str:
    """The first line of what a library says, or the kind of its error."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
