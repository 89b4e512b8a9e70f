"""A character's example dialogue as blocks of turns."""

from __future__ import annotations

import re
from collections.abc import Sequence
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


def split_examples(dialogue: str, user: str, char: str) -> tuple[tuple[ExampleTurn, ...], ...]:
    """The blocks between <START> marks. A turn begins at a line with a speaker and a colon.

    Speakers are the macros in any letter case, "You", and the names themselves. What stands before the first speaker
    is told by the character.
    """
    speakers = {name.casefold(): "user" for name in (*USER_MARKS, user) if name.strip()}
    speakers |= {name.casefold(): "assistant" for name in (*CHAR_MARKS, char) if name.strip()}
    names = "|".join(re.escape(name) for name in sorted(speakers, key=len, reverse=True))
    mark = re.compile(rf"^[ \t]*({names})[ \t]*[:：][ \t]*", re.IGNORECASE | re.MULTILINE)
    blocks = (_turns(mark.split(block), speakers) for block in START.split(dialogue))
    return tuple(block for block in blocks if block)


def _turns(parts: Sequence[str], speakers: dict[str, str]) -> tuple[ExampleTurn, ...]:
    """Turns from text, speaker, text, speaker, text …"""
    told = [ExampleTurn("assistant", parts[0].strip())]
    spoken = [
        ExampleTurn("user" if speakers.get(name.casefold()) == "user" else "assistant", text.strip())
        for name, text in zip(parts[1::2], parts[2::2], strict=True)
    ]
    return tuple(turn for turn in told + spoken if turn.text)
