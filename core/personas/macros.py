"""What stands in for {{char}}, {{random:…}} and the like in a character's texts."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from random import Random

from core.personas.macro_names import ALIASES, ARGUMENT_MACROS, EMPTY_MACROS, is_known
from core.personas.macro_times import formatted, time_at

TOKENS = re.compile(r"(\{\{|\}\}|<(?:user|bot|char|group|charifnotgroup)>)", re.IGNORECASE)
# Deeper braces are text: nobody means them.
MAX_DEPTH = 16
MAX_SIDES = 10**12
MAX_REPEATS = 100
# Limits what macros make of a text: {{original}} a million times is a gigabyte. Macros beyond stay as they are.
MAX_EXPANDED_CHARS = 8_000_000
UNESCAPED_COMMA = re.compile(r"(?<!\\),")
# A name, and what it is given: after a colon or two, or after a space.
BODY = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_]*)(?:\s*(::?)|(\s+|[+-]|$))", re.DOTALL)
DICE = re.compile(r"\s*+(?:([0-9]{0,2})d)?([0-9]{1,13})\s*+(?:([+-]\s*+[0-9]{1,9})\s*+)?", re.IGNORECASE | re.ASCII)


@dataclass(frozen=True, slots=True)
class Macros:
    """Expands macros in any letter case; an unknown one stays as it is written, a known one never does.

    Expanded text is never looked at again, so that a name cannot bring macros of its own.
    `original` is what {{original}} stands for; `seed` is what {{pick}} holds on to, one for each chat.
    `values` are those of plain names in lower case, such as "description"; a name without one is taken out.
    `variables` hold what {{setvar::…}} sets, as long as one prompt is made. `group` are the names of all characters of
    a group, else {{group}} is the one.
    """

    char: str
    user: str
    random: Random
    now: datetime
    seed: str = ""
    original: str = ""
    values: Mapping[str, Callable[[], str]] = field(default_factory=dict)
    outlets: Mapping[str, str] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)
    group: str = ""

    def expand(self, text: str, *, for_matching: bool = False) -> str:
        """`text` as the model reads it, or `for_matching` a lorebook's keys, which sees hidden keys too."""
        if "{{" not in text and "<" not in text:
            return text.replace("\r\n", "\n")
        parts: list[list[str]] = [[]]
        room = MAX_EXPANDED_CHARS
        # How deep in braces the line ends after a {{trim}} go; 0 where none go.
        trimmed_depth = 0
        # Devices written on Windows have its line ends, which models have not seen.
        for index, token in enumerate(TOKENS.split(text.replace("\r\n", "\n"))):
            added = token
            if token == "{{" and len(parts) <= MAX_DEPTH:
                parts.append([])
                continue
            if token == "}}" and len(parts) > 1:
                body = "".join(parts.pop())
                if body.strip().lower() == "trim":
                    parts[-1] = ["".join(parts[-1]).rstrip("\n")]
                    trimmed_depth = len(parts)
                    continue
                added = self._value(body, index, for_matching) if room > 0 else "{{" + body + "}}"
                room -= len(added)
            elif index % 2 and token.startswith("<") and room > 0:
                added = self._plain(token[1:-1].lower().replace("charifnotgroup", "group").replace("bot", "char"))
                room -= len(added)
            if trimmed_depth == len(parts):
                added = added.lstrip("\n")
                trimmed_depth = 0 if added else trimmed_depth
            parts[-1].append(added)
        return "{{".join("".join(part) for part in parts)

    def _value(self, body: str, index: int, for_matching: bool) -> str:
        if body.lstrip().startswith("//"):
            return ""
        found = BODY.match(body)
        if found is None or not is_known(found[1]):
            return "{{" + body + "}}"
        name = ALIASES.get(found[1].lower(), found[1].lower())
        colons, argument = found[2], body[found.end() :]
        if found[3] in ("+", "-"):
            # {{time_UTC+2}}
            argument = found[3] + argument
        if name == "hidden_key":
            return argument if for_matching else ""
        if name in ARGUMENT_MACROS and (colons or argument.strip() or name in ("newline", "space")):
            return self._of_argument(name, argument, colons, index)
        if name not in ARGUMENT_MACROS and (colons or argument.strip()):
            return "{{" + body + "}}"
        return self._plain(name)

    def _plain(self, name: str) -> str:
        known = {"char": self.char, "user": self.user, "original": self.original, "group": self.group or self.char}
        formats = {"time": "%H:%M", "date": "%Y-%m-%d", "weekday": "%A"}
        if name in known:
            return known[name]
        if name in formats:
            return self.now.strftime(formats[name])
        return "" if name in EMPTY_MACROS or name not in self.values else self.values[name]()

    def _of_argument(self, name: str, argument: str, colons: str | None, index: int) -> str:
        match name:
            case "random":
                return self.random.choice(choices(argument, is_list=colons == "::"))
            case "pick":
                drawn = Random(f"{self.seed}/{index}/{(colons or ':')[1:]}{argument}")
                return drawn.choice(choices(argument, is_list=colons == "::"))
            case "roll":
                return self._roll(argument)
            case "reverse":
                return argument[::-1]
            case "newline" | "space":
                times = int(argument) if argument.isascii() and argument.isdecimal() and len(argument) < 4 else 1
                return ("\n" if name == "newline" else " ") * min(times, MAX_REPEATS)
            case "outlet":
                return self.outlets.get(argument.strip(), "")
            case "datetimeformat":
                return formatted(self.now, argument.strip())
            case "time_utc":
                return time_at(self.now, argument.strip())
        return self._variable(name, argument) if name.endswith("var") else ""

    def _roll(self, argument: str) -> str:
        """The sum of dice such as "6", "d6" or "2d6+1"; empty for what are none."""
        found = DICE.fullmatch(argument)
        if found is None or not 1 <= int(found[2]) <= MAX_SIDES:
            return ""
        rolled = sum(self.random.randint(1, int(found[2])) for _ in range(int(found[1] or 1)))
        return str(rolled + int((found[3] or "0").replace(" ", "")))

    def _variable(self, name: str, argument: str) -> str:
        """{{setvar::name::value}} and its like; global ones are told apart by their own names."""
        kind, is_global = name.removesuffix("var").removesuffix("global"), name.endswith("globalvar")
        key, _, value = argument.partition("::")
        key = f"{'$' * is_global}{key.strip()}"
        old = self.variables.get(key, "")
        match kind:
            case "get" | "":
                return old
            case "set":
                self.variables[key] = value[:MAX_EXPANDED_CHARS]
            case "add":
                self.variables[key] = _sum(old, value)[:MAX_EXPANDED_CHARS]
            case "inc" | "dec":
                self.variables[key] = _sum(old or "0", "1" if kind == "inc" else "-1")
                return self.variables[key]
        return ""


def choices(argument: str, *, is_list: bool = False) -> list[str]:
    r"""The texts to choose from, with commas between them, or for a list `::`; `\,` is a comma of a text."""
    if is_list and "::" in argument:
        return argument.split("::")
    return [part.strip().replace("\\,", ",") for part in UNESCAPED_COMMA.split(argument)]


def _sum(old: str, added: str) -> str:
    """Two numbers added, two texts put together."""
    try:
        total = float(old or 0) + float(added)
    except ValueError:
        return old + added
    return str(int(total)) if total.is_integer() and abs(total) < 1e15 else str(total)
