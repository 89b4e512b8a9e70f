"""The experts of a mixture by the names of their tensors, and their numbers by the configuration.

Files have each expert's matrices by themselves: `….experts.17.gate_proj`. transformers keeps those of a layer in one
tensor: `….experts.gate_up_proj` [experts, 2 * intermediate, hidden].
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from core.checkpoint.quantization import QuantizedMatrix
from core.checkpoint.text_config import quantization_of, text_config

# Of an expert: one matrix for gate and up, as Granite's files have it, or one for each.
PROJECTION = r"gate_proj|up_proj|down_proj|gate_up_proj"
EXPERT = re.compile(rf"(.*\.experts)\.([0-9]{{1,6}})\.({PROJECTION})(?:\.([a-z_]+))?")
# The size of an expert, where it is not that of a dense MLP; of the expert that all tokens go through, in experts or
# in outputs.
SIZES = ("moe_intermediate_size", "intermediate_size")
NUM_SHARED = ("n_shared_experts", "moe_num_shared_experts", "num_shared_experts", "num_shared_expert")
SHARED_SIZES = ("shared_expert_intermediate_size", "shared_intermediate_size")
# Families whose experts compute something else than SwiGLU whatever `hidden_act` says.
OWN_GATES = frozenset(("gpt_oss", "minimax_m3_vl_text"))
# Families whose classes have outputs of gate and up in turns, and not gate's first.
IN_TURNS = frozenset(("gpt_oss",))
SHARED_EXPERT = re.compile(r"\.shared_(?:experts?|mlp)\.")
# The matrix that chooses experts: a few of its numbers tell which, so that every kernel has it in 16 bit.
ROUTER = re.compile(r"\.(?:gate|router)$")
# Families whose routers are in float32 whatever the others are in.
FLOAT_ROUTERS = frozenset(("ernie4_5_moe",))


@dataclass(frozen=True, slots=True)
class ExpertMatrix:
    """One matrix of one expert. `stack`: the module that holds all experts of the layer, such as
    "model.layers.0.mlp.experts". `part`: what comes after the matrix's name, as "weight" or "qweight"."""

    stack: str
    number: int
    projection: str
    part: str = ""

    @property
    def expert(self) -> str:
        """The expert's own name."""
        return f"{self.stack}.{self.number}"


def expert_matrix(name: str) -> ExpertMatrix | None:
    """Which expert's matrix the tensor or the matrix `name` is; None for all that belongs to no single expert."""
    match = EXPERT.fullmatch(name) if ".experts." in name else None
    return None if match is None else ExpertMatrix(match[1], int(match[2]), match[3], match[4] or "")


def count_experts(names: Iterable[str]) -> dict[str, int]:
    """How many experts each stack has that files hold one by one, by the largest number."""
    found: dict[str, int] = {}
    for name in names:
        one = expert_matrix(name)
        if one is not None:
            found[one.stack] = max(found.get(one.stack, 0), one.number + 1)
    return found


def missing_experts(count: int | None, weights: Iterable[str]) -> Iterator[str]:
    """The weights that stacks of `count` experts lack, None where the configuration tells no number; `weights`: by the
    names that they have unquantized, "….weight"."""
    found: dict[str, set[tuple[int, str]]] = defaultdict(set)
    for name in weights:
        if (one := expert_matrix(name)) is not None:
            found[one.stack].add((one.number, one.projection))
    for stack, matrices in found.items():
        projections = {"down_proj"} | {projection for _, projection in matrices}
        projections |= set() if "gate_up_proj" in projections else {"gate_proj", "up_proj"}
        for number in range(count or 1 + max(number for number, _ in matrices)):
            lost = (one for one in projections if (number, one) not in matrices)
            yield from (f"{stack}.{number}.{one}.weight" for one in lost)


def are_experts_alike(
    text: Mapping[str, Any], tensors: Collection[str], matrices: Mapping[str, QuantizedMatrix], has_orders: bool
) -> bool:
    """Whether in each layer all experts are SwiGLU MLPs, quantized in one way, that add no bias: a kernel can have them
    as one. True also where there are none.

    Gate and up of one expert have their inputs in one order; `has_orders`: the matrices tell which.
    """
    is_swiglu = text.get("hidden_act", "silu") in ("silu", "swish") and text.get("model_type") not in OWN_GATES
    if not is_swiglu and any(map(expert_matrix, tensors)):
        return False
    unpacked = (one for name in tensors if name.endswith((".weight", ".bias")) and (one := expert_matrix(name)))
    if any(one.part in ("weight", "bias") for one in unpacked):
        return False
    kinds: dict[tuple[str, bool], set[tuple[int, int, bool]]] = defaultdict(set)
    orders: dict[str, set[str]] = defaultdict(set)
    for name, matrix in matrices.items():
        if (one := expert_matrix(name)) is not None:
            format = matrix.format
            kinds[one.stack, one.projection == "down_proj"].add((format.bits, format.group_size, format.is_symmetric))
            if has_orders and one.projection != "down_proj":
                orders[one.expert].add(matrix.input_order)
    return all(len(found) == 1 for found in kinds.values()) and all(len(found) == 1 for found in orders.values())


def are_cut_in_halves(config: Mapping[str, Any]) -> bool:
    """Whether "gate_proj" and "up_proj" are the halves of the class's tensor for both, whatever lies there.

    gptqmodel cuts so (its library defuser), also gpt-oss's, where outputs of gate and up take turns. Other programs'
    names mean what they say.
    """
    settings = quantization_of(config)
    meta = settings.get("meta") if isinstance(settings, dict) else None
    return "gptqmodel" in str(meta.get("quantizer")) if isinstance(meta, dict) else False


def take_turns(config: Mapping[str, Any]) -> bool:
    """Whether outputs of gate and up take turns in the class's tensor for both, and files have each by its name."""
    return text_config(config).get("model_type") in IN_TURNS and not are_cut_in_halves(config)


def first_name(text: Mapping[str, Any], names: Iterable[str]) -> str | None:
    """The first of `names` that the configuration has a value for."""
    return next((name for name in names if text.get(name) is not None), None)


def first_value(text: Mapping[str, Any], names: Iterable[str]) -> Any:
    """The first of `names` that the configuration has; of a list, one number a layer, the largest. None for none."""
    name = first_name(text, names)
    value = None if name is None else text[name]
    if isinstance(value, list):
        numbers = [one for one in value if isinstance(one, int)]
        return max(numbers, default=None)
    return value
