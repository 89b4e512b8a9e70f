"""What an adapter adds to all experts of a layer, matrix by matrix: files have each expert's by themselves."""

from __future__ import annotations

from collections.abc import Mapping

from core.checkpoint.experts import expert_matrix
from core.checkpoint.low_rank import LowRank, StackedLowRank

# By expert's number and by what a matrix of it is called, such as "gate_proj": its name.
ExpertNames = dict[int, dict[str, str]]


def experts_by_stack(names: Mapping[str, tuple[int, int]]) -> dict[str, ExpertNames]:
    """The matrices of each module that holds all experts of a layer."""
    found: dict[str, ExpertNames] = {}
    for name in names:
        if (one := expert_matrix(name)) is not None:
            found.setdefault(one.stack, {}).setdefault(one.number, {})[one.projection] = name
    return found


def expand_stack(
    stacked: StackedLowRank, experts: ExpertNames, sizes: Mapping[str, tuple[int, int]], takes_turns: bool
) -> list[dict[str, LowRank]]:
    """What `stacked` adds to each matrix of `experts`, by its name: in each way in which it can be read, none where
    their number or `sizes` are others. takes_turns: outputs of gate and up take turns."""
    if sorted(experts) != list(range(stacked.num_experts)):
        return []
    ways = (False, True) if stacked.may_be_swapped else (False,)
    return [found for way in ways if (found := _expanded(stacked, experts, sizes, takes_turns, way))]


def stack_features(
    stacked: StackedLowRank, experts: ExpertNames, sizes: Mapping[str, tuple[int, int]]
) -> tuple[int, int]:
    """The (in, out) features of the parameter of `experts` that `stacked` is for: of its first expert, as far as that
    has it."""
    own = experts[min(experts)]
    parts = (stacked.projection,) if stacked.projection in own else ("gate_proj", "up_proj")
    found = [sizes[own[part]] for part in parts if part in own]
    return max((inputs for inputs, _ in found), default=0), sum(outputs for _, outputs in found)


def _expanded(
    stacked: StackedLowRank,
    experts: ExpertNames,
    sizes: Mapping[str, tuple[int, int]],
    takes_turns: bool,
    is_swapped: bool,
) -> dict[str, LowRank]:
    found: dict[str, LowRank] = {}
    inputs, total = (stacked.in_features, stacked.out_features)[:: -1 if is_swapped else 1]
    for number in range(stacked.num_experts):
        own = experts[number]
        if stacked.projection in own:
            cuts = {stacked.projection: (0, total, 1)}
        elif takes_turns:
            cuts = {"gate_proj": (0, total, 2), "up_proj": (1, total, 2)}
        else:
            cuts = {"gate_proj": (0, total // 2, 1), "up_proj": (total // 2, total, 1)}
        for projection, outputs in cuts.items():
            name = own.get(projection, "")
            if sizes.get(name) != (inputs, len(range(*outputs))):
                return {}
            found[name] = stacked.of_expert(name, number, outputs, is_swapped)
    return found
