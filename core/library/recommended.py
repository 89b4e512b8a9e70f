"""Newer chat models worth a look, by name, from core/library/recommended.csv."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path

TABLE = Path(__file__).with_name("recommended.csv")


@dataclass(frozen=True, slots=True)
class RecommendedModel:
    """One repository. `billions` counts the parameters; `on_modelscope`: under the same name there too."""

    repo: str
    billions: float
    license_name: str
    on_modelscope: bool


@cache
def recommended_models() -> tuple[RecommendedModel, ...]:
    """The whole list, the smallest first."""
    lines = TABLE.read_text("utf-8").splitlines()
    rows = csv.DictReader(line for line in lines if not line.startswith("#"))
    found = [
        RecommendedModel(row["repo"], float(row["billions"]), row["license"], row["modelscope"] == "yes")
        for row in rows
    ]
    return tuple(sorted(found, key=lambda model: model.billions))
