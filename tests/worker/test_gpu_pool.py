"""On a GPU: chats that share pages and beginnings. Run with `pytest -m gpu` on a GPU host.

A text that was read again has other chunks than the first time, so its last bits may differ, and a token that was
hardly the likeliest may be another one. So each answer is scored afterwards: every token must have been the likeliest,
or as good as.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from core.engine.protocol import Load, PromptScored
from core.engine.request_options import RequestOptions
from core.memory.cache_choice import EVERY_CHAT_FULL, CacheChoice
from core.worker.load import LoadedEngine
from tests.support.checkpoints import Recipe, make_checkpoint
from tests.support.gpu_engines import Engines
from tests.support.scheduler_harness import SchedulerHarness

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
CONTEXT_TOKENS, CHATS = 512, 3
SIZES: dict[str, Any] = {"hidden": 512, "intermediate": 1024, "num_heads": 8, "context_tokens": CONTEXT_TOKENS}
RECIPE = Recipe(group_size=128, num_kv_heads=2, **SIZES)
SYSTEM = tuple(3 + place * 7 % 370 for place in range(220))
# Of a natural logarithm of a probability.
AS_GOOD = 0.1


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "pool"
    make_checkpoint(path, RECIPE)
    return path


def open_engine(engines: Engines, folder: Path, cache: CacheChoice) -> tuple[LoadedEngine, SchedulerHarness]:
    engine = engines.open(folder, Load(folder, CONTEXT_TOKENS, CHATS, "llamadeck", cache=cache))
    assert engine.steps.page_tokens == 64
    return engine, SchedulerHarness(engine.steps, engine.tokenizer, engine.chunk_tokens)


def said(harness: SchedulerHarness, request: int) -> tuple[int, ...]:
    mine = [event for event in harness.events if getattr(event, "request", None) == request]
    chunks = [event for event in mine if not isinstance(event, PromptScored)]
    return tuple(token.chosen.token for event in chunks for token in getattr(event, "tokens", ()))


def require_likeliest(harness: SchedulerHarness, prompt: tuple[int, ...], answer: tuple[int, ...]) -> None:
    """Every token of an answer must have been the likeliest after the text before it, read anew."""
    harness.events.clear()
    options = RequestOptions(logprobs=1, prompt_logprobs=True)
    harness.ask(99, (*prompt, *answer)[: CONTEXT_TOKENS - 1], max_new_tokens=1, options=options)
    harness.run()
    scores = [token for event in harness.events if isinstance(event, PromptScored) for token in event.tokens]
    for score in scores[len(prompt) :]:
        assert score.chosen.logprob is not None and score.top[0].logprob is not None
        assert score.chosen.logprob > score.top[0].logprob - AS_GOOD


def test_chats_over_too_few_pages_stop_and_go_on_and_say_what_they_would(engines: Engines, folder: Path) -> None:
    engine, harness = open_engine(engines, folder, CacheChoice(640))
    assert engine.facts.pool_tokens == 640
    assert engine.facts.memory is not None
    # The plan counts whole blocks of torch's allocator for each layer's keys and values, and for the table.
    assert 0 <= engine.facts.memory.plan.kv_cache - engine.facts.cache_bytes < 512 * (2 * RECIPE.num_layers + 1)
    prompts = [(5 + number, *SYSTEM[:40]) for number in range(CHATS)]
    for request, prompt in enumerate(prompts):
        harness.ask(request, prompt, max_new_tokens=CONTEXT_TOKENS, options=RequestOptions(logprobs=0))
    was_paused = False
    while not harness.scheduler.is_idle:
        harness.scheduler.step()
        was_paused |= any(slot.is_paused for slot in harness.scheduler._slots)
    assert was_paused and [harness.end(request).reason for request in range(CHATS)] == ["context"] * CHATS
    answers = [said(harness, request) for request in range(CHATS)]
    for prompt, answer in zip(prompts, answers, strict=True):
        assert len(answer) == CONTEXT_TOKENS - len(prompt)
        require_likeliest(harness, prompt, answer)


@pytest.mark.parametrize("at_once", [False, True])
def test_a_beginning_is_read_once_for_all_chats(engines: Engines, folder: Path, at_once: bool) -> None:
    engine, harness = open_engine(engines, folder, EVERY_CHAT_FULL)
    assert engine.facts.pool_tokens is None
    prompts = [(*SYSTEM, 20 + number, *range(100, 110 + number)) for number in range(CHATS)]
    for request, prompt in enumerate(prompts):
        harness.ask(request, prompt, max_new_tokens=60, options=RequestOptions(logprobs=0))
        if not at_once:
            harness.run()
    harness.run()
    reused = sorted(harness.end(request).stats.reused_tokens for request in range(CHATS))
    # Chats that begin at the same moment share whole pages, later ones also what is copied out of a page.
    assert reused[0] == 0 and reused[1] >= (192 if at_once else len(SYSTEM))
    answers = [said(harness, request) for request in range(CHATS)]
    for prompt, answer in zip(prompts, answers, strict=True):
        assert len(answer) == 60
        require_likeliest(harness, prompt, answer)
