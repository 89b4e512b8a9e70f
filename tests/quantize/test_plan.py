"""What a job takes by the plan: of real shapes, in numbers that were worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from benchmarks.plain_model import plain_shape
from core.quantize.options import QuantizeOptions
from core.quantize.plan import plan_job

GIB = 2**30


@pytest.mark.parametrize(("model", "card_gib"), [("7B", 8), ("70B", 24), ("Mixtral-8x7B", 24), ("Qwen3-30B-A3B", 16)])
def test_large_models_go_through_small_cards(model: str, card_gib: int) -> None:
    plan = plan_job(plain_shape(model), QuantizeOptions(), "cuda:0")
    assert 2 * GIB < plan.vram_bytes < 0.93 * card_gib * GIB


def test_a_family_whose_weights_do_not_stay_on_disk_takes_them_in_memory() -> None:
    """GPT-NeoX: the plan of Pythia's larger models was too small by the whole model."""
    other = plain_shape("7B")
    model = replace(other, config=other.config | {"model_type": "gpt_neox"})
    elements = sum(math.prod(tensor.shape) for tensor in model.tensors.values())
    plans = [plan_job(one, QuantizeOptions(), "cpu") for one in (model, other)]
    # A Llama's job can go on, which takes more copies of the texts.
    assert plans[0].ram_bytes - plans[1].ram_bytes > 4 * elements - 2 * GIB
    assert plans[0].vram_bytes == plans[1].vram_bytes


def test_time_grows_with_layers_alone() -> None:
    """But for the start, and the ends of the model that are read."""
    whole, part, less = (
        plan_job(plain_shape("7B", layers), QuantizeOptions(), "cuda:0").time_s for layers in (None, 16, 8)
    )
    assert whole - part == pytest.approx(2 * (part - less))


def test_the_matrices_of_one_input_are_solved_together() -> None:
    """gate and up of a 70B need less than down alone, whose Hessian is of 28672 inputs: 4 * (3 * 28672² + 4 * 28672 *
    8192) bytes; up to four pairs of a mixture's experts are worked at."""
    dense, mixture = (
        plan_job(plain_shape(name), QuantizeOptions(), "cuda:0").vram_bytes for name in ("70B", "Mixtral-8x7B")
    )
    assert dense > 4 * (3 * 28672**2 + 4 * 28672 * 8192)
    assert mixture > 4 * 4 * (3 * 4096**2 + 4 * 4096 * 14336)
