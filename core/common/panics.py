"""Panics of libraries written in Rust, as errors. A panic is no Exception, so `except Exception` does not catch it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class LibraryPanic(Exception):
    """A library panicked: its input was a case that its authors thought impossible."""


@contextmanager
def panics_as_errors() -> Iterator[None]:
    """Raises LibraryPanic, with the library's message, for a panic. Other exceptions pass unchanged."""
    try:
        yield
    except BaseException as error:
        # Each library has a class of its own, and none can be imported.
        if type(error).__name__ != "PanicException":
            raise
        raise LibraryPanic(why_of(error)) from error


def why_of(error: BaseException) -> str:
    """The first line of an error's message, or its type."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
