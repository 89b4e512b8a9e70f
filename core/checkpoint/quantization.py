"""How the matrices of a checkpoint are quantized: each by itself, whatever container holds it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

BITS = (2, 3, 4, 8)

# How a file lays out codes and zero points. "gptq" stores each zero point less one, "gptq_words" whole words of them
# less a one in each field, with the borrow, "gptq_v2" the zero point itself. Two are AWQ's and compressed-tensors'.
Packing = Literal["gptq", "gptq_words", "gptq_v2", "awq", "pack_quantized"]
# "shape" is a matrix's [out, in] as two numbers, which compressed-tensors stores beside it.
Part = Literal["codes", "zeros", "scales", "input_groups", "bias", "shape"]


@dataclass(frozen=True, slots=True)
class MatrixFormat:
    """How one matrix is quantized.

    `group_size`: inputs that share a scale; -1: all of a column. `is_symmetric`: every zero point is 2 ** (bits - 1).
    `is_permuted`: the inputs of a scale group do not lie side by side (act-order); the tensor "input_groups" tells the
    group of each input. The configuration says both; `core/checkpoint/settled.py` holds the tensors against it.
    """

    bits: int
    group_size: int
    is_permuted: bool
    is_symmetric: bool
    packing: Packing

    @property
    def container(self) -> str:
        """What people call the way in which the file holds the matrix; AutoRound's own is GPTQ or AWQ."""
        return {"awq": "AWQ", "pack_quantized": "compressed-tensors"}.get(self.packing, "GPTQ")

    @property
    def label(self) -> str:
        container = "" if self.container == "GPTQ" else f"{self.container}, "
        group = "no groups" if self.group_size < 0 else f"group {self.group_size}"
        return f"{container}{self.bits} bit, {group}" + (", act-order" if self.is_permuted else "")

    def num_groups(self, in_features: int) -> int:
        """The scale groups along `in_features` inputs; the last one may be shorter than the others."""
        return min(1, in_features) if self.group_size < 0 else math.ceil(in_features / self.group_size)


@dataclass(frozen=True, slots=True)
class QuantizedMatrix:
    """One quantized matrix, [in_features] -> [out_features]. `name` is its module in the model.

    `tensors` has the name in the files of every tensor that is there. `input_order`: matrices in which it is equal have
    their inputs in one order, "" in the model's; a permuted matrix has its own name until its tensors are read.
    """

    name: str
    in_features: int
    out_features: int
    format: MatrixFormat
    tensors: Mapping[Part, str]
    input_order: str = ""

    @property
    def num_groups(self) -> int:
        return self.format.num_groups(self.in_features)

    @property
    def num_parts(self) -> int:
        """How many tensors the matrix is made of: its shape as numbers is none of them."""
        return len(self.tensors) - ("shape" in self.tensors)
