"""Work that takes a while, done in threads of its own, so that a page can look in on it; knows not what is done."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Hashable
from typing import Any

from core.common.errors import DeckError

log = logging.getLogger(__name__)
# What is kept; more would be of pages that nobody looks at any more.
MAX_LOOKUPS = 64
Report = Callable[[int, int], None]
Work = Callable[[Report], Any]


class Lookup:
    """One piece of work, which may report how much is done of how much. When `is_done`, `result` or `error` holds."""

    def __init__(self, work: Work) -> None:
        self.result: Any = None
        self.error: DeckError | None = None
        self.progress = (0, 0)
        self._done = threading.Event()
        threading.Thread(target=self._run, args=(work,), name="lookup", daemon=True).start()

    @property
    def is_done(self) -> bool:
        return self._done.is_set()

    def wait(self, timeout_s: float) -> bool:
        """Wait for the end; False where it takes longer than `timeout_s`."""
        return self._done.wait(timeout_s)

    def _run(self, work: Work) -> None:
        try:
            self.result = work(self._report)
        except DeckError as error:
            self.error = error
        except Exception as error:  # The thread's edge: whatever it is becomes a sentence on the page.
            log.exception("a lookup failed")
            self.error = DeckError("lookup_fault", why=type(error).__name__)
        finally:
            self._done.set()

    def _report(self, done: int, total: int) -> None:
        self.progress = (done, total)


class Lookups:
    """The work of a process by what it is about: each is done once, until it is forgotten."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lookups: dict[Hashable, Lookup] = {}

    def get(self, key: Hashable, work: Work) -> Lookup:
        """The lookup for `key`, which begins now if nobody began it before."""
        with self._lock:
            if key not in self._lookups:
                # Not what is under way: it would be begun again beside itself by whoever asks next.
                done = [old for old, lookup in self._lookups.items() if lookup.is_done]
                for old in done[: max(0, len(self._lookups) + 1 - MAX_LOOKUPS)]:
                    del self._lookups[old]
                self._lookups[key] = Lookup(work)
            return self._lookups[key]

    def known(self, key: Hashable) -> Lookup | None:
        """The lookup for `key` if somebody began it."""
        with self._lock:
            return self._lookups.get(key)

    def forget(self, key: Hashable) -> None:
        """Begin anew the next time."""
        with self._lock:
            self._lookups.pop(key, None)

    def forget_errors(self) -> None:
        """Begin anew with whatever has failed: something is different now."""
        with self._lock:
            self._lookups = {key: lookup for key, lookup in self._lookups.items() if not _has_failed(lookup)}


def _has_failed(lookup: Lookup) -> bool:
    """A list of branches in which one has an error counts as well: each of them was asked for by itself."""
    parts = lookup.result if isinstance(lookup.result, tuple) else ()
    return lookup.is_done and (lookup.error is not None or any(getattr(part, "error", None) for part in parts))
