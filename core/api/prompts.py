"""From a request with messages to what the engine is asked: prompts and settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from core.api.errors import ApiError
from core.api.generation_request import GenerationRequest
from core.api.json_text import to_json
from core.api.length_fields import ALL_THERE_IS
from core.api.message_fields import Message
from core.api.named_speakers import as_character, as_dialogue
from core.api.prompt_size import check_length, check_size
from core.api.request_settings import read_options, read_sampling
from core.api.schema import ChatRequest
from core.api.served_model import ServedModel
from core.api.tool_fields import tool_of
from core.api.tool_use import read_tools
from core.api.turns import text_of, turn_of
from core.chat.modes import choose_mode
from core.chat.template import ChatTemplate
from core.chat.thinking import Thinking, switched, with_effort
from core.chat.tools.prompt import takes_tools, with_tools_told
from core.engine.sampling_params import MAX_STOP_STRINGS
from core.engine.thought import ThoughtRules, ThoughtSplitter
from core.engine.thought_formats import THINK
from core.personas.character import Character
from core.personas.user import read_persona


def read_chat_request(
    request: ChatRequest, served: ServedModel, character: Character | None, owner: str = "", key: str = ""
) -> GenerationRequest:
    """The model's answer to the messages, or the character's, whose key is `key`, to the persona that `owner` has for
    it. Raises DeckError."""
    check_size([*map(text_of, request.messages), *_texts_of_tools(request)], served)
    sampling = read_sampling(request, served, request.max_completion_tokens or request.max_tokens or ALL_THERE_IS)
    if request.top_logprobs and not request.logprobs:
        raise ApiError("api_field", field="top_logprobs", why="it counts beside logprobs: true alone")
    options = read_options(request, served, (request.top_logprobs or 0) if request.logprobs else None)
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
        asked, begun = as_character(messages, start, sampling, request.n or 1, served, character, user)
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
        asked = as_dialogue(messages, start, sampling, request.n or 1, served)
        return replace(
            asked,
            thought=_rules(request, template, start, thinking),
            options=options,
            tells_logprobs=bool(request.logprobs),
        )
    turns = [turn_of(message) for message in messages]
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


def render_messages(messages: Sequence[Message], served: ServedModel, variables: Mapping[str, Any]) -> str:
    """The prompt for messages in the model's own form, whose template is given `variables`. Raises DeckError."""
    check_size([message.content for message in messages], served)
    template = replace(served.model.template, variables=variables)
    turns = [turn_of(message) for message in messages]
    return template.render(turns if takes_tools(template.source or "") else with_tools_told(turns, {}))


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
