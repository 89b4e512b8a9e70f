"""From a character, the user and the chat so far to the parts of a prompt.

Whoever puts the parts together keeps `system` whole, and leaves out first the lore that goes first, then the examples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from random import Random

from core.personas.character import Character
from core.personas.examples import ExampleTurn, split_examples
from core.personas.lorebook import Chat, Lore, LoreMessage, activate
from core.personas.macros import Macros
from core.personas.user import UserPersona

DEFAULT_USER_NAME = "You"


@dataclass(frozen=True, slots=True)
class MacroContext:
    """What macros and lore depend on besides the character and the messages.

    `system_prompt` and `post_history` are the user's own, which the character's take the place of or include by
    {{original}}; `seed` names the chat; `greeting_index` is that of the greeting it began with.
    """

    user: UserPersona
    count_tokens: Callable[[str], int]
    random: Random
    now: datetime
    system_prompt: str = ""
    post_history: str = ""
    seed: str = ""
    greeting_index: int = 0


@dataclass(frozen=True, slots=True)
class CharacterParts:
    """The parts, with macros expanded; each may be empty. `at_depth` belongs between the chat's messages."""

    user_name: str
    char_name: str
    system_prompt: str
    lore_before: str
    character: str
    lore_after: str
    user: str
    examples: tuple[tuple[ExampleTurn, ...], ...]
    post_history: str
    at_depth: tuple[Lore, ...]

    @property
    def system(self) -> str:
        """The whole system text in its order."""
        parts = (self.system_prompt, self.lore_before, self.character, self.lore_after, self.user)
        return "\n\n".join(part for part in parts if part)


def build_parts(
    character: Character, messages: Sequence[LoreMessage], context: MacroContext, *, is_full: bool = False
) -> CharacterParts:
    """The parts for the next answer. `is_full` leaves out the lore that goes first where the context has no room."""
    macros = make_macros(character, context)
    chat = Chat([LoreMessage(said.role, macros.expand(said.text)) for said in messages], macros, context.greeting_index)
    lore = activate(character.lorebook, chat, context.count_tokens)
    lore = [one for one in lore if not (is_full and one.goes_first)]
    disabled = {one.disabled_prompt for one in lore}
    system_prompt = _prompt_text(macros, character.system_prompt, context.system_prompt)
    post_history = _prompt_text(macros, character.post_history_instructions, context.post_history)
    return CharacterParts(
        user_name=macros.user,
        char_name=macros.char,
        system_prompt="" if "system_prompt" in disabled else system_prompt,
        lore_before=_joined(lore, "before_char"),
        character=_character_text(character, macros, lore),
        lore_after=_joined(lore, "after_char"),
        user=macros.expand(context.user.description).strip(),
        examples=_examples(character, macros),
        post_history="" if "post_history_instructions" in disabled else post_history,
        at_depth=tuple(one for one in lore if one.depth is not None and one.text),
    )


def make_macros(character: Character, context: MacroContext) -> Macros:
    """The macros of one character and user; the character's own name for the user goes before the persona's."""
    user = character.your_name.strip() or context.user.name.strip() or DEFAULT_USER_NAME
    return Macros(character.called, user, context.random, context.now, context.seed)


def greetings(character: Character, context: MacroContext) -> tuple[str, ...]:
    """The first messages to flip through, macros expanded; empty ones keep their place, their number has a meaning."""
    macros = make_macros(character, context)
    return tuple(macros.expand(greeting).strip() for greeting in character.greetings)


def _prompt_text(macros: Macros, of_character: str, of_user: str) -> str:
    """The character's text, in which {{original}} is the user's; the user's where the character has none."""
    original = macros.expand(of_user).strip()
    if not of_character.strip():
        return original
    return replace(macros, original=original).expand(of_character).strip()


def _character_text(character: Character, macros: Macros, lore: Sequence[Lore]) -> str:
    """Who the character is, with the lore that decorators put inside.

    One free text has no parts, so what belongs to personality or scenario comes after it.
    """
    whole = bool(character.context)
    parts = [
        _joined(lore, "before_desc"),
        macros.expand(character.context if whole else character.description).strip(),
        _joined(lore, "after_desc"),
        *_section(macros, "{{char}}'s personality: ", "" if whole else character.personality, lore, "personality"),
        *_section(macros, "Scenario: ", "" if whole else character.scenario, lore, "scenario"),
    ]
    return "\n\n".join(part for part in parts if part)


def _section(macros: Macros, head: str, text: str, lore: Sequence[Lore], position: str) -> list[str]:
    return [macros.expand(head + text.strip()) if text.strip() else "", _joined(lore, position)]


def _joined(lore: Sequence[Lore], position: str) -> str:
    return "\n\n".join(one.text for one in lore if one.position == position and one.depth is None and one.text)


def _examples(character: Character, macros: Macros) -> tuple[tuple[ExampleTurn, ...], ...]:
    blocks = split_examples(character.example_dialogue, macros.user, macros.char)
    return tuple(tuple(replace(turn, text=macros.expand(turn.text)) for turn in block) for block in blocks)
