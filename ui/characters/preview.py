"""What the model will see of a character at the start of a chat, with its tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import streamlit as st

from core.chat.character_prompt import CharacterPrompt
from core.chat.model_prompt import ModelPrompt, read_model_prompt
from core.chat.modes import PromptStyle, choose_mode
from core.chat.template import ChatTemplate
from core.chat.template_messages import Turn
from core.chat.tokens import TokenCounter
from core.common.errors import DeckError
from core.personas.attached import attached_names
from core.personas.character import Character
from core.personas.lorebook import LeftOut
from core.personas.user import UserPersona, read_persona
from ui.shared.errors import show_error
from ui.shared.i18n import text, tr
from ui.shared.lore import left_out_words
from ui.shared.markdown import escape
from ui.shared.people import person
from ui.shared.resources import engine, lorebooks

SAID_KEY = "characters_said"
HEIGHT = 420
# Without a model nobody reads the prompt, and its tokens are estimated.
ESTIMATE = TokenCounter(None)
NO_MODEL = ModelPrompt("", None, ChatTemplate(None, "", ""), ESTIMATE, ESTIMATE.count)


def loaded_model() -> ModelPrompt:
    """NO_MODEL where none answers. Raises DeckError for a model whose tokenizer or template cannot be read."""
    return read_model_prompt(engine().state, engine().server_counter) or NO_MODEL


def draw_preview(character: Character, key: str = "") -> str:
    """The whole prompt behind a line with its length. The first message can be tried, lorebooks answer to it.

    `key` is the character's. Gives the length in words, empty where there is no prompt.
    """
    said = str(st.session_state.get(SAID_KEY) or text("characters.said"))
    try:
        model = loaded_model()
        books = tuple(book.values for book in lorebooks().attached(attached_names(character)))
        prompt, left_out = render_prompt(
            character, read_persona(person(), character=key), said, model, context_tokens(), books
        )
    except DeckError as error:
        show_error(error)
        return ""
    count = f"{model.counter.count(prompt):,}"
    words = tr("characters.tokens_exact" if model.counter.is_exact else "characters.tokens_about", count=count)
    with st.expander(f"{tr('characters.preview')} · {words}", icon=":material/visibility:", key="characters_preview"):
        st.caption(tr("characters.preview_model", name=model.name) if model.name else tr("characters.preview_none"))
        st.text_input(tr("characters.said_label"), key=SAID_KEY, placeholder=tr("characters.said"), live=True,
                      persist_state="session", help=tr("characters.said_help"))  # fmt: skip
        if left_out:
            st.caption(f":material/menu_book: {left_out_words(left_out)}")
        st.code(prompt, language=None, wrap_lines=True, height=HEIGHT if len(prompt) > HEIGHT * 2 else "content")
    return words


def render_prompt(
    character: Character,
    user: UserPersona,
    said: str,
    model: ModelPrompt,
    context_tokens: int | None = None,
    books: tuple[Mapping[str, Any], ...] = (),
) -> tuple[str, tuple[LeftOut, ...]]:
    """The prompt for the answer to a first message, as a new chat asks it, and the lore that it leaves out.

    Raises TemplateError.
    """
    speaker = CharacterPrompt(character, user, model.counter.count, seed="preview", books=books)
    turns = [Turn(role="assistant", content=greeting) for greeting in speaker.greetings()[:1]]
    if turns:
        speaker = replace(speaker, greeting=turns[0]["content"])
    turns.append(Turn(role="user", content=said))
    composed = speaker.compose(turns, model=model.name, context_tokens=context_tokens)
    mode = choose_mode(model.template, model.name, has_character=True) if model.name else "chat"
    style = PromptStyle(mode, model.template, speaker.names, model.counter.opening)
    return style.render(composed.parts), composed.left_out


def context_tokens() -> int | None:
    """The loaded model's context, of which lore has a share."""
    facts = engine().state.facts
    return facts.context_tokens if facts is not None else None


def fence(words: str) -> str:
    """A character's text as Markdown that shows it letter by letter, in lines as they were written."""
    return escape(words).replace("\n", "  \n")
