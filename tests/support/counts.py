"""A small file that several processes count in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from core.common.json_file import JsonFile


def counts(path: Path, **options: Any) -> JsonFile[dict[str, int]]:
    """A store of whole numbers by name."""

    def parse(value: Any) -> dict[str, int]:
        return {name: number + 0 for name, number in value.items()}

    return JsonFile(path, parse, dict, {}, **options)
