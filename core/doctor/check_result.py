"""The result of one check, as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from core.common.errors import DeckError
from core.common.i18n import translate

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class CheckResult:
    """`check` is named `doctor.name_<check>`, `key` is a sentence of the locale files with `params` put in: how it
    is, and what to do where it is not well. "fail" is what keeps LlamaDeck from starting or from working."""

    check: str
    status: Status
    key: str
    params: dict[str, str | int | float]

    def text(self, language: str) -> str:
        return translate(language, self.key, **self.params)


def result(check: str, status: Status, key: str, **params: str | int | float) -> CheckResult:
    """A result whose sentence stands in the section "doctor"."""
    return CheckResult(check, status, f"doctor.{key}", params)


def error_result(check: str, status: Status, error: DeckError) -> CheckResult:
    """A result whose sentence is that of `error`."""
    return CheckResult(check, status, f"error.{error.key}", error.params)
