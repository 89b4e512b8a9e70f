"""Plain matrices of a CPU that multiplies bfloat16 itself, as oneDNN lays them out for its products.

torch lays a matrix out anew for each product, which takes longer than the product of one token.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import nn
from transformers import PreTrainedModel

from core.worker.kernels.cpu_int4_prefill import multiplies_bfloat16

log = logging.getLogger(__name__)
# Smaller matrices lie in a CPU's cache either way.
MIN_ELEMENTS = 1 << 16
# oneDNN's layout is made for so many rows, and takes any other number. Rows on which both products are compared.
LAID_OUT_FOR, COMPARED_ROWS = 1, (1, 2, 8)


class PackedLinear(nn.Module):
    """Stands in for `linear`, whose weight it keeps in oneDNN's layout."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), LAID_OUT_FOR)
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach(), persistent=False)
        self.multiply_rows = self._rows_function()

    def _rows_function(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """The product for rows, [rows, in] -> [rows, out], as a function of its own."""
        multiply, weight, bias = torch.ops.mkldnn._linear_pointwise.default, self.weight, self.bias
        return lambda rows: multiply(rows, weight, bias, "none", [], "")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in] -> [..., out], both bfloat16."""
        return self.multiply_rows(x.reshape(-1, self.in_features)).view(*x.shape[:-1], self.out_features)


def pack_linears(model: PreTrainedModel) -> int:
    """Put a PackedLinear in the place of each large bfloat16 matrix of `model`, where that computes the same to the
    bit; how many. One that others share, as a head its embedding, stays in memory beside it."""
    if not multiplies_bfloat16():
        return 0
    is_same: dict[tuple[int, ...], bool] = {}
    # A class of its own may compute something else. No module is kept, so that each matrix goes as it is replaced.
    found = [
        (owner, name)
        for owner in model.modules()
        for name, linear in owner.named_children()
        if type(linear) is nn.Linear and is_large(linear.weight)
    ]
    count = 0
    for owner, name in found:
        linear: nn.Linear = getattr(owner, name)
        packed = PackedLinear(linear)
        shape = tuple(linear.weight.shape)
        if shape not in is_same:
            is_same[shape] = computes_the_same(packed, linear)
        if is_same[shape]:
            setattr(owner, name, packed)
            count += 1
    return count


def is_large(weight: torch.Tensor) -> bool:
    return bool(weight.dtype == torch.bfloat16 and weight.device.type == "cpu" and weight.numel() >= MIN_ELEMENTS)


def computes_the_same(packed: PackedLinear, linear: nn.Linear) -> bool:
    random = torch.Generator().manual_seed(0)
    rows = torch.randn((max(COMPARED_ROWS), linear.in_features), generator=random).bfloat16()
    return all(torch.equal(packed(rows[:count]), linear(rows[:count])) for count in COMPARED_ROWS)
