"""On GPUs: captured steps over a model that is split by its layers. `pytest -m gpu` on a GPU host.

One GPU plays two as well: then both parts are graphs of their own in one stream.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.models.llama import modeling_llama  # noqa: F401  # What engines change in it is put back.

from core.checkpoint.checkpoint import read_checkpoint
from core.engine.sampling_params import Sampling
from core.memory.adapter_room import AdapterRoom, adaptable_matrices
from core.memory.kernels.registry import kernel_named
from core.memory.model_shape import read_shape
from core.memory.pages import full_pages
from core.memory.step_sizes import StepSizes
from core.worker import load as worker_load
from core.worker.decode import cuda_graphs
from core.worker.decode.cuda_graphs import GraphSteps
from core.worker.decode.device_link import DeviceLink, needs_host
from core.worker.decode.split_pass import SplitPass
from core.worker.load import fuse_and_capture
from core.worker.model.adapters import AdapterWeights, add_adapters
from core.worker.model.device_map import DeviceMap
from core.worker.model.loader import load_model
from core.worker.model.model_runner import ModelRunner
from core.worker.plan_load import use_capturable_stream
from tests.support.checkpoints import Recipe, make_checkpoint
from tests.support.gpu_engines import Engines, forget_earlier_engines

NUM_GPUS = torch.cuda.device_count()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(NUM_GPUS < 1, reason="needs an NVIDIA GPU")]
needs_two = pytest.mark.skipif(NUM_GPUS < 2, reason="needs two NVIDIA GPUs")
FIRST = torch.device("cuda", 0)
SECOND = torch.device("cuda", 1)
CONTEXT_TOKENS, CHUNK_TOKENS, CHATS = 256, 128, 4
RECIPE = Recipe(hidden=512, intermediate=1024, num_heads=8, num_kv_heads=2, num_layers=3, group_size=128,
                context_tokens=CONTEXT_TOKENS)  # fmt: skip
ROOM = AdapterRoom(2, 8)
SAMPLINGS = [Sampling(temperature=0.0), Sampling(temperature=0.9, top_p=0.9, repetition_penalty=1.1)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("split")
    make_checkpoint(path, RECIPE)
    return path


@pytest.fixture(autouse=True)
def streams(engines: Engines) -> None:
    """Both GPUs' work goes to streams that can be captured. Work of the first one comes next."""
    forget_earlier_engines()
    for index in reversed(range(min(2, NUM_GPUS))):
        torch.cuda.set_device(index)
        use_capturable_stream(torch.device("cuda", index))


def open_steps(engines: Engines, folder: Path, device_map: DeviceMap, adapted: bool = False) -> GraphSteps:
    """adapted: each chat but the last has one of two adapters of random numbers."""
    engines.restore_rotations()
    checkpoint = read_checkpoint(folder)
    engines.note_rotations(checkpoint)
    shape, kernel = read_shape(checkpoint, merged=True), kernel_named("llamadeck")
    model = load_model(checkpoint, shape, kernel, device_map, torch.float16, CHUNK_TOKENS, lambda _: None)
    banks, sizes = None, adaptable_matrices(checkpoint)
    if adapted:
        banks = add_adapters(model, sizes, ROOM, CHATS, device_map)
    runner = ModelRunner(model, CHATS, CONTEXT_TOKENS, banks, full_pages(CHATS, CONTEXT_TOKENS))
    steps = fuse_and_capture(runner, model, StepSizes(CHUNK_TOKENS), True, device_map)
    if banks is not None:
        # The load tried one of its own in the first place.
        for place in range(ROOM.count):
            banks.put(place, random_adapter(sizes, place))
        for slot in range(CHATS - 1):
            banks.set_slot(slot, slot % ROOM.count)
    assert isinstance(steps, GraphSteps) and steps.is_recorded
    assert len(steps.devices) == len(device_map.devices)
    return steps


def random_adapter(sizes: Mapping[str, tuple[int, int]], seed: int) -> AdapterWeights:
    random_numbers = torch.Generator().manual_seed(seed)
    return {
        name: (
            torch.randn((ROOM.rank, inputs), generator=random_numbers).half() / inputs**0.5,
            torch.randn((outputs, ROOM.rank), generator=random_numbers).half() / 4,
        )
        for name, (inputs, outputs) in sizes.items()
    }


def play(steps: Any) -> list[int | None]:
    """Prompts in chunks, then steps that are enqueued before the last one's tokens are known, of all chats and of
    some."""
    tokens: list[int | None] = []
    for slot in range(CHATS):
        text = [random.Random(slot).randrange(3, 380) for _ in range(40 + 45 * slot)]
        steps.reset_slot(slot, SAMPLINGS[slot % 2], 5, text)
        for begin in range(0, len(text), CHUNK_TOKENS):
            chunk = text[begin : begin + CHUNK_TOKENS]
            pending = steps.prefill(slot, chunk, begin, begin + len(chunk) == len(text))
        tokens += pending.wait()
    ahead = [steps.decode([0, 1, 2, 3]) for _ in range(8)]
    ahead += [steps.decode(slots) for slots in ([2], [2], [0, 3], [1], [0, 1, 2, 3], [0, 1, 2, 3])]
    tokens += [token for pending in ahead for token in pending.wait()]
    # The first chat's last token, the twelfth after its prompt of 40, with two that may come after it.
    tokens += steps.verify(0, [tokens[-4], 11, 12], 51).wait()
    return tokens + list(steps.decode([0, 1]).wait())


@pytest.mark.parametrize("parts", [1, 2], ids=["one part", "two parts"])
@pytest.mark.parametrize(
    ("second", "through_host"),
    [
        pytest.param(FIRST, False, id="one GPU as two"),
        pytest.param(SECOND, None, id="two GPUs", marks=needs_two),
        pytest.param(SECOND, True, id="two GPUs, through the host", marks=needs_two),
    ],
)
def test_split_captured_steps_say_what_those_on_one_gpu_say(
    engines: Engines,
    folder: Path,
    second: torch.device,
    through_host: bool | None,
    parts: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wanted = play(open_steps(engines, folder, DeviceMap((FIRST,))))
    monkeypatch.setattr(cuda_graphs, "PIPELINED_CHATS", 2 if parts == 2 else CHATS + 1)
    monkeypatch.setattr(worker_load, "SplitPass", lambda device_map: SplitPass(device_map, through_host))
    steps = open_steps(engines, folder, DeviceMap((FIRST, second), (2, 1)))
    # The same kernels: to the last bit, so that not even a tie is sampled otherwise.
    assert play(steps) == wanted
    assert None not in wanted and len(set(wanted)) > 8


@pytest.mark.parametrize("second", [FIRST, pytest.param(SECOND, marks=needs_two)], ids=["one GPU as two", "two GPUs"])
def test_chats_with_adapters_say_the_same_over_two_gpus(engines: Engines, folder: Path, second: torch.device) -> None:
    wanted = play(open_steps(engines, folder, DeviceMap((FIRST,)), adapted=True))
    steps = open_steps(engines, folder, DeviceMap((FIRST, second), (2, 1)), adapted=True)
    assert play(steps) == wanted
    assert wanted != play(open_steps(engines, folder, DeviceMap((FIRST,))))


@needs_two
@pytest.mark.parametrize("through_host", [False, True])
def test_what_goes_over_arrives_in_the_streams_order(through_host: bool) -> None:
    link, sums = DeviceLink(FIRST, SECOND, through_host), []
    for number in range(20):
        sent = torch.full((1 << 20,), number, dtype=torch.long, device=FIRST)
        link.copy(link.pack([sent]))
        sums.append(link.unpack([sent])[0].sum())
    assert [int(one) for one in sums] == [number << 20 for number in range(20)]


@needs_two
def test_gpus_that_reach_each_other_need_no_host() -> None:
    assert needs_host(FIRST, SECOND) is not torch.cuda.can_device_access_peer(SECOND, FIRST)
    assert not needs_host(FIRST, FIRST)
