"""Who speaks in a chat: a character and a user's persona as parts of a prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from random import Random

from core.chat.modes import Names
from core.chat.template import Turn
from core.chat.truncation import ComposedPrompt, PromptParts
from core.personas.character import Character
from core.personas.lorebook import Lore, LoreMessage
from core.personas.prompt import MacroContext, build_parts, greetings, make_macros
from core.personas.user import UserPersona


@dataclass(frozen=True, slots=True)
class CharacterPrompt:
    """`character` None is a plain assistant. `system` is the chat's own system text; `seed` names the chat.

    `greeting` is what the chat began with: lore may depend on which of the greetings that was.
    """

    character: Character | None
    user: UserPersona
    count_tokens: Callable[[str], int] = len
    system: str = ""
    seed: str = ""
    greeting: str = ""
    now: Callable[[], datetime] = field(default=datetime.now)

    @property
    def names(self) -> Names:
        if self.character is None:
            return Names.of(self.user.name, "")
        macros = make_macros(self.character, self._macro_context(0))
        return Names.of(macros.user, macros.char)

    def greetings(self) -> tuple[str, ...]:
        """The first messages to choose from; there may be none."""
        return tuple(text for text in self._all_greetings() if text)

    def compose(self, said: Sequence[Turn], is_full: bool = False) -> ComposedPrompt:
        """The parts of the prompt for what comes after `said`."""
        if self.character is None:
            return ComposedPrompt(PromptParts(tuple(said), self.system.strip()), tuple(range(len(said))))
        messages = [LoreMessage(turn["role"], turn["content"]) for turn in said]
        found = build_parts(self.character, messages, self._macro_context(len(said)), is_full=is_full)
        history, places = insert_lore_at_depth(said, found.at_depth)
        examples = tuple(
            tuple(Turn(role=turn.role, content=turn.text) for turn in example) for example in found.examples
        )
        return ComposedPrompt(PromptParts(history, found.system, examples, found.post_history), places)

    def _all_greetings(self) -> tuple[str, ...]:
        return greetings(self.character, self._macro_context(0)) if self.character is not None else ()

    def _macro_context(self, num_said: int) -> MacroContext:
        # Drawn by chat and place: the same prompt twice is the same text, which the engine's cache still holds.
        return MacroContext(
            user=self.user,
            count_tokens=self.count_tokens,
            random=Random(f"{self.seed} {num_said}"),
            now=self.now(),
            system_prompt=self.system,
            seed=self.seed,
            greeting_index=self._greeting_index() if num_said else 0,
        )

    def _greeting_index(self) -> int:
        every = self._all_greetings()
        return every.index(self.greeting) if self.greeting in every else 0


def insert_lore_at_depth(said: Sequence[Turn], lore: Sequence[Lore]) -> tuple[tuple[Turn, ...], tuple[int | None, ...]]:
    """What was said with lore `depth` messages before its end, and for each turn which message it is.

    Lore of the system's is told by the user: templates refuse a system text in the middle.
    """
    turns: list[Turn] = []
    places: list[int | None] = []
    for place in range(len(said) + 1):
        for one in lore:
            if one.depth is not None and max(0, len(said) - one.depth) == place:
                turns.append(Turn(role="assistant" if one.role == "assistant" else "user", content=one.text))
                places.append(None)
        if place < len(said):
            turns.append(said[place])
            places.append(place)
    return tuple(turns), tuple(places)
