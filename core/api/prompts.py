"""From a request to what the engine is asked: prompts and settings; knows no connection and no answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from core.api.errors import ApiError
from core.api.schema import ALL_THERE_IS, ChatRequest, CompletionRequest, Message, Sampled
from core.api.served_model import Loaded
from core.chat.character_prompt import Cast
from core.chat.modes import Names, Style, choose_mode
from core.chat.presets import combine
from core.chat.service import Prompt, Setup, prepare
from core.chat.template import Turn
from core.chat.truncation import ContextError, Pieces, join_texts
from core.engine.sampling_params import MAX_SEED, SAMPLING_RANGES, Sampling
from core.personas.character import Character
from core.personas.user import UserPersona, read_persona

# As OpenAI has it, where a completion does not say how long it may be.
COMPLETION_TOKENS = 16
# Texts of more than so many contexts are refused before a template or a tokenizer works on them; those of so many
# characters never are, as they cost little. One that is long is counted piece by piece, no further than it must be.
FAR_CONTEXTS = 4
FEW_CHARS = 2**16
PIECE_CHARS = 2**15
GIVEN = ("temperature", "top_p", "min_p", "repetition_penalty")


@dataclass(frozen=True, slots=True)
class Ask:
    """One prompt, which gets `num_choices` answers. `echo` is put before them; `start` is what they go on from.

    `speaker` is whose name before an answer is taken off; None for text that is handed on as it comes.
    """

    prompt: str | tuple[int, ...]
    sampling: Sampling
    num_choices: int
    continues: bool = False
    echo: str = ""
    speaker: str | None = None

    def sampling_of(self, choice: int) -> Sampling:
        """Choices of one seed differ, and are the same every time."""
        seed = self.sampling.seed
        return self.sampling if seed is None else replace(self.sampling, seed=(seed + choice) & MAX_SEED)

    def said(self, text: str, is_done: bool) -> str:
        """What of an answer's `text` is certain to be part of the message; it never shrinks."""
        if self.speaker is None:
            return self.echo + text
        text, mark = text.lstrip(), f"{self.speaker}:" if self.speaker else ""
        if not is_done and mark.startswith(text):
            return ""
        return text.removeprefix(mark).lstrip()


def ask_chat(request: ChatRequest, loaded: Loaded, character: Character | None, owner: str = "") -> Ask:
    """The model's answer to the messages, or the character's to the persona of `owner`. Raises DeckError."""
    check_size([message.content for message in request.messages], loaded)
    sampling = _sampling(request, loaded, request.max_completion_tokens or request.max_tokens or ALL_THERE_IS)
    start = ""
    messages = list(request.messages)
    if request.continue_final_message:
        if messages[-1].role != "assistant":
            raise ApiError("api_field", field="continue_final_message", why="the last message is not the assistant's")
        start = messages.pop().content
    if character is not None:
        user = read_persona(owner)
        return _as_character(messages, start, sampling, request.n or 1, loaded, character, user)
    mode = choose_mode(loaded.template, loaded.name, has_character=False)
    if mode == "notebook":
        return _as_dialogue(messages, start, sampling, request.n or 1, loaded)
    turns = [_turn(message) for message in messages]
    if start.strip():
        prompt, _ = loaded.template.render_open([*turns, Turn(role="assistant", content=start)])
    else:
        prompt = loaded.template.render(turns)
    check_length(prompt, loaded)
    return Ask(prompt, sampling, request.n or 1, bool(start.strip()), speaker=None if start.strip() else "")


def ask_completions(request: CompletionRequest, loaded: Loaded) -> list[Ask]:
    """One for each prompt, which goes on as it is. Raises DeckError."""
    check_size([prompt for prompt in request.prompt if isinstance(prompt, str)], loaded)
    sampling = _sampling(request, loaded, request.max_tokens or COMPLETION_TOKENS)
    asks = []
    for given in request.prompt:
        prompt: str | tuple[int, ...] = given
        if isinstance(given, str) and not given.startswith(loaded.counter.opening):
            prompt = loaded.counter.opening + given
        check_length(prompt, loaded)
        echo = _echo(given, loaded) if request.echo else ""
        asks.append(Ask(prompt, sampling, request.n or 1, continues=True, echo=echo))
    return asks


def render_messages(messages: Sequence[Message], loaded: Loaded) -> str:
    """The prompt for messages in the model's own form. Raises DeckError."""
    check_size([message.content for message in messages], loaded)
    return loaded.template.render([_turn(message) for message in messages])


def check_size(texts: Sequence[str], loaded: Loaded) -> None:
    """Raises ApiError where texts are far longer than the context, so that nobody has to work on all of them.

    What is too long, but not far, is known once the prompt is made: some templates leave out parts of messages.
    """
    if sum(map(len, texts)) <= FEW_CHARS:
        return
    num_tokens = 0
    for text in texts:
        for begin in range(0, len(text), PIECE_CHARS):
            num_tokens += loaded.counter.count(text[begin : begin + PIECE_CHARS])
            if num_tokens > FAR_CONTEXTS * loaded.context_tokens:
                raise ApiError("api_far_too_long", limit=loaded.context_tokens)


def check_length(prompt: str | tuple[int, ...], loaded: Loaded) -> None:
    """Raises ApiError where the prompt leaves no room for an answer; an estimate is left to the engine."""
    is_text = isinstance(prompt, str)
    count = loaded.count_prompt or loaded.counter.count
    tokens = count(prompt) if isinstance(prompt, str) else len(prompt)
    if tokens >= loaded.context_tokens and (loaded.counter.is_exact or not is_text):
        raise ApiError("api_too_long", tokens=tokens, limit=loaded.context_tokens)


def _as_character(
    messages: list[Message],
    start: str,
    sampling: Sampling,
    num_choices: int,
    loaded: Loaded,
    character: Character,
    user: UserPersona,
) -> Ask:
    """As the page Chat asks a character, but that no message is ever left out."""
    head, said = _split(messages)
    cast = Cast(
        character=character,
        user=user,
        count_tokens=loaded.counter.count,
        system=head,
        # A client's chat has no number; its first message stays the same all along.
        seed=said[0]["content"] if said else "",
        greeting=said[0]["content"] if said and said[0]["role"] == "assistant" else "",
    )
    mode = choose_mode(loaded.template, loaded.name, has_character=True)
    style = Style(mode, loaded.template, cast.names, loaded.counter.opening)
    count, count_prompt = loaded.counter.count, loaded.count_prompt
    setup = Setup(loaded.name, style, count, loaded.context_tokens, sampling, cast.compose, count_prompt)
    prompt = _prepare_whole(said, setup, start)
    return Ask(
        prompt.fitted.prompt,
        replace(sampling, stop=style.stop_strings(own=sampling.stop)),
        num_choices,
        bool(start.strip()),
        speaker=None if start.strip() else cast.names.char,
    )


def _prepare_whole(said: list[Turn], setup: Setup, start: str) -> Prompt:
    """With room for the answer if all messages fit beside it, else with as much as there is."""
    room = setup.sampling.max_new_tokens
    while True:
        try:
            prompt = prepare(said, replace(setup, sampling=replace(setup.sampling, max_new_tokens=room)), start=start)
        except ContextError:
            if room == 1:
                raise
        else:
            if prompt.fitted.first_kept == 0:
                return prompt
            if room == 1:
                raise _too_long(prompt, setup)
        room = max(1, min(room, setup.context_tokens) // 4)


def _too_long(prompt: Prompt, setup: Setup) -> ApiError:
    left_out = prompt.pieces.history[: prompt.fitted.first_kept]
    tokens = prompt.fitted.prompt_tokens + sum(setup.count_tokens(turn["content"]) for turn in left_out)
    return ApiError("api_too_long", tokens=tokens, limit=setup.context_tokens)


def _as_dialogue(messages: list[Message], start: str, sampling: Sampling, num_choices: int, loaded: Loaded) -> Ask:
    """For a model that knows no form for chats: plain lines, each with a name."""
    head, said = _split(messages)
    style = Style("chat", loaded.template, Names.of("", ""), loaded.counter.opening)
    prompt = style.render(Pieces(tuple(said), head, start=start))
    check_length(prompt, loaded)
    return Ask(
        prompt,
        replace(sampling, stop=style.stop_strings(own=sampling.stop)),
        num_choices,
        bool(start.strip()),
        speaker=None if start.strip() else style.names.char,
    )


def _split(messages: list[Message]) -> tuple[str, list[Turn]]:
    """The system text at the beginning, and the rest; one in the middle is told by the user, as lore is."""
    turns = [_turn(message) for message in messages]
    num_head = next((place for place, turn in enumerate(turns) if turn["role"] != "system"), len(turns))
    said = [Turn(role="user", content=turn["content"]) if turn["role"] == "system" else turn for turn in turns]
    return join_texts(*(turn["content"] for turn in turns[:num_head])), said[num_head:]


def _turn(message: Message) -> Turn:
    return Turn(role="system" if message.role == "developer" else message.role, content=message.content)


def _sampling(request: Sampled, loaded: Loaded, longest: int) -> Sampling:
    """What the request says, before what the model recommends. Raises InputError."""
    values: dict[str, Any] = {name: getattr(request, name) for name in GIVEN if getattr(request, name) is not None}
    if request.top_k is not None:
        values["top_k"] = max(0, request.top_k)
    if request.seed is not None:
        values["seed"] = request.seed & MAX_SEED
    most = min(loaded.context_tokens, int(SAMPLING_RANGES["max_new_tokens"][1]))
    longest = most if longest == ALL_THERE_IS else min(longest, most)
    return combine(loaded.recommended, values, {"max_new_tokens": longest, "stop": request.stop})


def _echo(prompt: str | tuple[int, ...], loaded: Loaded) -> str:
    if isinstance(prompt, str):
        return prompt
    text = loaded.counter.decode(prompt)
    if text is None:
        raise ApiError("api_no_tokenizer", name=loaded.name)
    return text
