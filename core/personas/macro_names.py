"""The names of the macros that are known here, and those in a text that are not."""

from __future__ import annotations

import re
from collections.abc import Iterable

# Other names for the same.
ALIASES = {
    "bot": "char",
    "charifnotgroup": "group",
    "groupnotmuted": "group",
    "notchar": "user",
    "charname": "char",
    "isotime": "time",
    "isodate": "date",
    "mesexamplesraw": "mesexamples",
    "char_version": "version",
    "charversion": "version",
    "creatornotes": "creator_notes",
    "charcreatornotes": "creator_notes",
    "charinstruction": "charjailbreak",
    "chardepthprompt": "note",
    "charfirstmessage": "greeting",
    "defaultsystemprompt": "systemprompt",
    "chardescription": "description",
    "charpersonality": "personality",
    "charscenario": "scenario",
    "userdescription": "persona",
    "maxprompttokens": "maxprompt",
    "maxcontext": "maxprompt",
    "maxcontexttokens": "maxprompt",
    "modelname": "model",
}
# What the character, its user and the chat say.
VALUE_MACROS = frozenset(
    {"char", "user", "group", "original", "time", "date", "weekday", "persona", "description", "personality"}
    | {"scenario", "mesexamples", "version", "creator_notes", "charprompt", "charjailbreak", "note", "greeting"}
    | {"systemprompt", "model", "maxprompt", "input", "lastmessage", "lastusermessage", "lastcharmessage"}
    | {"lastmessageid", "idle_duration", "trim"}
)
ARGUMENT_MACROS = frozenset(
    {"random", "pick", "roll", "reverse", "comment", "hidden_key", "newline", "space", "outlet", "datetimeformat"}
    | {"time_utc", "timediff", "banned", "bias", "getvar", "setvar", "addvar", "incvar", "decvar", "getglobalvar"}
    | {"setglobalvar", "addglobalvar", "incglobalvar", "decglobalvar", "var"}
)
# They mean something to SillyTavern's own windows and templates, which are not here: they are taken out.
EMPTY_MACROS = frozenset(
    {"noop", "pipe", "summary", "authorsnote", "charauthorsnote", "defaultauthorsnote", "firstincludedmessageid"}
    | {"firstdisplayedmessageid", "currentswipeid", "lastswipeid", "allchatrange", "ismobile", "lastgenerationtype"}
    | {"exampleseparator", "chatseparator", "chatstart", "reasoningprefix", "reasoningsuffix", "reasoningseparator"}
    | {"globalsystemprompt", "wibefore", "wiafter", "lorebefore", "loreafter", "maxresponse", "maxresponsetokens"}
)
INSTRUCT = re.compile(r"instruct[a-z]+", re.IGNORECASE)
WRITTEN = re.compile(r"\{\{\s*+([^{}\s:]++)[^{}]*+\}\}")


def is_known(name: str) -> bool:
    """Whether {{name}} or {{name:…}} is a macro, which never reaches the model as it is written."""
    lower = name.lower()
    known = lower in VALUE_MACROS or lower in ARGUMENT_MACROS or lower in EMPTY_MACROS or lower in ALIASES
    return known or INSTRUCT.fullmatch(name) is not None


def unknown_macros(texts: Iterable[str]) -> list[str]:
    """The names in braces that are no macros here, such as "foo" of {{foo::1}}: they stay in the text."""
    found = dict.fromkeys(match[1] for text in texts for match in WRITTEN.finditer(text))
    return [name for name in found if not (name.startswith("//") or is_known(re.split(r"[+-]", name)[0]))]
