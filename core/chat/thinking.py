"""Whether and how long a model shall think in a chat: the switches that its template has, and what a chat sets."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from core.common.preferences import Preferences

# Variables of templates that switch thinking on and off: of Qwen3, GLM, EXAONE 4, SmolLM3, Gemma 4 and most others; of
# Granite and DeepSeek V3.1. And gpt-oss', which says how much.
SWITCHES, EFFORT = ("enable_thinking", "thinking"), "reasoning_effort"
EFFORTS = ("low", "medium", "high")
# The settings of a chat.
THINKING, BUDGET = "thinking", "thinking_budget"
REMEMBERED = (THINKING, EFFORT, BUDGET)
# In a person's preferences, by the models' names.
GROUP = "model_thinking"
MAX_BUDGET_TOKENS = 1_000_000
TAG, TAG_END = re.compile(r"\{[%{]"), re.compile(r"[%}]\}")
# One without an end ends with the tag: else the rest would be searched from each mark in it.
STRING = re.compile(r"'(?:\\.|[^'\\])*+'?|\"(?:\\.|[^\"\\])*+\"?", re.DOTALL)
NAME = re.compile(rf"(?<![\w.])(?:{'|'.join((*SWITCHES, EFFORT))})\b(?!\s*=(?!=))")


@dataclass(frozen=True, slots=True)
class Thinking:
    """What a chat or a request sets. `variables` are the template's; None for `budget_tokens` sets no end."""

    variables: Mapping[str, Any] = field(default_factory=dict)
    budget_tokens: int | None = None


@lru_cache(16)
def switches_of(source: str) -> frozenset[str]:
    """Which of the variables a template asks for. Its own texts, in which the words may stand, do not count."""
    return frozenset(found for tag in _tags(source) for found in NAME.findall(STRING.sub("''", tag)))


def _tags(source: str) -> Iterator[str]:
    at = 0
    while (begin := TAG.search(source, at)) and (end := TAG_END.search(source, begin.end())):
        yield source[begin.end() : end.start()]
        at = end.end()


def switched(is_on: bool, switches: frozenset[str]) -> dict[str, Any]:
    return {name: is_on for name in SWITCHES if name in switches}


def with_effort(effort: str, switches: frozenset[str]) -> dict[str, Any]:
    """The variables for an effort of OpenAI's names, of which templates know three."""
    if effort == "none":
        return switched(False, switches)
    return {EFFORT: {"minimal": "low", "xhigh": "high"}.get(effort, effort)} if EFFORT in switches else {}


def model_thinking(preferences: Preferences, model: str) -> Mapping[str, Any]:
    """What a person chose last for a model: the settings of chats that say nothing themselves."""
    try:
        found = json.loads(preferences.get(GROUP, model) or "{}")
    except ValueError:
        return {}
    return {name: found[name] for name in REMEMBERED if name in found} if isinstance(found, dict) else {}


def note_thinking(preferences: Preferences, model: str, name: str, value: str | int | None) -> None:
    """None: as the model does by itself."""
    kept = {**model_thinking(preferences, model), name: value}
    preferences.set(GROUP, model, json.dumps({name: one for name, one in kept.items() if one is not None}))


def thinking_of(settings: Mapping[str, Any], switches: frozenset[str]) -> Thinking:
    """What the settings of a chat say to a template with these switches; the others are the model's own choice."""
    chosen, effort, budget = settings.get(THINKING), settings.get(EFFORT), settings.get(BUDGET)
    variables: dict[str, Any] = {}
    if chosen in ("on", "off"):
        variables |= switched(chosen == "on", switches)
    if effort in EFFORTS and EFFORT in switches:
        variables[EFFORT] = effort
    is_right = type(budget) is int and 1 <= budget <= MAX_BUDGET_TOKENS
    return Thinking(variables, budget if is_right else None)
