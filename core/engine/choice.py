"""Which engine a person chose, this machine's or another server's, in data/engine.json; knows neither of them.

The file may be changed by another process (`./llamadeck scale`), which a running dashboard notices.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path

from core.atomic import write_atomically
from core.settings import data_dir

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Choice:
    """A model of the server at `address`. `context_tokens` is what a person said where the server does not tell."""

    address: str
    model: str
    context_tokens: int | None = None


def choice_path() -> Path:
    return data_dir() / "engine.json"


def read_choice() -> Choice | None:
    """None for this machine's own engine, and where the file cannot be used, which the log says."""
    try:
        found = json.loads(choice_path().read_text("utf-8"))
        if not found:
            return None
        choice = Choice(**found)
        texts_are_right = isinstance(choice.address, str) and isinstance(choice.model, str)
        context = choice.context_tokens
        if not texts_are_right or not (context is None or (isinstance(context, int) and context > 0)):
            raise ValueError("wrong types")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, RecursionError) as error:
        log.warning("%s is not used: %s", choice_path(), error)
        return None
    return choice


def write_choice(choice: Choice | None) -> None:
    """What cannot be written holds until the end of this process."""
    if choice is None and not choice_path().exists():
        return
    try:
        write_atomically(choice_path(), json.dumps(asdict(choice) if choice else {}, indent=1) + "\n")
    except OSError as error:
        log.warning("could not write %s: %s", choice_path(), error.strerror or error)
