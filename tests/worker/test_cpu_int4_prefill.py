"""Matrices that are dequantized for many rows on a CPU: the same product as ATen's int4 kernel, but for the rounding of
a weight; where this machine has it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from core.checkpoint.checkpoint import read_checkpoint
from core.memory.kernels.registry import kernel_named
from core.memory.model_shape import read_shape
from core.worker.kernels.cpu_int4_prefill import MIN_ROWS, has_matrix_units, is_supported, make_prefill_matmul
from core.worker.model.device_map import DeviceMap
from core.worker.model.loader import load_model
from core.worker.model.model_runner import ModelRunner
from tests.support.checkpoints import Recipe, make_checkpoint

CPU = torch.device("cpu")

# bfloat16 has 8 bits: a weight is rounded by at most a 512th, and what is summed by less in the middle.
ROUNDING = 1 / 256
# Two layers of that, and of results in bfloat16.
CLOSE = 0.05

needs_matrix_units = pytest.mark.skipif(not is_supported(), reason="needs a CPU that multiplies bfloat16 itself")


def pack(num_inputs: int, num_outputs: int, group_size: int, has_zeros: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """A matrix as ATen's kernel takes it."""
    generator = torch.Generator().manual_seed(num_inputs + num_outputs)
    codes = torch.randint(16, (num_outputs, num_inputs), dtype=torch.int32, generator=generator)
    scales = torch.rand((num_inputs // group_size, num_outputs, 2), generator=generator).bfloat16()
    if not has_zeros:
        scales[..., 1] = 0
    return torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 2), scales


@needs_matrix_units
@pytest.mark.parametrize("has_zeros", [False, True])
@pytest.mark.parametrize(
    ("num_inputs", "num_outputs", "group_size"),
    [(128, 64, 32), (256, 192, 64), (128, 320, 128), (2048, 2112, 128)],  # The last one takes three pieces.
)
def test_many_rows_get_the_kernels_product(num_inputs: int, num_outputs: int, group_size: int, has_zeros: bool) -> None:
    weight, scales = pack(num_inputs, num_outputs, group_size, has_zeros)
    rows = torch.randn((MIN_ROWS, num_inputs), generator=torch.Generator().manual_seed(1)).bfloat16()
    wanted = torch.ops.aten._weight_int4pack_mm_for_cpu(rows, weight, group_size, scales).float()
    multiply = make_prefill_matmul(weight, scales, group_size)
    assert multiply is not None
    assert (multiply(rows).float() - wanted).norm() < ROUNDING * wanted.norm()


@pytest.mark.parametrize("act_order", [False, True])
def test_a_prompt_read_at_once_means_what_its_tokens_mean_one_by_one(tmp_path: Path, act_order: bool) -> None:
    make_checkpoint(tmp_path, Recipe(hidden=256, intermediate=512, act_order=act_order))
    checkpoint, kernel = read_checkpoint(tmp_path), kernel_named("aten_int4")
    model = load_model(
        checkpoint, read_shape(checkpoint), kernel, DeviceMap((CPU,)), torch.bfloat16, 64, lambda _: None
    )
    tokens = torch.randint(384, (1, 2 * MIN_ROWS), generator=torch.Generator().manual_seed(2))
    at_once = ModelRunner(model, 1, 128).forward(tokens, torch.arange(tokens.shape[1]).unsqueeze(0), 0, tokens.shape[1])
    slots = ModelRunner(model, 1, 128)
    for position in range(tokens.shape[1]):
        place = slice(position, position + 1)
        one_by_one = slots.forward(tokens[:, place], torch.tensor([[position]]), 0, position + 1)
    assert (at_once - one_by_one).float().norm() < CLOSE * one_by_one.float().norm()


@needs_matrix_units
def test_a_matrix_that_is_no_whole_number_of_tiles_keeps_the_kernel() -> None:
    weight, scales = pack(64, 80, 32, has_zeros=False)
    assert make_prefill_matmul(weight, scales, 32) is None


@pytest.mark.parametrize(
    ("capabilities", "has"),
    [({}, False), ({"avx512_f": True, "amx_bf16": False}, False), ({"avx512_bf16": True}, True)],
)
def test_a_cpu_without_matrix_units_keeps_the_kernel(capabilities: dict[str, bool], has: bool) -> None:
    assert has_matrix_units(capabilities) == has
