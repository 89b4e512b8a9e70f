"""LoRA adapters on their way from the disk to the model: read as a whole, then put into one of the model's places."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
from safetensors import SafetensorError, safe_open

from core.checkpoint.adapters import WEIGHTS, AdapterShape, read_adapter
from core.checkpoint.checkpoint import Checkpoint
from core.checkpoint.experts import expert_matrix
from core.checkpoint.low_rank import LowRank
from core.checkpoint.weight_files import ADAPTER_CONFIG
from core.common.errors import CheckpointError, EngineError
from core.common.panics import why_of
from core.engine.request_options import AdapterUse
from core.memory.adapter_room import adaptable_stacks, match_adapter
from core.worker.model.adapters import AdapterBanks, AdapterWeights

# The adapter's folder, and when its files were last written.
Version = tuple[str, int, int]


@dataclass(frozen=True, slots=True, eq=False)
class ReadAdapter:
    """An adapter in this process's memory. `weight`: how strong one request wants it."""

    version: Version
    weights: AdapterWeights
    weight: float

    @property
    def mark(self) -> tuple[Version, float]:
        """What keys and values depend on."""
        return self.version, self.weight


class AdapterReader:
    """Reads adapters for the model of `checkpoint`, and puts them into `banks`. Only `read` may run on another
    thread."""

    def __init__(self, banks: AdapterBanks, checkpoint: Checkpoint) -> None:
        self._banks, self._checkpoint = banks, checkpoint
        # As many as the bank has places, the last used one last.
        self._read: OrderedDict[Version, AdapterWeights] = OrderedDict()
        self._places: list[Version | None] = [None] * banks.room.count
        self._last_used = [0] * banks.room.count
        self._num_used = 0

    def read(self, use: AdapterUse) -> ReadAdapter:
        """The adapter's weights, scaled. Raises DeckError with the reason why this model cannot have it."""
        adapter = read_adapter(use.folder)
        try:
            version = str(use.folder), _changed_ns(use, ADAPTER_CONFIG), _changed_ns(use, WEIGHTS)
            weights = self._read.pop(version, None) or self._read_weights(adapter)
        except OSError as error:
            raise CheckpointError("adapter_unreadable", file=adapter.name, why=why_of(error)) from error
        except SafetensorError as error:
            raise CheckpointError("adapter_corrupt_weights", folder=adapter.name, file=WEIGHTS) from error
        self._read[version] = weights
        while len(self._read) > self._banks.room.count:
            self._read.popitem(last=False)
        return ReadAdapter(version, weights, use.weight)

    def _read_weights(self, adapter: AdapterShape) -> AdapterWeights:
        found = match_adapter(adapter, self._checkpoint)
        weights: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        of_experts: dict[str, dict[int, tuple[torch.Tensor, torch.Tensor]]] = {}
        with safe_open(adapter.weights, "pt") as opened:
            # Matrices of one layer's experts may lie in one tensor.
            read = lru_cache(2)(opened.get_tensor)
            for name, matrix in found.items():
                a, b = self._read_matrix(adapter, name, matrix, read)
                if (one := expert_matrix(name)) is None:
                    weights[name] = a, b
                else:
                    of_experts.setdefault(f"{one.stack}.{one.projection}", {})[one.number] = a, b
        # Last: whoever makes room must not be told then that the adapter cannot be used at all.
        self._require_room(adapter, bool(of_experts))
        stacks = adaptable_stacks(self._checkpoint)
        for name, parts in of_experts.items():
            weights[name] = stack_parts(parts, stacks[name.rpartition(".")[0]].num_experts)
        return weights

    def _require_room(self, adapter: AdapterShape, changes_experts: bool) -> None:
        """Raise EngineError where the model has to be loaded with more room for `adapter`."""
        room = self._banks.room
        if changes_experts and not room.reaches_experts:
            raise EngineError("adapter_no_expert_room", adapter=adapter.name)
        if adapter.rank > room.rank:
            raise EngineError("adapter_over_rank", adapter=adapter.name, rank=adapter.rank, limit=room.rank)

    def _read_matrix(
        self, adapter: AdapterShape, name: str, matrix: LowRank, read: Callable[[str], torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A [rank, in] and the scaled B [out, rank] for the model's matrix `name`."""
        read_a, read_b = matrix.own_parts(read(matrix.a_name), read(matrix.b_name))
        sizes = (matrix.rank, matrix.in_features), (matrix.out_features, matrix.rank)
        if (tuple(read_a.shape), tuple(read_b.shape)) != sizes:
            # A training has written the file anew since its header was read.
            raise CheckpointError("adapter_rewritten", adapter=adapter.name)
        a = read_a.to(self._banks.dtype)
        b = (read_b.float() * matrix.scale).to(self._banks.dtype)
        if not (a.isfinite().all() and b.isfinite().all()):
            if not (read_a.float().isfinite().all() and read_b.float().isfinite().all()):
                raise CheckpointError("adapter_nan", adapter=adapter.name, module=name)
            raise CheckpointError("adapter_range", adapter=adapter.name, module=name, scale=f"{matrix.scale:.4g}",
                                  dtype=str(self._banks.dtype).removeprefix("torch."))  # fmt: skip
        return a, b

    def has_place(self, adapter: ReadAdapter, used: Collection[Version]) -> bool:
        """Whether it has a place, or can have that of another one, beside those that are `used` now."""
        return adapter.version in self._places or any(one not in used for one in self._places)

    def hold(self, adapter: ReadAdapter, used: Collection[Version]) -> int:
        """The adapter's place, where it lies from now on: an empty one, or that of the one used longest ago."""
        if adapter.version in self._places:
            place = self._places.index(adapter.version)
        else:
            free = [index for index, one in enumerate(self._places) if one not in used]
            place = min(free, key=lambda index: self._last_used[index])
            self._banks.put(place, adapter.weights)
            self._places[place] = adapter.version
        self._num_used += 1
        self._last_used[place] = self._num_used
        return place

    def set_slot(self, slot: int, place: int | None, weight: float = 1.0) -> None:
        self._banks.set_slot(slot, place, weight)


def stack_parts(
    parts: Mapping[int, tuple[torch.Tensor, torch.Tensor]], num_experts: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """A [rank, in] and B [out, rank] by expert -> those of all experts as one, [experts, rank, in] and [experts, out,
    rank] for the highest rank; 0 for experts without."""
    first_a, first_b = next(iter(parts.values()))
    rank = max(a.shape[0] for a, _ in parts.values())
    all_a = first_a.new_zeros((num_experts, rank, first_a.shape[1]))
    all_b = first_b.new_zeros((num_experts, first_b.shape[0], rank))
    for number, (a, b) in parts.items():
        all_a[number, : a.shape[0]] = a
        all_b[number, :, : b.shape[1]] = b
    return all_a, all_b


def _changed_ns(use: AdapterUse, name: str) -> int:
    return (use.folder / name).stat().st_mtime_ns
