"""The numbers of a config.json, read without trust."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from core.common.errors import CheckpointError
from core.common.values import is_whole, quoted_value

# No model's number is larger; a config that says so would only make sums that nobody can read.
MAX_NUMBER = 2**31


def read_number(model: str, config: Mapping[str, Any], name: str, default: int | None = None) -> int:
    """A positive number of config.json. Raises CheckpointError "config_number"."""
    value = config.get(name)
    value = default if value is None else value
    if not is_whole(value) or not 0 < value < MAX_NUMBER:
        raise CheckpointError("config_number", folder=model, name=name, value=quoted_value(value))
    return value
