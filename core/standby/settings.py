"""What was chosen for the hours in which nobody looks at a page: which model a request's other name means, and what
happens once nothing was done for long.

Kept for the whole installation: all who use it share its engine.
"""

from __future__ import annotations

import os
import shlex
import shutil
from functools import lru_cache
from pathlib import Path
from typing import Literal

from core.common.paths import data_dir
from core.common.preferences import Preferences

GROUP = "standby"
# A name that is neither the loaded model's nor a character's: an error, the loaded model, or the one of the library.
OtherNames = Literal["refuse", "any", "load"]
# Minutes without use after which something happens; 0 is never.
Action = Literal["unload", "command"]
MAX_MINUTES = 7 * 24 * 60
# The command is given by whoever starts the program: a page must not be a way to run anything.
COMMAND, USUAL_COMMAND = "LLAMADECK_IDLE_COMMAND", "shutdown"
OTHER_NAMES: tuple[OtherNames, ...] = ("refuse", "any", "load")


def other_names() -> OtherNames:
    kept = _preferences(data_dir()).get(GROUP, "other_names")
    return next((name for name in OTHER_NAMES if name == kept), OTHER_NAMES[0])


def set_other_names(wanted: OtherNames) -> None:
    _preferences(data_dir()).set(GROUP, "other_names", wanted)


def idle_minutes(action: Action) -> int:
    kept = _preferences(data_dir()).get(GROUP, f"{action}_min") or ""
    return min(int(kept), MAX_MINUTES) if kept.isascii() and kept.isdecimal() and len(kept) < 10 else 0


def set_idle_minutes(action: Action, minutes: int) -> None:
    _preferences(data_dir()).set(GROUP, f"{action}_min", str(max(0, min(minutes, MAX_MINUTES))))


def idle_command() -> str:
    """For a shell. "" where there is to be none."""
    return os.environ.get(COMMAND, USUAL_COMMAND).strip()


def is_command_there() -> bool:
    """Whether the shell would find the program that the command begins with; what it makes of more it alone knows."""
    try:
        words = shlex.split(idle_command())
    except ValueError:
        return True
    return not words or not words[0].replace("/", "").replace("-", "").isalnum() or shutil.which(words[0]) is not None


@lru_cache(4)
def _preferences(folder: Path) -> Preferences:
    return Preferences(folder / "settings.json")
