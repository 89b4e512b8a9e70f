"""A captured pass over two GPUs, without one: the CPU plays both (tests/support/cuda_on_cpu).

On GPUs: tests/worker/test_gpu_split.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gptqmodel  # noqa: F401
import pytest
import torch

from core.checkpoint.checkpoint import read_checkpoint
from core.engine.sampling_params import Sampling
from core.memory.adapter_room import AdapterRoom, adaptable_matrices
from core.memory.pages import full_pages
from core.memory.step_sizes import StepSizes
from core.worker.decode import cuda_graphs
from core.worker.decode.cuda_graphs import GraphSteps, pipeline_parts
from core.worker.decode.device_link import DeviceLink, SlotMirrors
from core.worker.decode.fused_modules import fuse_modules
from core.worker.decode.split_pass import SplitPass
from core.worker.model.adapters import AdapterWeights, add_adapters
from core.worker.model.device_map import DeviceMap
from core.worker.model.model_runner import ModelRunner
from tests.support.checkpoints import Recipe, make_checkpoint
from tests.support.cuda_on_cpu import cuda_on_cpu
from tests.support.dense_models import load_dense
from tests.support.plain_recorder import PlainRecorder

CPU = torch.device("cpu")
CONTEXT_TOKENS, CHUNK_TOKENS, CHATS = 128, 40, 3
ROOM = AdapterRoom(2, 4)
GREEDY = Sampling(temperature=0.0)


@pytest.fixture(scope="module", autouse=True)
def kernels() -> Iterator[None]:
    with cuda_on_cpu():
        yield


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


def open_steps(
    folder: Path, device_map: DeviceMap, split: SplitPass | None, uses: Sequence[tuple[int, float]] = ()
) -> GraphSteps:
    """uses: for each chat the place of its adapter, random numbers beside every matrix, and how strong it is."""
    model = load_dense(folder, merged=True, device_map=device_map)
    banks = None
    if uses:
        sizes = adaptable_matrices(read_checkpoint(folder))
        banks = add_adapters(model, sizes, ROOM, CHATS, device_map)
        for place in range(ROOM.count):
            banks.put(place, random_adapter(sizes, place))
        for slot, (place, strength) in enumerate(uses):
            banks.set_slot(slot, place, strength)
    fuse_modules(model)
    runner = ModelRunner(model, CHATS, CONTEXT_TOKENS, banks, full_pages(CHATS, CONTEXT_TOKENS))
    return GraphSteps(runner, StepSizes(CHUNK_TOKENS), PlainRecorder(), split=split)


def random_adapter(sizes: Mapping[str, tuple[int, int]], seed: int) -> AdapterWeights:
    random = torch.Generator().manual_seed(seed)
    return {
        name: (
            torch.randn((ROOM.rank, inputs), generator=random) / inputs**0.5,
            torch.randn((outputs, ROOM.rank), generator=random) / 4,
        )
        for name, (inputs, outputs) in sizes.items()
    }


def play(steps: GraphSteps) -> list[int | None]:
    """Chats of different lengths, read in chunks, that write together, alone, and two of three; proposed tokens are
    verified."""
    tokens: list[int | None] = []
    for slot in range(CHATS):
        text = [(7 * place) % 300 + 5 for place in range(20 + 25 * slot)]
        steps.reset_slot(slot, GREEDY, 1, text)
        for begin in range(0, len(text), CHUNK_TOKENS):
            chunk = text[begin : begin + CHUNK_TOKENS]
            pending = steps.prefill(slot, chunk, begin, begin + len(chunk) == len(text))
        assert pending is not None
        tokens += pending.wait()
    for slots in ([0, 1, 2], [1], [0, 2], [0, 1, 2]):
        tokens += steps.decode(slots).wait()
    # The middle chat's last token, the fourth after its prompt of 45, with two that may come after it.
    last = tokens[-2]
    assert last is not None
    tokens += steps.verify(1, [last, 11, 12], 48).wait()
    return tokens + steps.decode([0, 1]).wait()


def test_steps_over_several_gpus_say_what_steps_on_one_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_checkpoint(tmp_path, Recipe(num_layers=3))
    wanted = play(open_steps(tmp_path, DeviceMap((CPU,)), None))
    device_map = DeviceMap((CPU,) * 3, (1, 1, 1))
    # Chats write in parts here.
    monkeypatch.setattr(cuda_graphs, "PIPELINED_CHATS", 2)
    steps = open_steps(tmp_path, device_map, SplitPass(device_map))
    assert play(steps) == wanted
    assert len(set(wanted)) > 3
    assert all(torch.equal(copy[:, :CHATS], steps._last[:, :CHATS]) for copy in steps.mirrors.copies)


@pytest.mark.parametrize("uses", [[(1, 1.0), (0, 0.5), (1, 0.0)], [(0, 1.0), (0, 1.0), (1, 2.0)]])
def test_each_gpu_adds_what_the_chats_adapters_are_beside_its_layers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uses: list[tuple[int, float]]
) -> None:
    """A model over several GPUs had no room for adapters."""
    make_checkpoint(tmp_path, Recipe(num_layers=3))
    wanted = play(open_steps(tmp_path, DeviceMap((CPU,)), None, uses))
    device_map = DeviceMap((CPU,) * 3, (1, 1, 1))
    monkeypatch.setattr(cuda_graphs, "PIPELINED_CHATS", 2)
    steps = open_steps(tmp_path, device_map, SplitPass(device_map), uses)
    adapters = steps._model.adapters
    assert adapters is not None and [len(bank.matrices) for bank in adapters.banks] == [7, 7, 7]
    assert play(steps) == wanted
    assert wanted != play(open_steps(tmp_path, DeviceMap((CPU,)), None))


def test_few_chats_write_in_one_part() -> None:
    many = list(range(cuda_graphs.PIPELINED_CHATS))
    assert pipeline_parts(many, 1) == [many]
    assert pipeline_parts(many[1:], 2) == [many[1:]]
    half = len(many) // 2
    assert pipeline_parts(many, 2) == [many[:half], many[half:]]
    assert [len(part) for part in pipeline_parts(range(32), 3)] == [11, 11, 10]


class Layer(torch.nn.Module):
    """Adds what it is called with beside its input."""

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return hidden_states + kwargs["angles"][0] + kwargs["angles"][1]


class Recording:
    """Notes where a graph ends; what comes between two is done at once."""

    def __init__(self, notes: list[str]) -> None:
        self.notes = notes

    def cut(self, between: Callable[[], object], device: torch.device) -> None:
        self.notes.append("cut")
        between()


def run(split: SplitPass, places: Sequence[int], notes: list[str]) -> torch.Tensor:
    hidden, angles = torch.arange(6.0).half().view(1, 1, 6), (torch.ones(1, 3), torch.full((1, 3), 2.0))
    with split.running(lambda place: notes.append(f"GPU {place}")):
        for place in places:
            # Rows of three values, whatever the hidden states are.
            args, kwargs = split.arrive(place, (hidden.view(2, 3),), {"angles": angles, "use_cache": True})
            assert kwargs["use_cache"] is True
            hidden = Layer()(*args, **kwargs).half()
            notes.append(f"layer on {place}")
    return hidden


def test_a_pass_is_cut_once_between_two_gpus() -> None:
    split, notes = SplitPass(DeviceMap((CPU, CPU), (2, 2))), list[str]()
    run(split, (0, 0, 1, 1), notes)
    notes.clear()
    with split.recorded(Recording(notes)):  # type: ignore[arg-type]
        got = run(split, (0, 0, 1, 1), notes)
    assert notes == ["layer on 0", "layer on 0", "cut", "GPU 1", "layer on 1", "layer on 1"]
    assert got.flatten().tolist() == [12.0, 13.0, 14.0, 15.0, 16.0, 17.0]


def test_what_cannot_be_split_is_refused() -> None:
    with pytest.raises(NotImplementedError, match="without layers"):
        SplitPass(DeviceMap((CPU, CPU), (3, 0)))
    split = SplitPass(DeviceMap((CPU, CPU), (1, 2)))
    with pytest.raises(NotImplementedError, match="earlier GPU"):
        run(split, (0, 1, 0), [])
    with pytest.raises(NotImplementedError, match="does not come"):
        run(split, (0, 0), [])


def test_a_link_brings_tensors_of_any_type_and_size_in_their_order() -> None:
    link = DeviceLink(CPU, CPU)
    sent = [
        torch.randn(3, 5).half(),
        torch.arange(7),
        torch.tensor([True, False, True]),
        torch.randn(4, 6)[:, ::2],
        torch.randn(2, 2, dtype=torch.float64),
    ]
    link.copy(link.pack(sent))
    got = link.unpack(sent)
    assert all(one.dtype == other.dtype and torch.equal(one, other) for one, other in zip(got, sent, strict=True))
    assert all((one.data_ptr() - got[0].data_ptr()) % 16 == 0 for one in got)


def test_a_link_does_not_move_while_graphs_are_recorded() -> None:
    link = DeviceLink(CPU, CPU)
    link.pack([torch.zeros(8)])
    link.pack([torch.zeros(4)], is_fixed=True)
    with pytest.raises(RuntimeError, match="64 bytes"):
        link.pack([torch.zeros(16)], is_fixed=True)


def test_mirrors_have_what_was_sent() -> None:
    own = torch.zeros((2, 4), dtype=torch.long)
    mirrors = SlotMirrors(own, [CPU, CPU])
    own[:, 1] = 5
    mirrors.send([1])
    mirrors.wait([1, 2])
    own[:, 2] = 6
    assert [copy.tolist() for copy in mirrors.copies] == [[[0, 5, 0, 0], [0, 5, 0, 0]]] * 2
