"""A decoder layer in a few kernels, for one new token a row and for a chunk of a prompt; and the model's head.

core/worker/decode/layer_fusion.py puts these modules in place of a model's own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from core.worker.decode.graph_cache import GraphCache
from core.worker.decode.layer_parts import LayerPart, are_many
from core.worker.kernels.dense_small_batch import dense_kernels_for
from core.worker.kernels.packed_prefill import FusedDequantGemm
from core.worker.kernels.packed_small_batch import MAX_SMALL_BATCH


class FusedDecoderLayer(nn.Module):
    """Stands in for `layer`: decodes rows of one token by its two parts, and prefills chunks where `prefills` is set.
    Everything else goes through `layer`.

    Nothing follows the layer that `is_last`. Where it `reads_few`, its MLP takes those rows of a chunk that are read
    after it, and leaves the others as they are."""

    is_last = reads_few = False

    def __init__(self, layer: nn.Module, mixer: LayerPart, mlp: LayerPart) -> None:
        super().__init__()
        self.layer = layer
        self._mixer, self._mlp = mixer, mlp
        self.prefills = False

    def __getattr__(self, name: str) -> Any:
        """Models read attributes of their layers, such as the kind of their attention."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("layer"), name)

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """[rows, tokens, hidden] -> the same shape."""
        rows, tokens = hidden_states.shape[:2]
        if isinstance(kwargs.get("past_key_values"), GraphCache):
            if tokens == 1 and rows <= MAX_SMALL_BATCH:
                hidden = self._mixer.decode(hidden_states[:, 0], kwargs)
                return self._mlp.decode(hidden, kwargs).unsqueeze(1)
            if self.prefills and rows == 1 and tokens >= FusedDequantGemm.min_rows:
                hidden = self._mixer.prefill(hidden_states[0], kwargs)
                read = kwargs["past_key_values"].rows_read
                if not self.reads_few or read is None:
                    return self._mlp.prefill(hidden, kwargs).unsqueeze(0)
                few = self._mlp.decode(hidden.index_select(0, read), {})
                return hidden.index_copy_(0, read, few).unsqueeze(0)
        return self.layer(hidden_states, *args, **kwargs)

    def can_prefill(self) -> bool:
        """Whether its parts read many tokens in few kernels."""
        return self._mixer.can_prefill() and self._mlp.can_prefill()


class FusedHead(nn.Module):
    """The model's head. A row's logits are the same whatever rows are beside it, as long as these are few."""

    def __init__(self, head: nn.Linear) -> None:
        super().__init__()
        self.weight = head.weight
        self._kernels = dense_kernels_for(head.weight.dtype, head.weight.device)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[rows, tokens, hidden] -> [rows, tokens, vocabulary]."""
        rows = x.reshape(-1, x.shape[-1])
        if rows.shape[0] > MAX_SMALL_BATCH or are_many(rows, self.weight):
            return nn.functional.linear(x, self.weight)
        return self._kernels.multiply([self.weight], rows).view(*x.shape[:-1], -1)
