"""JSON and YAML from strangers as plain values, within limits."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any

import yaml

from core.common.plain_json import check_num_values, finite, no_number
from core.personas.character import CharacterError

MAX_TEXT_BYTES = 32 * 2**20
# Limits of one file with its aliases expanded: YAML's aliases can make very much of very little.
MAX_DEPTH = 64
MAX_VALUES = 200_000
MAX_DIGITS = 1000
MAX_WHY_CHARS = 160
# Line breaks to YAML, which it would read as spaces or as another line break.
OTHER_BREAKS = re.compile("[\r\x85\u2028\u2029]")
HALF_CHARACTERS = re.compile("[\ud800-\udfff]")


def decode_text(file: str, content: bytes) -> str:
    """UTF-8 with or without its mark at the beginning. `file` is the name that a sentence quotes, here and below."""
    if len(content) > MAX_TEXT_BYTES:
        raise CharacterError("card_too_large", file=file, limit_mib=MAX_TEXT_BYTES // 2**20)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise CharacterError("card_no_text", file=file) from None


def parse_json(file: str, text: str) -> dict[str, Any]:
    """The object in `text`. Raises CharacterError for all else, and for numbers that JSON does not have."""
    try:
        check_num_values(text, 2 * MAX_VALUES)
        value = json.loads(text, parse_constant=no_number, parse_float=finite, parse_int=_whole)
    except (ValueError, RecursionError) as error:
        raise CharacterError("card_bad_json", file=file, why=_why(error)) from None
    return _checked_object(file, value)


def parse_yaml(file: str, text: str) -> dict[str, Any]:
    """The mapping in `text`: plain values, no tags, aliases within the limits. Raises CharacterError for all else."""
    try:
        _check_events(file, text)
        value = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise CharacterError("card_bad_yaml", file=file, why=_why(error)) from None
    return _checked_object(file, value)


def write_yaml(values: dict[str, Any]) -> str:
    """`values` as YAML that a person can edit: texts of several lines as blocks, nothing folded."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=math.inf)


def write_json(values: dict[str, Any], *, is_compact: bool = False) -> str:
    """`values` as JSON that a person can read, or in one line."""
    return json.dumps(values, ensure_ascii=False, indent=None if is_compact else 2) + "\n"


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Values as JSON has them: YAML's dates, octal numbers and `yes` stay the texts that people meant."""


class _Dumper(yaml.SafeDumper):
    """Writes no aliases, and reads what it writes as _Loader does and every other program too."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _write_text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    style = '"' if OTHER_BREAKS.search(text) else "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _write_text)
# All of these are also numbers to YAML 1.1, so that the dumper quotes every text that looks like one.
_Loader.yaml_implicit_resolvers = {}
for _kind, _pattern, _first in (
    ("null", "~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", "true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", "-?(?:0|[1-9][0-9]*)", list("-0123456789")),
    ("float", r"-?(?:0|[1-9][0-9]*)\.[0-9]+(?:[eE][-+][0-9]+)?", list("-0123456789")),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(f"(?:{_pattern})\\Z"), _first)


# Python's own words for a number that is too long are not for people.
_Loader.add_constructor("tag:yaml.org,2002:int", lambda _, node: _whole(node.value))


def _check_events(file: str, text: str) -> None:
    """Refuse, before anything is built, what is too deep, too long, tagged, or more than one document."""
    depth = count = documents = 0
    for event in yaml.parse(text, Loader=_Loader):
        tag = getattr(event, "tag", None)
        if tag is not None:
            raise CharacterError("card_yaml_tag", file=file, tag=str(tag)[:MAX_WHY_CHARS])
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        documents += isinstance(event, yaml.DocumentStartEvent)
        count += 1
        if depth > MAX_DEPTH or count > 2 * MAX_VALUES:
            raise _too_complex(file)
    if documents > 1:
        raise CharacterError("card_not_object", file=file)


def _checked_object(file: str, value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise CharacterError("card_not_object", file=file)
    plain: dict[str, Any] = _Copy(file).copy(value, 0)
    return plain


class _Copy:
    """Copies a value, so that an alias becomes what it stands for, and counts what it comes to."""

    def __init__(self, file: str) -> None:
        self._file = file
        self._num_values = 0
        self._num_chars = 0

    def copy(self, value: Any, depth: int) -> Any:
        self._num_values += 1
        if depth > MAX_DEPTH or self._num_values > MAX_VALUES:
            raise _too_complex(self._file)
        if isinstance(value, dict):
            return dict(self._items(value, depth))
        if isinstance(value, list):
            return [self.copy(entry, depth + 1) for entry in value]
        return self._text(value) if isinstance(value, str) else value

    def _items(self, value: dict[Any, Any], depth: int) -> Iterator[tuple[str, Any]]:
        for key, entry in value.items():
            yield self._text(key if isinstance(key, str) else json.dumps(key)), self.copy(entry, depth + 1)

    def _text(self, text: str) -> str:
        self._num_chars += len(text)
        if self._num_chars > MAX_TEXT_BYTES:
            raise _too_complex(self._file)
        return HALF_CHARACTERS.sub("\ufffd", text)


def _too_complex(file: str) -> CharacterError:
    return CharacterError("card_too_complex", file=file, depth=MAX_DEPTH, count=MAX_VALUES)


def _whole(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"{text[:20]}… has {len(text):,} digits")
    return int(text)


def _why(error: Exception) -> str:
    """What the parser says and where, on one line."""
    mark = getattr(error, "problem_mark", None)
    said = getattr(error, "problem", None) or str(error) or type(error).__name__
    place = f" (line {mark.line + 1}, column {mark.column + 1})" if mark is not None else ""
    return " ".join(str(said).split())[:MAX_WHY_CHARS] + place
