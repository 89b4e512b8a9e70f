"""Prompts for named speakers: a character's, and plain lines for a model without a form for chats."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from core.api.errors import ApiError
from core.api.generation_request import GenerationRequest
from core.api.message_fields import Message
from core.api.prompt_size import check_length
from core.api.served_model import ServedModel
from core.api.turns import turn_of
from core.chat.character_prompt import CharacterPrompt
from core.chat.modes import PromptStyle, choose_mode
from core.chat.prompt_context import Prompt, PromptContext
from core.chat.template_messages import Turn
from core.chat.truncation import ContextError, PromptParts, join_texts
from core.chat.turn_rendering import Names
from core.common.errors import DeckError
from core.common.paths import lorebooks_dir
from core.engine.sampling_params import Sampling
from core.personas.attached import attached_names
from core.personas.character import Character
from core.personas.lorebooks import Lorebooks
from core.personas.user import UserPersona


def as_character(
    messages: list[Message],
    start: str,
    sampling: Sampling,
    num_choices: int,
    served: ServedModel,
    character: Character,
    user: UserPersona,
) -> tuple[GenerationRequest, str]:
    """The request as the page Chat makes it for a character, except that no message is left out.

    And what its answers begin with that the prompt holds.
    """
    head, turns = _split(messages)
    speaker = CharacterPrompt(
        character=character,
        user=user,
        count_tokens=served.model.counter.count,
        system=head,
        # A client's chat has no number; its first message stays the same all along.
        seed=turns[0]["content"] if turns else "",
        greeting=turns[0]["content"] if turns and turns[0]["role"] == "assistant" else "",
        books=_books_of(character),
    )
    mode = choose_mode(served.model.template, served.name, has_character=True)
    context = PromptContext(served.model, served.context_tokens, mode, speaker, sampling)
    prepared = _prepare_whole(turns, context, start)
    return _request(prepared.fitted.prompt, context.style, sampling, num_choices, start), prepared.begun


def _books_of(character: Character) -> tuple[Mapping[str, Any], ...]:
    """The lorebooks that the character was given; those of all chats are for the page Chat."""
    names = attached_names(character)
    try:
        found = _lorebooks(lorebooks_dir()).attached(names, with_all_chats=False) if names else ()
    except DeckError:
        # The page of lorebooks says what is wrong with their folder; the character answers without them.
        return ()
    return tuple(book.values for book in found)


@lru_cache(1)
def _lorebooks(folder: Path) -> Lorebooks:
    """It remembers what it has read: files of megabytes, of which one request would read all for a name."""
    return Lorebooks(folder)


def _prepare_whole(turns: list[Turn], context: PromptContext, start: str) -> Prompt:
    """The prompt with all messages, with as much of the wanted room for the answer as is left beside them."""
    room = context.sampling.max_new_tokens
    while True:
        sampling = replace(context.sampling, max_new_tokens=room)
        try:
            prompt = replace(context, sampling=sampling).prepare(turns, start=start)
        except ContextError:
            if room == 1:
                raise
        else:
            if prompt.fitted.first_kept == 0:
                return prompt
            if room == 1:
                raise _too_long(prompt, context)
        room = max(1, min(room, context.context_tokens) // 4)


def _too_long(prompt: Prompt, context: PromptContext) -> ApiError:
    left_out = prompt.parts.history[: prompt.fitted.first_kept]
    tokens = prompt.fitted.prompt_tokens + sum(context.model.counter.count(turn["content"]) for turn in left_out)
    return ApiError("api_too_long", tokens=tokens, limit=context.context_tokens)


def as_dialogue(
    messages: list[Message], start: str, sampling: Sampling, num_choices: int, served: ServedModel
) -> GenerationRequest:
    """The request for a model without a form for chats: plain lines, each with a name."""
    head, turns = _split(messages)
    style = PromptStyle("chat", served.model.template, Names.of("", ""), served.model.counter.opening)
    prompt = style.render(PromptParts(tuple(turns), head, start=start))
    check_length(prompt, served)
    return _request(prompt, style, sampling, num_choices, start)


def _request(prompt: str, style: PromptStyle, sampling: Sampling, num_choices: int, start: str) -> GenerationRequest:
    """The request for a named speaker, whose answers begin with `start`."""
    sampling = replace(sampling, stop=style.stop_strings(own=sampling.stop))
    is_open = bool(start.strip())
    return GenerationRequest(prompt, sampling, num_choices, is_open, speaker=None if is_open else style.names.char)


def _split(messages: list[Message]) -> tuple[str, list[Turn]]:
    """The system text at the beginning, and the other turns. The user tells a later system text, as lore."""
    turns = [turn_of(message) for message in messages]
    num_head = next((place for place, turn in enumerate(turns) if turn["role"] != "system"), len(turns))
    turns = [Turn(role="user", content=turn["content"]) if turn["role"] == "system" else turn for turn in turns]
    return join_texts(*(turn["content"] for turn in turns[:num_head])), turns[num_head:]
