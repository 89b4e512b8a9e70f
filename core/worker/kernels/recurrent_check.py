"""Kernels of Gated DeltaNet layers that have shown on this GPU that they compute what torch does."""

from __future__ import annotations

import logging
from functools import cache

import torch
from torch.nn.functional import rms_norm, silu, softplus

from core.checkpoint.recurrent import GatedDeltaNet
from core.memory.layer_state import DELTA_TOKENS
from core.worker.kernels.delta_rule import causal_conv, delta_chunk, unit_length
from core.worker.kernels.recurrent import COPIED_HALVES, DeltaKernels, DeltaWeights, Projected

log = logging.getLogger(__name__)
# A block of tokens and a part of one, which begin a text; one more token is decoded.
NUM_TOKENS = 70
EPS = 1e-6
# Of a result's norm: half precision rounds what is multiplied.
TOLERANCES = {torch.float16: 0.005, torch.bfloat16: 0.03}


@cache
def delta_kernels_for(mixer: GatedDeltaNet, dtype: torch.dtype, num_rows: int, device: torch.device) -> DeltaKernels:
    """num_rows: the most that decode at once. Raises TypeError, ValueError or CudaCodeError where there are none that
    compute the rule."""
    kernels = DeltaKernels(mixer, dtype, num_rows, device)
    check_delta_kernels(kernels, dtype, device)
    return kernels


def check_delta_kernels(kernels: DeltaKernels, dtype: torch.dtype, device: torch.device) -> None:
    """Raise ValueError where a chunk, a token after it or the state that they leave is not what torch makes of them."""
    mixer, random = kernels.mixer, torch.Generator().manual_seed(0)

    def made(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random, device="cpu").to(device)

    heads, tokens = mixer.num_value_heads, NUM_TOKENS + 1
    sizes = [mixer.channels, heads * mixer.value_dim, heads, heads]
    # A row begins where copies into shared memory can.
    padding = -sum(sizes) % COPIED_HALVES
    *parts, _ = made(tokens, sum(sizes) + padding).to(dtype).split([*sizes, padding], -1)
    conv_weight, norm = made(mixer.channels, mixer.conv_width).to(dtype) * 0.5, made(mixer.value_dim).to(dtype)
    weights = DeltaWeights(conv_weight, made(heads), made(heads), norm, EPS)
    # What an earlier text left there counts for nothing.
    conv = torch.full((2, mixer.channels, mixer.conv_width - 1), torch.nan, dtype=dtype, device=device)
    state = torch.full((2, heads, mixer.key_dim, mixer.value_dim), torch.nan, device=device)
    slot, bounds = torch.zeros(1, dtype=torch.long, device=device), torch.tensor([0, NUM_TOKENS], device=device)
    rows, on_way = Projected.side_by_side(mixer, *parts), torch.tensor([1, DELTA_TOKENS], device=device)
    chunk = kernels.chunk(rows, weights, conv, state, slot, bounds, on_way)[:NUM_TOKENS]
    last = Projected.side_by_side(mixer, *(part[NUM_TOKENS:] for part in parts))
    wanted, wanted_state = run_rule(mixer, weights, *parts)
    _, state_on_way = run_rule(mixer, weights, *(part[:DELTA_TOKENS] for part in parts))
    differences = [far(chunk, wanted[:NUM_TOKENS]), far(state[1:], state_on_way)]
    for way in kernels.ways:
        memory = conv.clone(), state.clone()
        token = kernels.step(last, weights, *memory, slot, slot + NUM_TOKENS, reads_ahead=way)
        of_way = [far(token, wanted[NUM_TOKENS:]), far(memory[1][:1], wanted_state)]
        if way and not all(one <= TOLERANCES[dtype] for one in of_way):
            log.warning("a step that reads heads ahead is off by %.2g and %.2g, and not taken", *of_way)
            kernels.stop_reading_ahead()
        else:
            differences += of_way
    for difference in differences:
        if not difference <= TOLERANCES[dtype]:
            raise ValueError(f"the kernels of recurrent layers are off by {difference:.2g}")


def far(got: torch.Tensor, wanted: torch.Tensor) -> float:
    """How far a result is off, as a share of its norm."""
    return float((got.float() - wanted.float()).norm() / wanted.float().norm())


def run_rule(
    mixer: GatedDeltaNet,
    weights: DeltaWeights,
    mixed: torch.Tensor,
    gates: torch.Tensor,
    betas: torch.Tensor,
    decays: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """A whole text by torch; [tokens, ..] as Projected has them -> [tokens, value heads * value dim], last state."""
    dtype, heads, keys = mixed.dtype, mixer.num_value_heads, mixer.num_key_heads * mixer.key_dim
    before = mixed.new_zeros((1, mixer.channels, mixer.conv_width - 1))
    sums, _ = causal_conv(mixed[None], before, weights.conv, None)
    active = silu(sums.to(dtype)).float()
    query, key, value = active.split([keys, keys, heads * mixer.value_dim], -1)
    query, key = (unit_length(one.unflatten(-1, (mixer.num_key_heads, mixer.key_dim))) for one in (query, key))
    decay = -weights.a_log.exp() * softplus(decays.float() + weights.dt_bias)
    state = torch.zeros((1, heads, mixer.key_dim, mixer.value_dim), device=mixed.device)
    answers, state = delta_chunk(
        query * mixer.key_dim**-0.5, key, value.unflatten(-1, (heads, mixer.value_dim)), decay[None],
        betas.sigmoid().float()[None], state,
    )  # fmt: skip
    normed = rms_norm(answers[0].to(dtype).float(), (mixer.value_dim,), eps=weights.eps).to(dtype) * weights.norm
    return (normed.float() * silu(gates.float()).unflatten(-1, (heads, -1))).to(dtype).flatten(1), state
