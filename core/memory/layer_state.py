"""Memory of what a layer keeps of each chat, and of the moment when it reads it, by the kind of the layer."""

from __future__ import annotations

import math
from typing import Any, Protocol

from core.checkpoint.attention import CappedAttention, DistanceAttention, FullAttention, SlidingAttention
from core.checkpoint.layers import Mixer
from core.checkpoint.recurrent import GatedDeltaNet, Mamba2, Recurrent, ShortConv
from core.memory.pages import PAGE_TOKENS
from core.memory.sizes import FLOAT_BYTES, HALF_BYTES, round_to_block

# How many queries of a chunk have their scores multiplied out at a time, where no kernel does it for all. No fewer than
# the chats that can be at once.
WRITTEN_OUT_QUERIES = 64
# The largest head that torch's own kernels for attention take on a GPU: of larger ones they write out all scores.
MAX_TORCH_HEAD_DIM = 256
# How many earlier states are kept beside one a slot. A prompt that shares a part with its chat can go on from them.
MORE_SNAPSHOTS = 2
# How many tokens of a chunk the delta rule takes at once.
DELTA_TOKENS = 64
# What our own kernels note of each token and value head of a chunk.
DELTA_SCALARS = 4


class StatePlan(Protocol):
    """The bytes of one kind of layer."""

    def state_bytes(
        self, mixer: Any, context_tokens: int, num_slots: int, num_pages: int | None = None, bits: int = 16
    ) -> int:
        """What a layer keeps of all chats: of keys and values of `bits` bits `num_pages` pages, or a row for each."""

    def activation_bytes(self, mixer: Any, num_rows: int, context_tokens: int, own_attention: bool) -> int:
        """The layer's largest moment in a pass of `num_rows` tokens, beside the residual."""


class KvStatePlan:
    """Keys and values of every token. A sliding layer keeps them all as well and looks back less far."""

    def state_bytes(
        self, mixer: FullAttention, context_tokens: int, num_slots: int, num_pages: int | None = None, bits: int = 16
    ) -> int:
        """2 * columns * kv heads * head size * 2 bytes; of 8 bit half as much, and a scale of 2 bytes for each head.
        Columns: slots * (context + 1), one more than are read; or those of all pages and of the padding page. Nothing
        where the layer reads what an earlier one keeps."""
        if mixer.shares_cache:
            return 0
        columns = num_slots * (context_tokens + 1) if num_pages is None else (num_pages + 1) * PAGE_TOKENS
        heads = columns * mixer.num_kv_heads
        scales = round_to_block(heads * HALF_BYTES) if bits == 8 else 0
        return 2 * (round_to_block(heads * mixer.head_dim * bits // 8) + scales)

    def activation_bytes(self, mixer: FullAttention, num_rows: int, context_tokens: int, own_attention: bool) -> int:
        """Queries, keys, values, the output and what becomes of it.

        Torch's attention may also repeat the keys and values of heads that share them, and takes a mask.
        """
        size = mixer.num_heads * mixer.head_dim * HALF_BYTES
        # A gate lies beside the queries; it is copied, and so is what comes of it.
        vectors = (8 if mixer.is_gated else 5) * num_rows * size
        if own_attention:
            return vectors
        if mixer.has_sinks or mixer.head_dim > MAX_TORCH_HEAD_DIM:
            return vectors + written_out_bytes(mixer, num_rows, context_tokens)
        repeated = 2 * context_tokens * size if mixer.num_heads // mixer.num_kv_heads > 1 else 0
        return vectors + repeated + mask_bytes(num_rows, context_tokens)


class DistanceStatePlan(KvStatePlan):
    """A plain pass makes a bias for each head; a kernel may take a padded copy of it."""

    def activation_bytes(self, mixer: FullAttention, num_rows: int, context_tokens: int, own_attention: bool) -> int:
        plain = KvStatePlan.activation_bytes(self, mixer, num_rows, context_tokens, own_attention)
        # Distances are counted as float, and once more while later tokens are marked.
        distance = 2 * num_rows * context_tokens * FLOAT_BYTES
        return plain + distance + mixer.num_heads * mask_bytes(num_rows, context_tokens)


class CappedStatePlan(KvStatePlan):
    """A pass writes out the scores of some queries."""

    def activation_bytes(self, mixer: FullAttention, num_rows: int, context_tokens: int, own_attention: bool) -> int:
        # No heads are repeated.
        vectors = KvStatePlan.activation_bytes(self, mixer, num_rows, context_tokens, own_attention=True)
        return vectors + written_out_bytes(mixer, num_rows, context_tokens)


class RecurrentStatePlan:
    """A state of fixed size and the convolution's last inputs; the context's length does not matter."""

    def state_bytes(
        self, mixer: Recurrent, context_tokens: int, num_slots: int, num_pages: int | None = None, bits: int = 16
    ) -> int:
        """rows * (elements of a state * 4 + channels * (conv width - 1) * 2) bytes."""
        rows = num_state_rows(num_slots)
        state = rows * math.prod(mixer.state_shape) * FLOAT_BYTES if mixer.state_shape else 0
        conv = rows * mixer.channels * (mixer.conv_width - 1) * HALF_BYTES
        return round_to_block(state) + round_to_block(conv)


class DeltaStatePlan(RecurrentStatePlan):
    """A matrix for each value head."""

    def activation_bytes(self, mixer: GatedDeltaNet, num_rows: int, context_tokens: int, own_attention: bool) -> int:
        """What our own kernels hold at once (core/worker/kernels/recurrent.py): what the matrices gave, the same after
        the convolution, DELTA_SCALARS and two products [tokens, DELTA_TOKENS] of each head, and the output.

        Or what the torch rule holds at once (core/worker/kernels/delta_rule.py): queries and keys by key head, values,
        corrected values and keys by value head, all in float32, beside products [tokens, DELTA_TOKENS] of each head."""
        padded = -(-num_rows // DELTA_TOKENS) * DELTA_TOKENS
        if own_attention:
            sizes = 2 * (mixer.channels + mixer.num_value_heads * (mixer.value_dim + 1))
            by_head = DELTA_SCALARS * FLOAT_BYTES + 2 * DELTA_TOKENS * HALF_BYTES
            return num_rows * sizes * HALF_BYTES + padded * mixer.num_value_heads * by_head
        keys, values = mixer.num_key_heads * mixer.key_dim, mixer.num_value_heads * mixer.value_dim
        by_value_head = mixer.num_value_heads * mixer.key_dim
        products = mixer.num_value_heads * DELTA_TOKENS
        projected = 2 * num_rows * (mixer.channels + values) * HALF_BYTES
        return projected + padded * FLOAT_BYTES * (4 * keys + 5 * values + 5 * by_value_head + 4 * products)


class MambaStatePlan(RecurrentStatePlan):
    """A matrix for each head."""

    def activation_bytes(self, mixer: Mamba2, num_rows: int, context_tokens: int, own_attention: bool) -> int:
        """What the matrix gave, the same after the convolution in float32, the heads' inputs, outputs and gates, and
        products [tokens, DELTA_TOKENS] of each head."""
        inner, written = mixer.num_heads * mixer.head_dim, mixer.num_heads * mixer.state_dim
        projected = num_rows * (mixer.channels + inner + mixer.num_heads) * 2 * HALF_BYTES
        block = min(num_rows, DELTA_TOKENS) * (2 * written + 2 * inner + 4 * mixer.num_heads * DELTA_TOKENS)
        return projected + (num_rows * (3 * mixer.channels + 5 * inner) + block) * FLOAT_BYTES


class ConvStatePlan(RecurrentStatePlan):
    """The convolution's inputs alone."""

    def activation_bytes(self, mixer: ShortConv, num_rows: int, context_tokens: int, own_attention: bool) -> int:
        """Both gates and the input, their product, and the convolution's sum in float32."""
        return num_rows * mixer.channels * (6 * HALF_BYTES + 3 * FLOAT_BYTES)


def num_state_rows(num_slots: int) -> int:
    """The rows of a recurrent layer's state: one a slot, one that nobody reads, then the snapshots."""
    return num_slots + 1 + num_snapshots(num_slots)


def num_snapshots(num_slots: int) -> int:
    """How many earlier states are kept. Slots take them from one another, but none all of another's."""
    return num_slots + MORE_SNAPSHOTS


STATE_PLANS: dict[type[Mixer], StatePlan] = {
    FullAttention: KvStatePlan(),
    SlidingAttention: KvStatePlan(),
    DistanceAttention: DistanceStatePlan(),
    CappedAttention: CappedStatePlan(),
    GatedDeltaNet: DeltaStatePlan(),
    Mamba2: MambaStatePlan(),
    ShortConv: ConvStatePlan(),
}


def state_plan(mixer: Mixer) -> StatePlan:
    return STATE_PLANS[type(mixer)]


def written_out_bytes(mixer: FullAttention, num_rows: int, context_tokens: int) -> int:
    """The scores of some queries: as they are, as float, their softmax, and that in half precision; and a mask."""
    scores = mixer.num_heads * min(num_rows, WRITTEN_OUT_QUERIES) * context_tokens
    return mask_bytes(num_rows, context_tokens) + scores * 2 * (HALF_BYTES + FLOAT_BYTES)


def mask_bytes(num_rows: int, context_tokens: int) -> int:
    """A mask [rows, context] in half precision, and what it is made from."""
    return 2 * num_rows * (context_tokens + 8) * HALF_BYTES
