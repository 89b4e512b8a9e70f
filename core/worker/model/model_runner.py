"""A loaded model with its KV cache: tokens and positions in, logits out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedModel

from core.common.errors import EngineError
from core.worker.model.adapters import AdapterBanks
from core.worker.model.kv_cache import KvShape, SlotCache
from core.worker.model.layer_state import RecurrentState, StateRows
from core.worker.model.paged_cache import PagedCache
from core.worker.model.recurrent_layers import RecurrentLayer

# Families that look a token's place up in a table as long as their context. A row without a request, or beyond a
# chunk's end, may have a place that the table does not have.
PLACE_TABLES = frozenset(("biogpt", "codegen", "gpt2", "gpt_bigcode", "gptj", "opt"))


class ModelRunner:
    """Runs a transformers model over a KV cache with one row a slot, or in pages. Raises EngineError
    "architecture_cache"."""

    def __init__(
        self,
        model: PreTrainedModel,
        num_slots: int,
        context_tokens: int,
        adapters: AdapterBanks | None = None,
        num_pages: int | None = None,
        cache_bits: int = 16,
    ) -> None:
        """num_pages: of a cache in pages, as captured steps need it; None for rows. cache_bits: 16 or 8."""
        parameter = next(model.parameters())
        self.device = parameter.device
        self.dtype = model.config.dtype if isinstance(model.config.dtype, torch.dtype) else parameter.dtype
        self.vocabulary = model.get_input_embeddings().num_embeddings
        self._model = model
        self._config = model.config
        self.adapters = adapters
        # On a GPU a chunk's attention is causal without a mask, which would take memory.
        self._needs_mask = self.device.type == "cpu"
        self._last_place = context_tokens - 1 if model.config.model_type in PLACE_TABLES else None
        self.cache = self._make_cache(num_slots, context_tokens, num_pages, cache_bits)

    def _make_cache(self, num_slots: int, context_tokens: int, num_pages: int | None, bits: int) -> SlotCache:
        """A cache of the shapes that the layers write for one token; configurations do not always say them."""
        recurrent = {one.layer_idx: one for one in self._model.modules() if isinstance(one, RecurrentLayer)}
        shapes, dtype = self._probe_shapes(recurrent)
        states = {index: layer.allocate_state(num_slots) for index, layer in recurrent.items()}
        if num_pages is not None:
            return PagedCache(num_slots, context_tokens, num_pages, dtype, shapes, states, bits)
        return SlotCache(num_slots, context_tokens, dtype, shapes, states, bits)

    def _probe_shapes(self, recurrent: Mapping[int, RecurrentLayer]) -> tuple[dict[int, KvShape], torch.dtype]:
        """What each layer writes for one token. The states that this takes are gone afterwards: those of a large model
        are some hundred MiB, which the plan has no room for beside all slots' own."""
        probe = _ShapeProbe({index: layer.allocate_state(1) for index, layer in recurrent.items()})
        token = torch.zeros((1, 1), dtype=torch.long, device=self.device)
        try:
            self.logits_device = self._run(token, token, 1, probe).device
        except (AttributeError, TypeError, NotImplementedError) as error:
            raise EngineError("architecture_cache", architecture=type(self._model).__name__) from error
        if sorted({*probe.shapes, *recurrent}) != self._keeping_layers():
            raise EngineError("architecture_cache", architecture=type(self._model).__name__)
        return probe.shapes, probe.dtype

    def _keeping_layers(self) -> list[int]:
        """The layers that keep something of their own: all but those that read an earlier one's keys and values."""
        shared = getattr(self._config, "num_kv_shared_layers", None) or 0
        return list(range(self._config.num_hidden_layers - shared))

    def forward(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        first_slot: int,
        length: int,
        targets: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Logits [rows, vocabulary] of the token after the last token of each row.

        tokens, positions: [rows, new tokens]; row r is slot `first_slot` + r. length: how many columns of the cache are
        read, more than the largest position. targets: the columns to write, where they are not the positions.
        """
        rows = slice(first_slot, first_slot + tokens.shape[0])
        self.cache.set_targets(rows, positions if targets is None else targets, length)
        if self.adapters is not None:
            self.adapters.select(range(rows.start, rows.stop))
        return self._run(tokens, positions, length, self.cache)

    def forward_all(self, tokens: torch.Tensor, positions: torch.Tensor, slot: int, length: int) -> torch.Tensor:
        """As `forward` for one slot, with the logits after each new token: [new tokens, vocabulary]."""
        self.cache.set_targets(slice(slot, slot + 1), positions, length)
        if self.adapters is not None:
            self.adapters.select(range(slot, slot + 1))
        return self._call_all(tokens, positions, self._masks(positions, length), self.cache, 0)[0]

    def use_attention(self, name: str) -> None:
        """Use the attention that is registered with transformers as `name` from now on."""
        self._config._attn_implementation = name

    def run_captured(
        self, tokens: torch.Tensor, positions: torch.Tensor, cache: Any, logits_of: int | torch.Tensor
    ) -> torch.Tensor:
        """Logits over a cache whose attention needs no mask: [rows, vocabulary], of the last token of each, with 1 for
        `logits_of`; or of a single row's tokens whose indices those are."""
        if self.adapters is not None:
            self.adapters.select_captured(cache.slots, 0)
        layer_types = getattr(self._config, "layer_types", None)
        # A hybrid layer asks for the masks of both its parts.
        masks = dict.fromkeys(("full_attention", "linear_attention", *layer_types)) if layer_types else None
        return self._call(tokens, positions, masks, cache, logits_of)

    def _run(self, tokens: torch.Tensor, positions: torch.Tensor, length: int, cache: Any) -> torch.Tensor:
        num_new = tokens.shape[1]
        # By index: a slice of a longer row is not contiguous, for which a CPU copies the whole head.
        logits_of = 1 if num_new == 1 else torch.tensor([num_new - 1], device=tokens.device)
        return self._call(tokens, positions, self._masks(positions, length), cache, logits_of)

    def _call(
        self, tokens: torch.Tensor, positions: torch.Tensor, mask: Any, cache: Any, logits_of: int | torch.Tensor
    ) -> torch.Tensor:
        # A token of each row, or some of one row.
        return self._call_all(tokens, positions, mask, cache, logits_of).flatten(0, 1)

    def _call_all(
        self, tokens: torch.Tensor, positions: torch.Tensor, mask: Any, cache: Any, logits_of: int | torch.Tensor
    ) -> torch.Tensor:
        """Logits [rows, tokens of `logits_of`, vocabulary]; 0 stands for all tokens."""
        if self._last_place is not None:
            positions = positions.clamp(max=self._last_place)
        output = self._model(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=logits_of,
        )
        logits: torch.Tensor = output.logits
        return logits

    def _masks(self, positions: torch.Tensor, length: int) -> torch.Tensor | None | dict[str, torch.Tensor | None]:
        """What each new token sees, [rows, 1, new tokens, length]; by kind of layer, where there are several."""
        keys = torch.arange(length, device=positions.device)
        seen = keys <= positions[:, None, :, None]
        # A single token of a single row sees all columns.
        sees_all = positions.shape == (1, 1)
        needs_mask = self._needs_mask or positions.shape[1] == 1
        full = seen if needs_mask and not sees_all else None
        window = getattr(self._config, "sliding_window", None)
        near = seen & (keys > positions[:, None, :, None] - window) if window else full
        layer_types = getattr(self._config, "layer_types", None)
        if layer_types:
            kinds = {"full_attention": full, "sliding_attention": near}
            # A recurrent layer takes no mask, and a hybrid one those of both.
            return kinds | {kind: kinds.get(kind) for kind in ("linear_attention", *layer_types)}
        return near


class _ShapeProbe:
    """Stands in for a cache during one pass, and records the shape that each layer writes."""

    def __init__(self, states: Mapping[int, RecurrentState]) -> None:
        self._states = states
        self.shapes: dict[int, KvShape] = {}
        self.dtype = torch.float32

    def update(
        self, key: torch.Tensor, value: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if key.shape != value.shape:
            raise NotImplementedError("keys and values of different shapes")
        self.shapes[layer_idx] = KvShape(key.shape[1], key.shape[3], key.device)
        self.dtype = key.dtype
        return key, value

    def state(self, layer_idx: int) -> RecurrentState:
        return self._states[layer_idx]

    def state_rows_on(self, device: torch.device) -> StateRows:
        return StateRows(torch.zeros(1, dtype=torch.long, device=device))

    def columns_on(self, device: torch.device) -> torch.Tensor:
        return torch.zeros((1, 1), dtype=torch.long, device=device)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return query_length, 0
