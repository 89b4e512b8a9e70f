"""Sampling a token: each cut against its definition written out slowly, and draws against their probabilities."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from core.engine.sampling_params import MAX_SEED, Sampling
from core.worker.decode.sampling import SORTED_HEAD, cut, penalize, sample

NOTHING_SEEN = torch.tensor([], dtype=torch.long)
# Nothing is cut and nothing is changed.
PLAIN: dict[str, Any] = {"temperature": 1.0, "top_p": 1.0}
DRAWS = 4000


def settings(**changes: Any) -> Sampling:
    return Sampling(**{**PLAIN, **changes})


def random_logits(size: int, seed: int = 0, spread: float = 3.0) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)) * spread


def kept(logits: torch.Tensor, **changes: Any) -> set[int]:
    """The ids of the tokens that the cuts leave."""
    scores, ids = cut(logits, settings(**changes))
    assert scores.numel() > 0
    if ids is None:
        assert scores.numel() == logits.numel()
        return set(range(logits.numel()))
    assert torch.equal(scores, logits[ids])
    assert len(set(ids.tolist())) == ids.numel()
    return set(ids.tolist())


def draw_many(logits: torch.Tensor, sampling: Sampling, seen: torch.Tensor = NOTHING_SEEN) -> torch.Tensor:
    """How often each token came in DRAWS draws, as a part of one."""
    generator = torch.Generator().manual_seed(1)
    tokens = [sample(logits, sampling, seen, generator) for _ in range(DRAWS)]
    return torch.bincount(torch.tensor(tokens), minlength=logits.numel()) / DRAWS


def assert_close(frequencies: torch.Tensor, probabilities: torch.Tensor) -> None:
    """Within five standard deviations of what DRAWS draws give by chance."""
    deviation = (probabilities * (1 - probabilities) / DRAWS).sqrt()
    assert ((frequencies - probabilities).abs() <= 5 * deviation + 1e-6).all()


# Draws --------------------------------------------------------------------------------------------------------------


def test_draws_follow_the_models_probabilities() -> None:
    logits = random_logits(12, spread=1.5)
    assert_close(draw_many(logits, settings()), torch.softmax(logits, dim=-1))


@pytest.mark.parametrize("temperature", [0.3, 2.0])
def test_the_temperature_sharpens_or_flattens_them(temperature: float) -> None:
    logits = random_logits(12, spread=1.5)
    wanted = torch.softmax(logits / temperature, dim=-1)
    assert_close(draw_many(logits, settings(temperature=temperature)), wanted)


def test_draws_from_what_a_cut_left_keep_their_proportions() -> None:
    logits = random_logits(12, spread=1.5)
    probabilities = torch.softmax(logits, dim=-1)
    wanted = torch.where(probabilities >= probabilities.topk(4).values.min(), probabilities, 0)
    assert_close(draw_many(logits, settings(top_k=4)), wanted / wanted.sum())


def test_draws_with_a_penalty_follow_the_penalized_probabilities() -> None:
    logits, seen = random_logits(12, spread=1.5), torch.tensor([0, 3, 4, 11])
    wanted = torch.softmax(penalize(logits, seen, 1.5), dim=-1)
    assert_close(draw_many(logits, settings(repetition_penalty=1.5), seen), wanted)


@pytest.mark.parametrize("temperature", [0.0, 1e-320, 1e-45, 1e-38, 1e-6])
def test_no_temperature_or_nearly_none_takes_the_likeliest(temperature: float) -> None:
    """A temperature that float32 does not hold made every number infinite, and the draw ended the engine."""
    generator = torch.Generator().manual_seed(0)
    for seed in range(20):
        logits = random_logits(50, seed)
        assert sample(logits, settings(temperature=temperature), NOTHING_SEEN, generator) == int(logits.argmax())


@pytest.mark.parametrize("temperature", [1e-5, 1e-3, 5.0])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 6e4])
def test_every_temperature_draws_some_token_of_logits_of_any_size(temperature: float, scale: float) -> None:
    logits = random_logits(1000, spread=scale)
    token = sample(logits, settings(temperature=temperature), NOTHING_SEEN, torch.Generator().manual_seed(0))
    assert 0 <= token < 1000


def test_a_tiny_temperature_takes_the_likeliest_in_practice() -> None:
    logits = torch.tensor([1.0, 3.0, 2.0])
    assert draw_many(logits, settings(temperature=0.01))[1] == 1.0


def test_the_same_seed_draws_the_same_and_another_does_not() -> None:
    logits = random_logits(1000, spread=0.5)

    def ten(seed: int) -> list[int]:
        generator = torch.Generator().manual_seed(seed)
        return [sample(logits, settings(top_p=0.9), NOTHING_SEEN, generator) for _ in range(10)]

    assert ten(5) == ten(5) != ten(6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_drawn_from_in_full_precision(dtype: torch.dtype) -> None:
    logits = random_logits(5000).to(dtype)
    sampling = settings(temperature=0.8, top_p=0.95, min_p=0.01, repetition_penalty=1.1)
    seen = torch.tensor([1, 2])
    one = sample(logits, sampling, seen, torch.Generator().manual_seed(3))
    assert one == sample(logits.float(), sampling, seen, torch.Generator().manual_seed(3))


def test_logits_are_left_as_they_were() -> None:
    logits = random_logits(100)
    before = logits.clone()
    sampling = settings(temperature=0.5, top_p=0.5, top_k=5, min_p=0.1, repetition_penalty=2.0)
    sample(logits, sampling, torch.tensor([1, 2]), torch.Generator().manual_seed(0))
    assert torch.equal(logits, before)


# Cuts ---------------------------------------------------------------------------------------------------------------


def naive_top_p(logits: torch.Tensor, top_p: float) -> list[int]:
    """The definition: all tokens by probability, taken until their sum reaches `top_p`."""
    probabilities = torch.softmax(logits.double(), dim=-1).tolist()
    taken, total = [], 0.0
    for token in sorted(range(len(probabilities)), key=lambda token: -probabilities[token]):
        taken.append(token)
        total += probabilities[token]
        if total >= top_p:
            break
    return taken


@pytest.mark.parametrize("top_p", [0.0, 0.05, 0.3, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("spread", [0.3, 1.0, 5.0])
def test_top_p_is_what_a_full_sort_says(top_p: float, spread: float) -> None:
    for seed, size in enumerate((1, 2, 40, SORTED_HEAD, SORTED_HEAD + 1, 3 * SORTED_HEAD)):
        logits = random_logits(size, seed, spread)
        got = kept(logits, top_p=top_p)
        # Sums of float32 may stop one token earlier or later than those of float64 where they just reach it.
        assert set(naive_top_p(logits, top_p - 1e-5)) <= got <= set(naive_top_p(logits, top_p + 1e-5))


def test_a_flat_distribution_is_cut_beyond_the_sorted_head() -> None:
    """Of 8 * SORTED_HEAD equal tokens three quarters reach 0.75, far more than are sorted at first."""
    logits = torch.zeros(8 * SORTED_HEAD)
    assert len(kept(logits, top_p=0.75)) == pytest.approx(6 * SORTED_HEAD, abs=2)
    assert len(kept(logits, top_p=0.999999)) == pytest.approx(8 * SORTED_HEAD, abs=8)


def test_of_equals_at_the_border_only_as_many_are_kept_as_are_needed() -> None:
    logits = torch.tensor([1.0, 1.0, 1.0, 1.0])
    assert len(kept(logits, top_p=0.5)) == 2
    assert len(kept(logits, top_p=0.51)) == 3
    logits = torch.tensor([0.4, 0.2, 0.2, 0.2]).log()
    assert 0 in kept(logits, top_p=0.5)
    assert len(kept(logits, top_p=0.5)) == 2


@pytest.mark.parametrize("top_p", [0.0, 1e-9])
def test_top_p_of_nothing_leaves_the_likeliest(top_p: float) -> None:
    logits = random_logits(3000)
    assert kept(logits, top_p=top_p) == {int(logits.argmax())}


@pytest.mark.parametrize("top_k", [1, 2, 7, 2999])
def test_top_k_keeps_the_k_likeliest(top_k: int) -> None:
    logits = random_logits(3000)
    assert kept(logits, top_k=top_k) == set(logits.argsort(descending=True)[:top_k].tolist())


@pytest.mark.parametrize("top_k", [0, 3000, 3001, 1_000_000])
def test_top_k_of_nothing_or_of_all_cuts_nothing(top_k: int) -> None:
    assert len(kept(random_logits(3000), top_k=top_k)) == 3000


def test_equals_beyond_k_are_cut() -> None:
    assert len(kept(torch.zeros(100), top_k=7)) == 7


@pytest.mark.parametrize("min_p", [0.001, 0.05, 0.5, 1.0])
def test_min_p_keeps_what_has_that_part_of_the_likeliest(min_p: float) -> None:
    logits = random_logits(3000)
    probabilities = torch.softmax(logits.double(), dim=-1)
    border = min_p * probabilities.max()
    # What lies on the border to within rounding may go either way.
    certain = set((probabilities > border * (1 + 1e-5)).nonzero().flatten().tolist()) | {int(logits.argmax())}
    possible = set((probabilities > border * (1 - 1e-5)).nonzero().flatten().tolist())
    assert certain <= kept(logits, min_p=min_p) <= possible


def test_min_p_of_one_leaves_all_that_are_likeliest() -> None:
    assert kept(torch.tensor([2.0, 5.0, 5.0, 1.0]), min_p=1.0) == {1, 2}


@pytest.mark.parametrize("top_k", [0, 1, 50])
@pytest.mark.parametrize("top_p", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("min_p", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("kind", ["random", "flat", "one certain", "one impossible"])
def test_no_cut_leaves_nothing(top_k: int, top_p: float, min_p: float, kind: str) -> None:
    logits = random_logits(2000)
    if kind == "flat":
        logits = torch.zeros(2000)
    elif kind == "one certain":
        logits[7] = 500.0
    elif kind == "one impossible":
        logits[7] = -math.inf
    left = kept(logits, top_k=top_k, top_p=top_p, min_p=min_p)
    assert len(left) >= 1
    if kind == "one certain":
        assert 7 in left
    if kind == "one impossible" and (top_k or top_p < 1 or min_p):
        assert 7 not in left


@pytest.mark.parametrize("seed", range(8))
def test_all_cuts_together_are_those_of_transformers(seed: int) -> None:
    """The same order and the same border cases as generate() has, so that settings mean what they mean elsewhere."""
    random = torch.Generator().manual_seed(seed)
    logits = random_logits(4000, seed, spread=2.0)
    seen = torch.randint(0, 4000, (200,), generator=random).unique()
    sampling = settings(
        temperature=0.5 + seed / 4,
        top_k=(0, 40, 3000)[seed % 3],
        top_p=(0.3, 0.9, 0.99)[seed % 3],
        min_p=(0.0, 0.02)[seed % 2],
        repetition_penalty=(1.0, 1.3, 0.8)[seed % 3],
    )
    processors = LogitsProcessorList(
        [
            RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty),
            TemperatureLogitsWarper(sampling.temperature),
            *([TopKLogitsWarper(sampling.top_k)] if sampling.top_k else []),
            TopPLogitsWarper(sampling.top_p),
            *([MinPLogitsWarper(sampling.min_p)] if sampling.min_p else []),
        ]
    )
    wanted = torch.softmax(processors(seen.unsqueeze(0), logits.unsqueeze(0))[0], dim=-1)
    penalized = penalize(logits, seen, sampling.repetition_penalty)
    scores, ids = cut(penalized / sampling.temperature, sampling)
    got = torch.zeros(4000)
    got[slice(None) if ids is None else ids] = torch.softmax(scores, dim=-1)
    assert torch.allclose(got, wanted, atol=1e-5)


# The penalty --------------------------------------------------------------------------------------------------------


def test_the_penalty_makes_what_was_seen_less_likely_whatever_its_sign() -> None:
    logits = torch.tensor([2.0, -2.0, 0.0, 2.0, -2.0])
    penalized = penalize(logits, torch.tensor([0, 1, 2]), 2.0)
    assert penalized.tolist() == [1.0, -4.0, 0.0, 2.0, -2.0]


def test_a_penalty_below_one_makes_it_likelier() -> None:
    assert penalize(torch.tensor([2.0, -2.0]), torch.tensor([0, 1]), 0.5).tolist() == [4.0, -1.0]


def test_no_penalty_and_nothing_seen_change_nothing() -> None:
    logits = random_logits(10)
    assert penalize(logits, torch.tensor([1]), 1.0) is logits
    assert penalize(logits, NOTHING_SEEN, 2.0) is logits


def test_a_penalty_can_change_which_is_the_likeliest() -> None:
    logits = torch.tensor([3.0, 2.5])
    greedy = settings(temperature=0.0, repetition_penalty=2.0)
    assert sample(logits, greedy, torch.tensor([0]), torch.Generator()) == 1


@pytest.mark.parametrize("seed", [None, 0, MAX_SEED])
def test_a_seed_that_the_generator_takes_is_taken(seed: int | None) -> None:
    assert Sampling(seed=seed).seed == seed
    if seed is not None:
        torch.Generator().manual_seed(seed)
