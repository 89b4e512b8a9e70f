"""The two routes that answer: chat completions and completions, whole or as a stream of events."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from core.api.errors import ApiError
from core.api.generation import AdmissionLimit, Choices, begin, cancel
from core.api.http_call import DONE, HttpCall, to_json
from core.api.intake import Intake
from core.api.just_in_time import JustInTime
from core.api.metrics import Metrics
from core.api.prompts import GenerationRequest, read_chat_request, read_completion_request
from core.api.responses import ResponseWriter
from core.api.schema import ChatRequest, CompletionRequest, Sampled
from core.api.served_model import ServedModel, find_character, read_served_model
from core.engine.interface import Engine
from core.engine.thought import Parts
from core.personas.listing import Listing

# A stream's headers wait this long for its first token: until they go out, an error still has a status.
PATIENCE_S = 5.0
SIGN_OF_LIFE_S = 15.0


@dataclass(frozen=True, slots=True)
class Order:
    """What is kept of a request while it is answered: its prompts are made, its texts are gone."""

    served: ServedModel
    generations: Sequence[GenerationRequest]
    reply: ResponseWriter
    is_stream: bool
    includes_usage: bool


class Completions:
    """Handlers of requests for answers; each of them raises DeckError or ClientGone."""

    def __init__(
        self,
        engine: Engine,
        characters: Listing,
        metrics: Metrics,
        intake: Intake,
        admission: AdmissionLimit,
        just_in_time: JustInTime,
    ) -> None:
        self._engine, self._characters, self._metrics = engine, characters, metrics
        self._intake, self._admission, self._just_in_time = intake, admission, just_in_time

    async def chat(self, call: HttpCall) -> None:
        def read(request: ChatRequest) -> Order:
            served = read_served_model(self._engine)
            entry = find_character(request.model, served, self._characters)
            character, key = (entry.character, entry.key) if entry is not None else (None, "")
            generations = [read_chat_request(request, served, character, call.owner, key)]
            return _order(request, served, generations, ResponseWriter("chat", request.model or served.name))

        await self._answer(call, await self._intake.take(call, ChatRequest, read, self._prepare))

    async def complete(self, call: HttpCall) -> None:
        def read(request: CompletionRequest) -> Order:
            served = read_served_model(self._engine)
            if find_character(request.model, served, self._characters) is not None:
                raise ApiError("api_character_completion", name=request.model or "")
            return _order(
                request, served, read_completion_request(request, served), ResponseWriter("completion", served.name)
            )

        await self._answer(call, await self._intake.take(call, CompletionRequest, read, self._prepare))

    async def _prepare(self, request: Sampled) -> None:
        await self._just_in_time.ready(request.model)

    async def _answer(self, call: HttpCall, order: Order) -> None:
        begin_s = asyncio.get_running_loop().time()
        with self._admission.take(sum(one.num_choices for one in order.generations), order.served, call.client):
            begun = await self._intake.run(
                lambda: begin(self._engine, order.generations, order.served, call.client), cancel
            )
            with Choices(begun) as choices:
                try:
                    if order.is_stream:
                        await call.unless_gone(_stream(call, choices, order.reply, order.includes_usage))
                    else:
                        await call.unless_gone(choices.all_done())
                        messages = [(choice.parts()[0], choice.answer.reason) for choice in choices.choices]
                        await call.json(order.reply.whole(messages, choices.usage()))
                finally:
                    usage = choices.usage()
                    self._metrics.count_tokens(usage.prompt, usage.completion)
                    if choices.first_text_s is not None:
                        self._metrics.observe_first_token(choices.first_text_s - begin_s)


def _order(
    request: Sampled, served: ServedModel, generations: Sequence[GenerationRequest], reply: ResponseWriter
) -> Order:
    includes_usage = bool(request.stream_options and request.stream_options.include_usage)
    return Order(served, generations, reply, bool(request.stream), includes_usage)


async def _stream(call: HttpCall, choices: Choices, reply: ResponseWriter, includes_usage: bool) -> None:
    """Send pieces as they come. Raises the error of an answer that fails."""
    await choices.first_sign(PATIENCE_S)
    await call.start_stream()
    for index in range(len(choices.choices)):
        if (opening := reply.opening(index)) is not None:
            await _send(call, opening, includes_usage)
    sent, ended = [Parts()] * len(choices.choices), [False] * len(choices.choices)
    while not all(ended):
        if not await choices.change(SIGN_OF_LIFE_S):
            await call.sign_of_life()
            continue
        for index, choice in enumerate(choices.choices):
            parts, is_done = choice.parts()
            if thought := parts.thought[len(sent[index].thought) :]:
                await _send(call, reply.thought(index, thought), includes_usage)
            if text := parts.answer[len(sent[index].answer) :]:
                await _send(call, reply.piece(index, text), includes_usage)
            sent[index] = parts
            if is_done and choice.answer.error is not None:
                raise choice.answer.error
            if is_done and not ended[index]:
                ended[index] = True
                await _send(call, reply.end(index, choice.answer.reason), includes_usage)
    if includes_usage:
        await call.event(to_json(reply.usage(choices.usage())))
    await call.event(DONE)
    await call.end_stream()


async def _send(call: HttpCall, piece: dict[str, object], includes_usage: bool) -> None:
    await call.event(to_json(piece | {"usage": None} if includes_usage else piece))
