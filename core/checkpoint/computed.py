"""Tensors of a file that are worked out and not learned: older programs stored them, and no model needs them."""

from __future__ import annotations

import re

from core.checkpoint.headers import TensorInfo

COMPUTED = re.compile(
    r"""(^|\.)(
    (original_|long_|short_)?inv_freq | (cos|sin)_cached | freqs_cis | rope\.freqs | masked_bias    # rotary and masks
    | attn\.embed_positions | position_ids
    | wf | wf_unsqueeze_(zero|neg_one) | quantizer\.(maxq|scale|zero)          # how a quantized layer unpacks itself
    | (attn|self_attn|attention)\.[qkv]_(scale|zero_point) | [kv]_proj\.([kv]_|output_)scale  # a KV cache's
    | gptq_(bits|groupsize|sym|desc_act|checkpoint_format)                   # text-generation-inference's settings
    )$""",
    re.VERBOSE,
)
# A mask has the name of a bias: GPT-2, GPT-J and GPT-NeoX kept it in each layer as [1, 1, context, context].
MASK = re.compile(r"(^|\.)(attn|self_attn|attention|self_attention)(\.attention)?\.(bias|causal_mask)$")


# How the names of most tensors end, which are learned: a model of experts has 300,000.
LEARNED = (".qweight", ".qzeros", ".scales", ".g_idx", ".weight")


def is_computed(name: str, tensor: TensorInfo) -> bool:
    return not name.endswith(LEARNED) and bool(COMPUTED.search(name) or (MASK.search(name) and len(tensor.shape) == 4))
