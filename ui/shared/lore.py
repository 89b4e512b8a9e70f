"""The lore that a chat called up and that the model does not read, in words."""

from __future__ import annotations

from collections.abc import Sequence

from core.personas.lorebook import LeftOut
from ui.shared.i18n import tr
from ui.shared.markdown import escape, shortened

MAX_SHOWN, TITLE_CHARS = 10, 40


def left_out_words(left_out: Sequence[LeftOut]) -> str:
    """One line with each entry and why it is not there; empty where none was left out."""
    if not left_out:
        return ""
    reasons = [f"{entry_words(one.title, one.book)} ({tr(f'characters.left_out_{one.reason}')})" for one in left_out]
    more = f", … (+{len(left_out) - MAX_SHOWN})" if len(left_out) > MAX_SHOWN else ""
    return f"{tr('characters.left_out')} {', '.join(reasons[:MAX_SHOWN])}{more}"


def entry_words(title: str, book: str) -> str:
    """An entry and the lorebook that it is from."""
    named = escape(shortened(title, TITLE_CHARS))
    return f"{named} · *{escape(shortened(book, TITLE_CHARS))}*" if book else named
