"""A character's example dialogue as blocks of turns."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

START = re.compile(r"<START>", re.IGNORECASE)
USER_MARKS = ("{{user}}", "<user>", "you")
CHAR_MARKS = ("{{char}}", "<bot>", "<char>")


@dataclass(frozen=True, slots=True)
class ExampleTurn:
    """One turn of a dialogue, with its macros unexpanded."""

    role: Literal["user", "assistant"]
    text: str


def split_examples(dialogue: str, user: str, char: str, *other_names: str) -> tuple[tuple[ExampleTurn, ...], ...]:
    """The blocks between <START> marks. A turn begins at a line with a speaker and a colon.

    Speakers are the macros in any letter case, "You", and the names themselves, `other_names` of the character's too.
    What stands before the first speaker is told by the character.
    """
    speakers = _speakers(user, char, *other_names)
    mark = _mark(speakers)
    blocks = (_turns(mark.split(block), speakers) for block in START.split(dialogue))
    return tuple(block for block in blocks if block)


def is_dialogue(text: str, user: str, char: str, *other_names: str) -> bool:
    """Whether somebody speaks in `text`, with a name before it."""
    return START.search(text) is not None or _mark(_speakers(user, char, *other_names)).search(text) is not None


def _speakers(user: str, *char_names: str) -> dict[str, str]:
    speakers = {name.strip().casefold(): "user" for name in (*USER_MARKS, user) if name.strip()}
    return speakers | {name.strip().casefold(): "assistant" for name in (*CHAR_MARKS, *char_names) if name.strip()}


def _mark(speakers: Iterable[str]) -> re.Pattern[str]:
    names = "|".join(re.escape(name) for name in sorted(speakers, key=len, reverse=True))
    return re.compile(rf"^[ \t]*({names})[ \t]*[:：][ \t]*", re.IGNORECASE | re.MULTILINE)


def _turns(parts: Sequence[str], speakers: dict[str, str]) -> tuple[ExampleTurn, ...]:
    """Turns from text, speaker, text, speaker, text …"""
    told = [ExampleTurn("assistant", parts[0].strip())]
    spoken = [
        ExampleTurn("user" if speakers.get(name.casefold()) == "user" else "assistant", text.strip())
        for name, text in zip(parts[1::2], parts[2::2], strict=True)
    ]
    return tuple(turn for turn in told + spoken if turn.text)
