"""Do the kernels for experts add what LoRA adapters add: small experts of known codes, before a model rests on it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from core.checkpoint.quantization import MatrixFormat
from core.memory.kernels.spec import KernelSpec
from core.memory.model_shape import MatrixShape
from core.worker.kernels.expert_low_rank import (
    ExpertAdapters,
    ExpertLowRank,
    PassAdapters,
    expert_low_rank_kernels_for,
)
from core.worker.kernels.low_rank import NO_PLACE, SlotAdapters
from core.worker.kernels.packed_experts import PackedExperts
from core.worker.model.backends.registry import make_backend
from core.worker.model.experts import SILU, ExpertTensors
from core.worker.model.kernel_check import matrix_tensors, reference_matrix, require_small, run_experts, said_of

INPUTS, NUM_EXPERTS, CHOSEN, RANK = 512, 8, 2, 8
# By slot, which tokens take in turns: the second adapter, none, the first of half the strength.
PLACES, WEIGHTS = (1, NO_PLACE, 0), (1.0, 1.0, 0.5)
# One token; few, whose experts are multiplied as they come; and as many as each kernel for sorted ones takes.
NUM_TOKENS = (1, 3, 16, 40, 200)
# How large what an adapter adds is: a share of what the matrices give that no rounding reaches.
STRENGTH = 2.0


def check_expert_adapters(kernel: KernelSpec, format: MatrixFormat, dtype: torch.dtype, device: torch.device) -> None:
    """Raise EngineError where `kernel` computes something else than a layer's experts with each token's adapter. Those
    that run one after the other have adapters beside them by torch."""
    intermediate = 128 if format.group_size <= 128 else INPUTS
    sides = (INPUTS, 2 * intermediate), (intermediate, INPUTS)
    made = [
        [reference_matrix(format, *sides[which], seed=100 * which + one) for one in range(NUM_EXPERTS)]
        for which in range(2)
    ]
    backend = make_backend(kernel, dtype, device)
    with said_of(kernel), torch.inference_mode():
        backend.reserve([MatrixShape(*one, format) for one in sides], max(NUM_TOKENS) * CHOSEN)
        tensors = [[[matrix_tensors(backend, format, parts)] for parts, _ in some] for some in made]
        experts = [ExpertTensors([gate_up], down) for gate_up, down in zip(*tensors, strict=True)]
        module = backend.make_experts(experts, SILU)
        if not isinstance(module, PackedExperts):
            return
        random = torch.Generator().manual_seed(1)
        gate_up = _random_matrices(random, INPUTS, (intermediate, intermediate), dtype)
        down = _random_matrices(random, intermediate, (INPUTS,), dtype)
        of_slots = SlotAdapters(
            torch.tensor(PLACES, dtype=torch.int32, device=device), torch.tensor(WEIGHTS, device=device)
        )
        for tokens in NUM_TOKENS:
            slots = torch.arange(tokens) % len(PLACES)
            kernels, of_pass = expert_low_rank_kernels_for(dtype, device), PassAdapters(slots.to(device), of_slots)
            module.adapt(ExpertAdapters(_to(gate_up, device), _to(down, device), kernels, partial(_same, of_pass)))
            x = torch.randn((tokens, INPUTS), generator=random).to(dtype)
            ids = torch.stack([torch.randperm(NUM_EXPERTS - 2, generator=random)[:CHOSEN] for _ in range(tokens)])
            weights = torch.rand((tokens, CHOSEN), generator=random).to(dtype)
            got = module(x.to(device), ids.to(device), weights.to(device)).float().cpu()
            wanted = torch.zeros_like(got)
            for slot in range(len(PLACES)):
                rows = slots == slot
                merged = (
                    [dense + _delta(matrices, one, slot) for one, (_, dense) in enumerate(some)]
                    for matrices, some in zip((gate_up, down), made, strict=True)
                )
                wanted[rows] = run_experts(x[rows], ids[rows], weights[rows], *merged)
            require_small(kernel, dtype, ((got - wanted).norm(dim=-1) / wanted.norm(dim=-1)).max())


def _same(of_pass: PassAdapters) -> PassAdapters:
    return of_pass


def _random_matrices(random: torch.Generator, inputs: int, outputs: Sequence[int], dtype: torch.dtype) -> ExpertLowRank:
    """For two adapters."""
    shapes = [(NUM_EXPERTS, 2 * RANK, inputs) for _ in outputs], [(NUM_EXPERTS, one, 2 * RANK) for one in outputs]
    spreads = inputs**-0.5, STRENGTH * RANK**-0.5
    a, b = (
        tuple((spread * torch.randn(shape, generator=random)).to(dtype) for shape in some)
        for spread, some in zip(spreads, shapes, strict=True)
    )
    return ExpertLowRank(a, b, RANK)


def _to(matrices: ExpertLowRank, device: torch.device) -> ExpertLowRank:
    a, b = (tuple(one.to(device) for one in some) for some in (matrices.a, matrices.b))
    return ExpertLowRank(a, b, matrices.rank)


def _delta(matrices: ExpertLowRank, expert: int, slot: int) -> torch.Tensor:
    """What the slot's adapter adds to an expert's matrix, [inputs, outputs] in float32."""
    place = PLACES[slot]
    if place == NO_PLACE:
        return torch.zeros(())
    columns = slice(place * RANK, (place + 1) * RANK)
    parts = [
        b[expert, :, columns].float() @ a[expert, columns].float()
        for a, b in zip(matrices.a, matrices.b, strict=True)
    ]  # fmt: skip
    return WEIGHTS[slot] * torch.cat(parts).T
