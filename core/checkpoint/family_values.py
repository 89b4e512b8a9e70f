"""The kinds of values that the classes of families take, from core/checkpoint/family_values.csv.

transformers refuses a value of another kind once everything is downloaded: the table was written from its classes
(tests/support/family_values.py).
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from core.checkpoint.text_config import has_pictures_left_out, named_config
from core.common.values import is_whole

TABLE = Path(__file__).with_name("family_values.csv")
# What a load settles by itself, and what is no part of the model.
SETTLED = frozenset(("pad_token_id", "vocab_size", "quantization_config"))
KINDS: dict[str, Callable[[Any], bool]] = {
    "null": lambda value: value is None,
    "bool": lambda value: isinstance(value, bool),
    "int": is_whole,
    # transformers writes {"__float__": "Infinity"} for what JSON has no number for.
    "float": lambda value: isinstance(value, float) or (isinstance(value, dict) and set(value) == {"__float__"}),
    "str": lambda value: isinstance(value, str),
    "list": lambda value: isinstance(value, list | tuple),
    "dict": lambda value: isinstance(value, dict),
}


@cache
def family_values() -> Mapping[str, Mapping[str, tuple[str, ...]]]:
    """The kinds of each value by its name, for each family: "int", "null", "list:int" for a list of such."""
    rows = csv.DictReader(line for line in TABLE.read_text("utf-8").splitlines() if not line.startswith("#"))
    found: dict[str, dict[str, tuple[str, ...]]] = {}
    for row in rows:
        for family in row["families"].split():
            found.setdefault(family, {})[row["name"]] = tuple(row["kinds"].split())
    return found


def wrong_values(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The names and values in a config.json that are of a kind that the family's class refuses."""
    text, family = config.get("text_config"), named_config(config).get("model_type")
    if isinstance(text, dict):
        yield from _wrong(config.get("model_type"), config)
        yield from _wrong(family, text)
    elif not has_pictures_left_out(config):
        yield from _wrong(family, config)


def _wrong(family: object, part: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    kinds = family_values().get(family, {}) if isinstance(family, str) else {}
    for name in kinds.keys() & part.keys() - SETTLED:
        if not any(_is_of(kind, part[name]) for kind in kinds[name]):
            yield name, part[name]


def _is_of(kind: str, value: Any) -> bool:
    whole, _, items = kind.partition(":")
    return KINDS[whole](value) and (
        not items or all(any(KINDS[one](item) for one in items.split("/")) for item in value)
    )
