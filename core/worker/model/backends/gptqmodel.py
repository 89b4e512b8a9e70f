"""Kernels that gptqmodel's own classes call: Triton and torch."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import ClassVar

import torch
from gptqmodel.nn_modules.qlinear import GPTQQuantLinear
from gptqmodel.nn_modules.qlinear.torch import TorchLinear
from gptqmodel.nn_modules.qlinear.tritonv2 import TritonV2Linear
from torch import nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from core.checkpoint.quantization import QuantizedMatrix
from core.memory.kernels.registry import has_c_compiler
from core.memory.kernels.spec import KernelSpec
from core.memory.matrix_groups import MatrixGroup
from core.memory.model_shape import MatrixShape
from core.worker.model.experts import ExpertTensors, GatedActivation, loop_experts
from core.worker.model.matrix_tensors import ConcatenatedTensors, GroupTensors, MatrixTensors
from core.worker.model.repack import middle_zeros

# gptqmodel's import puts a rope of its own before each family's, for classes from repositories, which never run here.
# It turns a part of each head wherever a configuration names one, also in families that turn whole heads.
ROPE_INIT_FUNCTIONS.pop("default", None)


class GptqmodelBackend:
    """Puts a matrix's tensors into gptqmodel's module for them."""

    linear_class: ClassVar[type[GPTQQuantLinear]]

    def __init__(self, spec: KernelSpec, dtype: torch.dtype, device: torch.device) -> None:
        self.spec, self.dtype, self.device = spec, dtype, device

    @property
    def reading_device(self) -> torch.device:
        return self.device

    def reserve(self, matrices: Collection[MatrixShape], max_rows: int) -> None:
        pass

    def collect(self, group: MatrixGroup, members: Sequence[QuantizedMatrix]) -> GroupTensors:
        return ConcatenatedTensors(group, members[0].format)

    def make(self, members: Sequence[MatrixTensors]) -> nn.Module:
        module = self.build(members[0])
        module.post_init()
        return module

    def make_experts(self, experts: Sequence[ExpertTensors], activation: GatedActivation) -> nn.Module:
        return loop_experts(experts, activation, self.make)

    def build(self, tensors: MatrixTensors, scales_dtype: torch.dtype = torch.float16) -> GPTQQuantLinear:
        """gptqmodel's module with the tensors in it, not yet prepared for its kernel."""
        format, bias = tensors.format, tensors.bias
        module = self.linear_class(
            bits=format.bits,
            group_size=format.group_size,
            sym=format.is_symmetric,
            desc_act=format.is_permuted,
            in_features=tensors.in_features,
            out_features=tensors.out_features,
            bias=bias is not None,
            pack_dtype=torch.int32,
            register_buffers=False,
            dtype=scales_dtype,
        )
        scales, zeros, g_idx = tensors.scales.to(scales_dtype), tensors.zeros, tensors.input_groups
        if zeros is None:
            zeros = middle_zeros(format, scales.shape[0], tensors.out_features, tensors.codes.device)
        if g_idx is None:
            g_idx = torch.arange(tensors.in_features, dtype=torch.int32, device=scales.device) // module.group_size
        set_tensor(module, "qweight", tensors.codes)
        set_tensor(module, "qzeros", zeros)
        set_tensor(module, "scales", scales)
        set_tensor(module, "g_idx", g_idx.to(torch.int32))
        set_tensor(module, "bias", None if bias is None else bias.to(self.dtype))
        module.qzero_format(format=2)
        return module.eval()


class TritonBackend(GptqmodelBackend):
    linear_class = TritonV2Linear


class TorchBackend(GptqmodelBackend):
    linear_class = TorchLinear

    def build(self, tensors: MatrixTensors, scales_dtype: torch.dtype = torch.float16) -> GPTQQuantLinear:
        """Where there is no C compiler, torch runs it operation by operation: gptqmodel would compile it (inductor), or
        dequantize in Triton."""
        module = super().build(tensors, scales_dtype)
        if not has_c_compiler():
            module.optimized, module._triton_dequant_enabled = True, False
        return module


def set_tensor(module: nn.Module, name: str, tensor: torch.Tensor | None) -> None:
    """Put `tensor` where the class expects it: over its parameter, or as a buffer."""
    if name in module._parameters and tensor is not None:
        module._parameters[name] = nn.Parameter(tensor, requires_grad=False)
        return
    if hasattr(module, name) and name not in module._buffers:
        delattr(module, name)
    module.register_buffer(name, tensor, persistent=False)
