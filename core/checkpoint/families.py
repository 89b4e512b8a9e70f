"""The families of models and what is known of each, from core/checkpoint/families.csv."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

TABLE = Path(__file__).with_name("families.csv")
Kind = Literal["", "experts", "recurrent", "latent", "vision", "sound", "encoder", "seq2seq", "code"]


@dataclass(frozen=True, slots=True)
class Family:
    """One `model_type`. The columns are explained in the table."""

    name: str
    runs: bool
    kind: Kind
    is_served_by_vllm: bool
    needs_code_in_vllm: bool = False


@cache
def families() -> Mapping[str, Family]:
    """Every family of the table by its `model_type`."""
    lines = TABLE.read_text("utf-8").splitlines()
    rows = csv.DictReader(line for line in lines if not line.startswith("#"))
    return {row["family"]: _family(row) for row in rows}


def _family(row: dict[str, str]) -> Family:
    kind: Kind = row["kind"]  # type: ignore[assignment]
    return Family(row["family"], row["runs"] == "yes", kind, row["vllm"] != "no", row["vllm"] == "code")
