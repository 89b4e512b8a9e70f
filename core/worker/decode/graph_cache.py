"""The KV cache as a captured pass sees it: our own kernels read and write it, at positions that lie in GPU memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from core.worker.decode.delta_rule import DeltaRule
from core.worker.kernels import cache_attention, step_ops
from core.worker.model.attention import refuse_additions
from core.worker.model.kv_cache import SlotCache
from core.worker.model.layer_state import RecurrentState, StateRows
from core.worker.model.recurrent_layers import GatedDeltaNetLayer

NO_WINDOW = 2**30


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """A layer's attention: scale of the scores, window (columns), (query heads, KV heads), size of a head, and [heads]
    scores that belong to no column, if any."""

    scale: float
    window: int
    heads: tuple[int, int]
    dim: int
    sinks: torch.Tensor | None = None


class GraphCache:
    """Handed to transformers' model classes as `past_key_values`; `attend` is the attention that they call."""

    def __init__(self, cache: SlotCache) -> None:
        self._cache = cache
        self.context_tokens, self.num_slots = cache.context_tokens, cache.num_slots
        self.slots = self.columns = self.bounds = torch.empty(0)
        # By layer: what its attention was last called with; of recurrent ones, their kernels.
        self.attention_specs: dict[int, AttentionSpec] = {}
        self._delta_rules: dict[int, DeltaRule] = {}

    def set_targets(self, slots: torch.Tensor, columns: torch.Tensor, bounds: torch.Tensor) -> None:
        """The next pass writes `columns` [rows, tokens] of `slots` [rows]. bounds: the end of the columns that each
        row's single token sees; or, of a chunk, its first column and how many of its tokens are there."""
        self.slots, self.columns, self.bounds = slots, columns, bounds

    def layer(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """A layer's keys and values, [slots, kv heads, columns, dim]."""
        return self._cache.keys[index], self._cache.values[index]

    def columns_on(self, device: torch.device) -> torch.Tensor:
        """The columns [rows, tokens] that the pass writes."""
        return self.columns

    def update(
        self, key: torch.Tensor, value: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store new keys and values [rows, kv heads, tokens, dim]; the layer's whole cache, which `attend` gets."""
        keys, values = self.layer(layer_idx)
        step_ops.store_kv(key, value, keys, values, self.slots, self.columns)
        return keys, values

    def attend(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        mask: torch.Tensor | None,
        scaling: float | None = None,
        sliding_window: int | None = None,
        s_aux: torch.Tensor | None = None,
        **extras: Any,
    ) -> tuple[torch.Tensor, None]:
        """Attention of query [rows, heads, tokens, dim] over the cache -> [rows, tokens, heads, dim]. s_aux: sinks.

        Raises NotImplementedError for a mask, and for what a model adds to plain attention.
        """
        refuse_additions(extras)
        if mask is not None:
            raise NotImplementedError("attention with a mask")
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        attend = cache_attention.attend_decode if query.shape[2] == 1 else cache_attention.attend_prefill
        window = sliding_window or NO_WINDOW
        index = getattr(module, "layer_idx", None)
        if index is not None:
            heads = query.shape[1], keys.shape[1]
            self.attention_specs[index] = AttentionSpec(scale, window, heads, query.shape[3], s_aux)
        return attend(query, keys, values, self.slots, self.bounds, scale, window, s_aux), None

    def delta_rule(self, layer: GatedDeltaNetLayer) -> DeltaRule:
        """The kernels of a recurrent layer. Raises TypeError, ValueError or CudaCodeError where they do not take it."""
        if layer.layer_idx not in self._delta_rules:
            self._delta_rules[layer.layer_idx] = DeltaRule(layer, self._cache.state(layer.layer_idx), self.num_slots)
        return self._delta_rules[layer.layer_idx]

    def run_delta_rule(self, layer: GatedDeltaNetLayer, hidden: torch.Tensor) -> torch.Tensor:
        """hidden [rows, tokens, size] -> what the layer's last matrix takes [rows, tokens, ..]: of one new token a row,
        or of one row's chunk."""
        rule, (rows, tokens, _) = self.delta_rule(layer), hidden.shape
        parts = {name: getattr(layer, name)(hidden).flatten(0, 1) for name in layer.input_names}
        run = rule.step if tokens == 1 else rule.chunk
        return run(rule.project(parts), self).view(rows, tokens, -1)

    def state(self, index: int) -> RecurrentState:
        """A recurrent layer's states."""
        return self._cache.state(index)

    def state_rows_on(self, device: torch.device) -> StateRows:
        """The rows of recurrent states that the pass reads and writes."""
        if self.columns.shape[1] == 1:
            return StateRows(self.slots, is_first=self.columns[:, 0] == 0)
        return StateRows(self.slots, is_first=self.bounds[:1] == 0, count=self.bounds[1:2])

    def copy_states(self, index: int) -> list[torch.Tensor]:
        """Copies of a recurrent layer's states of the pass's slots, in the host's memory; [] for any other layer."""
        state = self._cache.states.get(index)
        return [one[self.slots].cpu() for one in state.tensors] if state else []

    def restore_states(self, index: int, copies: Sequence[torch.Tensor]) -> None:
        """Put back what `copy_states` gave in a pass of the same slots."""
        if copies:
            for one, copy in zip(self._cache.states[index].tensors, copies, strict=True):
                one[self.slots] = copy.to(one.device)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return query_length, 0
