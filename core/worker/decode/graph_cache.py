"""The KV cache as a captured pass sees it: our own kernels read and write it, at positions that lie in GPU memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from core.worker.decode.delta_rule import DeltaRule
from core.worker.kernels import cache_attention, step_ops
from core.worker.kernels.kv_pages import KvPages
from core.worker.model.attention import refuse_additions
from core.worker.model.device_map import Crossing
from core.worker.model.layer_state import RecurrentState, StateRows
from core.worker.model.paged_cache import PagedCache
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


# Slots, columns, ends of columns; of prompts the chunks, and what is kept on the way.
_Targets: TypeAlias = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None]


class GraphCache:
    """Handed to transformers' model classes as `past_key_values`; `attend` is the attention that they call."""

    def __init__(self, cache: PagedCache, num_rows: int) -> None:
        """num_rows: the most that a step decodes."""
        self._cache, self.num_rows = cache, num_rows
        self.context_tokens, self.num_slots, self.bits = cache.context_tokens, cache.num_slots, cache.bits
        self.slots = self.columns = self.ends = torch.empty(0)
        self._chunks: torch.Tensor | None = None
        # Whether the rows of a pass are one slot's, at positions that follow one another.
        self.is_one_text = False
        # Of a pass over prompts, the rows [rows] that anything is read of after the last layer; None: all may be.
        self.rows_read: torch.Tensor | None = None
        # By where their keys lie: models hand those of a layer on to others, which keep none of their own.
        self._pages = {keys.data_ptr(): cache.layer(index) for index, keys in cache.keys.items()}
        # Of a chunk's states, what is kept on the way: DeltaKernels.chunk.
        self.kept: torch.Tensor | None = None
        self._targets: dict[torch.device, _Targets] = {}
        # How a pass over several GPUs goes over from one to the next.
        self.crossing: Crossing | None = None
        # By layer: what its attention was last called with; of recurrent ones, their kernels.
        self.attention_specs: dict[int, AttentionSpec] = {}
        self._delta_rules: dict[int, DeltaRule] = {}

    def set_targets(self, slots: torch.Tensor, columns: torch.Tensor, ends: torch.Tensor) -> None:
        """The next pass has a single token a row, and writes `columns` [rows, 1] of `slots` [rows]. ends [rows]: where
        the columns that each sees end.

        A pass over several GPUs has its targets, or chunks, on each, and sets them once it comes there."""
        self._targets[slots.device] = slots, columns, ends, None, None
        self.use_targets_on(slots.device)

    def set_chunks(
        self, chunks: torch.Tensor, slots: torch.Tensor, columns: torch.Tensor, kept: torch.Tensor | None = None
    ) -> None:
        """The next pass has one row of tokens: the `chunks` [chunks, 4] of step_ops.place_chunks. It writes `columns`
        [1, tokens] of `slots` [tokens]. kept [2]: of the only chunk, DeltaKernels.chunk."""
        self._targets[slots.device] = slots, columns, slots, chunks, kept
        self.use_targets_on(slots.device)

    def use_targets_on(self, device: torch.device) -> None:
        """Let a layer on `device` run by itself once more, as in the last pass."""
        self.slots, self.columns, self.ends, self._chunks, self.kept = self._targets[device]

    @property
    def keeps_states(self) -> bool:
        """Whether all recurrent layers have kernels, which keep states on the way. To be asked after a pass."""
        return set(self._cache.states) == set(self._delta_rules)

    @property
    def chunk_slot(self) -> torch.Tensor:
        """The slot [1] of a pass's only chunk, where layers take no more than one."""
        assert self._chunks is not None
        return self._chunks[0, :1]

    @property
    def chunk_bounds(self) -> torch.Tensor:
        """The first column of a pass's only chunk, and how many tokens it has: [2]."""
        assert self._chunks is not None
        return self._chunks[0, 1:3]

    def attend_chunks(
        self, query: torch.Tensor, index: int, scale: float, window: int, sinks: torch.Tensor | None
    ) -> torch.Tensor:
        """Attention of the chunks' query [1, heads, tokens, dim] over layer `index` -> [1, tokens, heads, dim]."""
        assert self._chunks is not None
        return cache_attention.attend_prefill(query, self.layer(index), self._chunks, scale, window, sinks)

    def layer(self, index: int) -> KvPages:
        """A layer's keys and values."""
        return self._cache.layer(index)

    def columns_on(self, device: torch.device) -> torch.Tensor:
        """The columns [rows, tokens] that the pass writes."""
        return self.columns

    def update(
        self, key: torch.Tensor, value: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store new keys and values [rows, kv heads, tokens, dim]; the layer's pages, which `attend` gets."""
        pages = self.layer(layer_idx)
        if self._chunks is None:
            step_ops.store_kv(key, value, pages, self.slots, self.columns)
        else:
            # Each token has a slot of its own, as if it were a row.
            by_token = key.transpose(0, 2), value.transpose(0, 2)
            step_ops.store_kv(*by_token, pages, self.slots, self.columns.view(-1, 1))
        return pages.keys, pages.values

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

        Raises NotImplementedError for a mask, for keys of elsewhere, and for what a model adds to plain attention.
        """
        refuse_additions(extras)
        if mask is not None:
            raise NotImplementedError("attention with a mask")
        pages = self._pages.get(keys.data_ptr())
        if pages is None:
            raise NotImplementedError("attention over keys that the cache does not hold")
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        window = sliding_window or NO_WINDOW
        index = getattr(module, "layer_idx", None)
        if index is not None:
            heads = query.shape[1], pages.num_kv_heads
            self.attention_specs[index] = AttentionSpec(scale, window, heads, query.shape[3], s_aux)
        if self._chunks is None:
            attended = cache_attention.attend_decode(query, pages, self.slots, self.ends, scale, window, s_aux)
        else:
            attended = cache_attention.attend_prefill(query, pages, self._chunks, scale, window, s_aux)
        return attended, None

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
        run = rule.step if self._chunks is None else rule.chunk
        return run(rule.project(parts), self).view(rows, tokens, -1)

    def state(self, index: int) -> RecurrentState:
        """A recurrent layer's states."""
        return self._cache.state(index)

    def state_rows_on(self, device: torch.device) -> StateRows:
        """The rows of recurrent states that the pass reads and writes."""
        if self._chunks is None:
            return StateRows(self.slots, is_first=self.columns[:, 0] == 0)
        bounds = self.chunk_bounds
        return StateRows(self.chunk_slot, is_first=bounds[:1] == 0, count=bounds[1:])

    def copy_states(self, index: int) -> list[torch.Tensor]:
        """Copies of a recurrent layer's states of the pass's slots, in the host's memory; [] for any other layer."""
        state = self._cache.states.get(index)
        return [one[self._state_slots].cpu() for one in state.tensors] if state else []

    def restore_states(self, index: int, copies: Sequence[torch.Tensor]) -> None:
        """Put back what `copy_states` gave in a pass of the same slots."""
        if copies:
            for one, copy in zip(self._cache.states[index].tensors, copies, strict=True):
                one[self._state_slots] = copy.to(one.device)

    @property
    def _state_slots(self) -> torch.Tensor:
        return self.slots if self._chunks is None else self.chunk_slot

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return query_length, 0
