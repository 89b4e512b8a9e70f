"""How a chat is put to the loaded model: its template and counter, who speaks, the settings; draws nothing."""

from __future__ import annotations

from pathlib import Path

from core.chat.character_prompt import Cast
from core.chat.model_prompt import Counter, Reader, read_reader
from core.chat.modes import Style, choose_mode
from core.chat.records import Chat, ChatInfo, Mode
from core.chat.service import Prompt, Setup, prepare, prepare_text, turns_of
from core.chat.template import ChatTemplate
from core.common.errors import DeckError, EngineError
from core.personas.character import Character
from core.personas.user import read_persona
from ui.chat.sampling_form import sampling_of
from ui.shared.people import person
from ui.shared.resources import characters, chat_template, engine


def reader() -> Reader | None:
    """The template and the counter of the model that answers now. Raises DeckError where they cannot be read."""
    return read_reader(engine(), template_of)


def template_of(folder: Path) -> ChatTemplate:
    try:
        return chat_template(str(folder), folder.stat().st_mtime_ns)
    except OSError:
        # The folder was taken away under a loaded model, which goes on answering.
        return ChatTemplate(None, "", "")


def default_mode(has_character: bool) -> Mode:
    """The mode of a new chat, by the loaded model and by whether a character speaks."""
    try:
        found = reader()
    except DeckError:
        return "instruct"
    if found is None:
        return "chat-instruct" if has_character else "instruct"
    return choose_mode(found.template, found.model, has_character)


def find_character(name: str) -> tuple[str, Character] | None:
    """The key and character that a chat names; files of other programs name it by its name, not its key."""
    if not name:
        return None
    try:
        entry = characters().get(name) or characters().find(name)
    except DeckError:
        return None
    return (entry.key, entry.character) if entry.character is not None else None


def cast_of(info: ChatInfo, counter: Counter | None = None, greeting: str = "", owner: str | None = None) -> Cast:
    """Who speaks in a chat. `owner` is whose chat it is where no page runs that would say so."""
    found = find_character(info.character)
    return Cast(
        character=found[1] if found else None,
        user=read_persona(person() if owner is None else owner),
        count_tokens=counter.count if counter else len,
        system=str(info.settings.get("system", "")),
        seed=str(info.settings.get("seed", info.id)),
        greeting=greeting,
    )


def setup_of(chat: Chat) -> Setup:
    """How `chat` is asked. Raises EngineError where no model is loaded, DeckError where its files cannot be used."""
    found, facts = reader(), engine().state.facts
    if found is None or facts is None:
        raise EngineError("nothing_loaded")
    counter = found.counter
    first = chat.messages[0] if chat.messages else None
    cast = cast_of(chat.info, counter, first.text if first and first.role == "assistant" else "")
    style = Style(chat.info.mode, found.template, cast.names, counter.opening)
    sampling = sampling_of(chat.info)
    context_tokens, compose = facts.context_tokens, cast.compose
    return Setup(found.model, style, counter.count, context_tokens, sampling, compose, found.count_prompt)


def prompt_of(chat: Chat) -> Prompt:
    """What the model would read for the next message. Raises DeckError."""
    setup = setup_of(chat)
    if chat.info.mode == "notebook":
        return prepare_text("".join(one.text for one in chat.messages), setup)
    return prepare(turns_of(chat.messages), setup)
