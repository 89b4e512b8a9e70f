"""From a character, the user and the chat so far to the parts of a prompt.

Whoever puts the parts together keeps `system` whole, and leaves out first the lore that goes first, then the examples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from random import Random
from typing import Any

from core.personas.character import Character
from core.personas.examples import ExampleTurn, is_dialogue, split_examples
from core.personas.lore_text import Chat, LoreMessage
from core.personas.lorebook import LeftOut, Lore, LoreBudget, activate
from core.personas.macros import Macros
from core.personas.names import same_name
from core.personas.note import read_note
from core.personas.user import UserPersona

# What {{user}} stands for where nobody has given a name, by the language that the character speaks.
NAMELESS, NAMELESS_IN_CHINESE = "friend", "朋友"
# So much of a text tells its language.
LANGUAGE_CHARS = 2000
# The places within the messages of a chat, in their order where the depth is the same.
NOTE = "note"
DEPTH_ORDER = {"note_top": 0, "note_bottom": 1, NOTE: 2}
# The texts of the character in which some entries look for keys, by SillyTavern's names and the macros'.
SOURCES = {
    "match_persona_description": "persona",
    "match_character_description": "description",
    "match_character_personality": "personality",
    "match_character_depth_prompt": "note",
    "match_scenario": "scenario",
    "match_creator_notes": "creator_notes",
}
Examples = tuple[tuple[ExampleTurn, ...], ...]


@dataclass(frozen=True, slots=True)
class MacroContext:
    """What macros and lore depend on besides the character and the messages.

    `system_prompt` and `post_history` are the user's own, which the character's take the place of or include by
    {{original}}; `seed` names the chat; `greeting_index` is that of the greeting it began with. `books` are lorebooks
    beside the character's own. `group` names all characters of a group.
    """

    user: UserPersona
    count_tokens: Callable[[str], int]
    random: Random
    now: datetime
    system_prompt: str = ""
    post_history: str = ""
    seed: str = ""
    greeting_index: int = 0
    model: str = ""
    context_tokens: int | None = None
    books: tuple[Mapping[str, Any], ...] = ()
    budget: LoreBudget = field(default_factory=LoreBudget)
    group: str = ""


@dataclass(frozen=True, slots=True)
class CharacterParts:
    """The parts, with macros expanded; each may be empty. `at_depth` belongs between the chat's messages.

    `lore` is all that the chat called up, `lore_tokens` counts it, `left_out` is what there was no place for.
    """

    user_name: str
    system_prompt: str
    lore_before: str
    character: str
    lore_after: str
    user: str
    lore_before_examples: str
    examples: Examples
    lore_after_examples: str
    post_history: str
    at_depth: tuple[Lore, ...]
    lore_tokens: int = 0
    left_out: tuple[LeftOut, ...] = ()
    lore: tuple[Lore, ...] = ()

    @property
    def system(self) -> str:
        """The whole system text in its order, up to the examples."""
        parts = (self.system_prompt, self.lore_before, self.character, self.lore_after, self.user)
        return "\n\n".join(part for part in (*parts, self.lore_before_examples) if part)


def build_parts(
    character: Character, messages: Sequence[LoreMessage], context: MacroContext, *, is_full: bool = False
) -> CharacterParts:
    """The parts for the next answer. `is_full` leaves out the lore that goes first where the context has no room."""
    macros = make_macros(character, context, messages)
    said = [LoreMessage(said.role, macros.expand(said.text)) for said in messages]
    sources = {name: macros.values[macro] for name, macro in SOURCES.items()}
    names = frozenset({same_name(character.name), same_name(character.called)})
    chat = Chat(said, macros, context.greeting_index, sources=sources, names=names)
    own = character.lorebook if character.lorebook.get("name") else {**character.lorebook, "name": character.name}
    activated = activate((own, *context.books), chat, context.count_tokens, context.budget)
    full = [one for one in activated.lore if is_full and one.goes_first]
    lore = [one for one in activated.lore if not (is_full and one.goes_first)]
    macros = replace(macros, outlets=_outlets(lore))
    disabled = {one.disabled_prompt for one in lore}
    system_prompt = _prompt_text(macros, character.system_prompt, context.system_prompt)
    post_history = _prompt_text(macros, character.post_history_instructions, context.post_history)
    before, first = _around_examples(character, macros, lore, "examples_top")
    after, last = _around_examples(character, macros, lore, "examples_bottom")
    return CharacterParts(
        user_name=macros.user,
        system_prompt="" if "system_prompt" in disabled else system_prompt,
        lore_before=_joined(lore, "before_char"),
        character=_character_text(character, macros, lore),
        lore_after=_joined(lore, "after_char"),
        user=macros.expand(context.user.description).strip(),
        lore_before_examples=before,
        examples=(*first, *_examples(character, macros, character.example_dialogue), *last),
        lore_after_examples=after,
        post_history="" if "post_history_instructions" in disabled else post_history,
        at_depth=_at_depth(character, macros, lore, len(messages)),
        lore_tokens=activated.num_tokens,
        left_out=(*activated.left_out, *(LeftOut(one.title, "full", one.book) for one in full)),
        lore=tuple(lore),
    )


def user_name(character: Character, user: UserPersona) -> str:
    """What {{user}} stands for: the character's own name for the user, else the persona's, else a plain word in the
    character's language."""
    if name := character.your_name.strip() or user.name.strip():
        return name
    letters = [letter for letter in (character.greeting + character.about)[:LANGUAGE_CHARS] if letter.isalpha()]
    num_chinese = sum("\u4e00" <= letter <= "\u9fff" for letter in letters)
    has_kana = any("\u3040" <= letter <= "\u30ff" for letter in letters)
    return NAMELESS_IN_CHINESE if num_chinese * 2 > len(letters) and not has_kana else NAMELESS


def make_macros(character: Character, context: MacroContext, messages: Sequence[LoreMessage] = ()) -> Macros:
    """The macros of one character and user."""
    user = user_name(character, context.user)
    bare = Macros(character.called, user, context.random, context.now, context.seed, group=context.group)
    of_user = [message.text for message in messages if message.role == "user"]
    of_character = [message.text for message in messages if message.role == "assistant"]
    texts = {
        "persona": context.user.description,
        "description": character.description or character.context,
        "personality": character.personality,
        "scenario": character.scenario,
        "mesexamples": character.example_dialogue,
        "version": character.version,
        "creator_notes": character.creator_notes,
        "charprompt": character.system_prompt,
        "charjailbreak": character.post_history_instructions,
        "note": read_note(character.extensions).text,
        "greeting": character.greeting,
        "systemprompt": context.system_prompt,
    }
    plain = {
        "model": context.model,
        "maxprompt": str(context.context_tokens or ""),
        "input": of_user[-1] if of_user else "",
        "lastmessage": messages[-1].text if messages else "",
        "lastusermessage": of_user[-1] if of_user else "",
        "lastcharmessage": of_character[-1] if of_character else "",
        "lastmessageid": str(len(messages) - 1) if messages else "",
        "idle_duration": "just now",
    }
    values: dict[str, Callable[[], str]] = {name: partial(str, text) for name, text in plain.items()}
    # A text within a text knows nothing of the others: two that name each other would have no end.
    values |= {name: partial(_expanded, bare, text) for name, text in texts.items()}
    return replace(bare, values=values)


def _expanded(macros: Macros, text: str) -> str:
    return macros.expand(text).strip()


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
    has_one_text = bool(character.context)
    parts = [
        _joined(lore, "before_desc"),
        macros.expand(character.context if has_one_text else character.description).strip(),
        _joined(lore, "after_desc"),
        *_section(
            macros, "{{char}}'s personality: ", "" if has_one_text else character.personality, lore, "personality"
        ),
        *_section(macros, "Scenario: ", "" if has_one_text else character.scenario, lore, "scenario"),
    ]
    return "\n\n".join(part for part in parts if part)


def _section(macros: Macros, head: str, text: str, lore: Sequence[Lore], position: str) -> list[str]:
    return [macros.expand(head + text.strip()) if text.strip() else "", _joined(lore, position)]


def _joined(lore: Sequence[Lore], position: str) -> str:
    return "\n\n".join(one.text for one in lore if one.position == position and one.depth is None and one.text)


def _outlets(lore: Sequence[Lore]) -> dict[str, str]:
    """The lore that {{outlet::name}} stands for, by its name."""
    found: dict[str, list[str]] = {}
    for one in lore:
        if one.position == "outlet" and one.depth is None:
            found.setdefault(one.outlet, []).append(one.text)
    return {name: "\n".join(texts) for name, texts in found.items()}


def _at_depth(character: Character, macros: Macros, lore: Sequence[Lore], num_messages: int) -> tuple[Lore, ...]:
    note = read_note(character.extensions)
    found = [one for one in lore if one.depth is not None and one.text]
    if text := macros.expand(note.text).strip():
        found.append(Lore(text, NOTE, min(note.depth, num_messages), note.role))
    return tuple(sorted(found, key=lambda one: DEPTH_ORDER.get(one.position, len(DEPTH_ORDER))))


def _around_examples(character: Character, macros: Macros, lore: Sequence[Lore], position: str) -> tuple[str, Examples]:
    """The lore beside the examples: what is told, and what is a dialogue like them."""
    texts = [one.text for one in lore if one.position == position and one.depth is None and one.text]
    names = (macros.user, macros.char, character.name)
    told = [text for text in texts if not is_dialogue(text, *names)]
    spoken = [block for text in texts if is_dialogue(text, *names) for block in split_examples(text, *names)]
    return "\n\n".join(told), tuple(spoken)


def _examples(character: Character, macros: Macros, dialogue: str) -> Examples:
    blocks = split_examples(dialogue, macros.user, macros.char, character.name)
    return tuple(tuple(replace(turn, text=macros.expand(turn.text)) for turn in block) for block in blocks)
