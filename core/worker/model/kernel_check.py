"""Does a kernel compute what a matrix stands for: a small one of known codes, before a model rests on it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from subprocess import SubprocessError

import torch
from torch import nn

from core.checkpoint.quantization import MatrixFormat
from core.common.errors import EngineError
from core.memory.kernels.spec import KernelSpec
from core.memory.model_shape import MatrixShape
from core.worker.kernels.nvrtc import CudaCodeError
from core.worker.kernels.packed_prefill import gemm_of, rows_of
from core.worker.kernels.packed_small_batch import MAX_SMALL_BATCH, PackedLinear
from core.worker.model.backends.base import KernelBackend
from core.worker.model.backends.registry import make_backend
from core.worker.model.experts import SILU, ExpertTensors, silu_and_multiply
from core.worker.model.matrix_tensors import MatrixTensors, Parts

INPUTS, OUTPUTS = 512, 256
NUM_EXPERTS, CHOSEN = 8, 2
# One token; few, whose experts are multiplied as they come; and as many as each kernel for sorted ones takes.
NUM_TOKENS = (1, 3, 16, 40, 200, 400)
# One row, as many as each kernel for a few takes at most, and as many as are multiplied in tiles of each size.
NUM_ROWS = (1, 8, 16, 32, 50, 70, 200)
# Of the result's spread: half precision's rounding over a sum of 512 stays below 1 %, bfloat16's below 4.
TOLERANCES = {torch.float16: 0.02, torch.bfloat16: 0.06}


def check_kernel(kernel: KernelSpec, quantization: MatrixFormat, dtype: torch.dtype, device: torch.device) -> None:
    """Raise EngineError where `kernel` cannot be run on `device` or computes something else than the matrix."""
    tensors, dense = reference_matrix(quantization)
    backend = make_backend(kernel, dtype, device)
    with said_of(kernel), torch.inference_mode():
        backend.reserve([MatrixShape(INPUTS, OUTPUTS, quantization)], max(NUM_ROWS))
        module = backend.make([matrix_tensors(backend, quantization, tensors)])
        for rows in NUM_ROWS:
            x = torch.randn((rows, INPUTS), generator=torch.Generator().manual_seed(rows)).to(dtype)
            wanted = x.float() @ dense
            for got in products_of(module, x.to(device)):
                require_small(kernel, dtype, (got.float().cpu() - wanted).abs().max() / wanted.std())
            # Of gate and up a difference is multiplied by the other one.
            gated = silu_and_multiply(wanted.to(dtype)).float()
            for got in gated_products_of(module, x.to(device)):
                require_small(kernel, dtype, (got.float().cpu() - gated).norm() / gated.norm())


def products_of(module: nn.Module, x: torch.Tensor) -> Iterator[torch.Tensor]:
    """x [rows, inputs] by every kernel that may multiply so many: as one prompt's rows; where other kernels take those,
    as rows of a chat each too; and by each tile, of which a matrix takes the one for its size."""
    yield module(x)
    if not isinstance(module, PackedLinear) or x.shape[0] < module.prefill_backend.min_rows:
        return
    if x.shape[0] <= MAX_SMALL_BATCH:
        yield module(x.unsqueeze(1)).squeeze(1)
    if gemm := gemm_of(module):
        for tile in gemm.tiles(module.matrix, x.shape[0]):
            yield gemm.multiply(module.matrix, x, module.bias, tile)


def gated_products_of(module: nn.Module, x: torch.Tensor) -> Iterator[torch.Tensor]:
    """As if the matrix were gate and then up: silu(gate) * up of x [rows, inputs], by each tile where one product gives
    that."""
    gemm = gemm_of(module)
    if gemm is None or x.shape[0] < gemm.min_rows:
        return
    assert isinstance(module, PackedLinear)
    for tile in gemm.tiles(module.matrix, x.shape[0]):
        rows = gemm.permute_rows(module.matrix, x)
        yield rows_of(gemm.multiply_gated(module.matrix, rows, x.shape[0], module.bias, None, tile), x.shape[0])


def check_experts(kernel: KernelSpec, quantization: MatrixFormat, dtype: torch.dtype, device: torch.device) -> None:
    """Raise EngineError where `kernel` computes something else than the experts of a layer. A few of them are chosen by
    no token, and one by every token."""
    intermediate = 128 if quantization.group_size <= 128 else INPUTS
    made = [reference_matrix(quantization, INPUTS, 2 * intermediate, seed) for seed in range(NUM_EXPERTS)]
    downs = [reference_matrix(quantization, intermediate, INPUTS, 100 + seed) for seed in range(NUM_EXPERTS)]
    backend = make_backend(kernel, dtype, device)
    with said_of(kernel), torch.inference_mode():
        shapes = MatrixShape(INPUTS, 2 * intermediate, quantization), MatrixShape(intermediate, INPUTS, quantization)
        backend.reserve(shapes, max(NUM_TOKENS) * CHOSEN)
        experts = [
            ExpertTensors(
                [[matrix_tensors(backend, quantization, gate_up)]], [matrix_tensors(backend, quantization, down)]
            )
            for (gate_up, _), (down, _) in zip(made, downs, strict=True)
        ]
        module = backend.make_experts(experts, SILU)
        gate_ups, dense_downs = ([dense for _, dense in some] for some in (made, downs))
        for tokens in NUM_TOKENS:
            random = torch.Generator().manual_seed(tokens)
            x = torch.randn((tokens, INPUTS), generator=random).to(dtype)
            others = torch.randint(1, NUM_EXPERTS - 2, (tokens, CHOSEN - 1), generator=random)
            ids = torch.cat((torch.zeros((tokens, 1), dtype=torch.long), others), 1)
            weights = torch.rand((tokens, CHOSEN), generator=random).to(dtype)
            got = module(x.to(device), ids.to(device), weights.to(device)).float().cpu()
            wanted = run_experts(x, ids, weights, gate_ups, dense_downs)
            # By token: they differ in size far more than a matrix's results do.
            require_small(kernel, dtype, ((got - wanted).norm(dim=-1) / wanted.norm(dim=-1)).max())


def run_experts(
    x: torch.Tensor,
    ids: torch.Tensor,
    weights: torch.Tensor,
    gate_ups: Sequence[torch.Tensor] | torch.Tensor,
    downs: Sequence[torch.Tensor] | torch.Tensor,
) -> torch.Tensor:
    """What experts compute of x [tokens, hidden] in float32. gate_ups, downs: of each, [inputs, outputs] in float32.

    What is half precision between two products is rounded to it, as every kernel does.
    """
    out = torch.zeros(x.shape, dtype=torch.float32)
    for expert in ids.unique().tolist():
        rows, places = (ids == expert).nonzero(as_tuple=True)
        both = (x[rows].float() @ gate_ups[expert]).to(x.dtype)
        gated = silu_and_multiply(both).float() @ downs[expert]
        out.index_add_(0, rows, gated * weights[rows, places, None].float())
    return out


@contextmanager
def said_of(kernel: KernelSpec) -> Iterator[None]:
    """Raise what fails in the `with` block as an EngineError."""
    try:
        yield
    except (CudaCodeError, RuntimeError, ValueError, NotImplementedError, OSError, SubprocessError) as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise EngineError("kernel_code", kernel=kernel.name, why=why[:200]) from error


def require_small(kernel: KernelSpec, dtype: torch.dtype, difference: torch.Tensor) -> None:
    if not difference <= TOLERANCES[dtype]:
        raise EngineError("kernel_wrong", kernel=kernel.name, difference=round(float(difference), 3))


def matrix_tensors(backend: KernelBackend, quantization: MatrixFormat, tensors: Parts) -> MatrixTensors:
    """As a file's, where `backend` reads them to."""
    on_device: Parts = {part: tensor.to(backend.reading_device) for part, tensor in tensors.items()}
    return MatrixTensors.from_parts(quantization, on_device)


def reference_matrix(
    quantization: MatrixFormat, inputs: int = INPUTS, outputs: int = OUTPUTS, seed: int = 0
) -> tuple[Parts, torch.Tensor]:
    """A matrix's tensors in neutral form, and the matrix dequantized, [inputs, outputs] in float32."""
    generator = torch.Generator().manual_seed(seed)
    bits, levels = quantization.bits, 2**quantization.bits
    group_size = inputs if quantization.group_size < 0 else quantization.group_size
    groups = -(-inputs // group_size)
    codes = torch.randint(0, levels, (inputs, outputs), generator=generator)
    zeros = torch.full((groups, outputs), levels // 2)
    if not quantization.is_symmetric:
        zeros = torch.randint(0, levels, (groups, outputs), generator=generator)
    scales = ((torch.rand((groups, outputs), generator=generator) + 0.5) / levels).half()
    g_idx = torch.arange(inputs, dtype=torch.int32) // group_size
    if quantization.is_permuted:
        g_idx = g_idx[torch.randperm(inputs, generator=generator)]
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
