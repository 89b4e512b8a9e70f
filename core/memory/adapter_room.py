"""Room for LoRA adapters beside a loaded model, decided before the load: how many at once, up to which rank, and
whether they may change experts."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from core.checkpoint.adapters import MAX_RANK, AdapterShape, match_base, with_class_names
from core.checkpoint.checkpoint import Checkpoint
from core.checkpoint.experts import ROUTER, count_experts, expert_matrix, take_turns
from core.checkpoint.layers import LAYER
from core.checkpoint.low_rank import STACKED_PARAMETERS, LowRank
from core.checkpoint.matched_copies import require_same_copies
from core.checkpoint.merged import MergedAdapter, is_merged, read_merged
from core.checkpoint.tied_head import HEADS, tied_head
from core.common.errors import CheckpointError, InputError
from core.common.values import is_whole
from core.memory.sizes import HALF_BYTES, round_to_block

MAX_ADAPTERS = 16
# What a module's name has from its layer's number on: the beginnings differ from release to release.
NUMBERED = re.compile(r"\.[0-9]+\..*$")
# An expert's matrices in the order of their outputs, and which of them a whole one has.
PROJECTIONS = ("gate_up_proj", "gate_proj", "up_proj", "down_proj")
WHOLE_EXPERTS = (("gate_up_proj", "down_proj"), ("gate_proj", "up_proj", "down_proj"))


@dataclass(frozen=True, slots=True)
class AdapterRoom:
    """`count` adapters at once, each of a rank up to `rank`; a rank without any means that none were chosen.
    `has_experts`: they may change single experts too.

    Raises InputError for numbers that cannot be.
    """

    count: int = 0
    rank: int = 0
    has_experts: bool = False

    def __post_init__(self) -> None:
        if not is_whole(self.count) or not 0 <= self.count <= MAX_ADAPTERS:
            raise InputError("setting_whole", name="adapters", value=str(self.count), low=0, high=MAX_ADAPTERS)
        if self.count and (not is_whole(self.rank) or not 1 <= self.rank <= MAX_RANK):
            raise InputError("setting_whole", name="adapter_rank", value=str(self.rank), low=1, high=MAX_RANK)

    @property
    def is_chosen(self) -> bool:
        """Whether somebody chose the number: while there is no adapter, nobody is asked."""
        return self.rank > 0

    @property
    def reaches_experts(self) -> bool:
        """Whether there is room for what adapters change in single experts."""
        return self.count > 0 and self.has_experts

    def holds(self, rank: int, changes_experts: bool) -> bool:
        """Whether an adapter of `rank` has room."""
        return 0 < rank <= self.rank and self.count > 0 and (self.has_experts or not changes_experts)

    @property
    def columns(self) -> int:
        """The ranks of all adapters together: their matrices lie side by side."""
        return self.count * self.rank


NO_ROOM = AdapterRoom()


@dataclass(frozen=True, slots=True)
class ExpertStackSizes:
    """The matrices of `num_experts` experts, all of the same sizes: (in, out) features by what they are called, those
    before the activation first."""

    num_experts: int
    matrices: Mapping[str, tuple[int, int]]


def adaptable_matrices(checkpoint: Checkpoint) -> dict[str, tuple[int, int]]:
    """The (in, out) features of each matrix that an adapter can change at run time: the quantized ones of the layers,
    without single experts."""
    if AdapterRoom not in checkpoint.derived:
        checkpoint.derived[AdapterRoom] = {
            name: (matrix.in_features, matrix.out_features)
            for name, matrix in checkpoint.matrices.items()
            if LAYER.match(f"{name}.") and expert_matrix(name) is None
        }
    sizes: dict[str, tuple[int, int]] = checkpoint.derived[AdapterRoom]
    return sizes


def adaptable_stacks(checkpoint: Checkpoint) -> dict[str, ExpertStackSizes]:
    """By the module that holds all experts of a layer: what adapters can change with room for experts. Where one of
    their matrices is not quantized, none."""
    if ExpertStackSizes not in checkpoint.derived:
        checkpoint.derived[ExpertStackSizes] = dict(_stacks(checkpoint))
    stacks: dict[str, ExpertStackSizes] = checkpoint.derived[ExpertStackSizes]
    return stacks


def _stacks(checkpoint: Checkpoint) -> Iterator[tuple[str, ExpertStackSizes]]:
    sizes: dict[str, dict[str, list[tuple[int, int]]]] = {}
    for name, matrix in checkpoint.matrices.items():
        if (one := expert_matrix(name)) is not None:
            of_stack = sizes.setdefault(one.stack, {})
            of_stack.setdefault(one.projection, []).append((matrix.in_features, matrix.out_features))
    counts = count_experts(checkpoint.tensors)
    for stack, found in sizes.items():
        is_whole_stack = all(len(some) == counts[stack] and len(set(some)) == 1 for some in found.values())
        names = tuple(name for name in PROJECTIONS if name in found)
        if is_whole_stack and names in WHOLE_EXPERTS:
            yield stack, ExpertStackSizes(counts[stack], {name: found[name][0] for name in names})


def match_adapter(adapter: AdapterShape, checkpoint: Checkpoint) -> dict[str, LowRank]:
    """What `adapter` adds to each matrix of the loaded model, by its names.

    Raises CheckpointError where it is merged into the model already, was trained on another one, changes what cannot be
    changed at run time, or brings an embedding or a head of its own.
    """
    if is_merged(adapter.weights, _merged(checkpoint)):
        raise CheckpointError("adapter_merged", adapter=adapter.name, base=checkpoint.name)
    named = with_class_names(adapter, checkpoint.config)
    sizes = adaptable_matrices(checkpoint) | (_expert_sizes(checkpoint) if named.changes_experts else {})
    # Whether it fits what cannot be changed tells an adapter of this model from one of another.
    outside, tied = ({}, {}) if all(map(NUMBERED.search, named.matrices)) else _outside_sizes(checkpoint)
    try:
        found = match_base(named, checkpoint.name, {**sizes, **outside, **tied}, take_turns(checkpoint.config))
    except CheckpointError as error:
        if error.key == "adapter_base_matrix":
            module = str(error.params["module"])
            tail = module[match.start() :] if (match := NUMBERED.search(module)) else f".{module.rpartition('.')[2]}"
            owners = {name.rpartition(".")[0] for name in checkpoint.tensors}
            experts = count_experts(checkpoint.tensors)
            owners |= {f"{stack}.{one}" for stack in experts for one in STACKED_PARAMETERS}
            if any(f".{owner}".endswith(tail) for owner in owners):
                is_router = bool(experts) and ROUTER.search(module) is not None
                raise _not_quantized(adapter.name, checkpoint.name, module, is_router) from error
        raise
    for name, matrix in found.items():
        if name in outside or name in tied:
            key = "adapter_tied_head" if name in tied else "adapter_outside"
            raise CheckpointError(key, adapter=adapter.name, base=checkpoint.name, module=matrix.name)
    require_same_copies(adapter, checkpoint.name, found, checkpoint.tensors, checkpoint.matrices, checkpoint.path)
    return found


def _merged(checkpoint: Checkpoint) -> tuple[MergedAdapter, ...]:
    if MergedAdapter not in checkpoint.derived:
        checkpoint.derived[MergedAdapter] = read_merged(checkpoint.path) if checkpoint.path is not None else ()
    merged: tuple[MergedAdapter, ...] = checkpoint.derived[MergedAdapter]
    return merged


def _not_quantized(adapter: str, base: str, module: str, is_router: bool) -> CheckpointError:
    if is_router:
        name = module.rpartition(".")[2]
        return CheckpointError("adapter_router", adapter=adapter, base=base, module=module, name=name)
    return CheckpointError("adapter_plain_matrix", adapter=adapter, base=base, module=module)


def _outside_sizes(checkpoint: Checkpoint) -> tuple[dict[str, tuple[int, int]], dict[str, tuple[int, int]]]:
    """The (in, out) features of what lies outside the layers: of quantized matrices and of the head; and of a head that
    is the embedding."""
    outside = {
        name: (matrix.in_features, matrix.out_features)
        for name, matrix in checkpoint.matrices.items()
        if not NUMBERED.search(name)
    }
    # A head that only repeats the embedding is none of the model's own, and nothing is merged into it.
    tensors = {name: tensor for name, tensor in checkpoint.tensors.items() if name not in checkpoint.repeated}
    for name, tensor in tensors.items():
        if name.endswith(HEADS) and len(tensor.shape) == 2:
            outside[name.removesuffix(".weight")] = tensor.shape[1], tensor.shape[0]
    return outside, tied_head(tensors, checkpoint.matrices)


def _expert_sizes(checkpoint: Checkpoint) -> dict[str, tuple[int, int]]:
    return {
        f"{stack}.{number}.{projection}": features
        for stack, sizes in adaptable_stacks(checkpoint).items()
        for number in range(sizes.num_experts)
        for projection, features in sizes.matrices.items()
    }


def room_bytes(checkpoint: Checkpoint, room: AdapterRoom) -> int:
    """What room for adapters takes beside all layers."""
    return layer_room_bytes(checkpoint, room).total()


def layer_room_bytes(checkpoint: Checkpoint, room: AdapterRoom) -> Counter[int]:
    """By layer: A [columns, in] and B [out, columns] beside each matrix, in half precision; of experts those of a
    layer's as one tensor."""
    found = Counter[int]()
    if not room.count:
        return found
    sizes = [(name, 1, *features) for name, features in adaptable_matrices(checkpoint).items()]
    if room.reaches_experts:
        for name, stack in adaptable_stacks(checkpoint).items():
            sizes += [(name, stack.num_experts, *features) for features in stack.matrices.values()]
    for name, count, *both in sizes:
        layer = LAYER.match(f"{name}.")
        assert layer is not None
        found[int(layer[1])] += sum(round_to_block(count * room.columns * one * HALF_BYTES) for one in both)
    return found
