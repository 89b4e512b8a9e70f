"""Over a tiny real model: an answer is the same to the last bit whether its beginning was read or taken from another
chat, from its row or in pages, and whether or not its pages were lost meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from core.engine.protocol import PromptScored
from core.engine.request_options import RequestOptions
from core.memory.pages import PAGE_TOKENS
from core.tokenizer.read import read_tokenizer
from core.worker.decode.steps import EagerSteps
from core.worker.model.model_runner import ModelRunner
from tests.support.checkpoints import make_checkpoint
from tests.support.dense_models import load_dense
from tests.support.scheduler_harness import SchedulerHarness

CONTEXT, CHUNK = 256, 32
SYSTEM = tuple(range(40, 136))
PROMPTS = [(*SYSTEM, 150 + number, *range(170, 180 + number)) for number in range(3)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny"
    make_checkpoint(path)
    return path


@pytest.fixture(scope="module")
def model(folder: Path) -> Iterator[torch.nn.Module]:
    with torch.inference_mode():
        yield load_dense(folder, torch.float32)


def make_harness(folder: Path, model, num_slots: int = 3, num_pages: int | None = None) -> SchedulerHarness:
    runner = ModelRunner(model, num_slots, CONTEXT, num_pages=num_pages)
    return SchedulerHarness(EagerSteps(runner), read_tokenizer(folder), chunk=CHUNK)


def ask(harness: SchedulerHarness, request: int, max_new_tokens: int = 40) -> None:
    """A random draw shows a difference that the likeliest token may not, and log-probabilities the last bit."""
    harness.ask(
        request,
        PROMPTS[request],
        temperature=1.0,
        seed=request,
        max_new_tokens=max_new_tokens,
        options=RequestOptions(logprobs=0),
    )


def words(harness: SchedulerHarness, request: int) -> list[tuple[int, float | None]]:
    chunks = [event for event in harness.events if getattr(event, "request", None) == request]
    told = [token for event in chunks for token in getattr(event, "tokens", ())]
    return [(token.chosen.token, token.chosen.logprob) for token in told]


@pytest.fixture(scope="module")
def alone(folder: Path, model) -> list[list[tuple[int, float | None]]]:
    answers = []
    for request in range(3):
        harness = make_harness(folder, model, num_slots=1)
        ask(harness, request)
        harness.run()
        answers.append(words(harness, request))
    return answers


@pytest.mark.parametrize("num_pages", [None, 3 * CONTEXT // PAGE_TOKENS], ids=["rows", "pages"])
def test_answers_are_the_same_to_the_last_bit_with_a_shared_beginning(
    folder: Path, model, alone: list[list[tuple[int, float | None]]], num_pages: int | None
) -> None:
    """One after the other: the last bit of a plain pass depends on how many rows it has."""
    harness = make_harness(folder, model, num_pages=num_pages)
    for request in range(3):
        ask(harness, request)
        harness.run()
    assert [words(harness, request) for request in range(3)] == alone
    assert [len(answer) for answer in alone] == [40] * 3
    assert [harness.end(request).stats.reused_tokens for request in range(3)] == [0, len(SYSTEM), len(SYSTEM)]


@pytest.mark.parametrize("num_pages", [None, 2 * CONTEXT // PAGE_TOKENS], ids=["rows", "pages"])
def test_a_beginning_comes_from_a_chat_that_is_being_answered(
    folder: Path, model, alone: list[list[tuple[int, float | None]]], num_pages: int | None
) -> None:
    harness = make_harness(folder, model, 2, num_pages)
    ask(harness, 0)
    for _ in range(8):
        harness.scheduler.step()
    ask(harness, 1)
    harness.run()
    for request in range(2):
        assert [token for token, _ in words(harness, request)] == [token for token, _ in alone[request]]
    # A page is shared once it is full.
    assert harness.end(1).stats.reused_tokens == (PAGE_TOKENS if num_pages else len(SYSTEM))


def test_an_answer_whose_pages_are_lost_meanwhile_says_the_same(folder: Path, model) -> None:
    """Its chunks are others then, and so may be the last bit; its draws are the same."""
    texts = []
    for num_pages in (8, 4):
        harness = make_harness(folder, model, 2, num_pages)
        for request, prompt in enumerate([(7, 8, 9), (11, 12)]):
            harness.ask(request, prompt, temperature=1.0, seed=request, repetition_penalty=1.1, max_new_tokens=200)
        was_paused = False
        while not harness.scheduler.is_idle:
            harness.scheduler.step()
            was_paused |= any(slot.is_paused for slot in harness.scheduler._slots)
        assert was_paused == (num_pages == 4)
        texts.append([harness.text(request) for request in range(2)])
    assert texts[0] == texts[1]


def test_a_prompt_is_scored_once_though_its_pages_are_lost_meanwhile(folder: Path, model) -> None:
    harness = make_harness(folder, model, 2, 4)
    harness.ask(0, (7, 8, 9), max_new_tokens=200, temperature=1.0, seed=1, options=RequestOptions(logprobs=0))
    for _ in range(121):
        harness.scheduler.step()
    prompt = tuple(range(30, 150))
    harness.ask(1, prompt, max_new_tokens=2, options=RequestOptions(logprobs=0, prompt_logprobs=True))
    was_paused = False
    while not harness.scheduler.is_idle:
        harness.scheduler.step()
        was_paused |= harness.scheduler._slots[1].is_paused
    assert was_paused
    told = [token.chosen.token for event in harness.events if isinstance(event, PromptScored) for token in event.tokens]
    assert told == list(prompt)
    assert harness.end(1).reason == "length"
