"""DRY, XTC, typical-p and mirostat, each against its definition written out slowly."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from transformers import TypicalLogitsWarper

from core.engine.request_options import RequestOptions
from core.engine.sampling_params import Sampling
from core.worker.decode.draw_rules import DrawRules, breaks_nothing
from core.worker.decode.slot_draw import SlotDraw, unpacked
from core.worker.decode.slow_samplers import (
    MAX_DRY_MATCH,
    Mirostat,
    dry_penalties,
    typical,
    without_top_choices,
)

DRY = Sampling(dry_multiplier=0.8, dry_base=1.75, dry_allowed_length=2)


def slow_dry(tokens: list[int], sampling: Sampling, breakers: frozenset[int]) -> dict[int, float]:
    """As the pull request that brought it writes it down: place by place, token by token."""
    if tokens[-1] in breakers:
        return {}
    longest: dict[int, int] = {}
    for place in range(len(tokens) - 1):
        if tokens[place] != tokens[-1] or tokens[place + 1] in breakers:
            continue
        length = 1
        while length < MAX_DRY_MATCH and place - length >= 0:
            before = tokens[-1 - length]
            if tokens[place - length] != before or before in breakers:
                break
            length += 1
        longest[tokens[place + 1]] = max(length, longest.get(tokens[place + 1], 0))
    allowed = sampling.dry_allowed_length
    return {
        token: sampling.dry_multiplier * sampling.dry_base ** (length - allowed)
        for token, length in longest.items()
        if length >= allowed
    }


@pytest.mark.parametrize("seed", range(12))
def test_dry_takes_from_what_would_repeat_what_its_definition_says(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 2 + seed % 4, (90,), generator=generator).tolist()
    breakers = frozenset((1,)) if seed % 3 == 0 else frozenset()
    assert dry_penalties(tokens, DRY, breakers.__contains__) == slow_dry(tokens, DRY, breakers)


def test_dry_looks_no_further_back_than_its_range_and_no_repetition_weighs_without_end() -> None:
    tokens = [1, 2, 3, 9, 9, 9, 1, 2]
    assert dry_penalties(tokens, DRY, breaks_nothing) == {3: 0.8}
    assert dry_penalties(tokens, Sampling(dry_multiplier=0.8, dry_range=4), breaks_nothing) == {}
    long = dry_penalties([7] * 500, DRY, breaks_nothing)
    assert long == {7: 0.8 * 1.75 ** (MAX_DRY_MATCH - 2)} and dry_penalties([7], DRY, breaks_nothing) == {}


@pytest.mark.parametrize("typical_p", [0.1, 0.5, 0.9, 0.99])
def test_typical_p_keeps_what_transformers_keeps(typical_p: float) -> None:
    for seed in range(5):
        logits = torch.randn(400, generator=torch.Generator().manual_seed(seed)) * 3
        wanted = TypicalLogitsWarper(typical_p)(torch.zeros(1, 1).long(), logits.unsqueeze(0))[0].isfinite()
        assert torch.equal(typical(logits, typical_p), wanted)
    assert typical(torch.tensor([0.0, -math.inf, 1.0]), 0.999).tolist() == [True, False, True]


def test_xtc_leaves_out_the_top_choices_but_the_least_likely_of_them() -> None:
    logits = torch.tensor([0.4, 0.05, 0.3, 0.15, 0.1]).log()
    assert without_top_choices(logits, 0.12).tolist() == [False, True, False, True, True]
    assert without_top_choices(logits, 0.35).all() and without_top_choices(logits, 0.9).all()


def slow_mirostat_2(probabilities: list[float], limit: float) -> list[int]:
    kept = [token for token, one in enumerate(probabilities) if one > 0 and -math.log2(one) <= limit]
    return kept or [max(range(len(probabilities)), key=probabilities.__getitem__)]


def test_mirostat_2_cuts_at_its_limit_and_moves_it_by_the_surprise() -> None:
    logits = torch.randn(300, generator=torch.Generator().manual_seed(1)) * 2
    probabilities, limit = torch.softmax(logits, dim=-1).tolist(), 2 * 3.0
    mirostat, generator = Mirostat(2, 3.0, 0.2), torch.Generator().manual_seed(5)
    for _ in range(60):
        kept = slow_mirostat_2(probabilities, limit)
        token = mirostat.draw(logits, generator)
        assert token in kept
        limit -= 0.2 * (-math.log2(probabilities[token] / sum(probabilities[one] for one in kept)) - 3.0)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("tau", [4.0, 5.0])
def test_mirostat_holds_the_surprise_where_it_is_told_to(version: int, tau: float) -> None:
    logits = -1.2 * torch.arange(1, 2001).float().log()
    bits = -torch.log_softmax(logits, dim=-1) / math.log(2)
    mirostat, generator = Mirostat(version, tau, 0.1), torch.Generator().manual_seed(2)
    drawn = [float(bits[mirostat.draw(logits, generator)]) for _ in range(600)]
    # Of the whole distribution, whose surprise is a little above that of what the cut leaves.
    assert sum(drawn[100:]) / 500 == pytest.approx(tau, abs=1.0)
    assert sum(drawn[100:]) / 500 < float((bits * torch.exp2(-bits)).sum())


@pytest.mark.parametrize("logits", [[0.0], [0.0, 0.0], [5.0, -math.inf, -math.inf]])
@pytest.mark.parametrize("version", [1, 2])
def test_mirostat_draws_from_few_and_from_equal_tokens(logits: list[float], version: int) -> None:
    assert Mirostat(version, 5.0, 0.1).draw(torch.tensor(logits), torch.Generator().manual_seed(0)) in range(2)


# All of them by way of a slot ---------------------------------------------------------------------------------------


class Mask:
    is_active = True

    def __init__(self, *allowed: int) -> None:
        self._bits = sum(1 << token for token in allowed)

    def allowed(self) -> torch.Tensor:
        return torch.tensor([self._bits], dtype=torch.int64).to(torch.int32)


def drawing(size: int, rules: DrawRules | None = None, tokens: tuple[int, ...] = (0,), **changes: Any) -> SlotDraw:
    sampling = Sampling(**{"temperature": 0.0, "top_p": 1.0, **changes})
    return SlotDraw(sampling, torch.Generator().manual_seed(0), tokens, size, rules or DrawRules())


def test_penalties_of_presence_and_frequency_are_openais_formula() -> None:
    logits = torch.tensor([5.0, 4.9, 4.0, 1.0])
    slot = drawing(4, presence_penalty=0.5, frequency_penalty=0.25)
    counts, wanted = [0] * 4, []
    for _ in range(9):
        scores = [float(logits[token]) - 0.25 * counts[token] - 0.5 * (counts[token] > 0) for token in range(4)]
        wanted.append(scores.index(max(scores)))
        counts[wanted[-1]] += 1
    assert [slot.draw(logits) for _ in range(9)] == wanted and len(set(wanted)) == 3


def test_only_what_the_answer_said_is_penalized_also_where_the_prompt_holds_a_part_of_it() -> None:
    logits = torch.tensor([1.0, 0.9])
    assert drawing(2, tokens=(0, 0), presence_penalty=1.0).draw(logits) == 0
    assert drawing(2, DrawRules(num_answer=1), tokens=(1, 0), presence_penalty=1.0).draw(logits) == 1


def test_a_bias_adds_to_a_logit_and_no_end_comes_before_its_time() -> None:
    logits = torch.tensor([3.0, 2.0, 1.0])
    assert drawing(3, DrawRules(RequestOptions(logit_bias=((2, 2.5),)))).draw(logits) == 2
    slot = drawing(3, DrawRules(RequestOptions(min_tokens=2), end_tokens=frozenset((0,))))
    assert [slot.draw(logits) for _ in range(4)] == [1, 1, 0, 0]
    slot = drawing(3, DrawRules(RequestOptions(ignore_eos=True), end_tokens=frozenset((0, 1))))
    assert [slot.draw(logits) for _ in range(3)] == [2, 2, 2]


def test_what_a_grammar_forbids_is_not_drawn_whatever_the_sampler() -> None:
    logits, rules = torch.randn(32), DrawRules(constraint=Mask(3, 31))
    samplers: list[dict[str, Any]] = [{"mirostat": 2}, {"typical_p": 0.5}, {"xtc_probability": 1.0}, {"top_k": 1}]
    for changes in ({}, {"temperature": 5.0}, *({"temperature": 1.0, **one} for one in samplers)):
        slot = drawing(32, rules, **changes)
        assert {slot.draw(logits) for _ in range(30)} <= {3, 31}
    assert unpacked(torch.tensor([-1, 1], dtype=torch.int32), 40).sum() == 33


def test_log_probabilities_are_the_models_own_before_any_setting() -> None:
    logits = torch.tensor([1.0, 3.0, 2.0])
    slot = drawing(3, DrawRules(RequestOptions(logprobs=2, logit_bias=((0, 100.0),))))
    assert slot.draw(logits) == 0 and slot.logprobs is not None
    wanted = torch.log_softmax(logits, dim=-1)
    assert slot.logprobs.logprob == pytest.approx(float(wanted[0]))
    assert slot.logprobs.top == ((1, pytest.approx(float(wanted[1]))), (2, pytest.approx(float(wanted[2]))))


def test_xtc_comes_as_often_as_its_probability_says() -> None:
    logits = torch.tensor([0.5, 0.3, 0.2]).log()
    slot = drawing(3, temperature=1.0, xtc_probability=0.25, xtc_threshold=0.1)
    drawn = torch.bincount(torch.tensor([slot.draw(logits) for _ in range(4000)]), minlength=3) / 4000
    wanted = 0.75 * torch.tensor([0.5, 0.3, 0.2]) + 0.25 * torch.tensor([0.0, 0.0, 1.0])
    assert torch.allclose(drawn, wanted, atol=0.04)
