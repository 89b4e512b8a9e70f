"""How this tab's chats are put to the loaded model: who speaks, in which mode, with which settings."""

from __future__ import annotations

from typing import Any

from core.chat.character_prompt import CharacterPrompt
from core.chat.model_prompt import ModelPrompt, read_model_prompt
from core.chat.modes import choose_mode
from core.chat.presets import combine, model_preset, read_recommended
from core.chat.prompt_context import Prompt, PromptContext, turns_of
from core.chat.records import Chat, ChatInfo, Mode
from core.common.errors import DeckError, EngineError
from core.engine.sampling_params import Sampling
from core.personas.character import Character
from core.personas.user import read_persona
from ui.shared.people import person
from ui.shared.resources import characters, engine, preferences, presets


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


def character_prompt(
    info: ChatInfo, model: ModelPrompt | None = None, greeting: str = "", owner: str | None = None
) -> CharacterPrompt:
    """Who speaks in a chat. `owner` has to be given outside of a page's run."""
    found = find_character(info.character)
    return CharacterPrompt(
        character=found[1] if found else None,
        user=read_persona(person() if owner is None else owner),
        count_tokens=model.counter.count if model else len,
        system=str(info.settings.get("system", "")),
        seed=str(info.settings.get("seed", info.id)),
        greeting=greeting,
    )


def recommended() -> dict[str, Any]:
    """What the loaded model recommends for itself, as far as it makes sense."""
    folder = engine().state.folder
    return read_recommended(folder) if folder else {}


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


def sampling_of(info: ChatInfo) -> Sampling:
    """A chat's settings: the model's recommendation, under the preset, under the chat's own. Raises InputError."""
    return combine(recommended(), preset_values(preset_of(info)), info.settings.get("sampling", {}))


def prompt_context(chat: Chat) -> PromptContext:
    """How `chat` is put to the loaded model.

    Raises EngineError where no model is loaded, DeckError where its files cannot be used.
    """
    state = engine().state
    model = read_model_prompt(state, engine().server_counter)
    if model is None or state.facts is None:
        raise EngineError("nothing_loaded")
    first = chat.messages[0] if chat.messages else None
    greeting = first.text if first and first.role == "assistant" else ""
    speaker = character_prompt(chat.info, model, greeting)
    return PromptContext(model, state.facts.context_tokens, chat.info.mode, speaker, sampling_of(chat.info))


def prompt_of(chat: Chat) -> Prompt:
    """What the model would read for the next message. Raises DeckError."""
    context = prompt_context(chat)
    if chat.info.mode == "notebook":
        return context.prepare_text("".join(one.text for one in chat.messages))
    return context.prepare(turns_of(chat.messages))
