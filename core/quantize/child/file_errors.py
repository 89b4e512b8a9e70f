"""What files refuse while a job reads and writes checkpoints, in words; safetensors has an error of its own for it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from core.checkpoint.headers import read_header, unreadable
from core.common.errors import CheckpointError
from core.common.values import printable
from core.quantize.folders import errors_explained

# How safetensors tells what the system refused: "No space left on device (os error 28)".
SYSTEM_ERROR = re.compile(r"\(os error ([0-9]+)\)")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Raises CheckpointError where the safetensors file `path` cannot be read, or is another by now than its header
    said."""
    try:
        yield
    except OSError as error:
        raise unreadable(path, error) from error
    except SafetensorError as error:
        # It says best how a file is damaged.
        read_header(path)
        raise CheckpointError("corrupt_weights", folder=path.parent.name, file=printable(path.name)) from error


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raises DeckError where `path` cannot be written, such as on a full disk."""
    with errors_explained(path):
        try:
            yield
        except SafetensorError as error:
            if (match := SYSTEM_ERROR.search(str(error))) is None:
                raise
            number = int(match[1])
            raise OSError(number, os.strerror(number), str(path)) from error
