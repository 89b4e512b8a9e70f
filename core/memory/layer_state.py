"""Memory of what a layer keeps of each chat, and of the moment when it reads it, by the kind of the layer."""

from __future__ import annotations

from core.checkpoint.attention import CappedAttention, DistanceAttention, FullAttention, SlidingAttention
from core.checkpoint.layers import LayerShape
from core.memory.sizes import FLOAT_BYTES, HALF_BYTES, round_to_block

# How many queries of a chunk have their scores multiplied out at a time, where no kernel does it for all. No fewer than
# the chats that can be at once.
CAPPED_QUERIES = 64


class KvStatePlan:
    """Keys and values of every token. A sliding layer keeps them all as well and looks back less far."""

    def state_bytes(self, mixer: FullAttention, context_tokens: int, num_slots: int) -> int:
        """2 * slots * kv heads * (context + 1) * head size * 2 bytes; one column more, which nobody reads. Nothing
        where the layer reads what an earlier one keeps."""
        if mixer.shares_cache:
            return 0
        one = num_slots * mixer.num_kv_heads * (context_tokens + 1) * mixer.head_dim * HALF_BYTES
        return 2 * round_to_block(one)

    def activation_bytes(self, mixer: FullAttention, num_rows: int, context_tokens: int, own_attention: bool) -> int:
        """Queries, keys, values, the output and what becomes of it.

        Torch's attention may also repeat the keys and values of heads that share them, and takes a mask.
        """
        size = mixer.num_heads * mixer.head_dim * HALF_BYTES
        # A gate lies beside the queries; it is copied, and so is what comes of it.
        vectors = (8 if mixer.is_gated else 5) * num_rows * size
        if own_attention:
            return vectors
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
    """A pass multiplies out the scores of some queries: as they are, as float, their softmax, and that in half
    precision."""

    def activation_bytes(self, mixer: FullAttention, num_rows: int, context_tokens: int, own_attention: bool) -> int:
        # No heads are repeated.
        vectors = KvStatePlan.activation_bytes(self, mixer, num_rows, context_tokens, own_attention=True)
        scores = mixer.num_heads * min(num_rows, CAPPED_QUERIES) * context_tokens
        return vectors + mask_bytes(num_rows, context_tokens) + scores * 2 * (HALF_BYTES + FLOAT_BYTES)


STATE_PLANS: dict[type[FullAttention], KvStatePlan] = {
    FullAttention: KvStatePlan(),
    SlidingAttention: KvStatePlan(),
    DistanceAttention: DistanceStatePlan(),
    CappedAttention: CappedStatePlan(),
}


def state_plan(layer: LayerShape) -> KvStatePlan:
    return STATE_PLANS[type(layer.mixer)]


def mask_bytes(num_rows: int, context_tokens: int) -> int:
    """A mask [rows, context] in half precision, and what it is made from."""
    return 2 * num_rows * (context_tokens + 8) * HALF_BYTES
