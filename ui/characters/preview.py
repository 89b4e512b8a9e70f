"""What the model will see of a character at the start of a chat, with its tokens; asks no model."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from random import Random

import streamlit as st

from core.chat.model_prompt import Counter, read_reader
from core.chat.modes import Names, Style, choose_mode
from core.chat.template import ChatTemplate, Turn
from core.chat.tokens import TokenCounter
from core.chat.truncation import Pieces
from core.common.errors import DeckError
from core.personas.character import Character
from core.personas.lorebook import Said
from core.personas.prompt import Pieces as PersonaPieces
from core.personas.prompt import Setting, build_pieces, greetings
from core.personas.user import UserPersona, read_persona
from ui.shared.errors import show_error
from ui.shared.i18n import text, tr
from ui.shared.markdown import escape
from ui.shared.people import person
from ui.shared.resources import engine

SAID_KEY = "characters_said"
HEIGHT = 420
NO_TEMPLATE = ChatTemplate(None, "", "")


@dataclass(frozen=True, slots=True)
class Reader:
    """Who reads the prompt: the loaded model, or with an empty name nobody, and then tokens are estimated."""

    model: str
    template: ChatTemplate
    counter: Counter


def loaded_reader() -> Reader:
    """Raises DeckError for a model whose tokenizer or template cannot be read."""
    found = read_reader(engine())
    if found is None:
        return Reader("", NO_TEMPLATE, TokenCounter(None))
    return Reader(found.model, found.template, found.counter)


def draw_preview(character: Character) -> str:
    """The whole prompt behind a line with its length. The first message can be tried, lorebooks answer to it.

    Gives the length in words, empty where there is no prompt.
    """
    said = str(st.session_state.get(SAID_KEY) or text("characters.said"))
    try:
        reader = loaded_reader()
        prompt = render_prompt(character, read_persona(person()), said, reader)
    except DeckError as error:
        show_error(error)
        return ""
    count = f"{reader.counter.count(prompt):,}"
    words = tr("characters.tokens_exact" if reader.counter.is_exact else "characters.tokens_about", count=count)
    with st.expander(f"{tr('characters.preview')} · {words}", icon=":material/visibility:", key="characters_preview"):
        st.caption(tr("characters.preview_model", name=reader.model) if reader.model else tr("characters.preview_none"))
        st.text_input(tr("characters.said_label"), key=SAID_KEY, placeholder=tr("characters.said"), live=True,
                      persist_state="session", help=tr("characters.said_help"))  # fmt: skip
        st.code(prompt, language=None, wrap_lines=True, height=HEIGHT if len(prompt) > HEIGHT * 2 else "content")
    return words


def render_prompt(character: Character, user: UserPersona, said: str, reader: Reader) -> str:
    """The prompt for the answer to a first message. Raises TemplateError."""
    setting = Setting(user, reader.counter.count, Random(0), datetime.now(), seed="preview")
    greeting = greetings(character, setting)[0]
    spoken = [Said("assistant", greeting)] if greeting else []
    spoken.append(Said("user", said))
    pieces = build_pieces(character, spoken, setting)
    mode = choose_mode(reader.template, reader.model, has_character=True) if reader.model else "chat"
    names = Names.of(pieces.user_name, pieces.char_name)
    return Style(mode, reader.template, names, reader.counter.opening).render(_chat_pieces(pieces, spoken))


def _chat_pieces(pieces: PersonaPieces, spoken: list[Said]) -> Pieces:
    history = [Turn(role=said.role, content=said.text) for said in spoken]
    for lore in pieces.at_depth:
        history.insert(max(0, len(history) - (lore.depth or 0)), Turn(role=lore.role, content=lore.text))
    return Pieces(
        tuple(history),
        system=pieces.system,
        examples=tuple(tuple(Turn(role=one.role, content=one.text) for one in block) for block in pieces.examples),
        after=pieces.post_history,
    )


def fence(words: str) -> str:
    """A character's text as Markdown that shows it letter by letter, in lines as they were written."""
    return escape(words).replace("\n", "  \n")
