"""Gated DeltaNet layers (arXiv 2412.06464): one new token of many slots, and a chunk of one slot's text; the kernels of
cuda/recurrent_*.cu.

They take what the layer's matrices made of the tokens: queries, keys and values before the convolution, gates, betas
and decays. They give what the layer's last matrix takes. Slots and places lie in GPU memory, as step_ops.py says. A
row's result does not depend on the other rows.
"""

from __future__ import annotations

import logging
from ctypes import c_longlong
from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple

import torch

from core.checkpoint.recurrent import GatedDeltaNet
from core.memory.layer_state import DELTA_SCALARS, DELTA_TOKENS
from core.memory.sizes import FLOAT_BYTES, HALF_BYTES
from core.worker.kernels.nvrtc import Argument, CudaCodeError, CudaKernel, CudaModule, read_source
from core.worker.kernels.row_layout import IN_ORDER, RowLayout
from core.worker.kernels.step_ops import HALVES

log = logging.getLogger(__name__)
# As cuda/recurrent_*.cu have it: threads of a block; tokens of one that takes one a warp; columns of one that scans.
STEP_THREADS, CHUNK_THREADS, CHUNK_TOKENS, SCAN_COLUMNS = 512, 128, 4, 32
# The largest state, in floats, of which a step's thread blocks read the next one ahead. They do where each has so many.
MOST_READ_AHEAD, MANY_HEADS = 128 * 128, 2
# Of a block that convolves, whose warps take four tokens each.
INPUT_TOKENS = 16
BLOCK_THREADS = 256
# Of GPUs with tensor cores for both half-precision types.
BLOCKS_CAPABILITY = (8, 0)
# Copies into shared memory take so many halves at once.
COPIED_HALVES = 8
# What lies between rows in shared memory, so that tensor cores' operands come from different banks.
ROW_GAP = 8


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

    @classmethod
    def side_by_side(
        cls, mixer: GatedDeltaNet, mixed: torch.Tensor, gates: torch.Tensor, betas: torch.Tensor, decays: torch.Tensor
    ) -> Projected:
        """Of four matrices, as Qwen3.5 has them: all queries, all keys, all values in a row of the first."""
        ratio = mixer.num_value_heads // mixer.num_key_heads
        keys, values = mixer.num_key_heads * mixer.key_dim, ratio * mixer.value_dim
        return cls(mixed, gates, betas, decays, Layout(mixer.key_dim, keys, 2 * keys, values, values, ratio))

    @classmethod
    def by_key_head(cls, mixer: GatedDeltaNet, mixed: torch.Tensor, scalars: torch.Tensor) -> Projected:
        """Of two matrices, as Qwen3-Next has them: each key head's query, key, values and gates in a row of the first,
        its betas and decays in one of the second."""
        ratio = mixer.num_value_heads // mixer.num_key_heads
        gates = 2 * mixer.key_dim + ratio * mixer.value_dim
        step = gates + ratio * mixer.value_dim
        layout = Layout(step, mixer.key_dim, 2 * mixer.key_dim, step, step, 2 * ratio)
        return cls(mixed, mixed[:, gates:], scalars, scalars[:, ratio:], layout)

    def can_be_copied(self, *others: torch.Tensor) -> bool:
        """Whether a head's part of a row begins where copies into shared memory can, and so do `others`."""
        places = [*self.layout[:5], *(one.stride(0) for one in (self.mixed, self.gates))]
        starts = [one.data_ptr() // HALF_BYTES for one in (self.mixed, self.gates, *others)]
        return all(one % COPIED_HALVES == 0 for one in (*places, *starts))

    def arguments(self) -> tuple[Argument, ...]:
        """As kernels of cuda/recurrent_step.cu and cuda/recurrent_chunk.cu begin."""
        parts = (self.mixed, self.gates, self.betas, self.decays)
        return (*parts, *(part.stride(0) for part in parts), *self.layout)


@dataclass(frozen=True, slots=True)
class DeltaWeights:
    """A layer's own numbers beside its matrices.

    conv: [channels, conv width], oldest input first. a_log, dt_bias: [value heads], float32; a state fades by
    exp(-exp(a_log) * softplus(decay + dt_bias)). norm: of the output [value dim].
    """

    conv: torch.Tensor
    a_log: torch.Tensor
    dt_bias: torch.Tensor
    norm: torch.Tensor
    eps: float


@dataclass(frozen=True, slots=True)
class BlockSizes:
    """How a chunk's blocks of tokens are computed: columns of a state a thread block, and blocks in shared memory."""

    columns: int
    stages: int

    def shared_bytes(self, key_dim: int) -> int:
        """Bytes of a thread block's shared memory (Blocks in cuda/recurrent_blocks.cu)."""
        columns = self.columns + ROW_GAP
        tokens = 2 * (key_dim + ROW_GAP) + columns + 2 * (DELTA_TOKENS + ROW_GAP)
        stage = DELTA_TOKENS * (tokens * HALF_BYTES + DELTA_SCALARS * FLOAT_BYTES)
        return self.stages * stage + (key_dim + 2 * DELTA_TOKENS) * columns * HALF_BYTES


# The fastest first: fewer columns read keys and queries more often, and one block in shared memory is waited for.
BLOCK_SIZES = (BlockSizes(64, 2), BlockSizes(64, 1), BlockSizes(32, 1))


def pairs_bytes(key_dim: int) -> int:
    """Bytes of shared memory of the kernel that solves a block's system (Pairs in cuda/recurrent_blocks.cu)."""
    rows = 2 * (key_dim + ROW_GAP) * HALF_BYTES, (DELTA_TOKENS + 4) * FLOAT_BYTES
    return DELTA_TOKENS * (max(rows) + rows[1] + 4 * FLOAT_BYTES)


def choose_block_sizes(mixer: GatedDeltaNet, block_bytes: int) -> BlockSizes | None:
    """What fits into `block_bytes` of shared memory; None for heads that do not fit, or whose sizes are odd."""
    if mixer.key_dim % 16 or mixer.value_dim % 8 or pairs_bytes(mixer.key_dim) > block_bytes:
        return None
    fitting = (one for one in BLOCK_SIZES if one.shared_bytes(mixer.key_dim) <= block_bytes)
    return next(fitting, None)


@cache
def module_for(dtype: torch.dtype, mixer: GatedDeltaNet, blocks: BlockSizes | None, device: torch.device) -> CudaModule:
    """Raises TypeError for other types than those of HALVES, CudaCodeError where the kernels do not compile."""
    if dtype not in HALVES:
        raise TypeError(f"a recurrent layer in {dtype}")
    defines = {"BF16": int(dtype == torch.bfloat16), "DK": mixer.key_dim, "DV": mixer.value_dim}
    defines |= {"WIDTH": mixer.conv_width, "STEP_THREADS": STEP_THREADS, "MANY_ROWS": int(many_rows_bytes(mixer) > 0)}
    files = ["fragments.cuh", "recurrent.cuh", "recurrent_step.cu", "recurrent_chunk.cu"]
    if blocks is None:
        return CudaModule(read_source(*files, "recurrent_scan.cu"), defines, device)
    defines |= {"COLUMNS": blocks.columns, "STAGES": blocks.stages}
    return CudaModule(read_source(*files, "recurrent_blocks.cu"), defines, device)


def many_rows_bytes(mixer: GatedDeltaNet) -> int:
    """Bytes of shared memory for the state of a value head, and for what else its step needs (HeadInputs in
    cuda/recurrent_step.cu), that a thread block reads ahead; 0 for states that are larger than two blocks of a
    multiprocessor have room for, and for sizes that copies do not take."""
    if mixer.key_dim * mixer.value_dim > MOST_READ_AHEAD:
        return 0
    if mixer.key_dim % COPIED_HALVES or mixer.value_dim % COPIED_HALVES:
        return 0
    quads, channels = mixer.value_dim // 4, 2 * mixer.key_dim + mixer.value_dim
    state = -(-mixer.key_dim // (STEP_THREADS // quads)) * STEP_THREADS * 4 * FLOAT_BYTES
    return state + (channels * 2 * mixer.conv_width + mixer.value_dim) * HALF_BYTES + 4 * FLOAT_BYTES


def reading_ahead(module: CudaModule, mixer: GatedDeltaNet) -> CudaKernel | None:
    """The step of many rows; None where a block of threads has no room for it."""
    if not (num_bytes := many_rows_bytes(mixer)):
        return None
    try:
        return module.kernel("delta_step_many", num_bytes)
    except CudaCodeError as error:
        log.info("no step that reads states ahead: %s", error)
        return None


class DeltaKernels:
    """For the layers of one shape of a model on one GPU, which share a small buffer.

    A chunk's rule runs token by token in float32; or, where tensor cores are fast enough, 64 tokens at a time, which
    rounds what is multiplied to half precision.
    """

    def __init__(
        self,
        mixer: GatedDeltaNet,
        dtype: torch.dtype,
        num_rows: int,
        device: torch.device,
        in_blocks: bool | None = None,
    ) -> None:
        """num_rows: the most that decode at once. in_blocks: whether a chunk's tokens are taken 64 at a time; None:
        where the GPU is fast at it. Raises TypeError, ValueError, CudaCodeError."""
        if not mixer.is_capturable:
            raise ValueError(f"no kernel for {mixer}")
        self.mixer = mixer
        if in_blocks is None:
            in_blocks = torch.cuda.get_device_capability(device) >= BLOCKS_CAPABILITY
        room = torch.cuda.get_device_properties(device).shared_memory_per_block_optin if in_blocks else 0
        self._blocks = blocks = choose_block_sizes(mixer, room)
        module = module_for(dtype, mixer, blocks, device)
        self._step, self._step_many = module.kernel("delta_step"), reading_ahead(module, mixer)
        self._most_blocks = self._step_many.most_blocks(STEP_THREADS) if self._step_many else 0
        self._inputs, self._outputs = module.kernel("delta_inputs"), module.kernel("delta_outputs")
        if blocks is None:
            self._scan = module.kernel("delta_scan")
        else:
            self._pairs = module.kernel("delta_pairs", pairs_bytes(mixer.key_dim))
            self._in_blocks = module.kernel("delta_blocks", blocks.shared_bytes(mixer.key_dim))
        # How many value heads of a row have read what they share.
        self._readers = torch.zeros(num_rows * mixer.num_key_heads, dtype=torch.int32, device=device)

    def stop_reading_ahead(self) -> None:
        """Whatever the number of rows, a step's thread blocks have a head each from now on."""
        self._step_many = None

    @property
    def ways(self) -> tuple[bool, ...]:
        """Whether a step's thread blocks read what the next head needs ahead: of many rows, where there is room."""
        return (False, True) if self._step_many else (False,)

    def step(
        self,
        projected: Projected,
        weights: DeltaWeights,
        conv: torch.Tensor,
        state: torch.Tensor,
        slots: torch.Tensor,
        columns: torch.Tensor,
        layout: RowLayout = IN_ORDER,
        reads_ahead: bool | None = None,
    ) -> torch.Tensor:
        """One new token a row -> [rows, value heads * value dim] in `layout`.
        reads_ahead: one of `ways`; None: the faster one. Nothing is read ahead that copies do not take.

        conv [.., channels, conv width - 1] and state [.., value heads, key dim, value dim] float32: the layer's memory,
        changed in place where `slots` [rows] says. columns [rows]: the token's place in its slot's text; at 0 the
        slot's memory counts for nothing, below 0 a row gets zeros and changes nothing. No slot may have two rows with a
        place.
        """
        mixer, rows = self.mixer, projected.mixed.shape[0]
        out = layout.empty(rows, mixer.num_value_heads * mixer.value_dim, conv)
        kernel, grid, heads = self._step, (mixer.num_value_heads, rows, 1), mixer.num_value_heads * rows
        if reads_ahead is None:
            reads_ahead = self._step_many is not None and heads >= MANY_HEADS * self._most_blocks
        if reads_ahead and projected.can_be_copied(weights.conv, conv, state):
            assert self._step_many is not None
            kernel, grid = self._step_many, (min(-(-heads // MANY_HEADS), self._most_blocks), 1, 1)
        kernel(
            grid, STEP_THREADS, *projected.arguments(), weights.conv, weights.a_log, weights.dt_bias, weights.norm,
            conv, state, slots, columns, self._readers, out, *layout, c_longlong(conv.stride(0)),
            c_longlong(state.stride(0)), float(weights.eps), mixer.num_key_heads, mixer.num_value_heads, rows,
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
        kept: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """A chunk of one slot's text -> [tokens, value heads * value dim].

        bounds [2]: the first token's place in the text and how many tokens are there, at least one; what comes out for
        the others is zeros. kept [2]: into which row the layer's memory goes as it is on the way, after how many of the
        tokens, a multiple of DELTA_TOKENS; 0 of them: into none. The rest as for `step`, with one of `slots`.
        """
        mixer, tokens = self.mixer, projected.mixed.shape[0]
        if projected.mixed.stride(0) % 2 or projected.mixed.data_ptr() % 4:
            # Its channels are read in pairs.
            projected = replace(projected, mixed=projected.mixed.contiguous())
        heads, device = (mixer.num_key_heads, mixer.num_value_heads), conv.device
        active = torch.empty((tokens, mixer.channels), dtype=conv.dtype, device=device)
        scalars = torch.empty((mixer.num_value_heads, tokens, DELTA_SCALARS), dtype=torch.float32, device=device)
        out = torch.empty((tokens, mixer.num_value_heads * mixer.value_dim), dtype=conv.dtype, device=device)
        conv_row, state_row = c_longlong(conv.stride(0)), c_longlong(state.stride(0))
        grid = (-(-tokens // INPUT_TOKENS), mixer.num_key_heads, 1)
        self._inputs(
            grid, CHUNK_THREADS, *projected.arguments(), weights.conv, weights.a_log, weights.dt_bias, conv, slots,
            bounds, active, scalars, conv_row, *heads, tokens,
        )  # fmt: skip
        memory = (projected.mixed, conv, state, slots, bounds, kept, out, conv_row, state_row,
                  projected.mixed.stride(0))  # fmt: skip
        sizes = (*projected.layout[:4], *heads, tokens)
        if self._blocks is None:
            columns = -(-mixer.value_dim // SCAN_COLUMNS)
            self._scan((columns, mixer.num_value_heads, 1), CHUNK_THREADS, active, scalars, *memory, *sizes)
        else:
            num_blocks, columns = -(-tokens // DELTA_TOKENS), -(-mixer.value_dim // self._blocks.columns)
            shape = (mixer.num_value_heads, num_blocks, 2, DELTA_TOKENS, DELTA_TOKENS)
            pairs = torch.empty(shape, dtype=conv.dtype, device=device)
            self._pairs((num_blocks, mixer.num_value_heads, 1), CHUNK_THREADS, active, scalars, pairs, bounds, *heads,
                        tokens)  # fmt: skip
            self._in_blocks((columns, mixer.num_value_heads, 1), BLOCK_THREADS, active, scalars, pairs, *memory, *sizes)
        grid = (-(-tokens // CHUNK_TOKENS), mixer.num_value_heads, 1)
        self._outputs(
            grid, CHUNK_THREADS, out, projected.gates, weights.norm, bounds, projected.gates.stride(0),
            projected.layout.gates_step, float(weights.eps), mixer.num_value_heads // mixer.num_key_heads,
            mixer.num_value_heads, tokens,
        )  # fmt: skip
        return out
