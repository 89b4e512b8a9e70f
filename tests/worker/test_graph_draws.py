"""What requests ask of their draws, in captured steps as in plain ones: by kernels on the CPU (cuda_on_cpu)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from core.checkpoint.checkpoint import read_checkpoint
from core.engine.protocol import PromptScored, TextChunk, TokenInfo
from core.engine.request_options import RequestOptions
from core.memory.kernels.registry import kernel_named
from core.memory.model_shape import read_shape
from core.tokenizer.read import read_tokenizer
from core.worker.decode.cuda_graphs import GraphSteps
from core.worker.decode.draw_rules import DrawRules
from core.worker.decode.steps import EagerSteps, Steps
from core.worker.model.device_map import DeviceMap
from core.worker.model.loader import load_model
from core.worker.model.model_runner import ModelRunner
from tests.support.checkpoints import Recipe, make_checkpoint
from tests.support.cuda_on_cpu import cuda_on_cpu
from tests.support.plain_recorder import PlainRecorder
from tests.support.scheduler_harness import SchedulerHarness

# Far likelier than all others, so that an answer repeats itself.
FEW = tuple((token, 60.0) for token in range(80, 90))
CASES: dict[str, tuple[dict[str, Any], RequestOptions]] = {
    "penalties": ({"presence_penalty": 1.0, "frequency_penalty": 2.0}, RequestOptions(logit_bias=FEW)),
    "bias": ({}, RequestOptions(logit_bias=((80, 3.0), *FEW[4:]))),
    "least length": ({"frequency_penalty": 0.3}, RequestOptions(min_tokens=5)),
    "no end": ({}, RequestOptions(ignore_eos=True)),
    "DRY": ({"dry_multiplier": 20.0, "dry_allowed_length": 1}, RequestOptions(logit_bias=FEW)),
    "log-probabilities": ({"frequency_penalty": 2.0}, RequestOptions(logprobs=3, logit_bias=FEW)),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny"
    make_checkpoint(path, Recipe(num_layers=1))
    return path


@pytest.fixture(scope="module", params=["plain", "captured"])
def steps(request: pytest.FixtureRequest, folder: Path) -> Iterator[Steps]:
    checkpoint, places = read_checkpoint(folder), DeviceMap((torch.device("cpu"),))
    shape, dense = read_shape(checkpoint), kernel_named("dense")
    with torch.inference_mode(), cuda_on_cpu():
        model = load_model(checkpoint, shape, dense, places, torch.float16, 64, lambda _: None)
        runner = ModelRunner(model, 3, 128)
        yield EagerSteps(runner) if request.param == "plain" else GraphSteps(runner, 40, PlainRecorder())


def answered(folder: Path, steps: Steps, cases: dict[int, str], ends: tuple[int, ...] = ()) -> SchedulerHarness:
    harness = SchedulerHarness(steps, read_tokenizer(folder), ends=ends)
    for request, case in cases.items():
        changes, options = CASES[case]
        harness.ask(request, options=options, **changes)
    harness.run()
    return harness


def tokens_of(harness: SchedulerHarness, request: int) -> tuple[TokenInfo, ...]:
    chunks = [one for one in harness.events if isinstance(one, TextChunk) and one.request == request]
    return tuple(token for chunk in chunks for token in chunk.tokens)


TEXTS: dict[str, str] = {}


@pytest.mark.parametrize("case", CASES)
def test_every_wish_changes_an_answer_in_the_same_way_whichever_steps_it_has(
    folder: Path, steps: Steps, case: str
) -> None:
    plain = SchedulerHarness(steps, read_tokenizer(folder))
    has_penalty, bias = bool(CASES[case][0]), CASES[case][1].logit_bias
    plain.ask(1, options=RequestOptions(logit_bias=bias if has_penalty else ()))
    plain.run()
    # The token that comes first ends an answer, where the case is about ends.
    first = read_tokenizer(folder).encode(plain.text(1), add_special_tokens=False).ids[:1]
    ends = tuple(first) if case in ("least length", "no end") else ()
    others = {2: "penalties", 3: "bias"}
    harness = answered(folder, steps, {1: case, **others}, ends)
    text, length = harness.text(1), harness.end(1).stats.num_tokens
    assert text != plain.text(1) or case == "no end"
    if case == "least length":
        assert length >= 5
    if case == "no end":
        assert length == 12
    # It does not depend on what runs beside it, nor on which steps these are.
    assert TEXTS.setdefault(case, text) == text == answered(folder, steps, {1: case}, ends).text(1)


def test_log_probabilities_come_with_every_token(folder: Path, steps: Steps) -> None:
    told = tokens_of(answered(folder, steps, {1: "log-probabilities", 2: "DRY"}), 1)
    assert len(told) == 12
    for token in told:
        values = [one.logprob for one in token.top]
        assert len(values) == 3 and values == sorted(values, reverse=True) and max(values) >= token.chosen.logprob
        assert token.chosen.data or token.chosen.token < 3


def test_a_prompt_is_scored_token_by_token(folder: Path, steps: Steps) -> None:
    """Each by a pass over all that stands before it."""
    prompt = tuple(range(70, 100))
    harness = SchedulerHarness(steps, read_tokenizer(folder))
    for request in (1, 2):
        harness.ask(request, prompt, options=RequestOptions(logprobs=1, prompt_logprobs=True), max_new_tokens=1)
    harness.run()
    scored = [one for one in harness.events if isinstance(one, PromptScored) and one.request == 2]
    scores = [token for event in scored for token in event.tokens]
    assert [token.chosen.token for token in scores] == list(prompt) and scores[0].chosen.logprob is None
    (last,) = tokens_of(harness, 2)
    for place in (1, 9, len(prompt) - 1):
        alone = SchedulerHarness(steps, read_tokenizer(folder))
        alone.ask(1, prompt[:place], options=RequestOptions(logprobs=1), max_new_tokens=1)
        alone.run()
        (likeliest,) = tokens_of(alone, 1)
        assert scores[place].top[0].token == likeliest.top[0].token
        assert scores[place].top[0].logprob == pytest.approx(likeliest.top[0].logprob, abs=0.02)
    assert last.chosen.logprob == pytest.approx(last.top[0].logprob)


class Alternating:
    """Allows token 80, then 90, then 80 again."""

    def __init__(self) -> None:
        self.is_active, self._num_asked = True, 0

    def allowed(self) -> torch.Tensor:
        token = (80, 90)[self._num_asked % 2]
        self._num_asked += 1
        return torch.tensor([(1 << token % 32) - (2**32 if token % 32 == 31 else 0) if word == token // 32 else 0
                             for word in range(12)], dtype=torch.int64).to(torch.int32)  # fmt: skip


@pytest.mark.parametrize("changes", [{}, {"frequency_penalty": 0.5}, {"typical_p": 0.5, "temperature": 1.0}])
def test_masks_hold_from_step_to_step(steps: Steps, changes: dict[str, Any]) -> None:
    from core.engine.sampling_params import Sampling

    prompt, rules = [5, 6, 7], DrawRules(constraint=Alternating())
    steps.reset_slot(1, Sampling(**{"temperature": 0.7, **changes}), 1, prompt, rules)
    pending = steps.prefill(1, prompt, 0, True)
    assert pending is not None
    tokens = [pending.wait()[0], *(steps.decode([1]).wait()[0] for _ in range(4))]
    assert tokens == [80, 90, 80, 90, 80]
