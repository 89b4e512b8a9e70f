"""The two routes that answer: chat completions and completions, whole or as a stream of events."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from core.api.errors import ApiError
from core.api.generation import Choices, Places, begin, cancel
from core.api.http_call import DONE, Call, to_json
from core.api.intake import Intake
from core.api.metrics import Metrics
from core.api.prompts import Ask, ask_chat, ask_completions
from core.api.responses import Reply
from core.api.schema import ChatRequest, CompletionRequest, Sampled
from core.api.served_model import Loaded, find_character, read_loaded
from core.engine.interface import Engine
from core.personas.listing import Listing

# How long a stream waits for its turn before it says that it is one: until then an error still has a status.
PATIENCE_S = 5.0
SIGN_OF_LIFE_S = 15.0


@dataclass(frozen=True, slots=True)
class Order:
    """What is left of a request once its prompts are made: its texts are not kept while they are answered."""

    loaded: Loaded
    asks: Sequence[Ask]
    reply: Reply
    is_stream: bool
    includes_usage: bool


class Completions:
    """Handlers of requests for answers; each of them raises DeckError or ClientGone."""

    def __init__(self, engine: Engine, characters: Listing, metrics: Metrics, intake: Intake, places: Places) -> None:
        self._engine, self._characters, self._metrics = engine, characters, metrics
        self._intake, self._places = intake, places

    async def chat(self, call: Call) -> None:
        def read(request: ChatRequest) -> Order:
            loaded = read_loaded(self._engine)
            character = find_character(request.model, loaded, self._characters)
            asks = [ask_chat(request, loaded, character, call.owner)]
            return _order(request, loaded, asks, Reply("chat", request.model or loaded.name))

        await self._answer(call, await self._intake.take(call, ChatRequest, read))

    async def complete(self, call: Call) -> None:
        def read(request: CompletionRequest) -> Order:
            loaded = read_loaded(self._engine)
            if find_character(request.model, loaded, self._characters) is not None:
                raise ApiError("api_character_completion", name=request.model or "")
            return _order(request, loaded, ask_completions(request, loaded), Reply("completion", loaded.name))

        await self._answer(call, await self._intake.take(call, CompletionRequest, read))

    async def _answer(self, call: Call, order: Order) -> None:
        begin_s = asyncio.get_running_loop().time()
        with self._places.take(sum(ask.num_choices for ask in order.asks), order.loaded, call.client):
            begun = await self._intake.run(lambda: begin(self._engine, order.asks, order.loaded, call.client), cancel)
            with Choices(begun) as choices:
                try:
                    if order.is_stream:
                        await call.unless_gone(_stream(call, choices, order.reply, order.includes_usage))
                    else:
                        await call.unless_gone(choices.all_done())
                        texts = [(choice.text()[0], choice.answer.reason) for choice in choices.choices]
                        await call.json(order.reply.whole(texts, choices.usage()))
                finally:
                    usage = choices.usage()
                    self._metrics.count_tokens(usage.prompt, usage.completion)
                    if choices.first_text_s is not None:
                        self._metrics.observe_first_token(choices.first_text_s - begin_s)


def _order(request: Sampled, loaded: Loaded, asks: Sequence[Ask], reply: Reply) -> Order:
    includes_usage = bool(request.stream_options and request.stream_options.include_usage)
    return Order(loaded, asks, reply, bool(request.stream), includes_usage)


async def _stream(call: Call, choices: Choices, reply: Reply, includes_usage: bool) -> None:
    """Send pieces as they come. Raises the error of an answer that fails."""
    await choices.first_sign(PATIENCE_S)
    await call.start_stream()
    for index in range(len(choices.choices)):
        if (opening := reply.opening(index)) is not None:
            await _send(call, opening, includes_usage)
    sent, ended = [0] * len(choices.choices), [False] * len(choices.choices)
    while not all(ended):
        if not await choices.change(SIGN_OF_LIFE_S):
            await call.sign_of_life()
            continue
        choices.raise_failed()
        for index, choice in enumerate(choices.choices):
            text, is_done = choice.text()
            if len(text) > sent[index]:
                await _send(call, reply.piece(index, text[sent[index] :]), includes_usage)
                sent[index] = len(text)
            if is_done and not ended[index]:
                ended[index] = True
                await _send(call, reply.end(index, choice.answer.reason), includes_usage)
    if includes_usage:
        await call.event(to_json(reply.usage(choices.usage())))
    await call.event(DONE)
    await call.end_stream()


async def _send(call: Call, piece: dict[str, object], includes_usage: bool) -> None:
    await call.event(to_json(piece | {"usage": None} if includes_usage else piece))
