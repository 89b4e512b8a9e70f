"""What requests ask of their draws, in captured steps as in plain ones: by kernels on the CPU (cuda_on_cpu)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from core.engine.protocol import PromptScored, TextChunk, TokenInfo
from core.engine.request_options import RequestOptions
from core.engine.sampling_params import Sampling
from core.memory.pages import full_pages
from core.memory.plan import SCORED_TOKENS
from core.memory.step_sizes import StepSizes
from core.tokenizer.read import read_tokenizer
from core.worker.decode.cuda_graphs import GraphSteps
from core.worker.decode.draw_rules import DrawRules
from core.worker.decode.steps import EagerSteps, PendingTokens, Steps
from core.worker.model.model_runner import ModelRunner
from core.worker.warm_up import warm_up_sampling, warm_up_verifying
from tests.support.checkpoints import Recipe, make_checkpoint
from tests.support.cuda_on_cpu import cuda_on_cpu
from tests.support.dense_models import load_dense
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
    with torch.inference_mode(), cuda_on_cpu():
        runner = ModelRunner(load_dense(folder), 3, 128, num_pages=full_pages(3, 128))
        yield EagerSteps(runner) if request.param == "plain" else GraphSteps(runner, StepSizes(40), PlainRecorder())


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
    prompt = tuple(range(70, 70 + SCORED_TOKENS + 18))
    harness = SchedulerHarness(steps, read_tokenizer(folder))
    for request in (1, 2):
        harness.ask(request, prompt, options=RequestOptions(logprobs=1, prompt_logprobs=True), max_new_tokens=1)
    harness.run()
    scored = [one for one in harness.events if isinstance(one, PromptScored) and one.request == 2]
    scores = [token for event in scored for token in event.tokens]
    assert [token.chosen.token for token in scores] == list(prompt) and scores[0].chosen.logprob is None
    (last,) = tokens_of(harness, 2)
    for place in (1, 9, SCORED_TOKENS, SCORED_TOKENS + 1, len(prompt) - 1):
        alone = SchedulerHarness(steps, read_tokenizer(folder))
        alone.ask(1, prompt[:place], options=RequestOptions(logprobs=1), max_new_tokens=1)
        alone.run()
        (likeliest,) = tokens_of(alone, 1)
        assert scores[place].top[0].token == likeliest.top[0].token
        assert scores[place].top[0].logprob == pytest.approx(likeliest.top[0].logprob, abs=0.02)
    assert last.chosen.logprob == pytest.approx(last.top[0].logprob)


def test_a_prompt_of_one_token_has_a_score_that_is_none(folder: Path, steps: Steps) -> None:
    """Nothing was told of it: an echo then had one token more than log-probabilities."""
    harness = SchedulerHarness(steps, read_tokenizer(folder))
    harness.ask(1, (70,), options=RequestOptions(logprobs=1, prompt_logprobs=True), max_new_tokens=2)
    harness.run()
    (scored,) = [one for one in harness.events if isinstance(one, PromptScored)]
    assert [(token.chosen.token, token.chosen.logprob, token.top) for token in scored.tokens] == [(70, None, ())]
    assert len(tokens_of(harness, 1)) == 2


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
    prompt, rules = [5, 6, 7], DrawRules(constraint=Alternating())
    steps.reset_slot(1, Sampling(**{"temperature": 0.7, **changes}), 1, prompt, rules)
    pending = steps.prefill(1, prompt, 0, True)
    assert pending is not None
    tokens = [pending.wait()[0], *(steps.decode([1]).wait()[0] for _ in range(4))]
    assert tokens == [80, 90, 80, 90, 80]


class Allowing:
    """Allows one token."""

    is_active = True

    def __init__(self, token: int) -> None:
        self._word, self._bit, self.num_asked = token // 32, token % 32, 0

    def allowed(self) -> torch.Tensor:
        self.num_asked += 1
        words = torch.zeros(12, dtype=torch.int32)
        words[self._word] = 1 << self._bit
        return words


def test_a_step_that_ran_ahead_of_an_answers_end_leaves_the_slots_next_request_alone(steps: Steps) -> None:
    """A thought's budget ends it while the next step is in flight: the slot is given new settings before that step's
    grammars are known, and has to draw nothing by them."""
    if not isinstance(steps, GraphSteps):
        pytest.skip("plain steps run nothing ahead")
    grammars = [Allowing(80), Allowing(81), Allowing(82)]
    sampling = Sampling(temperature=0.0, frequency_penalty=1.0)
    for slot in (0, 1):
        steps.reset_slot(slot, sampling, 1, [5, 6], DrawRules(constraint=grammars[slot]))
        assert steps.prefill(slot, [5, 6], 0, True).wait() == [80 + slot]
    pending = steps.decode([0, 1])
    steps.reset_slot(1, sampling, 1, [5, 6, 81], DrawRules(constraint=grammars[2]))
    before = [steps.state.seen[1].clone(), steps.state.offsets[1].clone(), steps.tokens[1].clone()]
    pending.draw_rest()
    assert pending.wait()[0] == 80 and [one.num_asked for one in grammars] == [2, 1, 0]
    after = steps.state.seen[1], steps.state.offsets[1], steps.tokens[1]
    assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))


def test_before_a_thoughts_end_all_may_come_beside_a_grammar(steps: Steps) -> None:
    grammar = Allowing(80)
    grammar.is_active = False
    steps.reset_slot(0, Sampling(temperature=0.0), 1, [5, 6], DrawRules(constraint=grammar))
    pending = steps.prefill(0, [5, 6], 0, True)
    assert pending is not None
    free = [pending.wait()[0], steps.decode([0]).wait()[0]]
    assert 80 not in free and grammar.num_asked == 0
    grammar.is_active = True
    assert [steps.decode([0]).wait()[0] for _ in range(2)] == [80, 80]
    grammar.is_active = False
    assert steps.decode([0]).wait()[0] != 80


def test_a_load_launches_the_draws_of_grammars_and_verifies_tokens_before_anybody_waits(
    folder: Path, steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    if isinstance(steps, EagerSteps):
        pytest.skip("plain steps run nothing ahead")
    late, verified = list[bool](), list[int]()
    sample, verify = steps.sample, steps.verify  # type: ignore[attr-defined]

    def watched_sample(*arguments: Any, is_late: bool = False, **how: Any) -> None:
        late.append(is_late)
        sample(*arguments, is_late=is_late, **how)

    def watched_verify(slot: int, tokens: Sequence[int], begin: int) -> PendingTokens:
        verified.append(len(tokens))
        return verify(slot, tokens, begin)

    monkeypatch.setattr(steps, "sample", watched_sample)
    monkeypatch.setattr(steps, "verify", watched_verify)
    warm_up_verifying(steps, "tiny")
    warm_up_sampling(steps, read_tokenizer(folder), 40)
    assert any(late) and verified == [8, 8]
