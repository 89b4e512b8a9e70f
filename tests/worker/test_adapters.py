"""LoRA adapters at run time, made by PEFT, against PEFT's own model over the matrices written out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from core.checkpoint.adapters import read_adapter
from core.checkpoint.checkpoint import Checkpoint, read_checkpoint
from core.common.errors import DeckError, InputError
from core.engine.request_options import AdapterUse, RequestOptions
from core.engine.sampling_params import Sampling
from core.memory.adapter_room import AdapterRoom, adaptable_matrices, room_bytes
from core.memory.fit import MAX_CHATS
from core.memory.kernels.registry import kernel_named
from core.memory.model_shape import read_shape
from core.memory.pages import full_pages
from core.memory.plan import batch_sizes, chunk_sizes, graph_bytes
from core.memory.step_sizes import StepSizes
from core.tokenizer.read import read_tokenizer
from core.worker.adapter_reader import AdapterReader
from core.worker.decode.cuda_graphs import GraphSteps
from core.worker.decode.fused_modules import fuse_modules
from core.worker.decode.steps import EagerSteps
from core.worker.kernels.low_rank import low_rank_kernels_for
from core.worker.kernels.packed_small_batch import HEAD_ROWS
from core.worker.model.adapters import add_adapters
from core.worker.model.device_map import DeviceMap
from core.worker.model.loader import load_model
from core.worker.model.model_runner import ModelRunner
from tests.support.checkpoints import make_checkpoint
from tests.support.cuda_on_cpu import cuda_on_cpu
from tests.support.plain_models import make_adapter
from tests.support.plain_recorder import PlainRecorder
from tests.support.scheduler_harness import SchedulerHarness

NUM_SLOTS, CONTEXT_TOKENS = 3, 128
TOKENS = [5, 17, 300, 42, 9, 77, 123]
# Of the logits' spread. A kernel that dequantizes rounds to half precision once.
TOLERANCE = 0.01
# float32 sums in another order.
CLOSE = {"atol": 2e-4, "rtol": 2e-4}


@dataclass
class Case:
    """A checkpoint, the same model written out, and three adapters of it."""

    checkpoint: Checkpoint
    plain: Path
    adapters: dict[str, Path]

    def peft_logits(self, adapter: str | None) -> torch.Tensor:
        model: Any = AutoModelForCausalLM.from_pretrained(self.plain, dtype=torch.float32)
        if adapter is not None:
            model = PeftModel.from_pretrained(model, self.adapters[adapter])
        with torch.inference_mode():
            logits: torch.Tensor = model(torch.tensor([TOKENS])).logits[0, -1]
        return logits

    def use(self, adapter: str, weight: float = 1.0) -> AdapterUse:
        return AdapterUse(adapter, self.adapters[adapter], weight)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("adapters")
    dense = make_checkpoint(folder / "tiny")
    config = AutoConfig.from_pretrained(folder / "tiny")
    del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    state = {name: value.float() for name, value in load_file(folder / "tiny" / "model.safetensors").items()}
    state |= {f"{name}.weight": torch.from_numpy(matrix) for name, matrix in dense.items()}
    model.load_state_dict({name: state[name] for name in model.state_dict()})
    model.save_pretrained(folder / "plain")
    adapters = {
        "all": make_adapter(folder / "plain", folder / "all", r=8),
        "some": make_adapter(
            folder / "plain",
            folder / "some",
            r=4,
            lora_alpha=2,
            use_rslora=True,
            target_modules=["q_proj", "down_proj"],
        ),
        "wide": make_adapter(folder / "plain", folder / "wide", r=16, target_modules=["v_proj"]),
    }
    return Case(read_checkpoint(folder / "tiny"), folder / "plain", adapters)


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


def load(
    case: Case, room: AdapterRoom, dtype: torch.dtype = torch.float32, fuse: bool = False
) -> tuple[ModelRunner, AdapterReader]:
    shape = read_shape(case.checkpoint, merged=True)
    place = DeviceMap((torch.device("cpu"),))
    model = load_model(case.checkpoint, shape, kernel_named("dense"), place, dtype, 64, lambda _: None)
    banks = add_adapters(model, adaptable_matrices(case.checkpoint), room, NUM_SLOTS)
    if fuse:
        fuse_modules(model)
    return ModelRunner(model, NUM_SLOTS, CONTEXT_TOKENS, banks, full_pages(NUM_SLOTS, CONTEXT_TOKENS)), AdapterReader(
        banks, case.checkpoint
    )


def put(runner: ModelRunner, reader: AdapterReader, uses: list[AdapterUse | None]) -> None:
    """Slot by slot an adapter, or none."""
    used = []
    for slot, use in enumerate(uses):
        if use is None:
            reader.set_slot(slot, None)
            continue
        adapter = reader.read(use)
        reader.set_slot(slot, reader.hold(adapter, used), adapter.weight)
        used.append(adapter.version)


def logits_of_all(runner: ModelRunner) -> torch.Tensor:
    """After TOKENS, in all slots at once."""
    rows = torch.tensor([TOKENS] * NUM_SLOTS)
    positions = torch.arange(len(TOKENS)).expand(NUM_SLOTS, -1)
    return runner.forward(rows, positions, 0, len(TOKENS))


def is_near(got: torch.Tensor, wanted: torch.Tensor) -> bool:
    return bool((got - wanted).abs().max() < TOLERANCE * wanted.std())


def test_rows_with_different_adapters_are_what_peft_computes(case: Case) -> None:
    runner, reader = load(case, AdapterRoom(2, 8))
    put(runner, reader, [case.use("all"), None, case.use("some")])
    got = logits_of_all(runner)
    for row, adapter in enumerate(("all", None, "some")):
        assert is_near(got[row], case.peft_logits(adapter)), adapter
    assert not is_near(got[0], got[1]) and not is_near(got[1], got[2])


def test_an_adapter_of_half_the_strength_adds_half(case: Case) -> None:
    """One matrix is changed, and no norm or softmax is between it and what is compared: the layer's own output."""
    runner, reader = load(case, AdapterRoom(1, 16))
    linear = runner._model.model.layers[0].self_attn.v_proj
    x = torch.randn((1, 3, linear.in_features))
    added = []
    for weight in (1.0, 0.5):
        put(runner, reader, [case.use("wide", weight)])
        linear.bank.select(range(1))
        with_adapter = linear(x)
        added.append(with_adapter - linear.base(x))
    torch.testing.assert_close(added[0] * 0.5, added[1], **CLOSE)
    assert added[0].abs().max() > 0.01


def test_a_row_does_not_depend_on_the_adapters_beside_it(case: Case) -> None:
    runner, reader = load(case, AdapterRoom(3, 16))
    rows = []
    for beside in ([None, None], [case.use("all"), case.use("wide")], [case.use("some"), None]):
        put(runner, reader, [beside[0], case.use("some"), beside[1]])
        rows.append(logits_of_all(runner)[1])
    assert torch.equal(rows[0], rows[1]) and torch.equal(rows[0], rows[2])


def test_an_adapter_whose_numbers_overflow_harms_nobody_else(case: Case) -> None:
    runner, reader = load(case, AdapterRoom(2, 8))
    put(runner, reader, [case.use("all"), case.use("some"), None])
    wanted = logits_of_all(runner)
    for matrix in runner.adapters.banks[0].matrices.values():
        matrix.a[: runner.adapters.room.rank] = torch.inf
    got = logits_of_all(runner)
    assert not got[0].isfinite().all()
    assert torch.equal(got[1:], wanted[1:])


@pytest.mark.parametrize("by_kernels", [False, True], ids=["by torch", "by kernels"])
def test_captured_steps_say_with_adapters_what_plain_ones_say(case: Case, by_kernels: bool) -> None:
    uses = [case.use("all"), None, case.use("some")]

    def answers(steps: Any) -> list[list[int | None]]:
        got = []
        for slot in range(NUM_SLOTS):
            steps.reset_slot(slot, Sampling(temperature=0.0), 1, TOKENS)
            got.append(steps.prefill(slot, TOKENS, 0, True).wait())
        return [*got, *(steps.decode([0, 1, 2]).wait() for _ in range(5))]

    plain, reader = load(case, AdapterRoom(2, 8), torch.float16)
    put(plain, reader, uses)
    wanted = answers(EagerSteps(plain))
    with cuda_on_cpu():
        runner, reader = load(case, AdapterRoom(2, 8), torch.float16, fuse=True)
        if by_kernels:
            runner.adapters.kernels = low_rank_kernels_for(torch.float16, runner.device)
        steps = GraphSteps(runner, StepSizes(16), PlainRecorder())
        put(runner, reader, uses)
        assert answers(steps) == wanted
    assert len({tuple(row) for row in wanted[:3]}) > 1


def test_chats_with_more_adapters_than_places_wait_and_say_what_they_say_alone(case: Case) -> None:
    texts = []
    for count in (3, 1):
        runner, reader = load(case, AdapterRoom(count, 16))
        harness = SchedulerHarness(EagerSteps(runner), read_tokenizer(case.checkpoint.folder), adapters=reader)
        for request, adapter in enumerate(("all", "some", None, "wide", "all")):
            options = RequestOptions(adapter=case.use(adapter)) if adapter else RequestOptions()
            harness.ask(request, options=options)
        harness.run()
        texts.append([harness.text(request) for request in range(5)])
    assert texts[0] == texts[1]
    assert texts[0][0] == texts[0][4] != texts[0][2]


def test_what_one_adapter_made_of_a_prompt_is_not_used_for_another(case: Case) -> None:
    runner, reader = load(case, AdapterRoom(2, 8))
    harness = SchedulerHarness(EagerSteps(runner), read_tokenizer(case.checkpoint.folder), adapters=reader)
    reused = []
    for request, use in enumerate((case.use("all"), case.use("all"), case.use("all", 0.5), case.use("some"), None)):
        harness.ask(request, options=RequestOptions(adapter=use), max_new_tokens=1)
        harness.run()
        reused.append(harness.end(request).stats.reused_tokens)
    # Each of the three slots is free for the next one, so a reuse is a wish to reuse.
    assert reused[1] > 0 and reused[2:] == [0, 0, 0]


def test_an_adapter_that_was_trained_on_is_read_again(case: Case, tmp_path: Path) -> None:
    folder = make_adapter(case.plain, tmp_path / "growing", r=4)
    _, reader = load(case, AdapterRoom(1, 8))
    first = reader.read(AdapterUse("growing", folder))
    assert reader.read(AdapterUse("growing", folder)).weights is first.weights
    tensors = {name: value * 2 for name, value in load_file(folder / "adapter_model.safetensors").items()}
    save_file(tensors, folder / "adapter_model.safetensors")
    second = reader.read(AdapterUse("growing", folder))
    name = next(iter(first.weights))
    assert torch.equal(second.weights[name][0], first.weights[name][0] * 2) and second.mark != first.mark


def test_an_adapter_that_changes_while_it_is_read_ends_its_request_alone(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Matrices of another size than the header told of would have reached the engine's loop, which ends by that."""
    folder = make_adapter(case.plain, tmp_path / "changing", r=4)
    before = read_adapter(folder)
    make_adapter(case.plain, folder, r=8)
    monkeypatch.setattr("core.worker.adapter_reader.read_adapter", lambda _: before)
    _, reader = load(case, AdapterRoom(1, 8))
    with pytest.raises(DeckError) as caught:
        reader.read(AdapterUse("changing", folder))
    assert caught.value.key == "adapter_rewritten"


def test_an_adapter_that_cannot_be_beside_the_model_is_refused_in_words(case: Case, tmp_path: Path) -> None:
    _, reader = load(case, AdapterRoom(1, 8))

    def reason(folder: Path) -> str:
        with pytest.raises(DeckError) as caught:
            reader.read(AdapterUse("x", folder))
        return caught.value.key

    assert reason(case.adapters["wide"]) == "adapter_over_rank"
    head = make_adapter(case.plain, tmp_path / "head", target_modules=["lm_head"])
    assert reason(head) == "adapter_outside"
    damaged = make_adapter(case.plain, tmp_path / "nan", target_modules=["q_proj"])
    tensors = load_file(damaged / "adapter_model.safetensors")
    next(iter(tensors.values()))[0, 0] = torch.nan
    save_file(tensors, damaged / "adapter_model.safetensors")
    assert reason(damaged) == "adapter_nan"
    # Each number is one, and float16 holds none of them beside the model.
    loud = make_adapter(case.plain, tmp_path / "loud", target_modules=["q_proj"], lora_alpha=1e30)
    _, reader = load(case, AdapterRoom(1, 8), torch.float16)
    assert reason(loud) == "adapter_range"
    # There are adapters in it.
    assert reason(tmp_path) == "adapter_deeper"
    (tmp_path / "empty").mkdir()
    assert reason(tmp_path / "empty") == "adapter_none"


def test_room_takes_what_the_plan_says(case: Case) -> None:
    room = AdapterRoom(3, 24)
    runner, _ = load(case, room, torch.float16)
    sizes = [(one.a, one.b) for one in runner.adapters.banks[0].matrices.values()]
    allocated = sum(-(-tensor.numel() * 2 // 512) * 512 for pair in sizes for tensor in pair)
    assert allocated == room_bytes(case.checkpoint, room)
    assert read_shape(case.checkpoint, True, room).adapter_bytes == allocated
    assert read_shape(case.checkpoint, True).adapter_bytes == 0


@pytest.mark.parametrize("slots", [8, MAX_CHATS])
def test_the_plan_has_room_for_the_kernels_that_adapters_are_in_captured_steps(case: Case, slots: int) -> None:
    """A layer's 13 kernels took 50 KiB. Beside its seven matrices are two more each, four in a chunk's step. Its four
    products are a launch for every 32 rows."""
    sizes, kernel_bytes = StepSizes(128), 50 * 1024 / 13
    # One verifies tokens, which attends twice.
    steps = [(14 + 7 * 2, [8]), (13 + 7 * 2, batch_sizes(slots)), (13 + 7 * 4, chunk_sizes(sizes.chunk_tokens))]
    needed = sum(kernels * len(rows) for kernels, rows in steps) * kernel_bytes
    needed += sum(4 * (-(-rows // HEAD_ROWS[-1]) - 1) for rows in batch_sizes(slots)) * kernel_bytes
    shape = read_shape(case.checkpoint, True, AdapterRoom(1, 8))
    assert needed * shape.num_layers <= graph_bytes(shape, slots, sizes)


@pytest.mark.parametrize(("count", "rank"), [(-1, 8), (17, 8), (1, 0), (1, 257), (True, 8)])
def test_room_that_cannot_be_is_refused(count: int, rank: int) -> None:
    with pytest.raises(InputError):
        AdapterRoom(count, rank)


def test_a_bank_forgets_the_adapter_before(case: Case) -> None:
    """The columns beyond the rank of the next one in its place."""
    runner, reader = load(case, AdapterRoom(1, 8))
    (bank,) = runner.adapters.banks
    bank.put(0, reader.read(case.use("all")).weights)
    bank.put(0, reader.read(case.use("some")).weights)
    untouched = [one for name, one in bank.matrices.items() if name.endswith("up_proj")]
    assert untouched and all(not one.a.any() and not one.b.any() for one in untouched)
