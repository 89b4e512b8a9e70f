"""The engine's loop over a tiny real model, in this process: what is said, in which order, and that nobody disturbs
anybody else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from core.checkpoint.checkpoint import read_checkpoint
from core.engine.detokenize import TextStream
from core.engine.protocol import Event, Failed, Finished, Generate, PromptStarted, TextChunk
from core.engine.sampling_params import Sampling
from core.memory.kernels.registry import kernel_named
from core.worker.decode.steps import EagerSteps
from core.worker.model.device_map import DeviceMap
from core.worker.model.loader import load_model
from core.worker.model.model_runner import ModelRunner
from core.worker.scheduler import Scheduler
from core.worker.tokenizer import read_tokenizer
from tests.support.checkpoints import make_checkpoint

GREEDY = {"temperature": 0.0}
PROMPT = "What is the capital of France?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny"
    make_checkpoint(path)
    return path


@pytest.fixture(scope="module")
def model(folder: Path) -> Iterator[torch.nn.Module]:
    """In float32: in bfloat16 the order of a sum, which a batch changes, can decide between two close tokens."""
    dense = kernel_named("dense")
    with torch.inference_mode():
        yield load_model(
            read_checkpoint(folder), dense, DeviceMap((torch.device("cpu"),)), torch.float32, 64, lambda _: None
        )


class SchedulerHarness:
    """A scheduler and everything that it said."""

    def __init__(self, folder: Path, model, num_slots: int = 3, context: int = 128, chunk: int = 8, ends=()) -> None:
        self.events: list[Event] = []
        self.tokenizer = read_tokenizer(folder)
        with torch.inference_mode():
            slots = ModelRunner(model, num_slots, context)
        self.scheduler = Scheduler(EagerSteps(slots), self.tokenizer, frozenset(ends), chunk, self.events.append)

    def ask(self, request: int, prompt: str | tuple[int, ...] = PROMPT, client: str = "", **sampling) -> None:
        settings = Sampling(**{**GREEDY, "max_new_tokens": 12, **sampling})
        self.scheduler.submit(Generate(request, prompt, settings, client=client))

    def run(self) -> None:
        for _ in range(2000):
            if self.scheduler.is_idle:
                return
            self.scheduler.step()
        raise AssertionError("the scheduler never came to an end")

    def text(self, request: int) -> str:
        return "".join(event.text for event in self.events if isinstance(event, TextChunk) and event.request == request)

    def end(self, request: int) -> Finished:
        (end,) = [event for event in self.events if isinstance(event, Finished) and event.request == request]
        return end


@pytest.fixture
def desk(folder: Path, model) -> SchedulerHarness:
    return SchedulerHarness(folder, model)


def test_an_answer_begins_grows_and_ends(desk: SchedulerHarness) -> None:
    desk.ask(1)
    desk.run()
    assert isinstance(desk.events[0], PromptStarted)
    assert isinstance(desk.events[-1], Finished)
    assert desk.end(1).reason == "length"
    assert desk.end(1).stats.num_tokens == 12
    assert desk.end(1).stats.prompt_tokens == desk.events[0].prompt_tokens > 4
    assert desk.text(1)


def test_greedy_answers_are_what_the_model_says_without_a_cache(desk: SchedulerHarness, model) -> None:
    """Every token is the likeliest after a plain pass over the whole text so far, in chunks or not."""
    desk.ask(1, max_new_tokens=20)
    desk.run()
    tokens = desk.tokenizer.encode(PROMPT, add_special_tokens=False).ids
    num_prompt = len(tokens)
    with torch.inference_mode():
        slots = ModelRunner(model, 1, 128)
        for _ in range(20):
            row = torch.tensor([tokens])
            logits = slots.forward(row, torch.arange(len(tokens)).unsqueeze(0), 0, len(tokens))
            tokens.append(int(logits[0].float().argmax()))
    assert desk.text(1) == desk.tokenizer.decode(tokens[num_prompt:])


def test_an_answer_does_not_depend_on_what_runs_beside_it(folder: Path, model) -> None:
    questions = {
        1: PROMPT,
        2: "Hello, how are you today?",
        3: "The quick brown fox",
        4: "你好，世界。",
        5: "user",
    }
    alone = {}
    for request, question in questions.items():
        desk = SchedulerHarness(folder, model)
        desk.ask(request, question, temperature=0.9, seed=request)
        desk.run()
        alone[request] = desk.text(request)
    together = SchedulerHarness(folder, model)
    for request, question in questions.items():
        together.ask(request, question, temperature=0.9, seed=request)
    together.run()
    assert {request: together.text(request) for request in questions} == alone
    assert len(set(alone.values())) == len(questions)


def test_an_idle_slots_text_survives_what_its_neighbours_do(folder: Path, model) -> None:
    """Rows between two busy ones compute along; once, they would have overwritten what an idle row held."""
    desk = SchedulerHarness(folder, model, num_slots=3)
    long = PROMPT * 3
    for request, question in enumerate(["The quick", long, "Hello,"], start=1):
        desk.ask(request, question, max_new_tokens=40 if request != 2 else 2)
    desk.run()
    desk.ask(4, long, max_new_tokens=10)
    desk.run()
    fresh = SchedulerHarness(folder, model, num_slots=1)
    fresh.ask(4, long, max_new_tokens=10)
    fresh.run()
    assert desk.end(4).stats.reused_tokens > 0
    assert desk.text(4) == fresh.text(4)


def test_a_prompt_that_was_read_before_is_not_read_again(desk: SchedulerHarness) -> None:
    desk.ask(1)
    desk.run()
    desk.ask(2)
    desk.run()
    assert desk.end(2).stats.reused_tokens == desk.end(2).stats.prompt_tokens - 1
    assert desk.text(1) == desk.text(2)


def test_requests_beyond_the_slots_wait_their_turn(folder: Path, model) -> None:
    desk = SchedulerHarness(folder, model, num_slots=1)
    for request in (1, 2, 3):
        desk.ask(request, max_new_tokens=5)
    desk.run()
    ends = [event.request for event in desk.events if isinstance(event, Finished)]
    begins = [event.request for event in desk.events if isinstance(event, PromptStarted)]
    assert ends == begins == [1, 2, 3]


def test_a_page_does_not_wait_for_the_many_requests_of_a_client(folder: Path, model) -> None:
    """One program's requests once stood before everybody else's: in the order in which they came."""
    desk = SchedulerHarness(folder, model, num_slots=1)
    for request in (1, 2, 3, 4):
        desk.ask(request, client="key one", max_new_tokens=2)
    desk.scheduler.step()
    desk.ask(5, client="key two", max_new_tokens=2)
    desk.ask(6, max_new_tokens=2)
    desk.scheduler.cancel(3)
    desk.run()
    begins = [event.request for event in desk.events if isinstance(event, PromptStarted)]
    assert begins == [1, 6, 2, 5, 4]


def test_a_long_prompt_does_not_keep_another_answer_waiting(folder: Path, model) -> None:
    desk = SchedulerHarness(folder, model, num_slots=2, context=256, chunk=4)
    desk.ask(1, "Hello", max_new_tokens=5)
    desk.scheduler.step()
    desk.ask(2, PROMPT * 12, max_new_tokens=5)
    while not any(isinstance(event, Finished) for event in desk.events):
        desk.scheduler.step()
    assert desk.end(1).reason == "length"
    assert desk.text(1) and not desk.text(2)
    desk.run()
    assert desk.end(2).stats.prompt_tokens > 10 * 4


def test_the_same_seed_says_the_same_and_another_does_not(desk: SchedulerHarness) -> None:
    for request, seed in ((1, 7), (2, 7), (3, 8)):
        desk.ask(request, temperature=1.5, seed=seed, max_new_tokens=20)
    desk.run()
    assert desk.text(1) == desk.text(2) != desk.text(3)
    assert desk.end(1).stats.seed == 7


def test_cancel_ends_an_answer_before_its_next_token(desk: SchedulerHarness) -> None:
    desk.ask(1, max_new_tokens=100)
    for _ in range(12):
        desk.scheduler.step()
    desk.scheduler.cancel(1)
    drawn = desk.end(1).stats.num_tokens
    desk.run()
    assert desk.end(1).reason == "cancelled"
    assert 0 < drawn < 100
    assert desk.scheduler.is_idle


def test_cancel_reaches_a_request_that_waits_and_one_that_is_being_read(folder: Path, model) -> None:
    desk = SchedulerHarness(folder, model, num_slots=1, chunk=4)
    desk.ask(1)
    desk.ask(2)
    desk.scheduler.step()
    desk.scheduler.cancel(2)
    desk.scheduler.cancel(1)
    desk.scheduler.cancel(99)
    assert desk.scheduler.is_idle
    assert desk.end(1).reason == desk.end(2).reason == "cancelled"
    assert desk.end(1).stats.num_tokens == 0


def test_a_stop_string_ends_the_answer_and_is_not_shown(desk: SchedulerHarness) -> None:
    desk.ask(1, max_new_tokens=30)
    desk.run()
    whole = desk.text(1)
    stop = whole[8:11]
    desk.ask(2, max_new_tokens=30, stop=(stop,))
    desk.run()
    assert desk.end(2).reason == "stop"
    assert desk.text(2) == whole[: whole.index(stop)]


def test_an_end_token_ends_the_answer(folder: Path, model) -> None:
    desk = SchedulerHarness(folder, model)
    desk.ask(1, max_new_tokens=6)
    desk.run()
    tokens = desk.tokenizer.encode(desk.text(1), add_special_tokens=False).ids
    ending = SchedulerHarness(folder, model, ends=range(384))
    ending.ask(1)
    ending.run()
    assert tokens
    assert ending.end(1).reason == "end"
    assert ending.text(1) == ""


def test_a_full_context_ends_the_answer(folder: Path, model) -> None:
    desk = SchedulerHarness(folder, model, context=40)
    desk.ask(1, max_new_tokens=500)
    desk.run()
    stats = desk.end(1).stats
    assert desk.end(1).reason == "context"
    assert stats.prompt_tokens + stats.num_tokens == 41  # The last token drawn needs no room of its own.


@pytest.mark.parametrize(
    ("prompt", "key"), [("", "prompt_empty"), ((), "prompt_empty"), (tuple(range(3, 60)), "prompt_too_long")]
)
def test_a_prompt_that_cannot_be_answered_fails_at_once(folder: Path, model, prompt, key: str) -> None:
    desk = SchedulerHarness(folder, model, context=40)
    desk.ask(1, prompt)
    (event,) = desk.events
    assert isinstance(event, Failed)
    assert event.error.key == key
    assert desk.scheduler.is_idle


def test_an_answer_that_the_tokenizer_panics_at_fails_alone(folder, model) -> None:
    """The panic ended the process, and with it every other chat's answer."""

    class Panicking:
        """Turns three tokens into text and then panics."""

        num_left = 3

        def decode(self, tokens: list[int], **_: object) -> str:
            self.num_left -= 1
            if self.num_left < 0:
                raise type("PanicException", (BaseException,), {})("index out of bounds")
            return "x" * len(tokens)

    desk = SchedulerHarness(folder, model)
    desk.ask(1)
    desk.ask(2)
    next(iter(desk.scheduler._waiting)).stream = TextStream(Panicking(), ())  # type: ignore[arg-type]
    desk.run()
    (failed,) = [event for event in desk.events if isinstance(event, Failed)]
    assert failed.request == 1 and "index out of bounds" in str(failed.error)
    assert [event.request for event in desk.events if isinstance(event, Finished)] == [2]
