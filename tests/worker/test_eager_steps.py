"""The scheduler over plain steps of a tiny real model: what is answered, and that nobody disturbs anybody else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from core.tokenizer.read import read_tokenizer
from core.worker.decode.steps import EagerSteps
from core.worker.model.model_runner import ModelRunner
from tests.support.checkpoints import make_checkpoint
from tests.support.dense_models import load_dense
from tests.support.scheduler_harness import PROMPT, SchedulerHarness


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny"
    make_checkpoint(path)
    return path


@pytest.fixture(scope="module")
def model(folder: Path) -> Iterator[torch.nn.Module]:
    """In float32: in bfloat16 the order of a sum, which a batch changes, can decide between two close tokens."""
    with torch.inference_mode():
        yield load_dense(folder, torch.float32)


def make_harness(folder: Path, model, num_slots: int = 3) -> SchedulerHarness:
    return SchedulerHarness(EagerSteps(ModelRunner(model, num_slots, 128)), read_tokenizer(folder))


@pytest.fixture
def harness(folder: Path, model) -> SchedulerHarness:
    return make_harness(folder, model)


def test_greedy_answers_are_what_the_model_says_without_a_cache(harness: SchedulerHarness, model) -> None:
    """Every token is the likeliest after a plain pass over the whole text so far, in chunks or not."""
    harness.ask(1, max_new_tokens=20)
    harness.run()
    tokens = harness.tokenizer.encode(PROMPT, add_special_tokens=False).ids
    num_prompt = len(tokens)
    with torch.inference_mode():
        slots = ModelRunner(model, 1, 128)
        for _ in range(20):
            row = torch.tensor([tokens])
            logits = slots.forward(row, torch.arange(len(tokens)).unsqueeze(0), 0, len(tokens))
            tokens.append(int(logits[0].float().argmax()))
    assert harness.text(1) == harness.tokenizer.decode(tokens[num_prompt:])


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
        harness = make_harness(folder, model)
        harness.ask(request, question, temperature=0.9, seed=request)
        harness.run()
        alone[request] = harness.text(request)
    together = make_harness(folder, model)
    for request, question in questions.items():
        together.ask(request, question, temperature=0.9, seed=request)
    together.run()
    assert {request: together.text(request) for request in questions} == alone
    assert len(set(alone.values())) == len(questions)


def test_an_idle_slots_text_survives_what_its_neighbours_do(folder: Path, model) -> None:
    """Rows between two busy ones compute along; once, they would have overwritten what an idle row held."""
    harness = make_harness(folder, model, num_slots=3)
    long = PROMPT * 3
    for request, question in enumerate(["The quick", long, "Hello,"], start=1):
        harness.ask(request, question, max_new_tokens=40 if request != 2 else 2)
    harness.run()
    harness.ask(4, long, max_new_tokens=10)
    harness.run()
    fresh = make_harness(folder, model, num_slots=1)
    fresh.ask(4, long, max_new_tokens=10)
    fresh.run()
    assert harness.end(4).stats.reused_tokens > 0
    assert harness.text(4) == fresh.text(4)


def test_the_same_seed_says_the_same_and_another_does_not(harness: SchedulerHarness) -> None:
    for request, seed in ((1, 7), (2, 7), (3, 8)):
        harness.ask(request, temperature=1.5, seed=seed, max_new_tokens=20)
    harness.run()
    assert harness.text(1) == harness.text(2) != harness.text(3)
    assert harness.end(1).stats.seed == 7
