"""Who speaks in a chat: a character and a user's persona as parts of a prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from random import Random
from typing import Any

from core.chat.template_messages import Turn
from core.chat.truncation import ComposedPrompt, PromptParts
from core.chat.turn_rendering import Names
from core.personas.character import Character
from core.personas.lore_text import LoreMessage
from core.personas.lorebook import Lore, LoreBudget
from core.personas.prompt import MacroContext, build_parts, greetings, make_macros
from core.personas.user import UserPersona

# What SillyTavern gives the lore of a chat.
LORE_SHARE = 0.25


@dataclass(frozen=True, slots=True)
class CharacterPrompt:
    """A character, or a plain assistant where `character` is None, who speaks with `user`.

    `system` is the chat's own system text. `seed` names the chat, so that random macros stay the same in it.
    `greeting` is the chat's first message: lore may depend on which greeting it was.
    """

    character: Character | None
    user: UserPersona
    count_tokens: Callable[[str], int] = len
    system: str = ""
    seed: str = ""
    greeting: str = ""
    now: Callable[[], datetime] = field(default=datetime.now)
    # Lorebooks beside the character's own.
    books: tuple[Mapping[str, Any], ...] = ()
    # The names of all characters of a group.
    group: str = ""
    # Who speaks without a character: one of a group whose file is gone, else the assistant.
    name: str = ""

    @property
    def names(self) -> Names:
        if self.character is None:
            return Names.of(self.user.name, self.name)
        macros = make_macros(self.character, self._macro_context())
        return Names.of(macros.user, macros.char)

    @property
    def person_name(self) -> str:
        """The name under which the user writes; empty where there is none."""
        own = self.character.your_name.strip() if self.character is not None else ""
        return own or self.user.name.strip()

    def greetings(self) -> tuple[str, ...]:
        """The first messages to choose from, in a group those for groups first; there may be none."""
        return tuple(text for text in (*self._group_greetings(), *self._all_greetings()) if text)

    def compose(
        self,
        turns: Sequence[Turn],
        is_full: bool = False,
        *,
        model: str = "",
        context_tokens: int | None = None,
        most_lore_tokens: int | None = None,
    ) -> ComposedPrompt:
        """The parts of the prompt for what comes after `turns`. `is_full` leaves out the lore that goes first.

        Lore takes a share of `context_tokens` where its book names no budget, and never more than `most_lore_tokens`.
        """
        if self.character is None and not self.books:
            return ComposedPrompt(PromptParts(tuple(turns), self.system.strip()), tuple(range(len(turns))))
        # What a tool answers is told by the user.
        messages = [LoreMessage("user" if turn["role"] == "tool" else turn["role"], turn["content"]) for turn in turns]
        share = None if context_tokens is None else int(context_tokens * LORE_SHARE)
        context = replace(
            self._macro_context(len(turns)),
            model=model,
            context_tokens=context_tokens,
            budget=LoreBudget(share, most_lore_tokens),
        )
        system = ""
        if self.character is None:
            # A plain assistant's instructions are no text with macros, and it is told nothing of the person.
            system, context = self.system.strip(), replace(context, system_prompt="", user=UserPersona(self.user.name))
        speaker = self.character or Character(self.names.char)
        found = build_parts(speaker, messages, context, is_full=is_full)
        history, indexes = insert_lore_at_depth(turns, found.at_depth)
        examples = tuple(
            tuple(Turn(role=turn.role, content=turn.text) for turn in example) for example in found.examples
        )
        system = "\n\n".join(text for text in (system, found.system) if text)
        parts = PromptParts(history, system, examples, found.lore_after_examples, found.post_history)
        return ComposedPrompt(parts, indexes, found.lore_tokens, found.left_out, found.lore)

    def _all_greetings(self) -> tuple[str, ...]:
        return greetings(self.character, self._macro_context()) if self.character is not None else ()

    def _group_greetings(self) -> tuple[str, ...]:
        if self.character is None or not self.group:
            return ()
        macros = make_macros(self.character, self._macro_context())
        return tuple(macros.expand(text).strip() for text in self.character.group_greetings)

    def _macro_context(self, num_turns: int = 0) -> MacroContext:
        # Seeded by chat and length: a prompt made again is the same text, which the engine's cache still holds.
        return MacroContext(
            user=self.user,
            count_tokens=self.count_tokens,
            random=Random(f"{self.seed} {num_turns}"),
            now=self.now(),
            system_prompt=self.system,
            seed=self.seed,
            greeting_index=self._greeting_index() if num_turns else 0,
            books=self.books,
            group=self.group,
        )

    def _greeting_index(self) -> int:
        every = self._all_greetings()
        return every.index(self.greeting) if self.greeting in every else 0


def insert_lore_at_depth(
    messages: Sequence[Turn], lore: Sequence[Lore]
) -> tuple[tuple[Turn, ...], tuple[int | None, ...]]:
    """The messages with lore `depth` messages before their end, and for each turn the index of its message."""
    turns: list[Turn] = []
    indexes: list[int | None] = []
    for index in range(len(messages) + 1):
        for one in lore:
            if one.depth is not None and max(0, len(messages) - one.depth) == index:
                turns.append(Turn(role=one.role, content=one.text))
                indexes.append(None)
        if index < len(messages):
            turns.append(messages[index])
            indexes.append(index)
    return tuple(turns), tuple(indexes)
