"""The cache in pages and in 8 bit: what it holds, and what steps over it say, by the kernels' sources run on a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gptqmodel  # noqa: F401
import pytest
import torch

from core.checkpoint.checkpoint import read_checkpoint
from core.engine.protocol import Load
from core.engine.sampling_params import Sampling
from core.memory.cache_choice import CacheChoice
from core.memory.kernels.registry import kernel_named
from core.memory.model_shape import read_shape
from core.memory.pages import PAGE_TOKENS, full_pages
from core.memory.plan import state_bytes
from core.memory.step_sizes import StepSizes
from core.worker.decode.cuda_graphs import GraphSteps
from core.worker.decode.steps import EagerSteps, Steps
from core.worker.load import load_engine
from core.worker.model.device_map import DeviceMap
from core.worker.model.integer_kv import dequantize, quantize
from core.worker.model.loader import load_model
from core.worker.model.model_runner import ModelRunner
from core.worker.model.paged_cache import PagedCache
from tests.support.checkpoints import Recipe, make_checkpoint
from tests.support.cuda_on_cpu import cuda_on_cpu
from tests.support.plain_recorder import PlainRecorder

CONTEXT, SLOTS = 150, 2
NUM_PAGES = full_pages(SLOTS, CONTEXT)
GREEDY = Sampling(temperature=0.0)


class WatchedRunner(ModelRunner):
    """Keeps the logits of the last pass."""

    logits: torch.Tensor

    def _call(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        self.logits = super()._call(*args, **kwargs)
        return self.logits


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    make_checkpoint(folder, Recipe(num_layers=1))
    return folder


def load(folder: Path, num_pages: int | None, bits: int = 16) -> WatchedRunner:
    checkpoint, places = read_checkpoint(folder), DeviceMap((torch.device("cpu"),))
    kernel, shape = kernel_named("dense"), read_shape(checkpoint, merged=True)
    model = load_model(checkpoint, shape, kernel, places, torch.float16, 64, lambda _: None)
    return WatchedRunner(model, SLOTS, CONTEXT, num_pages=num_pages, cache_bits=bits)


def play(runner: WatchedRunner, steps: Steps) -> torch.Tensor:
    """Two prompts, one longer than a page, and tokens: the logits after each prompt, and of the second's tokens."""
    logits = []
    for slot, length in enumerate((70, 61)):
        text = [(7 * place + slot) % 300 + 5 for place in range(length)]
        steps.reset_slot(slot, GREEDY, 1, text)
        pending = steps.prefill(slot, text, 0, True)
        assert pending is not None
        logits.append(runner.logits[0].float().clone())
        pending.wait()
    for _ in range(6):
        steps.decode([0, 1]).wait()
        logits.append(runner.logits[-1].float().clone())
    return torch.stack(logits)


def test_where_the_pages_lie_changes_nothing_to_the_last_bit(folder: Path) -> None:
    with cuda_on_cpu():
        runner = load(folder, NUM_PAGES)
        steps = GraphSteps(runner, StepSizes(80), PlainRecorder())
        assert (steps.page_tokens, steps.num_pages) == (PAGE_TOKENS, NUM_PAGES)
        wanted = play(runner, steps)
        for slot, pages in enumerate(([5, 0, 3], [1, 4, 2])):
            steps.set_pages(slot, pages)
        assert torch.equal(play(runner, steps), wanted)


@pytest.mark.parametrize("bits", [16, 8])
def test_plain_passes_over_pages_say_what_those_over_rows_say(folder: Path, bits: int) -> None:
    rows, pages = load(folder, None, bits), load(folder, NUM_PAGES, bits)
    pages.cache.set_pages(0, [5, 0, 3])
    pages.cache.set_pages(1, [1, 4, 2])
    wanted = play(rows, EagerSteps(rows))
    # A mask or none, and where rows begin, decide how torch sums.
    assert (play(pages, EagerSteps(pages)) - wanted).abs().max() < 0.01 * wanted.std()


def test_steps_over_8_bit_say_nearly_what_plain_ones_over_16_bit_say(folder: Path) -> None:
    exact = load(folder, None)
    wanted = play(exact, EagerSteps(exact))
    with cuda_on_cpu():
        runner = load(folder, NUM_PAGES, 8)
        got = play(runner, GraphSteps(runner, StepSizes(80), PlainRecorder()))
    assert 0 < (got - wanted).abs().max() < 0.04 * wanted.std()


@pytest.mark.parametrize("bits", [16, 8])
@pytest.mark.parametrize("num_pages", [None, NUM_PAGES, NUM_PAGES - 1])
def test_a_cache_takes_what_the_plan_says(folder: Path, num_pages: int | None, bits: int) -> None:
    shape = read_shape(read_checkpoint(folder), cache_bits=bits)
    planned, cache = state_bytes(shape, CONTEXT, SLOTS, num_pages), load(folder, num_pages, bits).cache
    tensors = [*cache.tensors, *(cache._tables.values() if isinstance(cache, PagedCache) else ())]
    assert planned == sum(-(-tensor.nbytes // 512) * 512 for tensor in tensors)
    assert cache.num_bytes == sum(tensor.nbytes for tensor in tensors)


def test_a_whole_load_on_a_cpu_keeps_8_bit_where_they_are_chosen(folder: Path) -> None:
    loaded = []
    for choice in (CacheChoice(), CacheChoice(bits=8)):
        command = Load(folder, CONTEXT, SLOTS, on_cpu=True, cache=choice)
        loaded.append(load_engine(read_checkpoint(folder), command, lambda *_: None))
    whole, half = (engine.facts for engine in loaded)
    assert (whole.cache_bits, half.cache_bits) == (16, 8)
    assert half.cache_bytes < 0.6 * whole.cache_bytes
    assert loaded[1].steps.page_tokens == 0


def test_a_slot_without_pages_writes_where_nobody_reads(folder: Path) -> None:
    cache = load(folder, NUM_PAGES - 1).cache
    assert isinstance(cache, PagedCache)
    assert (cache.layer(0).table == cache.num_pages).all()
    cache.set_pages(1, [4])
    assert cache.layer(0).table[1].tolist() == [4, *[cache.num_pages] * 2]


def test_integers_lose_at_most_half_a_step() -> None:
    values = torch.randn(5, 3, 64)
    values[0, 0] = 0
    integers, scales = quantize(values)
    assert integers.dtype == torch.int8 and scales.shape == (5, 3, 1)
    assert ((dequantize(integers, scales) - values).abs() <= scales * 0.5001).all()
