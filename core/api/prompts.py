"""From a request to what the engine is asked: prompts and settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from core.api.errors import ApiError
from core.api.schema import ALL_THERE_IS, ChatRequest, CompletionRequest, Message, Sampled
from core.api.served_model import ServedModel
from core.chat.character_prompt import CharacterPrompt
from core.chat.modes import PromptStyle, choose_mode, with_begun
from core.chat.presets import combine
from core.chat.prompt_context import Prompt, PromptContext
from core.chat.template import Turn
from core.chat.truncation import ContextError, PromptParts, join_texts
from core.chat.turn_rendering import Names
from core.engine.sampling_params import MAX_SEED, MAX_STOP_STRINGS, SAMPLING_RANGES, Sampling
from core.personas.character import Character
from core.personas.user import read_persona

# As OpenAI has it, where a completion does not say how long it may be.
COMPLETION_TOKENS = 16
# Texts of more than FAR_CONTEXTS contexts are refused before a template or a tokenizer works on all of them. Those of
# FEW_CHARS cost little and are never refused so early. Longer ones are counted in pieces of PIECE_CHARS.
FAR_CONTEXTS = 4
FEW_CHARS = 2**16
PIECE_CHARS = 2**15
GIVEN = ("temperature", "top_p", "min_p", "repetition_penalty")


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One prompt, which gets `num_choices` answers, each with `echo` before it.

    `continues`: the answers go on from the prompt's last word. The name of `speaker` before an answer is cut off; None
    leaves the text as it comes. `begun` is what the template began the answers with, such as "<think>".
    """

    prompt: str | tuple[int, ...]
    sampling: Sampling
    num_choices: int
    continues: bool = False
    echo: str = ""
    speaker: str | None = None
    begun: str = ""

    def sampling_of(self, choice: int) -> Sampling:
        """The settings of one choice: choices of one seed differ, and are the same every time."""
        seed = self.sampling.seed
        return self.sampling if seed is None else replace(self.sampling, seed=(seed + choice) & MAX_SEED)

    def visible_text(self, text: str, is_done: bool) -> str:
        """The part of the message that an answer's `text` makes certain. It never shrinks while the text grows."""
        if self.speaker is None:
            return self.echo + text
        if self.begun:
            is_certain = is_done or not self.begun.strip().startswith(text.strip())
            return with_begun(text, self.begun) if is_certain else ""
        text, mark = text.lstrip(), f"{self.speaker}:" if self.speaker else ""
        if not is_done and mark.startswith(text):
            return ""
        return text.removeprefix(mark).lstrip()


def read_chat_request(
    request: ChatRequest, served: ServedModel, character: Character | None, owner: str = ""
) -> GenerationRequest:
    """The model's answer to the messages, or the character's to the persona of `owner`. Raises DeckError."""
    check_size([message.content for message in request.messages], served)
    sampling = _sampling(request, served, request.max_completion_tokens or request.max_tokens or ALL_THERE_IS)
    start = ""
    messages = list(request.messages)
    if request.continue_final_message:
        if messages[-1].role != "assistant":
            raise ApiError("api_field", field="continue_final_message", why="the last message is not the assistant's")
        start = messages.pop().content
    if character is not None:
        return _as_character(messages, start, sampling, request.n or 1, served, character, owner)
    mode = choose_mode(served.model.template, served.name, has_character=False)
    if mode in ("notebook", "chat"):
        return _as_dialogue(messages, start, sampling, request.n or 1, served)
    turns = [_turn(message) for message in messages]
    template, is_open = served.model.template, bool(start.strip())
    prompt = template.render_begun(turns, start) if is_open else template.render(turns)
    check_length(prompt, served)
    sampling = replace(sampling, stop=tuple(dict.fromkeys((*sampling.stop, *template.stop)))[:MAX_STOP_STRINGS])
    return GenerationRequest(prompt, sampling, request.n or 1, is_open, speaker=None if is_open else "",
                             begun="" if is_open else template.opened_thought(prompt))  # fmt: skip


def read_completion_request(request: CompletionRequest, served: ServedModel) -> list[GenerationRequest]:
    """One for each prompt, which goes on as it is. Raises DeckError."""
    check_size([prompt for prompt in request.prompt if isinstance(prompt, str)], served)
    sampling = _sampling(request, served, request.max_tokens or COMPLETION_TOKENS)
    generations = []
    for given in request.prompt:
        prompt: str | tuple[int, ...] = given
        if isinstance(given, str) and not given.startswith(served.model.counter.opening):
            prompt = served.model.counter.opening + given
        check_length(prompt, served)
        echo = _echo(given, served) if request.echo else ""
        generations.append(GenerationRequest(prompt, sampling, request.n or 1, continues=True, echo=echo))
    return generations


def render_messages(messages: Sequence[Message], served: ServedModel) -> str:
    """The prompt for messages in the model's own form. Raises DeckError."""
    check_size([message.content for message in messages], served)
    return served.model.template.render([_turn(message) for message in messages])


def check_size(texts: Sequence[str], served: ServedModel) -> None:
    """Raise ApiError where texts are far longer than the context, without work on all of them.

    Texts that are only somewhat too long pass: some templates leave out parts of messages.
    """
    if sum(map(len, texts)) <= FEW_CHARS:
        return
    num_tokens = 0
    for text in texts:
        for begin in range(0, len(text), PIECE_CHARS):
            num_tokens += served.model.counter.count(text[begin : begin + PIECE_CHARS])
            if num_tokens > FAR_CONTEXTS * served.context_tokens:
                raise ApiError("api_far_too_long", limit=served.context_tokens)


def check_length(prompt: str | tuple[int, ...], served: ServedModel) -> None:
    """Raise ApiError where the prompt leaves no room for an answer. An estimate passes: the engine counts itself."""
    is_exact = served.model.counter.is_exact or not isinstance(prompt, str)
    tokens = served.model.count_prompt(prompt) if isinstance(prompt, str) else len(prompt)
    if tokens >= served.context_tokens and is_exact:
        raise ApiError("api_too_long", tokens=tokens, limit=served.context_tokens)


def _as_character(
    messages: list[Message],
    start: str,
    sampling: Sampling,
    num_choices: int,
    served: ServedModel,
    character: Character,
    owner: str,
) -> GenerationRequest:
    """The request as the page Chat makes it for a character, except that no message is left out."""
    head, turns = _split(messages)
    speaker = CharacterPrompt(
        character=character,
        user=read_persona(owner),
        count_tokens=served.model.counter.count,
        system=head,
        # A client's chat has no number; its first message stays the same all along.
        seed=turns[0]["content"] if turns else "",
        greeting=turns[0]["content"] if turns and turns[0]["role"] == "assistant" else "",
    )
    mode = choose_mode(served.model.template, served.name, has_character=True)
    context = PromptContext(served.model, served.context_tokens, mode, speaker, sampling)
    prepared = _prepare_whole(turns, context, start)
    asked = _request(prepared.fitted.prompt, context.style, sampling, num_choices, start)
    return asked if start.strip() else replace(asked, begun=prepared.begun)


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


def _as_dialogue(
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
    turns = [_turn(message) for message in messages]
    num_head = next((place for place, turn in enumerate(turns) if turn["role"] != "system"), len(turns))
    turns = [Turn(role="user", content=turn["content"]) if turn["role"] == "system" else turn for turn in turns]
    return join_texts(*(turn["content"] for turn in turns[:num_head])), turns[num_head:]


def _turn(message: Message) -> Turn:
    return Turn(role="system" if message.role == "developer" else message.role, content=message.content)


def _sampling(request: Sampled, served: ServedModel, longest: int) -> Sampling:
    """The request's settings over those that the model recommends. Raises InputError."""
    values: dict[str, Any] = {name: getattr(request, name) for name in GIVEN if getattr(request, name) is not None}
    if request.top_k is not None:
        values["top_k"] = max(0, request.top_k)
    if request.seed is not None:
        values["seed"] = request.seed & MAX_SEED
    most = min(served.context_tokens, int(SAMPLING_RANGES["max_new_tokens"][1]))
    longest = most if longest == ALL_THERE_IS else min(longest, most)
    return combine(served.recommended, values, {"max_new_tokens": longest, "stop": request.stop})


def _echo(prompt: str | tuple[int, ...], served: ServedModel) -> str:
    if isinstance(prompt, str):
        return prompt
    text = served.model.counter.decode(prompt)
    if text is None:
        raise ApiError("api_no_tokenizer", name=served.name)
    return text
