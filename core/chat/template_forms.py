"""Whether a chat template takes a message's text as it is, or as the one part of a list, as of one with pictures."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable

# So many templates' forms are remembered.
MAX_KNOWN = 16


class TemplateForms:
    """The form that was right last for each template.

    A template that was never asked is tried with a mark: a short question could stand in a prompt by chance.
    """

    def __init__(self) -> None:
        self._parts: OrderedDict[str, bool] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, source: str, holds_mark: Callable[[bool], bool]) -> tuple[bool, bool]:
        """Whether to put texts as parts, the likelier one first. `holds_mark` says if a mark comes through as parts."""
        with self._lock:
            known = self._parts.get(source)
        if known is None:
            known = not holds_mark(False) and holds_mark(True)
            self.note(source, known)
        return (True, False) if known else (False, True)

    def note(self, source: str, as_parts: bool) -> None:
        with self._lock:
            self._parts[source] = as_parts
            self._parts.move_to_end(source)
            while len(self._parts) > MAX_KNOWN:
                self._parts.popitem(last=False)
