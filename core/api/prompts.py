"""From a request to what the engine is asked: prompts and settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from core.api.errors import ApiError
from core.api.json_text import to_json
from core.api.schema import ALL_THERE_IS, ChatRequest, CompletionRequest, Message, Sampled
from core.api.served_model import ServedModel
from core.api.tool_fields import tool_of
from core.api.tool_use import ToolUse, read_tools
from core.chat.character_prompt import CharacterPrompt
from core.chat.chat_formats import added_tokens
from core.chat.infill import InfillFormat, find_infill_format
from core.chat.modes import PromptStyle, choose_mode
from core.chat.presets import combine
from core.chat.prompt_context import Prompt, PromptContext
from core.chat.template import ChatTemplate, Turn
from core.chat.thinking import Thinking, switched, with_effort
from core.chat.tools.calls import ToolCall
from core.chat.tools.prompt import takes_tools, with_tools_told
from core.chat.truncation import ContextError, PromptParts, join_texts
from core.chat.turn_rendering import Names
from core.common.errors import DeckError
from core.common.paths import lorebooks_dir
from core.engine.request_options import PLAIN, RequestOptions
from core.engine.sampling_params import MAX_SEED, MAX_STOP_STRINGS, SAMPLING_RANGES, Sampling
from core.engine.thought import THINK, Parts, ThoughtRules, ThoughtSplitter
from core.personas.attached import attached_names
from core.personas.character import Character
from core.personas.lorebooks import Lorebooks
from core.personas.user import UserPersona, read_persona

# As OpenAI has it, where a completion does not say how long it may be.
COMPLETION_TOKENS = 16
# Texts of more than FAR_CONTEXTS contexts are refused before a template or a tokenizer works on all of them. Those of
# FEW_CHARS cost little and are never refused so early. Longer ones are counted in pieces of PIECE_CHARS.
FAR_CONTEXTS = 4
FEW_CHARS = 2**16
PIECE_CHARS = 2**15
GIVEN = (
    "temperature",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "typical_p",
    "xtc_probability",
    "xtc_threshold",
    "dry_multiplier",
    "dry_base",
    "dry_allowed_length",
    "dry_sequence_breakers",
    "mirostat",
    "mirostat_tau",
    "mirostat_eta",
)
# Some write -1 where nothing is to be cut, or all of the text counts.
GIVEN_FROM_ZERO = ("top_k", "dry_range")


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One prompt, which gets `num_choices` answers, each with `echo` before it.

    `continues`: the answers go on from the prompt's last word. The name of `speaker` before an answer is cut off; None
    leaves the text as it comes. By `thought` what the model thinks is told apart; None leaves it in the text. Of all
    answers the `num_kept` likeliest are sent, None: each. `tells_logprobs`: those in `options` are sent, too.
    Calls of `tools` are told apart.
    """

    prompt: str | tuple[int, ...]
    sampling: Sampling
    num_choices: int
    continues: bool = False
    echo: str = ""
    speaker: str | None = None
    thought: ThoughtRules | None = None
    options: RequestOptions = PLAIN
    num_kept: int | None = None
    tells_logprobs: bool = False
    tools: ToolUse | None = None

    def sampling_of(self, choice: int) -> Sampling:
        """The settings of one choice: choices of one seed differ, and are the same every time."""
        seed = self.sampling.seed
        return self.sampling if seed is None else replace(self.sampling, seed=(seed + choice) & MAX_SEED)

    def visible_message(self, text: str, is_done: bool) -> tuple[Parts, tuple[ToolCall, ...]]:
        """The parts of the message, and the calls of tools in it, that are certain: see `visible_parts`."""
        parts = self.visible_parts(text, is_done)
        if self.tools is None:
            return parts, ()
        words, calls = self.tools.read(parts.answer, is_done)
        return replace(parts, answer=words), calls

    def visible_parts(self, text: str, is_done: bool) -> Parts:
        """The parts of the message that an answer's `text` makes certain. None shrinks while the text grows, but where
        the rules let an end without a beginning make a thought of an answer."""
        if self.thought is None:
            return Parts(answer=self.echo + text if self.speaker is None else self._without_name(text, is_done))
        splitter = ThoughtSplitter(self.thought)
        splitter.push(text)
        parts = splitter.end() if is_done else splitter.parts
        return parts if self.speaker is None else replace(parts, answer=self._without_name(parts.answer, is_done))

    def _without_name(self, text: str, is_done: bool) -> str:
        if self.speaker is None:
            return text
        text, mark = text.lstrip(), f"{self.speaker}:" if self.speaker else ""
        if not is_done and mark.startswith(text):
            return ""
        return text.removeprefix(mark).lstrip()


def read_chat_request(
    request: ChatRequest, served: ServedModel, character: Character | None, owner: str = "", key: str = ""
) -> GenerationRequest:
    """The model's answer to the messages, or the character's, whose key is `key`, to the persona that `owner` has for
    it. Raises DeckError."""
    check_size([*map(_text_of, request.messages), *_texts_of_tools(request)], served)
    sampling = _sampling(request, served, request.max_completion_tokens or request.max_tokens or ALL_THERE_IS)
    if request.top_logprobs and not request.logprobs:
        raise ApiError("api_field", field="top_logprobs", why="it counts beside logprobs: true alone")
    options = _options(request, served, (request.top_logprobs or 0) if request.logprobs else None)
    thinking = _thinking(request, served)
    template = replace(served.model.template, variables=thinking.variables)
    served = replace(served, model=replace(served.model, template=template))
    tools = read_tools(request, template, is_remote=served.model.folder is None)
    start = ""
    messages = list(request.messages)
    if request.continue_final_message:
        if messages[-1].role != "assistant":
            raise ApiError("api_field", field="continue_final_message", why="the last message is not the assistant's")
        start = messages.pop().content
    if character is not None:
        if tools is not None:
            raise ApiError("api_field", field="tools", why="a character calls no tools; name the model itself")
        user = read_persona(owner, character=key)
        asked, begun = _as_character(messages, start, sampling, request.n or 1, served, character, user)
        return replace(
            asked,
            thought=_rules(request, template, begun or start, thinking),
            options=options,
            tells_logprobs=bool(request.logprobs),
        )
    mode = choose_mode(served.model.template, served.name, has_character=False)
    if mode in ("notebook", "chat"):
        if tools is not None:
            raise ApiError("api_field", field="tools", why="this model has no form for chats, and so none for calls")
        asked = _as_dialogue(messages, start, sampling, request.n or 1, served)
        return replace(
            asked,
            thought=_rules(request, template, start, thinking),
            options=options,
            tells_logprobs=bool(request.logprobs),
        )
    turns = [_turn(message) for message in messages]
    if tools is not None:
        template, turns = tools.put(template, turns)
    is_open = bool(start.strip())
    prompt = template.render_begun(turns, start) if is_open else template.render(turns)
    opened = start or template.opened_thought(prompt)
    if tools is not None:
        tools, prompt = tools.begin(prompt, may_begin=not opened)
        options = replace(options, grammar=tools.grammar or options.grammar, shown=tools.shown)
    check_length(prompt, served)
    sampling = replace(sampling, stop=tuple(dict.fromkeys((*sampling.stop, *template.stop)))[:MAX_STOP_STRINGS])
    rules = _rules(request, template, (tools.begun if tools else "") or opened, thinking)
    speaker = None if is_open else ""
    return GenerationRequest(
        prompt,
        sampling,
        request.n or 1,
        is_open,
        speaker=speaker,
        thought=rules,
        options=options,
        tells_logprobs=bool(request.logprobs),
        tools=tools,
    )


def read_completion_request(request: CompletionRequest, served: ServedModel) -> list[GenerationRequest]:
    """One for each prompt, which goes on as it is. Raises DeckError."""
    check_size([prompt for prompt in request.prompt if isinstance(prompt, str)], served)
    sampling = _sampling(request, served, request.max_tokens or COMPLETION_TOKENS)
    num_written, num_kept = _best_of(request)
    is_scored = bool(request.echo) and request.logprobs is not None
    logprobs = request.logprobs if num_kept is None else request.logprobs or 0
    options = replace(_options(request, served, logprobs), prompt_logprobs=is_scored)
    infill = _infill_of(served) if request.suffix else None
    if infill is not None:
        stop = tuple(dict.fromkeys((*sampling.stop, *infill.ends)))[:MAX_STOP_STRINGS]
        sampling, options = replace(sampling, stop=stop), replace(options, shown=infill.ends)
    generations = []
    for given in request.prompt:
        prompt: str | tuple[int, ...] = given
        if infill is not None:
            if not isinstance(prompt, str):
                raise ApiError("api_field", field="suffix", why="it counts beside a prompt that is a text alone")
            prompt = infill.prompt(prompt, request.suffix or "")
        if isinstance(prompt, str) and not prompt.startswith(served.model.counter.opening):
            prompt = served.model.counter.opening + prompt
        check_length(prompt, served)
        echo = _echo(given, served) if request.echo else ""
        generations.append(
            GenerationRequest(
                prompt,
                sampling,
                num_written,
                continues=True,
                echo=echo,
                options=options,
                num_kept=num_kept,
                tells_logprobs=request.logprobs is not None,
            )
        )
    return generations


def render_messages(messages: Sequence[Message], served: ServedModel, variables: Mapping[str, Any]) -> str:
    """The prompt for messages in the model's own form, whose template is given `variables`. Raises DeckError."""
    check_size([message.content for message in messages], served)
    template = replace(served.model.template, variables=variables)
    turns = [_turn(message) for message in messages]
    return template.render(turns if takes_tools(template.source or "") else with_tools_told(turns, {}))


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
    turn = Turn(role="system" if message.role == "developer" else message.role, content=message.content)
    if message.role == "assistant" and message.reasoning_content:
        turn["thought"] = message.reasoning_content
    if message.role == "assistant" and message.tool_calls:
        turn["tool_calls"] = [call.as_turns_have_it() for call in message.tool_calls]
    if message.role == "tool":
        turn["tool_call_id"] = message.tool_call_id or ""
    return turn


def _text_of(message: Message) -> str:
    return message.content + "".join(call.function.arguments for call in message.tool_calls or ())


def _texts_of_tools(request: ChatRequest) -> list[str]:
    """What a prompt tells of the tools; clients may send more about each, in whatever form."""
    return [to_json(tool_of(field).definition) for field in request.tools or ()]


def _thinking(request: ChatRequest, served: ServedModel) -> Thinking:
    """What a request says of thinking. What it names for the template itself counts most."""
    switches = served.model.template.switches
    variables = with_effort(request.reasoning_effort, switches) if request.reasoning_effort is not None else {}
    if request.enable_thinking is not None:
        variables |= switched(request.enable_thinking, switches)
    return Thinking(variables | request.chat_template_kwargs, request.thinking_budget)


def _rules(request: ChatRequest, template: ChatTemplate, begun: str, thinking: Thinking) -> ThoughtRules | None:
    """How thoughts are told apart in answers that were `begun`; None where their thought is over.

    What a stream has sent as an answer cannot become a thought.
    """
    known = template.thought_format
    splitter = ThoughtSplitter(ThoughtRules(known or THINK))
    splitter.push(begun)
    if begun.strip() and not splitter.is_thinking:
        return None
    may_lack_opening = known is not None and not request.stream and not splitter.is_thinking
    return ThoughtRules(known or THINK, splitter.is_thinking, may_lack_opening, thinking.budget_tokens)


def _sampling(request: Sampled, served: ServedModel, longest: int) -> Sampling:
    """The request's settings over those that the model recommends. Raises InputError."""
    values: dict[str, Any] = {name: getattr(request, name) for name in GIVEN if getattr(request, name) is not None}
    values |= {name: max(0, value) for name in GIVEN_FROM_ZERO if (value := getattr(request, name)) is not None}
    if request.seed is not None:
        values["seed"] = request.seed & MAX_SEED
    most = min(served.context_tokens, int(SAMPLING_RANGES["max_new_tokens"][1]))
    longest = most if longest == ALL_THERE_IS else min(longest, most)
    return combine(served.recommended, values, {"max_new_tokens": longest, "stop": request.stop})


def _options(request: Sampled, served: ServedModel, logprobs: int | None) -> RequestOptions:
    """What this answer alone is asked for. Raises InputError."""
    return RequestOptions(
        logit_bias=request.logit_bias,
        min_tokens=max(0, request.min_tokens or 0),
        ignore_eos=bool(request.ignore_eos),
        logprobs=logprobs,
        grammar=request.grammar,
        adapter=served.adapter,
    )


def _infill_of(served: ServedModel) -> InfillFormat:
    """How a text between two others is asked for. Raises ApiError where the model was not taught that."""
    folder = served.model.folder
    found = find_infill_format(added_tokens(folder)) if folder is not None else None
    if found is None:
        raise ApiError("api_no_infill", name=served.name)
    return found


def _best_of(request: CompletionRequest) -> tuple[int, int | None]:
    """How many answers are written, and how many of them are sent; None: all. Raises ApiError."""
    num_sent = request.n or 1
    num_written = num_sent if request.best_of is None else request.best_of
    if num_written < num_sent:
        raise ApiError("api_field", field="best_of", why="it has to be at least n")
    if num_written > num_sent and request.stream:
        raise ApiError("api_field", field="best_of", why="which answers are the best is not known while they stream")
    return num_written, num_sent if num_written > num_sent else None


def _echo(prompt: str | tuple[int, ...], served: ServedModel) -> str:
    if isinstance(prompt, str):
        return prompt
    text = served.model.counter.decode(prompt)
    if text is None:
        raise ApiError("api_no_tokenizer", name=served.name)
    return text
