"""The kinds of values that the classes of the families that run take.

`python -m tests.support.family_values` writes core/checkpoint/family_values.csv. transformers holds each value against
the type that its class declares; of texts that are one of a few it is enough here that they are texts.
"""

from __future__ import annotations

import types
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Literal, Union, get_args, get_origin

from transformers import CONFIG_MAPPING
from transformers.utils import logging

from core.checkpoint.family_values import TABLE
from core.checkpoint.text_config import PICTURE_FAMILIES
from tests.support.family_tensors import checked_families

PLAIN = {bool: "bool", int: "int", float: "float", str: "str", list: "list", dict: "dict", type(None): "null"}
HEAD = """\
# The kinds of values that the classes of families take, by transformers' own classes. Read by
# core/checkpoint/family_values.py, written by tests/support/family_values.py.
#
# name      what a config.json calls the value
# kinds     what it may be; a ":" stands before the kinds of a list's items
# families  whose classes take these kinds
name,kinds,families"""


def declared_families() -> list[str]:
    """The families that run, and those with pictures whose text part does."""
    texts = {CONFIG_MAPPING[family]().get_text_config().model_type for family in PICTURE_FAMILIES}
    return sorted({*checked_families(), *PICTURE_FAMILIES, *texts})


def kinds_of(family: str) -> Mapping[str, tuple[str, ...]]:
    """The kinds of each value by its name; nothing of those that may be anything."""
    found = {field.name: _kinds(field.type) for field in fields(CONFIG_MAPPING[family])}
    return {name: kinds for name, kinds in found.items() if kinds}


def _kinds(declared: Any) -> tuple[str, ...]:
    """The kinds of JSON that a declared type takes, () for one that nothing is held against."""
    origin, items = get_origin(declared), get_args(declared)
    if isinstance(declared, str) or declared is Any:
        return ()
    if origin in (Union, types.UnionType):
        kinds = [_kinds(one) for one in items if not _is_no_json(one)]
        return tuple(dict.fromkeys(kind for one in kinds for kind in one)) if all(kinds) else ()
    if origin is Literal:
        return tuple(dict.fromkeys(PLAIN[type(one)] for one in items))
    if origin is list:
        return ("list:" + "/".join(_kinds(items[0])),)
    return (PLAIN[origin or declared],)


def _is_no_json(declared: Any) -> bool:
    """Whether nothing in a file is of this type: classes, and tuples."""
    return (get_origin(declared) or declared) not in (*PLAIN, Literal, Any) and not isinstance(declared, str)


def table() -> str:
    """The whole table as text: one line for all families that take the same kinds."""
    same: dict[tuple[str, str], list[str]] = defaultdict(list)
    for family in declared_families():
        for name, kinds in kinds_of(family).items():
            same[name, " ".join(kinds)].append(family)
    lines = [f"{name},{kinds},{' '.join(families)}" for (name, kinds), families in sorted(same.items())]
    return "\n".join([HEAD, *lines]) + "\n"


if __name__ == "__main__":
    logging.set_verbosity_error()
    TABLE.write_text(table(), "utf-8")
