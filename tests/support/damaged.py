"""Tokenizers that their library panics at, which passes everything that catches an Exception; files that are harmed."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

# A text that a tokenizer damaged by `giving_up` cannot take.
TOO_HARD = "a" * 40 + "b"
# What stands in the places of a harmed JSON file.
WORDS = [b"null", b"[]", b"{}", b"-1", b"1e999", b'"x"', b"true", b"\\ud800", b"9" * 50, b"\n", b"\x00", b'"']
Damage = Callable[[dict[str, Any]], Any]


def harmed(chance: Random, sources: Sequence[bytes]) -> bytes:
    """One of `sources`, JSON, with other words in up to four places."""
    data = bytearray(chance.choice(sources))
    for _ in range(chance.randint(1, 4)):
        place = chance.randrange(len(data))
        data[place : place + chance.randint(0, 8)] = chance.choice(WORDS)
    return bytes(data)


def giving_up(tokenizer: dict[str, Any]) -> None:
    """Words are split by a pattern that gives up at TOO_HARD, and nowhere else."""
    split = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    tokenizer["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, tokenizer["pre_tokenizer"]]}


def charsmap(text: str) -> Damage:
    return lambda tokenizer: tokenizer.update(normalizer={"type": "Precompiled", "precompiled_charsmap": text})


def special(ids: list[int], tokens: list[str]) -> Damage:
    template = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [],
        "special_tokens": {"<s>": {"id": "<s>", "ids": ids, "tokens": tokens}},
    }
    return lambda tokenizer: tokenizer.update(post_processor=template)


def stripping(start: int, stop: int) -> Damage:
    strip = {"type": "Strip", "content": " ", "start": start, "stop": stop}
    return lambda tokenizer: tokenizer.update(decoder={"type": "Sequence", "decoders": [{"type": "Fuse"}, strip]})


def damage(path: Path, change: Damage) -> None:
    tokenizer = json.loads((path / "tokenizer.json").read_text("utf-8"))
    change(tokenizer)
    (path / "tokenizer.json").write_text(json.dumps(tokenizer), "utf-8")
