"""Rope that depends on the length of the whole, settled once by the context of the load.

longrope has one set of frequencies up to its original length and another beyond, dynamic NTK one for each length.
transformers chooses by the longest row of each pass. But keys stay in the cache as they were turned, and chats of
different lengths share a pass: only one set for all of them is right for each.
"""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

# To transformers' wrapper the frequencies of this kind stay as they are.
SETTLED = "default"


def settle_rope(model: PreTrainedModel, context_tokens: int) -> None:
    """Give every rope of `model` the frequencies for texts of up to `context_tokens`."""
    for module in model.modules():
        kinds: Any = getattr(module, "rope_type", None)
        if isinstance(kinds, str) and depends_on_length(kinds):
            _settle(module, kinds, context_tokens, None)
            module.rope_type = SETTLED
        elif isinstance(kinds, dict):
            for layer_type in [one for one, kind in kinds.items() if depends_on_length(kind)]:
                _settle(module, kinds[layer_type], context_tokens, layer_type)
                kinds[layer_type] = SETTLED


def depends_on_length(kind: str) -> bool:
    return kind == "longrope" or "dynamic" in kind


def _settle(module: Any, kind: str, context_tokens: int, layer_type: str | None) -> None:
    frequencies, scaling = ROPE_INIT_FUNCTIONS[kind](
        module.config, None, seq_len=context_tokens, **({} if layer_type is None else {"layer_type": layer_type})
    )
    prefix = "" if layer_type is None else f"{layer_type}_"
    setattr(module, f"{prefix}inv_freq", frequencies)
    setattr(module, f"{prefix}attention_scaling", scaling)
