"""What the backends of GPUs make of a matrix's tensors, on a CPU with stand-ins for what only a GPU runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from core.checkpoint.quantization import MatrixFormat
from core.memory.kernels.registry import kernel_named
from core.memory.model_shape import MatrixShape
from core.worker.kernels.packing import invert_permutation, pack_codes, tile_scales, unpack
from core.worker.model.backends import gptqmodel, llamadeck
from core.worker.model.backends.registry import make_backend
from core.worker.model.kernel_check import INPUTS, OUTPUTS, reference_matrix
from core.worker.model.matrix_tensors import MatrixTensors

CPU = torch.device("cpu")
FORMATS = [
    MatrixFormat(4, 32, False, True, "gptq"),
    MatrixFormat(4, 64, True, False, "gptq"),
    MatrixFormat(4, 128, True, True, "gptq_v2"),
    MatrixFormat(4, -1, False, False, "gptq_v2"),
    MatrixFormat(8, 128, False, True, "gptq"),
    MatrixFormat(8, 32, True, False, "gptq"),
]
HALF_TYPES = (torch.float16, torch.bfloat16)


class FakeKernels:
    """Packs as the kernel `pack` does."""

    def __init__(self, bits: int) -> None:
        self._bits = bits

    def pack(self, words: torch.Tensor, permutation: torch.Tensor | None, codes: torch.Tensor, first_tile: int) -> None:
        rows = unpack(words, 0, self._bits)
        packed = pack_codes(rows if permutation is None else rows[permutation.long()], self._bits)
        codes[first_tile : first_tile + packed.shape[0]] = packed


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llamadeck, "kernels_for", lambda _, format, *__: FakeKernels(format.bits))
    monkeypatch.setattr(llamadeck, "make_prefill_backend", lambda *_: None)


def make(kernel: str, format: MatrixFormat, dtype: torch.dtype, biases: tuple[torch.Tensor | None, ...]) -> Any:
    parts, _ = reference_matrix(format)
    backend = make_backend(kernel_named(kernel), dtype, CPU)
    backend.reserve([MatrixShape(INPUTS, OUTPUTS * len(biases), format)], 512)
    members = [MatrixTensors.from_parts(format, parts) for _ in biases]
    for member, bias in zip(members, biases, strict=True):
        member.bias = bias
    module: nn.Module = backend.make(members)
    return module


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_torchs_kernel_needs_no_compiler(monkeypatch: pytest.MonkeyPatch, bits: int) -> None:
    """It is what is left where nothing can be compiled; gptqmodel compiles it as well, so it failed there too."""

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("compiled")

    monkeypatch.setattr(gptqmodel, "has_c_compiler", lambda: False)
    monkeypatch.setattr(torch, "compile", fail)
    format = MatrixFormat(bits, 128, False, True, "gptq")
    module = make("torch", format, torch.float16, (None,))
    assert not module._triton_dequant_enabled
    x = torch.randn(3, INPUTS)
    wanted = x @ reference_matrix(format)[1]
    assert (module(x.half()).float() - wanted).abs().max() < 0.02 * wanted.std()


@pytest.mark.parametrize("dtype", HALF_TYPES)
@pytest.mark.parametrize("format", FORMATS, ids=lambda one: f"{one.label}, {one.packing}")
def test_llamadeck_packs_members_side_by_side(format: MatrixFormat, dtype: torch.dtype) -> None:
    parts, dense = reference_matrix(format)
    made = make("llamadeck", format, dtype, (torch.ones(OUTPUTS), torch.zeros(OUTPUTS)))
    matrix, codes, groups = made.matrix, unpack(parts["codes"], 0, format.bits), parts["input_groups"].long()
    order = torch.argsort(groups, stable=True)
    assert (matrix.permutation is not None) == format.is_permuted
    assert torch.equal(matrix.codes, pack_codes(codes[order], format.bits).repeat(2, 1, 1, 1, 1))
    assert torch.equal(matrix.scales, tile_scales(parts["scales"], dtype).repeat(2, 1, 1, 1))
    assert (matrix.zeros is None) == format.is_symmetric
    if matrix.zeros is not None:
        zeros = matrix.zeros[: OUTPUTS // 16].permute(1, 0, 3, 2).reshape(-1, OUTPUTS).float()
        assert torch.equal((codes - zeros[groups]) * parts["scales"].float()[groups], dense)
    if matrix.permutation is not None:
        assert torch.equal(matrix.permutation, order.int())
        assert torch.equal(made.inverse_permutation, invert_permutation(order.int()))
    assert made.bias.dtype == dtype and made.bias.tolist() == [1] * OUTPUTS + [0] * OUTPUTS
