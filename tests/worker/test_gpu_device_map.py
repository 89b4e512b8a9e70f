"""On two GPUs: a model that is split by its layers computes what it computes on one. `pytest -m gpu` on a GPU host."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from core.checkpoint.checkpoint import read_checkpoint
from core.engine.sampling_params import Sampling
from core.memory.kernels.registry import kernel_named
from core.memory.model_shape import read_shape
from core.worker.decode.steps import EagerSteps
from core.worker.model.device_map import DeviceMap
from core.worker.model.loader import load_model
from core.worker.model.model_runner import ModelRunner
from core.worker.plan_load import use_capturable_stream
from tests.support.checkpoints import Recipe, make_checkpoint
from tests.support.reference import reference_logits

NUM_GPUS = torch.cuda.device_count()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(NUM_GPUS < 2, reason="needs two NVIDIA GPUs")]
TOLERANCE = 0.02
TOKENS = [5, 300, 17, 42, 260, 9, 101]
SIZES: dict[str, Any] = {"hidden": 256, "intermediate": 512, "num_layers": 3, "group_size": 128}


@pytest.fixture(autouse=True)
def streams() -> Iterator[None]:
    torch.cuda.set_per_process_memory_fraction(1.0, 0)
    for index in (1, 0):
        torch.cuda.set_device(index)
        use_capturable_stream(torch.device("cuda", index))
    with torch.inference_mode():
        yield


@pytest.mark.parametrize("kernel", ["llamadeck", "triton", "torch"])
@pytest.mark.parametrize("num_layers", [(1, 2), (3, 0), (0, 3)], ids=str)
def test_a_split_model_computes_the_model(tmp_path: Path, kernel: str, num_layers: tuple[int, int]) -> None:
    dense = make_checkpoint(tmp_path, Recipe(**SIZES))
    wanted = reference_logits(tmp_path, dense, torch.tensor([TOKENS]))
    places = DeviceMap((torch.device("cuda:0"), torch.device("cuda:1")), num_layers)
    checkpoint, chosen = read_checkpoint(tmp_path), kernel_named(kernel)
    model = load_model(checkpoint, read_shape(checkpoint), chosen, places, torch.float16, 512, lambda _: None)
    slots = ModelRunner(model, num_slots=3, context_tokens=64)
    assert {keys.device for keys in slots.cache.keys.values()} == {
        places.of_layer(index) for index in range(SIZES["num_layers"])
    }
    got = slots.forward(torch.tensor([TOKENS]).cuda(0), torch.arange(7, device="cuda:0").unsqueeze(0), 0, 7)
    assert got.device == places.last
    assert (got.float().cpu() - wanted).abs().max() < TOLERANCE * wanted.std()
    steps = EagerSteps(slots)
    for slot in range(3):
        steps.reset_slot(slot, Sampling(temperature=0.8 if slot else 0.0, seed=7), 7, TOKENS)
        pending = steps.prefill(slot, TOKENS, 0, True)
        assert pending is not None
        (token,) = pending.wait()
        assert token is not None and (slot or token == int(got.argmax()))
    answers = [steps.decode([0, 1, 2]).wait() for _ in range(5)]
    assert all(token is not None for row in answers for token in row)
