"""Matrices dequantized at load, for a CPU: four times the memory at 4 bit, and a form that every packing has."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from gptqmodel.nn_modules.qlinear import PackableQuantLinear
from gptqmodel.nn_modules.qlinear.torch import TorchLinear
from torch import nn

from core.worker.model.backends.gptqmodel import GptqmodelBackend
from core.worker.model.matrix_tensors import MatrixTensors


class DenseBackend(GptqmodelBackend):
    linear_class = TorchLinear

    def make(self, members: Sequence[MatrixTensors]) -> nn.Module:
        source = self.build(members[0])
        assert isinstance(source, PackableQuantLinear), type(source)
        source.dequant_dtype = torch.int16 if source.bits == 8 else torch.int8
        weight = PackableQuantLinear.dequantize_weight(source)
        linear = nn.Linear(source.in_features, source.out_features, bias=source.bias is not None, device="meta")
        linear.weight = nn.Parameter(weight.to(self.dtype).t().contiguous(), requires_grad=False)
        if source.bias is not None:
            linear.bias = nn.Parameter(source.bias.to(self.dtype), requires_grad=False)
        return linear
