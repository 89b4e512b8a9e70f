"""How this tab's chats are put to the loaded model: who speaks, in which mode, with which settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from core.chat.character_prompt import CharacterPrompt
from core.chat.group import ORDERS, Group, Order, next_speaker
from core.chat.model_prompt import ModelPrompt, read_model_prompt
from core.chat.modes import choose_mode
from core.chat.presets import combine, model_preset, read_recommended
from core.chat.prompt_context import Prompt, PromptContext
from core.chat.records import Chat, ChatInfo, Message, Mode
from core.chat.thinking import model_thinking, thinking_of
from core.common.errors import DeckError, EngineError
from core.engine.sampling_params import Sampling
from core.personas.attached import attached_names
from core.personas.character import Character
from core.personas.lorebooks import BookEntry
from core.personas.user import UserPersona, read_persona, read_personas
from ui.chat.adapter_choice import adapter_of
from ui.shared.i18n import text
from ui.shared.people import person
from ui.shared.resources import characters, engine, lorebooks, preferences, presets

# Of one character.
MAX_GREETINGS = 1000
# The longest answer of a model that thinks, its thought counted: 1,024 tokens would be gone before the first word.
THINKING_ANSWER_TOKENS = 8192


def default_mode(has_character: bool) -> Mode:
    """The mode of a new chat, by the loaded model and by whether a character speaks."""
    try:
        found = read_model_prompt(engine().state, engine().server_counter)
    except DeckError:
        return "instruct"
    if found is None:
        return "chat-instruct" if has_character else "instruct"
    return choose_mode(found.template, found.name, has_character)


def find_character(name: str) -> tuple[str, Character] | None:
    """The key and character that a chat names; files of other programs name it by its name, not its key."""
    if not name:
        return None
    try:
        entry = characters().get(name) or characters().find(name)
    except DeckError:
        return None
    return (entry.key, entry.character) if entry.character is not None else None


def name_of(name: str) -> str:
    """What the character is called that a chat or a message names; its file may be gone, or be another program's."""
    found = find_character(name)
    return found[1].called if found else name


def title_of(info: ChatInfo) -> str:
    """The chat's title; one of its character where nothing was said yet."""
    if info.title:
        return info.title
    return cast_names(info) or text(f"chat.new_{'notebook' if info.mode == 'notebook' else 'title'}")


def cast_names(info: ChatInfo) -> str:
    """Who speaks in a chat, by name; empty for the plain assistant and in a notebook."""
    return "" if info.mode == "notebook" else ", ".join(name_of(name) for name in info.cast)


def key_of_speaker(name: str) -> str:
    """One key for each way in which a chat or its messages name a character."""
    found = find_character(name)
    return found[0] if found else name


def group_of(chat: Chat, speaker: str = "", owner: str | None = None) -> Group | None:
    """Who takes part in a chat, with who speaks now, else the first; None where it has always been one character."""
    info = chat.info
    user = character_prompt(info, owner=owner)
    if len(info.cast) < 2 and not any(is_foreign(message, user.person_name) for message in chat.messages):
        return None
    of_characters = [message.speaker for message in chat.messages if message.speaker and message.role == "assistant"]
    keys = {name: key_of_speaker(name) for name in (*info.cast, *of_characters)}
    cast = tuple(dict.fromkeys(keys[name] for name in info.cast))
    names = {key: name_of(name) for name, key in keys.items()}
    first = cast[0] if cast else ""
    return Group(keys, names, cast, speaker if speaker in names else first, user.names.user)


def is_foreign(message: Message, person_name: str) -> bool:
    """Whether somebody else said it than the chat's one character and its person, as that is called now."""
    return bool(message.speaker) and (message.role != "user" or message.speaker != person_name)


def greetings_of(chat: Chat, speaker: str) -> tuple[str, ...]:
    """What a character of a group, by its key, may greet with."""
    group = group_of(chat, speaker)
    return character_prompt(chat.info, group=group).greetings()[:MAX_GREETINGS] if group is not None else ()


def order_of(info: ChatInfo) -> Order:
    """How it is decided who speaks next in a group."""
    found = info.settings.get("order")
    return next((order for order in ORDERS if order == found), "named")


def persona_key(info: ChatInfo, owner: str | None = None) -> str:
    """The key of who the person is in a chat: chosen for it, or remembered by its first character."""
    personas = read_personas(person() if owner is None else owner)
    return personas.choose(str(info.settings.get("persona", "")), key_of_speaker(info.character))


def persona_of(info: ChatInfo, owner: str | None = None) -> UserPersona:
    owner = person() if owner is None else owner
    return read_persona(owner, str(info.settings.get("persona", "")), key_of_speaker(info.character))


def character_prompt(
    info: ChatInfo,
    model: ModelPrompt | None = None,
    greeting: str = "",
    owner: str | None = None,
    group: Group | None = None,
) -> CharacterPrompt:
    """Who speaks in a chat. `owner` has to be given outside of a page's run."""
    # One who left the chat still writes their own lines anew.
    name = group.speaker if group is not None else info.character
    found = find_character(name)
    return CharacterPrompt(
        character=found[1] if found else None,
        name=group.names.get(name, "") if group is not None else "",
        user=persona_of(info, owner),
        count_tokens=model.counter.count if model else len,
        system=str(info.settings.get("system", "")),
        seed=str(info.settings.get("seed", info.id)),
        greeting=greeting,
        group=", ".join(group.names[key] for key in group.cast) if group is not None and group.is_group else "",
        books=_books_of(info, found[1] if found else None),
    )


def find_book(name: str) -> BookEntry | None:
    """The lorebook that a chat or a character names, where it is there."""
    try:
        return lorebooks().find(name)
    except DeckError:
        return None


def _books_of(info: ChatInfo, character: Character | None) -> tuple[Mapping[str, Any], ...]:
    """The lorebooks beside the character's own: those it was given, then the chat's, then those of all chats."""
    names = (*attached_names(character), *info.lorebooks) if character is not None else info.lorebooks
    try:
        return tuple(book.values for book in lorebooks().attached(names))
    except DeckError:
        # The page of lorebooks says what is wrong with their folder; the chat goes on without them.
        return ()


def loaded_model() -> ModelPrompt | None:
    """How the loaded model reads prompts; None where none is there, or its files cannot be used."""
    try:
        return read_model_prompt(engine().state, engine().server_counter)
    except DeckError:
        return None


def recommended() -> dict[str, Any]:
    """What the loaded model recommends for itself, as far as it makes sense, and room for a thought where it thinks."""
    if (folder := engine().state.folder) is None:
        return {}
    model = loaded_model()
    thinks = model is not None and model.template.thought_format is not None
    return ({"max_new_tokens": THINKING_ANSWER_TOKENS} if thinks else {}) | read_recommended(folder)


def preset_of(info: ChatInfo) -> str:
    """The name of the chat's preset, else the model's default; empty for the model's own recommendation."""
    model = engine().state.model
    return str(info.settings.get("preset", (model_preset(preferences(), model) if model else None) or ""))


def preset_values(name: str) -> dict[str, Any]:
    """A preset's values; nothing where it was deleted meanwhile."""
    try:
        return presets().get(name).values if name else {}
    except DeckError:
        return {}


def thinking_settings(info: ChatInfo) -> Mapping[str, Any]:
    """The chat's settings, and what was chosen last for the loaded model where it says nothing of thinking."""
    model = engine().state.model
    return {**(model_thinking(preferences(), model) if model else {}), **info.settings}


def sampling_of(info: ChatInfo) -> Sampling:
    """A chat's settings: the model's recommendation, under the preset, under the chat's own. Raises InputError."""
    return combine(recommended(), preset_values(preset_of(info)), info.settings.get("sampling", {}))


def prompt_context(chat: Chat, speaker: str | None = None, line: str | None = None) -> PromptContext:
    """How `chat` is put to the loaded model.

    In a group `speaker` answers, as a key; None chooses who is next, after the person's `line` where there is one.

    Raises EngineError where no model is loaded, DeckError where its files cannot be used.
    """
    state = engine().state
    model = read_model_prompt(state, engine().server_counter)
    if model is None or state.facts is None:
        raise EngineError("nothing_loaded")
    first = chat.messages[0] if chat.messages else None
    greeting = first.text if first and first.role == "assistant" else ""
    group = group_of(chat)
    if group is not None:
        group = replace(group, speaker=speaker or next_speaker(group, chat.messages, order_of(chat.info), line))
    character = character_prompt(chat.info, model, greeting, group=group)
    if group is not None:
        # Some characters know the person by a name of their own.
        group = replace(group, person=character.names.user)
    return PromptContext(model, state.facts.context_tokens, chat.info.mode, character, sampling_of(chat.info), group,
                         thinking_of(thinking_settings(chat.info), model.template.switches),
                         adapter_of(chat.info, state))  # fmt: skip


def prompt_of(chat: Chat, context: PromptContext | None = None) -> Prompt:
    """What the model would read for the next message. Raises DeckError."""
    context = context or prompt_context(chat)
    if chat.info.mode == "notebook":
        return context.prepare_text("".join(one.text for one in chat.messages))
    # After an answer the next message is a question, which needs not all of that answer before it.
    is_answered = bool(chat.messages) and chat.messages[-1].role == "assistant"
    return context.prepare(context.turns_of(chat.messages), must_keep_last=not is_answered)
