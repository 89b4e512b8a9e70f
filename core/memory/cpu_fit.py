"""Does a model fit into this machine's own memory, where there is no GPU; and about how fast it writes there.

An estimate: the worker measures nothing on a CPU and takes what it needs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from core.checkpoint.checkpoint import Checkpoint
from core.checkpoint.layers import Experts
from core.checkpoint.notes import Note, notes
from core.common.errors import InputError
from core.common.host_memory import available_bytes
from core.memory.adapter_room import NO_ROOM, AdapterRoom
from core.memory.expert_shapes import token_share
from core.memory.fit import MAX_CHATS, checked_context
from core.memory.fit_report import MIN_USEFUL_TOKENS
from core.memory.host_bandwidth import measured_gb_s
from core.memory.kernels.registry import choose_kernel
from core.memory.kernels.spec import Device, KernelSpec
from core.memory.model_shape import ModelShape, read_shape
from core.memory.plan import activation_bytes, state_bytes, weight_bytes
from core.memory.sizes import HALF_BYTES, MIB, round_to_block
from core.memory.step_sizes import StepSizes

# The libraries of a worker (370 MiB) and what its allocator leaves unused while it loads: seen with 0.5 GB of weights.
PROCESS_BYTES = 800 * MIB
SIZES = StepSizes(256, 0)
# Adapters stay as they were read, beside their places.
ADAPTER_COPIES = 2
# How much of a copy's speed the products of one token reach: 8.6 GB/s on 2 cores that copy about 20.
SHARE_OF_COPY = 0.4
# What somebody reads along with.
READING_TOKENS_S = 5.0


@dataclass(frozen=True, slots=True)
class CpuReport:
    """The verdict for this machine's CPU. `reason` and `params` are as a FitReport's.

    `tokens_per_s`: about what one chat gets, from the memory's measured speed and the bytes of a token.
    """

    model: str
    fits: bool
    kernel: KernelSpec
    needed_mib: float
    available_mib: int
    context_tokens: int
    num_chats: int
    max_context: int
    tokens_per_s: float
    notes: tuple[Note, ...] = ()

    @property
    def reason(self) -> str:
        if not self.fits and self.max_context < MIN_USEFUL_TOKENS:
            return "cpu_too_large"
        if self.fits and not self.is_slow:
            return "cpu_fits"
        name = "cpu_fits_slow" if self.fits else "cpu_context_too_long"
        return f"{name}_one" if speed_text(self.tokens_per_s) == "1" else name

    @property
    def is_slow(self) -> bool:
        """Whether it writes more slowly than people read."""
        return self.tokens_per_s < READING_TOKENS_S

    @property
    def params(self) -> dict[str, str | int | float]:
        return {
            "model": self.model,
            "needed": math.ceil(self.needed_mib),
            "available": self.available_mib,
            "context": self.context_tokens,
            "chats": self.num_chats,
            "max_context": self.max_context,
            "speed": speed_text(self.tokens_per_s),
        }


def check_cpu_fit(
    checkpoint: Checkpoint,
    context_tokens: int = 0,
    num_chats: int = 1,
    kernel: str | None = None,
    available_mib: int | None = None,
    bandwidth_gb_s: float | None = None,
    adapters: AdapterRoom = NO_ROOM,
    cache_bits: int = 16,
) -> CpuReport:
    """The verdict for a CPU with `available_mib` of memory that copies `bandwidth_gb_s`; None: this machine as it is.

    Raises as core.memory.fit.check_fit does.
    """
    context_tokens = checked_context(checkpoint, context_tokens)
    if not 1 <= num_chats <= MAX_CHATS:
        raise InputError("chats_range", value=num_chats, limit=MAX_CHATS)
    checkpoint.require_runs()
    shape = read_shape(checkpoint, adapters=adapters, cache_bits=cache_bits)
    chosen, _ = choose_kernel(checkpoint, Device("cpu"), kernel)
    available = available_bytes() // MIB if available_mib is None else available_mib
    speed = measured_gb_s() if bandwidth_gb_s is None else bandwidth_gb_s
    needed = _needed_bytes(shape, chosen, context_tokens, num_chats) / MIB
    return CpuReport(
        model=checkpoint.name,
        fits=needed <= available,
        kernel=chosen,
        needed_mib=needed,
        available_mib=available,
        context_tokens=context_tokens,
        num_chats=num_chats,
        max_context=_longest(shape, chosen, num_chats, available * MIB, checkpoint.max_context_tokens),
        tokens_per_s=SHARE_OF_COPY * speed * 1e9 / token_bytes(shape, chosen),
        notes=notes(checkpoint, context_tokens),
    )


def token_bytes(shape: ModelShape, kernel: KernelSpec) -> int:
    """What one token of one chat reads: every weight but the embedding, of which it takes a row, and the experts
    that it does not go through."""
    experts = sum(count * kernel.matrix_bytes(matrix) for matrix, count in shape.expert_matrices)
    unread = round((experts + shape.expert_adapter_bytes) * (1 - token_share(shape.layers)))
    return weight_bytes(shape, kernel) - table_bytes(shape) * (not is_tied(shape)) - unread


def table_bytes(shape: ModelShape) -> int:
    """The embedding, and a head."""
    return round_to_block(shape.vocabulary * shape.hidden * HALF_BYTES)


def is_tied(shape: ModelShape) -> bool:
    return sum(count == shape.vocabulary * shape.hidden for count in shape.plain_elements) < 2


def speed_text(tokens_per_s: float) -> str:
    """An estimate has no more than one digit that counts: 0.3, 2, 8, 20."""
    if tokens_per_s < 1:
        return f"{max(0.1, tokens_per_s):.1f}"
    digits = 10 ** math.floor(math.log10(tokens_per_s))
    return f"{round(tokens_per_s / digits) * digits}"


def _needed_bytes(shape: ModelShape, kernel: KernelSpec, context_tokens: int, num_chats: int) -> int:
    state = state_bytes(shape, context_tokens, num_chats)
    moment = activation_bytes(shape, kernel, SIZES, context_tokens, num_chats, own_attention=False)
    held = weight_bytes(shape, kernel) + (ADAPTER_COPIES - 1) * shape.adapter_bytes
    # A head that is the embedding lies beside it once more, as its products read it (worker/model/packed_linear.py).
    held += table_bytes(shape) * is_tied(shape)
    return held + max(state + moment, _loading_bytes(shape)) + PROCESS_BYTES


def _loading_bytes(shape: ModelShape) -> int:
    """The experts of one layer as they were read: they become one module together."""
    read = sum(
        count * (one.codes_bytes + one.zeros_bytes + one.scales_bytes + one.input_groups_bytes)
        for one, count in shape.expert_matrices
    )
    return read // max(1, sum(count for layer, count in shape.layers if isinstance(layer.mlp, Experts)))


def _longest(shape: ModelShape, kernel: KernelSpec, num_chats: int, available_bytes: int, limit: int) -> int:
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        if _needed_bytes(shape, kernel, middle, num_chats) <= available_bytes:
            low = middle
        else:
            high = middle - 1
    return low
