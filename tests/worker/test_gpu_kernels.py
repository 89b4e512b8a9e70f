"""On a GPU: every kernel computes what the packing stands for. Run with `pytest -m gpu` on a GPU host."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from core.checkpoint.checkpoint import read_checkpoint
from core.gpu.snapshot import read_snapshot
from core.memory.kernels.registry import KERNELS, able_kernels, choose_kernel
from core.memory.kernels.spec import Device
from core.memory.load_plan import choose_dtype
from core.memory.model_shape import matrix_shapes, read_shape
from core.worker.model.device_map import DeviceMap
from core.worker.model.loader import load_model
from core.worker.model.model_runner import ModelRunner
from core.worker.plan_load import find_devices
from tests.support.checkpoints import Recipe, make_checkpoint
from tests.support.reference import reference_logits

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
# Half precision has 11 bits; what a kernel's own order of sums adds stays under 2 % of the spread over two layers.
TOLERANCE = 0.02

SIZES = {"hidden": 256, "intermediate": 512}
RECIPES = {
    "4 bit group 128": Recipe(group_size=128, **SIZES),
    "4 bit group 32": Recipe(group_size=32, **SIZES),
    "4 bit no groups": Recipe(group_size=-1, **SIZES),
    "4 bit act-order": Recipe(group_size=128, act_order=True, **SIZES),
    "4 bit asymmetric": Recipe(group_size=128, symmetric=False, **SIZES),
    "old layout": Recipe(group_size=128, old_layout=True, **SIZES),
    "2 bit": Recipe(bits=2, group_size=64, **SIZES),
    "3 bit": Recipe(bits=3, group_size=128, **SIZES),
    "8 bit": Recipe(bits=8, group_size=128, **SIZES),
    "8 bit act-order": Recipe(bits=8, group_size=128, act_order=True, **SIZES),
    "8 bit asymmetric": Recipe(bits=8, group_size=32, symmetric=False, **SIZES),
}
GPU_KERNELS = [kernel for kernel in KERNELS if kernel.device == "cuda"]


@pytest.mark.parametrize("kernel", GPU_KERNELS, ids=lambda kernel: kernel.name)
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES.keys())
def test_a_kernel_computes_what_the_packed_matrices_stand_for(tmp_path: Path, kernel, recipe: Recipe) -> None:
    dense = make_checkpoint(tmp_path, recipe)
    checkpoint, device = read_checkpoint(tmp_path), find_devices(read_snapshot())[0]
    if kernel not in able_kernels(matrix_shapes(checkpoint), [device]):
        pytest.skip(f"{kernel.name} does not take this")
    tokens = torch.tensor([[5, 300, 17, 42, 260, 9, 101]])
    wanted = reference_logits(tmp_path, dense, tokens)
    with torch.inference_mode():
        dtype = getattr(torch, choose_dtype(checkpoint, kernel, device))
        model = load_model(
            checkpoint, read_shape(checkpoint), kernel, DeviceMap((torch.device("cuda:0"),)), dtype, 512, lambda _: None
        )
        slots = ModelRunner(model, num_slots=1, context_tokens=32)
        got = slots.forward(tokens.cuda(), torch.arange(7, device="cuda").unsqueeze(0), 0, 7).float().cpu()
    assert (got - wanted).abs().max() < TOLERANCE * wanted.std()


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES.keys())
def test_every_layout_has_a_kernel_that_needs_no_compiler(tmp_path: Path, recipe: Recipe) -> None:
    make_checkpoint(tmp_path, recipe)
    kernel, _ = choose_kernel(
        read_checkpoint(tmp_path), Device("cuda", find_devices(read_snapshot())[0].capability, has_c_compiler=False)
    )
    assert not kernel.needs_c_compiler
