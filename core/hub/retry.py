"""Which failures are tried again, how often, and after which wait."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

from core.common.errors import DeckError

# The longest that a server's Retry-After is obeyed; one that says more is asked again then.
MAX_RETRY_AFTER_S = 300.0


class TransientError(DeckError):
    """A failure of the network or a server that may pass. `wait_s` is what the server asks to wait."""

    wait_s: float | None = None

    def after(self, wait_s: float | None) -> TransientError:
        self.wait_s = wait_s
        return self


@dataclass(frozen=True, slots=True)
class TransferLimits:
    """How long a connection is given, and how often one without progress is tried anew."""

    connect_s: float = 15.0
    stall_s: float = 30.0
    tries: int = 8
    # For the manifest: whoever has no network at all should learn it soon.
    manifest_tries: int = 3
    first_wait_s: float = 1.0
    max_wait_s: float = 60.0


class RetryPolicy:
    """Counts failures since the last progress and waits longer after each, at once after progress."""

    def __init__(self, limits: TransferLimits, tries: int, wait: Callable[[TransientError, float], None]) -> None:
        self._limits = limits
        self._tries = tries
        self._wait = wait
        self._failures = 0

    def record_progress(self) -> None:
        self._failures = -1

    def record_failure(self, error: TransientError) -> None:
        """Wait before the next try. Raises `error` where it was the last."""
        self._failures += 1
        if self._failures >= self._tries:
            raise error
        self._wait(error, self._pause_s(error))

    def _pause_s(self, error: TransientError) -> float:
        if error.wait_s is not None:
            return error.wait_s
        if self._failures < 1:
            return 0.0
        return min(self._limits.first_wait_s * 2.0 ** (self._failures - 1), self._limits.max_wait_s)


def waiting_notice(error: TransientError, seconds: float) -> DeckError:
    """The sentence for a wait of `seconds` after `error`."""
    host, rounded = error.params.get("host", "?"), math.ceil(seconds)
    if error.key == "hub_busy":
        return DeckError("retry_busy", host=host, seconds=rounded)
    if error.key == "hub_cut":
        return DeckError("retry_cut", host=host, seconds=rounded)
    why = error.params.get("why", error.params.get("status", "?"))
    return DeckError("retry_failed", host=host, why=why, seconds=rounded)


def parse_retry_after(text: str | None) -> float | None:
    """The seconds that a Retry-After header asks for: a number, or a date. None where it says neither."""
    text = (text or "").strip()
    if text.isascii() and text.isdigit():
        return min(float(text[:9]), MAX_RETRY_AFTER_S)
    try:
        seconds = parsedate_to_datetime(text).timestamp() - time.time()
    except (ValueError, OverflowError):
        return None
    return min(max(seconds, 0.0), MAX_RETRY_AFTER_S)


def root_reason(error: BaseException) -> str:
    """The readable end of what the client says, which wraps one error into another."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
