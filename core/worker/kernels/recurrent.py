"""Gated DeltaNet layers (arXiv 2412.06464): one new token of many slots, and a chunk of one slot's text; the kernels of
cuda/recurrent.cu.

They take what the layer's matrices made of the tokens: queries, keys and values before the convolution, gates, betas
and decays. They give what the layer's last matrix takes. Slots and places lie in GPU memory, as step_ops.py says. A
row's result does not depend on the other rows.
"""

from __future__ import annotations

from ctypes import c_longlong
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch

from core.checkpoint.recurrent import GatedDeltaNet
from core.memory.sizes import FLOAT_BYTES, HALF_BYTES
from core.worker.kernels.nvrtc import Argument, CudaModule, read_source
from core.worker.kernels.step_ops import HALVES

# Threads of a block, as cuda/recurrent.cu has them; tokens of a block that takes one a warp; columns of one that scans.
STEP_THREADS, CHUNK_THREADS, CHUNK_TOKENS, SCAN_COLUMNS = 512, 128, 4, 32
# The largest head and the widest convolution. A thread's registers hold its part of both.
MAX_DIM, MAX_WIDTH = 256, 8
# What a chunk's first kernel tells of each token and value head.
NUM_SCALARS = 4


class Layout(NamedTuple):
    """Where a token's numbers lie, in elements.

    head_step: from one key head's queries to the next one's, and so for keys; keys, values: where those begin;
    values_step: from a key head's values to the next one's; gates_step, scalars_step: so for gates, and for betas and
    decays.
    """

    head_step: int
    keys: int
    values: int
    values_step: int
    gates_step: int
    scalars_step: int


def side_by_side(mixer: GatedDeltaNet) -> Layout:
    """All queries, all keys, all values in a row, as Qwen3.5's matrices give them."""
    ratio = mixer.num_value_heads // mixer.num_key_heads
    keys, values = mixer.num_key_heads * mixer.key_dim, ratio * mixer.value_dim
    return Layout(mixer.key_dim, keys, 2 * keys, values, values, ratio)


def by_key_head(mixer: GatedDeltaNet) -> Layout:
    """Each key head's query, key, values and gates in a row, its betas and decays in another, as Qwen3-Next's two
    matrices give them."""
    ratio = mixer.num_value_heads // mixer.num_key_heads
    step = 2 * mixer.key_dim + 2 * ratio * mixer.value_dim
    return Layout(step, mixer.key_dim, 2 * mixer.key_dim, step, step, 2 * ratio)


@dataclass(frozen=True, slots=True)
class Projected:
    """What a layer's matrices made of tokens, in half precision; each [tokens, ..], a part of a larger row or a row.

    mixed: queries, keys and values. gates: what scales the output [.. value heads, value dim]; betas, decays: a number
    each value head.
    """

    mixed: torch.Tensor
    gates: torch.Tensor
    betas: torch.Tensor
    decays: torch.Tensor
    layout: Layout

    def arguments(self) -> tuple[Argument, ...]:
        """As every kernel of cuda/recurrent.cu begins."""
        parts = (self.mixed, self.gates, self.betas, self.decays)
        return (*parts, *(part.stride(0) for part in parts), *self.layout)


@dataclass(frozen=True, slots=True)
class DeltaWeights:
    """A layer's own numbers beside its matrices.

    conv: [channels, conv width], oldest input first. rates: -exp(A_log) [value heads] and offsets: dt_bias, float32;
    a state fades by exp(rate * softplus(decay + offset)). norm: of the output [value dim].
    """

    conv: torch.Tensor
    rates: torch.Tensor
    offsets: torch.Tensor
    norm: torch.Tensor
    eps: float


@cache
def module_for(dtype: torch.dtype, key_dim: int, value_dim: int, conv_width: int, device: torch.device) -> CudaModule:
    """Raises TypeError or ValueError for what the kernels do not take, CudaCodeError where they do not compile."""
    if dtype not in HALVES:
        raise TypeError(f"a recurrent layer in {dtype}")
    if key_dim % 4 or value_dim % 4 or max(key_dim, value_dim) > MAX_DIM or not 2 <= conv_width <= MAX_WIDTH:
        raise ValueError(f"a recurrent layer with heads of {key_dim} and {value_dim}, {conv_width} inputs")
    defines = {"BF16": int(dtype == torch.bfloat16), "DK": key_dim, "DV": value_dim, "WIDTH": conv_width}
    return CudaModule(read_source("recurrent.cu"), defines | {"STEP_THREADS": STEP_THREADS}, device)


class DeltaKernels:
    """For the layers of one shape of a model on one GPU, which share a small buffer."""

    def __init__(self, mixer: GatedDeltaNet, dtype: torch.dtype, num_rows: int, device: torch.device) -> None:
        """num_rows: the most that decode at once. Raises TypeError, ValueError, CudaCodeError."""
        self.mixer = mixer
        module = module_for(dtype, mixer.key_dim, mixer.value_dim, mixer.conv_width, device)
        self._step, self._scan = module.kernel("delta_step"), module.kernel("delta_scan")
        self._inputs, self._outputs = module.kernel("delta_inputs"), module.kernel("delta_outputs")
        # How many value heads of a row have read what they share.
        self._readers = torch.zeros(num_rows * mixer.num_key_heads, dtype=torch.int32, device=device)

    def step(
        self,
        projected: Projected,
        weights: DeltaWeights,
        conv: torch.Tensor,
        state: torch.Tensor,
        slots: torch.Tensor,
        columns: torch.Tensor,
        inverse_permutation: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """One new token a row -> [rows, value heads * value dim], each value where `inverse_permutation` says.

        conv [.., channels, conv width - 1] and state [.., value heads, key dim, value dim] float32: the layer's memory,
        changed in place where `slots` [rows] says. columns [rows]: the token's place in its slot's text; at 0 the
        slot's memory counts for nothing, below 0 a row gets zeros and changes nothing. No slot may have two rows with a
        place.
        """
        mixer, rows = self.mixer, projected.mixed.shape[0]
        out = torch.empty((rows, mixer.num_value_heads * mixer.value_dim), dtype=conv.dtype, device=conv.device)
        self._step(
            (mixer.num_value_heads, rows, 1), STEP_THREADS, *projected.arguments(), weights.conv, weights.rates,
            weights.offsets, weights.norm, conv, state, slots, columns, self._readers, out, inverse_permutation,
            c_longlong(conv.stride(0)), c_longlong(state.stride(0)), float(weights.eps), mixer.num_key_heads,
            mixer.num_value_heads,
        )  # fmt: skip
        return out

    def chunk(
        self,
        projected: Projected,
        weights: DeltaWeights,
        conv: torch.Tensor,
        state: torch.Tensor,
        slots: torch.Tensor,
        bounds: torch.Tensor,
    ) -> torch.Tensor:
        """A chunk of one slot's text -> [tokens, value heads * value dim].

        bounds [2]: the first token's place in the text and how many tokens are there, at least one; what comes out for
        the others is zeros. The rest as for `step`, with one of `slots`.
        """
        mixer, tokens = self.mixer, projected.mixed.shape[0]
        heads, device = (mixer.num_key_heads, mixer.num_value_heads), conv.device
        active = torch.empty((tokens, mixer.channels), dtype=conv.dtype, device=device)
        scalars = torch.empty((mixer.num_value_heads, tokens, NUM_SCALARS), dtype=torch.float32, device=device)
        out = torch.empty((tokens, mixer.num_value_heads * mixer.value_dim), dtype=conv.dtype, device=device)
        conv_row, state_row = c_longlong(conv.stride(0)), c_longlong(state.stride(0))
        blocks = -(-tokens // CHUNK_TOKENS)
        self._inputs(
            (blocks, mixer.num_key_heads, 1), CHUNK_THREADS, *projected.arguments(), weights.conv, weights.rates,
            weights.offsets, conv, slots, bounds, active, scalars, conv_row, *heads, tokens,
        )  # fmt: skip
        self._scan(
            (-(-mixer.value_dim // SCAN_COLUMNS), mixer.num_value_heads, 1), CHUNK_THREADS, active, scalars,
            projected.mixed, conv, state, slots, bounds, out, conv_row, state_row, projected.mixed.stride(0),
            *projected.layout[:4], *heads, tokens,
        )  # fmt: skip
        self._outputs(
            (blocks, mixer.num_value_heads, 1), CHUNK_THREADS, out, projected.gates, weights.norm, bounds,
            projected.gates.stride(0), projected.layout.gates_step, float(weights.eps),
            mixer.num_value_heads // mixer.num_key_heads, mixer.num_value_heads, tokens,
        )  # fmt: skip
        return out


def chunk_bytes(mixer: GatedDeltaNet, tokens: int) -> int:
    """What `DeltaKernels.chunk` allocates, its result included."""
    halves = mixer.channels + mixer.num_value_heads * mixer.value_dim
    return tokens * (halves * HALF_BYTES + mixer.num_value_heads * NUM_SCALARS * FLOAT_BYTES)
