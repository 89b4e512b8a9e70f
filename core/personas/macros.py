"""What stands in for {{char}}, {{random:…}} and the like in a character's texts."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from random import Random

TOKENS = re.compile(r"(\{\{|\}\}|<(?:user|bot|char)>)", re.IGNORECASE)
# Deeper braces are text: nobody means them.
MAX_DEPTH = 16
MAX_SIDES = 10**12
# Limits what macros make of a text: {{original}} a million times is a gigabyte. Macros beyond stay as they are.
MAX_EXPANDED_CHARS = 8_000_000
UNESCAPED_COMMA = re.compile(r"(?<!\\),")


@dataclass(frozen=True, slots=True)
class Macros:
    """Expands macros in any letter case; an unknown one stays as it is written.

    Expanded text is never looked at again, so that a name cannot bring macros of its own.
    `original` is what {{original}} stands for; `seed` is what {{pick}} holds on to, one for each chat.
    """

    char: str
    user: str
    random: Random
    now: datetime
    seed: str = ""
    original: str = ""

    def expand(self, text: str, *, for_matching: bool = False) -> str:
        """`text` as the model reads it, or `for_matching` a lorebook's keys, which sees hidden keys too."""
        parts: list[list[str]] = [[]]
        room = MAX_EXPANDED_CHARS
        # Devices written on Windows have its line ends, which models have not seen.
        for index, token in enumerate(TOKENS.split(text.replace("\r\n", "\n"))):
            if token == "{{" and len(parts) <= MAX_DEPTH:
                parts.append([])
            elif token == "}}" and len(parts) > 1:
                body = "".join(parts.pop())
                value = self._value(body, index, for_matching) if room > 0 else "{{" + body + "}}"
                room -= len(value)
                parts[-1].append(value)
            elif index % 2 and token.startswith("<") and room > 0:
                parts[-1].append(self.user if token.lower() == "<user>" else self.char)
                room -= len(parts[-1][-1])
            else:
                parts[-1].append(token)
        return "{{".join("".join(part) for part in parts)

    def _value(self, body: str, index: int, for_matching: bool) -> str:
        name, colon, argument = body.partition(":")
        name = name.strip().lower()
        if body.lstrip().startswith("//") or (name == "comment" and colon):
            return ""
        if name == "hidden_key" and colon:
            return argument if for_matching else ""
        value = self._of_argument(name, argument, index) if colon else self._plain(name)
        return "{{" + body + "}}" if value is None else value

    def _plain(self, name: str) -> str | None:
        values = {"char": self.char, "user": self.user, "original": self.original}
        formats = {"time": "%H:%M", "date": "%Y-%m-%d", "weekday": "%A"}
        return self.now.strftime(formats[name]) if name in formats else values.get(name)

    def _of_argument(self, name: str, argument: str, index: int) -> str | None:
        if name == "random":
            return self.random.choice(choices(argument))
        if name == "pick":
            return Random(f"{self.seed}/{index}/{argument}").choice(choices(argument))
        if name == "roll":
            return self._roll(argument)
        return argument[::-1] if name == "reverse" else None

    def _roll(self, argument: str) -> str | None:
        found = re.fullmatch(r"\s*d?([0-9]{1,13})\s*", argument, re.IGNORECASE | re.ASCII)
        sides = int(found[1]) if found else 0
        return str(self.random.randint(1, sides)) if 1 <= sides <= MAX_SIDES else None


def choices(argument: str) -> list[str]:
    r"""The texts to choose from, with commas between them; `\,` is a comma of a text. Some cards write `::` instead."""
    if argument.startswith(":"):
        argument = argument[1:]
        if "::" in argument:
            return argument.split("::")
    return [part.replace("\\,", ",") for part in UNESCAPED_COMMA.split(argument)]
