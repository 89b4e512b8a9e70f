"""What comes of the fields of requests before our own types check them, each as it should be or an ApiError; and the
arguments that a model wrote."""

from __future__ import annotations

import json
from typing import Any

from core.api.dialects.dialect import Body
from core.api.errors import ApiError


def field_error(field: str, why: str) -> ApiError:
    return ApiError("api_field", field=field[:200], why=why)


def listed(given: object, field: str) -> list[Any]:
    """A list; nothing is an empty one."""
    if given is None:
        return []
    if not isinstance(given, list):
        raise field_error(field, "a list is wanted")
    return given


def objects(given: object, field: str) -> list[Body]:
    found = listed(given, field)
    for place, one in enumerate(found):
        if not isinstance(one, dict):
            raise field_error(f"{field}.{place}", "an object is wanted")
    return found


def text_of(given: object, field: str) -> str:
    if not isinstance(given, str):
        raise field_error(field, "a text is wanted")
    return given


def count_of(given: object, field: str) -> object:
    """A number from 1, by the name that its sender gave it; our own types check the rest."""
    if isinstance(given, bool) or not isinstance(given, int | float) or given < 1:
        raise field_error(field, "a number from 1 is wanted")
    return given


def arguments_of(function: Body) -> Body:
    """The arguments of a call as an object, which they are unless the answer was cut in their middle."""
    try:
        found = json.loads(function["arguments"] or "{}")
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
