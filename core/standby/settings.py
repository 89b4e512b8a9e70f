"""What was chosen for the hours in which nobody looks at a page: which model a request's other name means.

Kept for the whole installation: all who use it share its engine.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Literal

from core.common.paths import data_dir
from core.common.preferences import Preferences

GROUP = "standby"
# A name that is neither the loaded model's nor a character's: an error, the loaded model, or the one of the library.
OtherNames = Literal["refuse", "any", "load"]
OTHER_NAMES: tuple[OtherNames, ...] = ("refuse", "any", "load")


def other_names() -> OtherNames:
    kept = _preferences(data_dir()).get(GROUP, "other_names")
    return next((name for name in OTHER_NAMES if name == kept), OTHER_NAMES[0])


def set_other_names(wanted: OtherNames) -> None:
    _preferences(data_dir()).set(GROUP, "other_names", wanted)


@lru_cache(4)
def _preferences(folder: Path) -> Preferences:
    return Preferences(folder / "settings.json")
