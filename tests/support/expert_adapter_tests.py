"""Tests of LoRA adapters in the kernels of experts, held against torch on the default device: for CPU and GPU."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import pytest
import torch

from core.worker.kernels.expert_kernels import ExpertKernels, StackedMatrix
from core.worker.kernels.expert_low_rank import (
    ExpertAdapters,
    ExpertLowRank,
    PassAdapters,
    expert_low_rank_kernels_for,
)
from core.worker.kernels.low_rank import NO_PLACE, SlotAdapters
from core.worker.kernels.packed_experts import PackedExperts
from core.worker.kernels.packing import CodeFormat
from core.worker.kernels.routed_pairs import Added, PairKernels, is_worth_sorting
from core.worker.model.experts import silu_and_multiply
from tests.support.expert_stacks import make_stack

NUM_EXPERTS, CHOSEN, HIDDEN, INTERMEDIATE, NUM_PLACES = 5, 2, 192, 128, 3
# By slot: the second adapter, none, the third of half the strength, the first.
PLACES, WEIGHTS = (1, NO_PLACE, 2, 0), (1.0, 1.0, 0.5, 1.0)
# A result's own rounding, and of bfloat16 those of its scales.
TOLERANCES = {torch.float16: 0.005, torch.bfloat16: 0.04}
CASES = pytest.mark.parametrize(
    ("format", "dtype", "is_permuted", "rank", "is_one"),
    [
        (CodeFormat(4, 64, False), torch.float16, False, 8, False),
        (CodeFormat(4, 32, True), torch.bfloat16, True, 3, False),
        (CodeFormat(8, 64, True), torch.float16, True, 16, True),
    ],
    ids=["rank 8", "rank 3, act-order", "rank 16, act-order, gate and up as one"],
)


class Made(NamedTuple):
    """Experts with adapters, and what they are made of: [experts, inputs, outputs] in float32."""

    experts: PackedExperts
    adapters: ExpertAdapters
    gate_up: torch.Tensor
    down: torch.Tensor


class Pass:
    """What a pass has of adapters: of slots, or nothing."""

    def __init__(self, device: torch.device) -> None:
        places = torch.tensor(PLACES, dtype=torch.int32, device=device)
        self.of_slots = SlotAdapters(places, torch.tensor(WEIGHTS, device=device))
        self.slots: torch.Tensor | None = None

    def __call__(self) -> PassAdapters | None:
        return None if self.slots is None else PassAdapters(self.slots, self.of_slots)


def here(matrix: StackedMatrix) -> StackedMatrix:
    """On the default device."""
    device = torch.get_default_device()
    parts = {name: getattr(matrix, name) for name in ("codes", "scales", "zeros", "permutations")}
    return replace(matrix, **{name: None if one is None else one.to(device) for name, one in parts.items()})


def make_experts(
    format: CodeFormat, dtype: torch.dtype, is_permuted: bool, rank: int, is_one: bool
) -> tuple[Made, Pass]:
    device = torch.get_default_device()
    with torch.device("cpu"):
        gate_up = make_stack(NUM_EXPERTS, HIDDEN, 2 * INTERMEDIATE, format, dtype, is_permuted, 1)
        down = make_stack(NUM_EXPERTS, INTERMEDIATE, HIDDEN, format, dtype, is_permuted, 2)
    kernels = ExpertKernels(dtype, format, device)
    experts = PackedExperts(here(gate_up.matrix), here(down.matrix), (kernels, kernels), PairKernels(dtype, device))
    torch.manual_seed(3)
    columns = NUM_PLACES * rank

    def matrices(inputs: int, *outputs: int) -> ExpertLowRank:
        a = tuple((torch.randn(NUM_EXPERTS, columns, inputs) / inputs**0.5).to(dtype) for _ in outputs)
        return ExpertLowRank(a, tuple((torch.randn(NUM_EXPERTS, one, columns) / 3).to(dtype) for one in outputs), rank)

    of_gate_up = matrices(HIDDEN, *([2 * INTERMEDIATE] if is_one else [INTERMEDIATE] * 2))
    of_pass = Pass(device)
    adapters = ExpertAdapters(
        of_gate_up, matrices(INTERMEDIATE, HIDDEN), expert_low_rank_kernels_for(dtype, device), of_pass
    )
    experts.adapt(adapters)
    return Made(experts, adapters, gate_up.dense.to(device), down.dense.to(device)), of_pass


def choose(tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Of all experts but the last, which nobody wants; and the weights."""
    random = torch.Generator().manual_seed(5)
    ids = torch.stack([torch.randperm(NUM_EXPERTS - 1, generator=random, device="cpu")[:CHOSEN] for _ in range(tokens)])
    weights = torch.rand((tokens, CHOSEN), generator=random, device="cpu")
    return ids.to(torch.get_default_device()), weights.to(torch.get_default_device())


def rows_of(tokens: int, dtype: torch.dtype, seed: int = 6) -> torch.Tensor:
    x = torch.randn((tokens, HIDDEN), generator=torch.Generator().manual_seed(seed), device="cpu").to(dtype)
    return x.to(torch.get_default_device())


def with_adapter(dense: torch.Tensor, matrices: ExpertLowRank, expert: int, slot: int) -> torch.Tensor:
    """[inputs, outputs] of an expert with what the slot's adapter adds."""
    own = dense[expert].clone()
    if PLACES[slot] != NO_PLACE:
        columns = slice(PLACES[slot] * matrices.rank, (PLACES[slot] + 1) * matrices.rank)
        parts = [
            b[expert, :, columns].float() @ a[expert, columns].float()
            for a, b in zip(matrices.a, matrices.b, strict=True)
        ]
        own += WEIGHTS[slot] * torch.cat(parts).T
    return own


def wanted_of(made: Made, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, slots: list[int]) -> torch.Tensor:
    """By torch in float32, token by token, with each token's adapter merged."""
    out = torch.zeros(x.shape)
    for token, slot in enumerate(slots):
        for place, expert in enumerate(ids[token].tolist()):
            gate_up = with_adapter(made.gate_up, made.adapters.gate_up, expert, slot)
            down = with_adapter(made.down, made.adapters.down, expert, slot)
            gated = silu_and_multiply((x[token].float() @ gate_up).to(x.dtype)).float()
            out[token] += weights[token, place] * (gated @ down)
    return out


@CASES
def test_each_token_has_its_own_adapter_in_its_experts(
    format: CodeFormat, dtype: torch.dtype, is_permuted: bool, rank: int, is_one: bool
) -> None:
    """Few tokens as they come, and many sorted by expert. To the last bit the same alone and beside any others."""
    made, of_pass = make_experts(format, dtype, is_permuted, rank, is_one)
    tokens = 34
    (ids, weights), x = choose(tokens), rows_of(tokens, dtype)
    slots = [token % len(PLACES) for token in range(tokens)]
    plain = made.experts(x, ids, weights)
    of_pass.slots = torch.tensor(slots)
    together = made.experts(x, ids, weights)
    wanted = wanted_of(made, x, ids, weights, slots)
    assert (together.float() - wanted).abs().max() < TOLERANCES[dtype] * wanted.std()
    assert (together[0].float() - plain[0].float()).abs().max() > 5 * TOLERANCES[dtype] * wanted.std()
    assert torch.equal(together[1::4], plain[1::4])
    assert [is_worth_sorting(count, CHOSEN, NUM_EXPERTS) for count in (1, 10)] == [False, True]
    for begin, count in ((0, 1), (33, 1), (3, 10), (18, 16)):
        rows = slice(begin, begin + count)
        of_pass.slots = torch.tensor(slots[rows])
        assert torch.equal(made.experts(x[rows], ids[rows], weights[rows]), together[rows])


def test_all_tokens_of_a_row_have_the_rows_adapter() -> None:
    """Plain passes tell of each row, and not of each token, whose it is."""
    made, of_pass = make_experts(CodeFormat(4, 64, False), torch.float16, False, 8, False)
    (ids, weights), x = choose(12), rows_of(12, torch.float16)
    of_pass.slots = torch.tensor([2, 1, 0])
    by_rows = made.experts(x, ids, weights)
    of_pass.slots = torch.tensor([2] * 4 + [1] * 4 + [0] * 4)
    assert torch.equal(made.experts(x, ids, weights), by_rows)


def test_what_others_adapters_are_is_nothing_to_a_token() -> None:
    """Beside infinite numbers in the other places, which no sum may touch."""
    made, of_pass = make_experts(CodeFormat(4, 64, False), torch.float16, False, 8, False)
    (ids, weights), x = choose(9), rows_of(9, torch.float16)
    of_pass.slots = torch.tensor([0, 1, 2] * 3)
    before = made.experts(x, ids, weights)
    for matrices in (made.adapters.gate_up, made.adapters.down):
        for a, b in zip(matrices.a, matrices.b, strict=True):
            a[:, :8] = torch.inf
            b[..., :8] = torch.inf
    assert torch.equal(made.experts(x, ids, weights), before)


def test_what_is_added_to_the_sums_stays() -> None:
    made, of_pass = make_experts(CodeFormat(4, 64, False), torch.float16, False, 8, False)
    for tokens in (1, 24):
        (ids, weights), x, more = choose(tokens), rows_of(tokens, torch.float16), rows_of(tokens, torch.float16, 7)
        of_pass.slots = torch.zeros(tokens, dtype=torch.long)
        alone = made.experts.multiply(x, ids, weights).float()
        got = made.experts.multiply(x, ids, weights, Added(more)).float()
        assert (got - alone - more.float()).abs().max() < 0.01
