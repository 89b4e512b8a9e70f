"""What one check found, as plain data; knows no check and no terminal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from core.common.i18n import translate

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Finding:
    """`check` is named `doctor.name_<check>`, `key` is a sentence of the locale files with `params` put in: how it
    is, and what to do where it is not well. "fail" is what keeps LlamaDeck from starting or from working."""

    check: str
    status: Status
    key: str
    params: dict[str, str | int | float]

    def text(self, language: str) -> str:
        return translate(language, self.key, **self.params)


def found(check: str, status: Status, key: str, **params: str | int | float) -> Finding:
    """A finding whose sentence stands in the section "doctor"."""
    return Finding(check, status, f"doctor.{key}", params)
