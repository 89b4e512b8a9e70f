"""What of a lorebook one sentence would set off, as its page shows it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from random import Random
from typing import Any

from core.personas.character import Character
from core.personas.lore_text import Chat, LoreMessage
from core.personas.lorebook import Activated, LoreBudget, activate
from core.personas.prompt import MacroContext, make_macros
from core.personas.user import UserPersona

# Nobody speaks yet, so the macro stays as it is.
ANYBODY = Character("{{char}}")


def try_sentence(
    book: Mapping[str, Any],
    sentence: str,
    user: UserPersona,
    count_tokens: Callable[[str], int],
    budget: LoreBudget,
) -> Activated:
    """The entries that a chat of this one sentence calls up, for whichever character."""
    context = MacroContext(user, count_tokens, Random(0), datetime.now(), seed="preview")
    messages = [LoreMessage("user", sentence)]
    return activate([book], Chat(messages, make_macros(ANYBODY, context, messages)), count_tokens, budget)
