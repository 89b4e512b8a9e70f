"""ATen's int4 kernel of a CPU in gptqmodel's packing, called bare.

gptqmodel's own module around it costs more than the matrix for one token. What it does not take, such as 8 bit in
single modules, is dequantized.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from gptqmodel.nn_modules.qlinear import GPTQQuantLinear
from gptqmodel.nn_modules.qlinear.torch_aten_kernel import TorchAtenLinear
from torch import nn

from core.memory.kernels.cpu import DENSE
from core.memory.kernels.spec import Device
from core.memory.model_shape import MatrixShape
from core.worker.kernels.cpu_int4_prefill import MIN_ROWS, make_prefill_matmul
from core.worker.model.backends.dense import DenseBackend
from core.worker.model.backends.gptqmodel import GptqmodelBackend
from core.worker.model.matrix_tensors import MatrixTensors


class AtenInt4Backend(GptqmodelBackend):
    linear_class = TorchAtenLinear

    def make(self, members: Sequence[MatrixTensors]) -> nn.Module:
        one = members[0]
        if not self.spec.can_run(MatrixShape(one.in_features, one.out_features, one.format), Device("cpu")):
            return DenseBackend(DENSE, self.dtype, self.device).make(members)
        return CpuInt4Linear(self.build(one))


class CpuInt4Linear(nn.Module):
    """A matrix for ATen's int4 kernel: 4-bit codes in its own tiling, one bfloat16 scale and zero a group."""

    def __init__(self, source: GPTQQuantLinear) -> None:
        super().__init__()
        assert isinstance(source, TorchAtenLinear), type(source)
        source.post_init()
        source.transform("cpu")
        self.out_features = source.out_features
        self.group_size = source.group_size
        self.register_buffer("weight", source.qweight, persistent=False)
        self.register_buffer("scales_and_zeros", source.scales_and_zeros, persistent=False)
        self.register_buffer("bias", source.bias, persistent=False)
        order = source.ret_idx.long()
        is_in_order = bool((order == torch.arange(order.numel())).all())
        self.register_buffer("order", None if is_in_order else order, persistent=False)
        self.multiply_rows = self._rows_function()

    def _rows_function(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """The product for rows, [rows, in] -> [rows, out], as a function of its own: looking a tensor up in a module
        costs as much as a small operation."""
        # Not from torch.ops, whose call takes longer than the product of a small matrix.
        matmul = torch._weight_int4pack_mm_for_cpu
        weight, group_size, scales_and_zeros = self.weight, self.group_size, self.scales_and_zeros
        order, bias = self.order, self.bias
        multiply_many = make_prefill_matmul(weight, scales_and_zeros, group_size)

        def multiply(rows: torch.Tensor) -> torch.Tensor:
            if order is not None:
                rows = rows[:, order]
            if multiply_many is not None and rows.shape[0] >= MIN_ROWS:
                out = multiply_many(rows)
            else:
                out = matmul(rows, weight, group_size, scales_and_zeros)
            if bias is not None:
                out += bias
            return out

        return multiply

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in] -> [..., out], both bfloat16."""
        return self.multiply_rows(x.reshape(-1, x.shape[-1])).view(*x.shape[:-1], self.out_features)
