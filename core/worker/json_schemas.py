"""JSON schemas as programs send them, made ready for the compiler of grammars.

What only describes goes away, and so does, of tools, what the compiler cannot hold: their schemas are often other
people's, and a call that is held to most of its schema is better than a request refused for a keyword.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# The formats that llguidance holds a text to; JSON Schema takes every other one as a remark.
FORMATS = frozenset(
    {"date-time", "date", "time", "duration", "email", "hostname", "ipv4", "ipv6", "uri", "uuid", "unknown"}
)
# What stands there is a value, not a schema.
VALUES = frozenset({"const", "enum", "default", "example", "examples"})
# Objects of schemas by names of the author's.
NAMED = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})
# Of regular expressions what automata cannot do: looks ahead and back, and a group's own text again.
BEYOND_AUTOMATA = re.compile(r"\(\?(?:[=!]|<[=!])|\\[1-9]|\\k<")
LIMITS = (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum"))
ANY_NAME: tuple[Any, ...] = (True, {}, {"type": "string"})


def ready_schema(value: Any, is_tool: bool = False) -> Any:
    """`value` for the compiler; of a tool without the patterns that it cannot read. Raises RecursionError."""
    if isinstance(value, list):
        return [ready_schema(one, is_tool) for one in value]
    if not isinstance(value, Mapping):
        return value
    made: dict[str, Any] = {}
    for name, one in _with_plain_limits(value).items():
        if name in VALUES:
            if name != "enum" or one is not None:
                made[name] = one
        elif name in NAMED and isinstance(one, Mapping):
            made[name] = {key: ready_schema(schema, is_tool) for key, schema in one.items()}
        elif one is not None and not _says_nothing(name, one, is_tool):
            made[name] = ready_schema(one, is_tool)
    return made


def _says_nothing(name: str, value: Any, is_tool: bool) -> bool:
    if name == "format":
        return isinstance(value, str) and value not in FORMATS
    if name == "propertyNames":
        # As Zod has it for every record.
        return value in ANY_NAME
    return is_tool and name == "pattern" and isinstance(value, str) and bool(BEYOND_AUTOMATA.search(value))


def _with_plain_limits(schema: Mapping[str, Any]) -> dict[str, Any]:
    """OpenAPI 3.0 and JSON Schema's draft 4 say by true and false whether a limit is exclusive."""
    made = dict(schema)
    for exclusive, limit in LIMITS:
        if isinstance(made.get(exclusive), bool) and made.pop(exclusive) and limit in made:
            made[exclusive] = made.pop(limit)
    return made
