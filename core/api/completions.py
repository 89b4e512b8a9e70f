"""The two routes that answer: chat completions and completions, whole or as a stream of events."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from core.api.choice_stream import ChoiceStream
from core.api.completion_prompts import read_completion_request
from core.api.dialects.dialect import Body, Exchange, OpenAiExchange
from core.api.errors import ApiError
from core.api.generation import AdmissionLimit, Choices, begin, cancel
from core.api.generation_request import GenerationRequest
from core.api.http_call import HttpCall
from core.api.intake import Intake
from core.api.just_in_time import JustInTime
from core.api.metrics import Metrics
from core.api.prompts import read_chat_request
from core.api.responses import ResponseWriter
from core.api.schema import ChatRequest, CompletionRequest, Sampled
from core.api.served_model import ServedModel, find_character, read_served_model
from core.engine.interface import Engine
from core.personas.listing import Listing

# A stream's headers wait this long for its first token: until they go out, an error still has a status.
PATIENCE_S = 5.0
SIGN_OF_LIFE_S = 15.0


@dataclass(frozen=True, slots=True)
class Order:
    """What is kept of a request while it is answered: its prompts are made, its texts are gone. `exchange` puts the
    answer into the words of the API that was asked."""

    served: ServedModel
    generations: Sequence[GenerationRequest]
    reply: ResponseWriter
    is_stream: bool
    includes_usage: bool
    exchange: Exchange


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

    async def chat(self, call: HttpCall, exchange: Exchange | None = None) -> None:
        """Messages, as the API of `exchange` has them; None: our own."""
        await self._take(call, ChatRequest, exchange or OpenAiExchange())

    async def count(self, call: HttpCall, exchange: Exchange) -> int:
        """The tokens of the prompt that messages make, also of one that is too long for the context."""

        def count(request: ChatRequest) -> int:
            try:
                served, generation = self._read_chat(request, call.owner)
            except ApiError as error:
                if error.key != "api_too_long":
                    raise
                return int(error.params["tokens"])
            prompt = generation.prompt
            return served.model.count_prompt(prompt) if isinstance(prompt, str) else len(prompt)

        with self._just_in_time.awake():
            return await self._intake.take(call, ChatRequest, count, self._prepare, exchange.translate)

    def _read_chat(self, request: ChatRequest, owner: str) -> tuple[ServedModel, GenerationRequest]:
        served, name = read_served_model(self._engine).named(request.model)
        entry = find_character(name, served, self._characters)
        character, key = (entry.character, entry.key) if entry is not None else (None, "")
        return served, read_chat_request(request, served, character, owner, key)

    async def complete(self, call: HttpCall, exchange: Exchange | None = None) -> None:
        """A text that goes on, as the API of `exchange` has it; None: our own."""
        await self._take(call, CompletionRequest, exchange or OpenAiExchange())

    async def either(self, call: HttpCall, exchange: Exchange) -> None:
        """Messages or a text, whichever the request of the API of `exchange` becomes."""
        await self._take(call, Sampled, exchange)

    async def _take(self, call: HttpCall, kind: type[Sampled], exchange: Exchange) -> None:
        def read(request: Sampled) -> Order:
            if isinstance(request, CompletionRequest):
                return self._completion_order(request, exchange)
            assert isinstance(request, ChatRequest)
            served, generation = self._read_chat(request, call.owner)
            reply = ResponseWriter("chat", request.model or served.name)
            return _order(request, served, [generation], reply, exchange)

        with self._just_in_time.awake():
            await self._answer(call, await self._intake.take(call, kind, read, self._prepare, exchange.translate))

    def _completion_order(self, request: CompletionRequest, exchange: Exchange) -> Order:
        served, name = read_served_model(self._engine).named(request.model)
        if find_character(name, served, self._characters) is not None:
            raise ApiError("api_character_completion", name=request.model or "")
        generations = read_completion_request(request, served)
        return _order(
            request, served, generations, ResponseWriter("completion", request.model or served.name), exchange
        )

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
                        await call.unless_gone(_stream(call, choices, order))
                    else:
                        await call.unless_gone(choices.all_done())
                        await call.json(order.exchange.whole(order.reply.whole(choices.kept(), choices.usage())))
                finally:
                    usage = choices.usage()
                    self._metrics.count_tokens(usage.prompt, usage.completion)
                    if choices.first_text_s is not None:
                        self._metrics.observe_first_token(choices.first_text_s - begin_s)


def _order(
    request: Sampled,
    served: ServedModel,
    generations: Sequence[GenerationRequest],
    reply: ResponseWriter,
    exchange: Exchange,
) -> Order:
    includes_usage = bool(request.stream_options and request.stream_options.include_usage)
    return Order(served, generations, reply, bool(request.stream), includes_usage, exchange)


async def _stream(call: HttpCall, choices: Choices, order: Order) -> None:
    """Send pieces as they come. Raises the error of an answer that fails."""
    reply = order.reply
    await choices.first_sign(PATIENCE_S)
    await call.start_stream()
    await _send(call, order.exchange.begin(choices.usage()))
    for index in range(len(choices.choices)):
        if (opening := reply.opening(index)) is not None:
            await _send_piece(call, order, opening)
    streams = [ChoiceStream(index, choice, reply) for index, choice in enumerate(choices.choices)]
    while not all(stream.has_ended for stream in streams):
        if not await choices.change(SIGN_OF_LIFE_S):
            await call.sign_of_life()
            continue
        error = choices.error
        for stream in streams:
            for piece in stream.pieces():
                await _send_piece(call, order, piece)
        if error is not None:
            raise error
    if order.includes_usage:
        await _send(call, order.exchange.pieces(reply.usage(choices.usage())))
    await _send(call, order.exchange.end())
    await call.end_stream()


async def _send_piece(call: HttpCall, order: Order, piece: Body) -> None:
    await _send(call, order.exchange.pieces(piece | {"usage": None} if order.includes_usage else piece))


async def _send(call: HttpCall, frames: Iterable[str]) -> None:
    for frame in frames:
        await call.frame(frame)
