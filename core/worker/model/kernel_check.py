"""Does a kernel compute what a matrix stands for: a small one of known codes, before a model rests on it."""

from __future__ import annotations

from subprocess import SubprocessError

import torch

from core.checkpoint.quantization import MatrixFormat
from core.common.errors import EngineError
from core.memory.kernels.spec import KernelSpec
from core.memory.model_shape import MatrixShape
from core.worker.kernels.nvrtc import CudaCodeError
from core.worker.model.backends.registry import make_backend
from core.worker.model.matrix_tensors import MatrixTensors, Parts

INPUTS, OUTPUTS = 512, 256
# One row, as many as each kernel for a few takes at most, and prompts as short and as long ones are multiplied.
NUM_ROWS = (1, 8, 16, 32, 70, 200)
# Of the result's spread: half precision's rounding over a sum of 512 stays below 1 %, bfloat16's below 4.
TOLERANCES = {torch.float16: 0.02, torch.bfloat16: 0.06}


def check_kernel(kernel: KernelSpec, quantization: MatrixFormat, dtype: torch.dtype, device: torch.device) -> None:
    """Raise EngineError where `kernel` cannot be run on `device` or computes something else than the matrix."""
    tensors, dense = reference_matrix(quantization)
    backend = make_backend(kernel, dtype, device)
    try:
        with torch.inference_mode():
            backend.reserve([MatrixShape(INPUTS, OUTPUTS, quantization)], max(NUM_ROWS))
            on_device = {part: tensor.to(backend.reading_device) for part, tensor in tensors.items()}
            module = backend.make([MatrixTensors.from_parts(quantization, on_device)])
            for rows in NUM_ROWS:
                x = torch.randn((rows, INPUTS), generator=torch.Generator().manual_seed(rows)).to(dtype)
                got, wanted = module(x.to(device)).float().cpu(), x.float() @ dense
                difference = float((got - wanted).abs().max() / wanted.std())
                if not difference <= TOLERANCES[dtype]:
                    raise EngineError("kernel_wrong", kernel=kernel.name, difference=round(difference, 3))
    except (CudaCodeError, RuntimeError, ValueError, NotImplementedError, OSError, SubprocessError) as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise EngineError("kernel_code", kernel=kernel.name, why=why[:200]) from error


def reference_matrix(quantization: MatrixFormat) -> tuple[Parts, torch.Tensor]:
    """A matrix's tensors in neutral form, and the matrix dequantized, [inputs, outputs] in float32."""
    generator = torch.Generator().manual_seed(0)
    bits, levels = quantization.bits, 2**quantization.bits
    group_size = INPUTS if quantization.group_size < 0 else quantization.group_size
    groups = -(-INPUTS // group_size)
    codes = torch.randint(0, levels, (INPUTS, OUTPUTS), generator=generator)
    zeros = torch.full((groups, OUTPUTS), levels // 2)
    if not quantization.is_symmetric:
        zeros = torch.randint(0, levels, (groups, OUTPUTS), generator=generator)
    scales = ((torch.rand((groups, OUTPUTS), generator=generator) + 0.5) / levels).half()
    g_idx = torch.arange(INPUTS, dtype=torch.int32) // group_size
    if quantization.is_permuted:
        g_idx = g_idx[torch.randperm(INPUTS, generator=generator)]
    tensors: Parts = {
        "codes": to_words(codes, bits),
        "zeros": to_words(zeros.t(), bits).t().contiguous(),
        "scales": scales,
        "input_groups": g_idx,
    }
    return tensors, (codes - zeros[g_idx.long()]) * scales.float()[g_idx.long()]


def to_words(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """[rows, columns] codes as words [rows * bits / 32, columns]: a stream of bits down each column, lowest first."""
    rows, columns = codes.shape
    planes = (codes[:, None, :] >> torch.arange(bits)[None, :, None]) & 1
    stream = planes.reshape(rows * bits // 32, 32, columns) << torch.arange(32)[None, :, None]
    words = stream.sum(1)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)
