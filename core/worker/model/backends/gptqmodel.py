"""One quantized matrix as a module: a checkpoint's tensors in, the chosen kernel's form out; knows no model around it.

gptqmodel's own classes do the work where they are the fastest. On the CPU its int4 packing is kept, but called by a
module of ours, because its wrapper costs more than the matrix for one token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from gptqmodel.nn_modules.qlinear import GPTQQuantLinear, PackableQuantLinear
from gptqmodel.nn_modules.qlinear.exllamav2 import ExllamaV2Linear
from gptqmodel.nn_modules.qlinear.marlin import MarlinLinear
from gptqmodel.nn_modules.qlinear.torch import TorchLinear
from gptqmodel.nn_modules.qlinear.torch_aten_kernel import TorchAtenLinear
from gptqmodel.nn_modules.qlinear.tritonv2 import TritonV2Linear
from gptqmodel.utils.exllamav2 import ScratchSpace
from gptqmodel.utils.model import convert_gptq_v1_to_v2_format_module
from torch import nn

from core.checkpoint.quantization import MatrixFormat
from core.common.errors import CheckpointError
from core.worker.kernels.cpu_int4_prefill import MIN_ROWS, make_prefill_matmul
from core.worker.kernels.packing import (
    K_BLOCK,
    SYMMETRIC_WORDS,
    TILE,
    PackedMatrix,
    find_permutation,
    tile_scales,
    unpack,
)
from core.worker.kernels.w4_prefill import make_prefill_backend
from core.worker.kernels.w4_small_batch import PrefillBackend, W4Linear, kernels_for

Tensors = dict[str, torch.Tensor]
CLASSES: dict[str, type[GPTQQuantLinear]] = {
    "exllama_v2": ExllamaV2Linear,
    "marlin": MarlinLinear,
    "triton": TritonV2Linear,
    "torch": TorchLinear,
    "aten_int4": TorchAtenLinear,
    "dense": TorchLinear,
}


@dataclass(slots=True)
class MatrixMaker:
    """Makes the modules of one model. ExLlamaV2's matrices share one scratch space, as large as the largest needs.

    Marlin and the engine's own kernel write each matrix anew. Its codes come through one staging buffer, and what is
    not kept stays where it was read: freed pieces between what stays would be lost to everything larger.
    """

    kernel: str
    quantization: MatrixFormat
    dtype: torch.dtype
    device: torch.device
    scratch: ScratchSpace | None = None
    staging: torch.Tensor | None = None
    many: PrefillBackend | None = None

    @property
    def reading_device(self) -> torch.device:
        """Where a matrix's tensors are read to, before `make`."""
        return torch.device("cpu") if self.kernel in ("marlin", "deck") else self.device

    def reserve(self, shapes: set[tuple[int, int]], max_rows: int) -> None:
        """Allocate what the kernel needs beside the weights, for the largest of `shapes` (in, out)."""
        if self.kernel == "exllama_v2":
            num_bytes = max(
                in_features * out_features * 2 + 128 + out_features * max_rows * 4 + 128
                for in_features, out_features in shapes
            )
            self.scratch = ScratchSpace(scratch_bytes=num_bytes, dev=self.device)
        elif self.kernel in ("marlin", "deck"):
            words = max(rows * columns for rows, columns in shapes) * self.quantization.bits // 32
            self.staging = torch.empty(words, dtype=torch.int32, device=self.device)
        if self.kernel == "deck":
            self.many = make_prefill_backend(max(rows * columns for rows, columns in shapes), *self._how)

    @property
    def _how(self) -> tuple[torch.dtype, int, bool, torch.device]:
        """What the engine's own kernels are compiled for."""
        return self.dtype, self.quantization.group_size, not self.quantization.is_symmetric, self.device

    def make(self, tensors: Tensors) -> nn.Module:
        """The module for one matrix from its qweight, qzeros, scales, and where there are any g_idx and bias."""
        if self.kernel == "deck":
            return self.make_of([tensors])
        module = self._fill(self._staged(tensors))
        if isinstance(module, ExllamaV2Linear):
            module.post_init(self.scratch)
        elif self.kernel == "aten_int4":
            return CpuInt4Linear(module)
        elif self.kernel == "dense":
            return make_dense(module, self.dtype)
        else:
            module.post_init()
        return module

    def make_of(self, members: Sequence[Tensors]) -> nn.Module:
        """One module for the matrices `members`, which share their input, for the engine's own kernel."""
        staging, many = self.staging, self.many
        assert staging is not None and many is not None
        kernels = kernels_for(*self._how)
        words = [tensors["qweight"] for tensors in members]
        tiles, offset = sum(word.shape[1] for word in words) // TILE, int(self.quantization.packing == "gptq")
        codes = torch.empty((tiles, words[0].shape[0] * 8 // K_BLOCK, 32, 4), dtype=torch.int32, device=self.device)
        scales = [tile_scales(tensors["scales"].to(self.device), self.dtype) for tensors in members]
        zeros = None
        if self.quantization.is_symmetric:
            check_symmetric(members, self.quantization.packing)
        else:
            zeros = [tile_scales(unpack(one["qzeros"].to(self.device), 1) + offset & 15, self.dtype) for one in members]
        order = find_permutation(members[0].get("g_idx"))
        order = None if order is None else order.to(self.device)
        first_tile = 0
        for word in words:
            kernels.pack(staging[: word.numel()].view(word.shape).copy_(word), order, codes, first_tile)
            first_tile += word.shape[1] // TILE
        bias = torch.cat([one["bias"] for one in members]) if "bias" in members[0] else None
        matrix = PackedMatrix(codes, torch.cat(scales), None if zeros is None else torch.cat(zeros), order)
        return W4Linear(matrix, None if bias is None else bias.to(self.device, self.dtype), kernels, many)

    def _staged(self, tensors: Tensors) -> Tensors:
        if self.staging is None:
            return tensors
        codes = tensors["qweight"]
        stage = self.staging[: codes.numel()].view(codes.shape).copy_(codes)
        kept = {name: tensor.to(self.device) for name, tensor in tensors.items() if name in self._kept_parts()}
        return tensors | kept | {"qweight": stage}

    def _kept_parts(self) -> set[str]:
        return {"scales", "bias", "g_idx"} if self.quantization.is_permuted else {"scales", "bias"}

    def _fill(self, tensors: Tensors) -> GPTQQuantLinear:
        bits, qweight = self.quantization.bits, tensors["qweight"]
        in_features, out_features = qweight.shape[0] * 32 // bits, qweight.shape[1]
        bias = tensors.get("bias")
        module = CLASSES[self.kernel](
            bits=bits,
            group_size=self.quantization.group_size,
            sym=self.quantization.is_symmetric,
            desc_act=self.quantization.is_permuted,
            in_features=in_features,
            out_features=out_features,
            bias=bias is not None,
            pack_dtype=torch.int32,
            register_buffers=False,
            dtype=self.dtype if self.kernel == "marlin" else torch.float16,
        )
        # Marlin computes in the type it was made for; ExLlamaV2 takes half precision only.
        scales = tensors["scales"].to(self.dtype if self.kernel == "marlin" else torch.float16)
        g_idx = tensors.get("g_idx")
        if g_idx is None:
            g_idx = torch.arange(in_features, dtype=torch.int32, device=scales.device) // module.group_size
        values = {
            "qweight": qweight,
            "qzeros": tensors["qzeros"],
            "scales": scales,
            "g_idx": g_idx.to(torch.int32),
        }
        for name, tensor in values.items():
            set_tensor(module, name, tensor)
        set_tensor(module, "bias", None if bias is None else bias.to(self.dtype))
        if self.quantization.packing == "gptq_v2":
            module.qzero_format(format=2)
        elif module.REQUIRES_FORMAT_V2:
            convert_gptq_v1_to_v2_format_module(module, bits=bits, pack_dtype=torch.int32)
        return module.eval()


def check_symmetric(members: Sequence[Tensors], quantization_format: str) -> None:
    """Raise CheckpointError where a matrix that says it is symmetric has zeros elsewhere than in the middle."""
    wanted = SYMMETRIC_WORDS[quantization_format]
    found = [int(zeros[zeros != wanted][0]) for tensors in members if (zeros := tensors["qzeros"]).ne(wanted).any()]
    if found:
        raise CheckpointError("zeros_not_symmetric", found=f"{found[0] & 0xFFFFFFFF:#010x}")


def set_tensor(module: nn.Module, name: str, tensor: torch.Tensor | None) -> None:
    """Put `tensor` where the class expects it: over its parameter, or as a buffer."""
    if name in module._parameters and tensor is not None:
        module._parameters[name] = nn.Parameter(tensor, requires_grad=False)
        return
    if hasattr(module, name) and name not in module._buffers:
        delattr(module, name)
    module.register_buffer(name, tensor, persistent=False)


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
        matmul = torch.ops.aten._weight_int4pack_mm_for_cpu.default
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


def make_dense(source: GPTQQuantLinear, dtype: torch.dtype) -> nn.Linear:
    """The matrix written out: four times the memory at 4 bit, and the only form that every layout has on a CPU."""
    assert isinstance(source, PackableQuantLinear), type(source)
    source.dequant_dtype = torch.int16 if source.bits == 8 else torch.int8
    weight = PackableQuantLinear.dequantize_weight(source)
    linear = nn.Linear(source.in_features, source.out_features, bias=source.bias is not None, device="meta")
    linear.weight = nn.Parameter(weight.to(dtype).t().contiguous(), requires_grad=False)
    if source.bias is not None:
        linear.bias = nn.Parameter(source.bias.to(dtype), requires_grad=False)
    return linear
