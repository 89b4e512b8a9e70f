"""The values of a config.json's rope that a class cannot compute with: transformers finds them only while it builds a
model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from core.checkpoint.family_values import family_values
from core.common.values import is_whole

# Families that turn only a part of each head, as `partial_rotary_factor` says.
PART_FAMILIES = frozenset(
    """
    bamba glm glm4 glm4_moe gpt_neox gpt_neox_japanese laguna mellum minimax_m2 minimax_m3_vl_text nemotron persimmon
    phi phi3 qwen3_5_moe_text qwen3_5_text qwen3_next solar_open stablelm
    """.split()
)
# What those call the part outside of the rope where they do not call it `partial_rotary_factor`; None: nothing is read.
OTHER_NAMES = {"bamba": None, "gpt_neox": "rotary_pct", "gpt_neox_japanese": None, "laguna": None, "mellum": None}
# Families that find no default in place of a null outside of the rope.
WITHOUT_NULL = frozenset(("gpt_neox", "nemotron", "persimmon", "phi", "phi3", "stablelm"))
# Families whose positions have three numbers, each of which turns a part of the head.
MROPE_FAMILIES = frozenset(("qwen3_5_text", "qwen3_5_moe_text"))
MROPE_PARTS = 3
# What each kind of rope divides by, and what it counts with.
NUMBERS = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
}
LISTS = {"longrope": ("short_factor", "long_factor")}
WITH_LENGTH = frozenset(("yarn", "llama3", "longrope"))
# Of these no null is a number, but yarn works the factor out by itself.
NULLS = frozenset((("yarn", "factor"),))
ROPES = ("rope_scaling", "rope_parameters")
# Stands for a value that is not there.
MISSING = object()


def wrong_rope_values(text: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The names and values, MISSING for one that is needed and not there. text: what text_config() gives."""
    family = text.get("model_type")
    if not isinstance(family, str) or "rope_parameters" not in family_values().get(family, {}):
        return
    for name in ROPES:
        if (found := text.get(name)) is not None and not isinstance(found, dict):
            yield name, found
            return
    rope: dict[str, Any] = next((text[name] for name in ROPES if text.get(name)), {})
    nested = [one for kind, one in rope.items() if kind.endswith("_attention") and isinstance(one, dict)]
    for one in nested or [rope]:
        yield from _wrong_values(family, text, one)


def _wrong_values(family: str, text: Mapping[str, Any], rope: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind is None:
        yield ("rope_type" if "rope_type" in rope else "type"), None
    theta = rope.get("rope_theta", text.get("rope_theta", MISSING))
    if theta is not MISSING and not _is_number(theta):
        yield "rope_theta", theta
    kind = str(kind)
    for name in NUMBERS.get(kind, ()):
        value = rope.get(name, MISSING)
        is_divisor = name.endswith("freq_factor")
        if not (_is_number(value) and (value or not is_divisor)) and not (value is None and (kind, name) in NULLS):
            yield name, value
    for name in LISTS.get(kind, ()):
        if not isinstance(value := rope.get(name, MISSING), list):
            yield name, value
    length = rope.get("original_max_position_embeddings", 1)
    if kind in WITH_LENGTH and not (is_whole(length) and length > 0):
        yield "original_max_position_embeddings", length
    if family in MROPE_FAMILIES and not _are_parts(sections := rope.get("mrope_section", [0] * MROPE_PARTS)):
        yield "mrope_section", sections
    if family in PART_FAMILIES or kind not in ("default", "mrope"):
        yield from _wrong_part(family, text, rope, is_whole_head=family not in PART_FAMILIES and kind != "proportional")


def _wrong_part(
    family: str, text: Mapping[str, Any], rope: Mapping[str, Any], is_whole_head: bool
) -> Iterator[tuple[str, Any]]:
    """How much of a head is turned, where it is more than there is or no number. A family that turns whole heads has
    rope of another kind than the usual one from elsewhere, which turns a part."""
    outer = OTHER_NAMES.get(family, "partial_rotary_factor")
    if "partial_rotary_factor" in rope:
        name, part = "partial_rotary_factor", rope["partial_rotary_factor"]
    elif outer is not None and outer in text:
        name, part = outer, text[outer]
        if part is None and family not in WITHOUT_NULL:
            return
    else:
        return
    size = text.get("head_dim")
    if not is_whole(size):
        heads, hidden = text.get("num_attention_heads"), text.get("hidden_size")
        size = hidden // heads if is_whole(heads) and is_whole(hidden) and heads > 0 else 1
    # Of an odd number one more is turned.
    least = size - 1 if is_whole_head else 0
    if not _is_number(part) or not math.isfinite(part) or not least <= int(size * part) <= size:
        yield name, part


def _are_parts(found: object) -> bool:
    """Whether so many parts are there; the first is never read."""
    return isinstance(found, list) and len(found) >= MROPE_PARTS and all(map(_is_count, found[1:MROPE_PARTS]))


def _is_count(value: object) -> bool:
    return isinstance(value, int)  # Python takes JSON's true for 1.


def _is_number(value: object) -> bool:
    return isinstance(value, int | float)
