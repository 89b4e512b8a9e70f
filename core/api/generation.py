"""Answers for one request, from the queue to the last word.

The engine's listener thread only wakes the event loop: no thread waits for an answer, however many there are.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import groupby

from core.api.errors import ApiError
from core.api.generation_request import GenerationRequest
from core.api.served_model import ServedModel
from core.chat.tools.calls import ToolCall
from core.common.errors import DeckError
from core.engine.answer import Answer
from core.engine.interface import Engine
from core.engine.protocol import Reason, TokenInfo
from core.engine.thought import Parts

# At most this many answers of each client wait for a slot.
MAX_WAITING = 64
# A stop string and the model's own end are one thing for OpenAI, and so are a full context and the asked-for length.
FINISH: dict[Reason | None, str] = {"length": "length", "context": "length"}


class AdmissionLimit:
    """Limits how many answers each client of the API has at once. For the event loop alone.

    Clients take nothing from each other's limit, because the engine answers them by turns.
    """

    def __init__(self, max_waiting: int = MAX_WAITING) -> None:
        self._max_waiting = max_waiting
        self._num_taken: Counter[str] = Counter()

    @contextmanager
    def take(self, wanted: int, served: ServedModel, client: str) -> Iterator[None]:
        """Admit `wanted` answers. Raises ApiError where the client has fewer left, or never has that many."""
        limit = served.num_slots + self._max_waiting
        if wanted > limit:
            raise ApiError("api_many", wanted=wanted, limit=limit)
        if self._num_taken[client] + wanted > limit:
            raise ApiError("api_busy", limit=limit)
        self._num_taken[client] += wanted
        try:
            yield
        finally:
            self._num_taken[client] -= wanted
            if not self._num_taken[client]:
                del self._num_taken[client]


@dataclass(frozen=True, slots=True)
class Choice:
    """One answer and its request. `prompt` is the index of its prompt in the body."""

    request: GenerationRequest
    answer: Answer
    prompt: int
    # The numbers of its calls begin with it. Mistral's templates want them to have nine letters and digits.
    call_seed: str = field(default_factory=lambda: secrets.token_hex(4)[:7])

    def message(self) -> tuple[Parts, tuple[ToolCall, ...], bool]:
        """The parts of the message and its calls that are certain by now, and whether that is all of it."""
        is_done = not self.answer.is_running
        return *self.request.visible_message(self.answer.text, is_done), is_done

    def call_id(self, place: int) -> str:
        return f"{self.call_seed}{place % 100:02}"

    @property
    def tells_logprobs(self) -> bool:
        return self.request.tells_logprobs

    def tokens(self) -> tuple[TokenInfo, ...]:
        """The tokens with their log-probabilities, the prompt's first where they are told; none where nobody asked."""
        if not self.tells_logprobs:
            return ()
        written = () if self.request.is_prompt_alone else self.answer.tokens
        return (*self.answer.prompt_scores, *written)

    @property
    def num_tokens(self) -> int:
        """Those that were written. Tokens without a text of their own, such as the last one, are in the engine's own
        count only."""
        if self.request.is_prompt_alone:
            return 0
        return self.answer.num_tokens if self.answer.stats is None else self.answer.stats.num_tokens

    def finish(self, has_calls: bool = False) -> dict[str, str | None]:
        """Why it ended, by OpenAI's name, and which stop string ended it, by vLLM's."""
        if self.request.is_prompt_alone:
            return {"finish_reason": "length", "stop_reason": None}
        found = FINISH.get(self.answer.reason, "tool_calls" if has_calls else "stop")
        return {"finish_reason": found, "stop_reason": self.answer.stop or None}


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens. The engine had read `cached` of the `prompt` tokens before."""

    prompt: int
    completion: int
    cached: int


class Choices:
    """All answers of one request, as a context whose end cancels those that still run."""

    def __init__(self, choices: Sequence[Choice]) -> None:
        self.choices = tuple(choices)
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        # By the event loop's clock.
        self.first_text_s: float | None = None
        for choice in self.choices:
            choice.answer.add_listener(self._wake)

    def __enter__(self) -> Choices:
        return self

    def __exit__(self, *_: object) -> None:
        for choice in self.choices:
            if choice.answer.is_running:
                # Not here: nobody waits for it.
                self._loop.run_in_executor(None, choice.answer.cancel)

    def _wake(self) -> None:
        with suppress(RuntimeError):  # The loop is closed: nobody listens any more.
            self._loop.call_soon_threadsafe(self._changed.set)

    async def change(self, timeout_s: float | None = None) -> bool:
        """Wait for news since the last call; False when `timeout_s` passes before."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()
        except TimeoutError:
            return False
        self._changed.clear()
        if self.first_text_s is None and any(choice.answer.text for choice in self.choices):
            self.first_text_s = self._loop.time()
        return True

    async def first_sign(self, timeout_s: float) -> None:
        """Wait until one has begun, at most `timeout_s`. Raises the error of one that failed without a word."""
        deadline_s = self._loop.time() + timeout_s
        while all(choice.answer.phase == "queued" for choice in self.choices):
            if not await self.change(max(0.0, deadline_s - self._loop.time())):
                break
        error = self.error
        if error is not None and not any(choice.answer.text for choice in self.choices):
            raise error
        self._changed.set()

    async def all_done(self) -> None:
        """Wait for the end of all. Raises the error of the first that fails."""
        while self.error is None and any(choice.answer.is_running for choice in self.choices):
            await self.change()
        if (error := self.error) is not None:
            raise error

    def kept(self) -> list[Choice]:
        """Those that are sent, once all are done: of a prompt with more the likeliest by token, the best first."""
        kept: list[Choice] = []
        for _, group in groupby(self.choices, key=lambda choice: choice.prompt):
            choices = list(group)
            num_kept = choices[0].request.num_kept
            kept += choices if num_kept is None else sorted(choices, key=_likelihood, reverse=True)[:num_kept]
        return kept

    @property
    def error(self) -> DeckError | None:
        """Of the first that failed. Whoever sends what was written looks here before: after it, no word is missed."""
        return next((choice.answer.error for choice in self.choices if choice.answer.error is not None), None)

    def usage(self) -> Usage:
        """A prompt counts once, however many answers it gets."""
        prompts = {choice.prompt: choice.answer for choice in self.choices}
        return Usage(
            sum(answer.prompt_tokens for answer in prompts.values()),
            sum(choice.num_tokens for choice in self.choices),
            sum(answer.stats.reused_tokens for answer in prompts.values() if answer.stats is not None),
        )


def _likelihood(choice: Choice) -> float:
    """The mean log-probability of an answer's tokens."""
    values = [one.chosen.logprob for one in choice.answer.tokens if one.chosen.logprob is not None]
    return sum(values) / len(values) if values else 0.0


def begin(engine: Engine, requests: Sequence[GenerationRequest], served: ServedModel, client: str = "") -> list[Choice]:
    """Ask the engine; not for the event loop, as a long prompt takes a while. Raises EngineError, ApiError."""
    choices: list[Choice] = []
    try:
        for number, request in enumerate(requests):
            for index in range(request.num_choices):
                sampling = request.sampling_of(index)
                answer = engine.generate(
                    request.prompt, sampling, request.continues, client, request.thought, request.options
                )
                answer.is_for_page = False
                choices.append(Choice(request, answer, number))
        if engine.state.model != served.name:
            # Another model took its place meanwhile, and would read a prompt that was made for the first.
            raise ApiError("api_loading", name=engine.state.model or "", percent=0)
    except DeckError:
        cancel(choices)
        raise
    return choices


def cancel(choices: Sequence[Choice]) -> None:
    """Not for the event loop."""
    for choice in choices:
        choice.answer.cancel()
