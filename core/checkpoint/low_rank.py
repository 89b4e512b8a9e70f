"""What an adapter adds to a matrix, or to those of all experts of a layer: where its numbers lie, and not a number."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

# transformers' parameters of all experts of a layer, in the order in which its classes have them.
STACKED_PARAMETERS = ("gate_up_proj", "down_proj")
STACK, WRAPPED = "experts", ".base_layer"


@dataclass(frozen=True, slots=True)
class ExpertCut:
    """Where an expert's matrices lie in those of `num_experts`: A's rows from `expert` * rank on; B's columns `expert`,
    `expert` + `num_experts`, ..., and of its rows the `outputs` (begin, end, step). is_swapped: what is called A is B,
    transposed, and what is called B is A."""

    expert: int
    num_experts: int
    outputs: tuple[int, int, int]
    is_swapped: bool = False


@dataclass(frozen=True, slots=True)
class AdapterTensors:
    """What an adapter adds to the module or parameter `name`: scale * B @ A, by the file's tensors `a_name` and
    `b_name`."""

    name: str
    rank: int
    scale: float
    in_features: int
    out_features: int
    a_name: str
    b_name: str


@dataclass(frozen=True, slots=True)
class LowRank(AdapterTensors):
    """What is added to one matrix. A is [rank, in_features], B is [out_features, rank]: the tensors, or what `cut`
    takes of them."""

    cut: ExpertCut | None = None

    def own_parts(self, a: Any, b: Any) -> tuple[Any, Any]:
        """A and B of the tensors that the file has, arrays of any kind."""
        if self.cut is None:
            return a, b
        first, (begin, end, step) = self.cut.expert * self.rank, self.cut.outputs
        of_a, of_b = a[first : first + self.rank], b[:, self.cut.expert :: self.cut.num_experts]
        return (of_b.T, of_a.T[begin:end:step]) if self.cut.is_swapped else (of_a, of_b[begin:end:step])


@dataclass(frozen=True, slots=True)
class StackedLowRank(AdapterTensors):
    """What is added to a parameter of all experts of a layer, such as "….experts.down_proj".

    A is [num_experts * rank, in_features], an expert's rows side by side; B is [out_features, rank * num_experts], the
    columns of all experts side by side for each rank (ParamWrapper in PEFT). may_be_swapped: A and B may have each
    other's place, as PEFT before 0.19.1 wrote those of classes whose parameters are [experts, out, in].
    """

    num_experts: int
    may_be_swapped: bool = False

    @property
    def stack(self) -> str:
        """The module of all experts."""
        return self.name.rpartition(".")[0]

    @property
    def projection(self) -> str:
        return self.name.rpartition(".")[2]

    def of_expert(self, name: str, expert: int, outputs: tuple[int, int, int], is_swapped: bool) -> LowRank:
        """What is added to the matrix `name` of one expert, which has these outputs of the parameter's."""
        cut = ExpertCut(expert, self.num_experts, outputs, is_swapped)
        inputs = self.out_features if is_swapped else self.in_features
        return LowRank(name, self.rank, self.scale, inputs, len(range(*outputs)), self.a_name, self.b_name, cut)


def stacked_parameters(targets: Iterable[str], modules: Iterable[str]) -> dict[str, str | None]:
    """Of an adapter's modules those that change all experts of a layer, with the parameter that each changes, such as
    "….experts.down_proj"; None where that cannot be told.

    PEFT wraps a module once for each of its parameters that fits one of `targets`: what was wrapped first is called
    "….experts.base_layer", the last "….experts". Its name for the parameter is in the configuration alone.
    """
    wrapped: dict[str, list[str]] = {}
    for module in modules:
        owner = module
        while owner.endswith(WRAPPED):
            owner = owner.removesuffix(WRAPPED)
        if owner.rpartition(".")[2] == STACK:
            wrapped.setdefault(owner, []).append(module)
    known, found = set(targets), dict[str, str | None]()
    for owner, some in wrapped.items():
        names = [name for one in STACKED_PARAMETERS if _is_target(name := f"{owner}.{one}", known)]
        inner_first = [owner + WRAPPED * depth for depth in reversed(range(len(some)))]
        is_told = len(names) == len(some) and set(inner_first) == set(some)
        found |= dict(zip(inner_first, names, strict=True)) if is_told else dict.fromkeys(some)
    return found


def _is_target(name: str, targets: set[str]) -> bool:
    """Whether one of `targets` is the whole name, or its end from a dot on."""
    while name not in targets:
        _, dot, name = name.partition(".")
        if not dot:
            return False
    return True
