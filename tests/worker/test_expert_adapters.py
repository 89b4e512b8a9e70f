"""LoRA adapters of single experts at run time, made by PEFT, against PEFT's own model over the matrices written out."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from core.checkpoint.adapters import WEIGHTS, read_adapter
from core.checkpoint.checkpoint import Checkpoint, read_checkpoint
from core.checkpoint.quantization import MatrixFormat
from core.common.errors import CheckpointError, DeckError, EngineError
from core.engine.protocol import Load
from core.engine.request_options import AdapterUse
from core.engine.sampling_params import Sampling
from core.memory.adapter_room import AdapterRoom, adaptable_matrices, adaptable_stacks, match_adapter, room_bytes
from core.memory.device_memory import DeviceMemory
from core.memory.fit import check_fit
from core.memory.kernels.llamadeck import LLAMADECK
from core.memory.kernels.registry import kernel_named
from core.memory.model_shape import read_shape
from core.memory.pages import full_pages
from core.memory.step_sizes import StepSizes
from core.worker import plan_load
from core.worker.adapter_reader import AdapterReader
from core.worker.decode.cuda_graphs import GraphSteps
from core.worker.decode.fused_decoder_layer import FusedDecoderLayer
from core.worker.decode.fused_experts import FusedExperts
from core.worker.decode.fused_modules import fuse_modules
from core.worker.decode.graph_cache import GraphCache
from core.worker.decode.layer_fusion import fuse_layers, fuse_prefill
from core.worker.decode.prompt_chunk import PromptChunk
from core.worker.kernels import expert_kernels, expert_low_rank, sampling_kernel
from core.worker.kernels.expert_kernels import ExpertKernels
from core.worker.kernels.low_rank import NO_PLACE
from core.worker.kernels.packed_experts import PackedExperts
from core.worker.kernels.sampling_kernel import SamplingKernel
from core.worker.load import load_engine
from core.worker.model import adapters, expert_adapter_check
from core.worker.model.adapters import add_adapters
from core.worker.model.device_map import DeviceMap
from core.worker.model.expert_adapter_check import check_expert_adapters
from core.worker.model.expert_adapters import add_expert_adapters
from core.worker.model.loader import load_model
from core.worker.model.model_runner import ModelRunner
from tests.support.adapters import write_one_by_one
from tests.support.checkpoints import Recipe
from tests.support.cuda_on_cpu import cuda_on_cpu
from tests.support.family_checkpoints import VOCABULARY, make_family_checkpoint
from tests.support.plain_models import make_adapter
from tests.support.plain_recorder import PlainRecorder
from tests.support.ptx_on_cpu import kernels_on_cpu

CPU, NUM_SLOTS, CONTEXT_TOKENS, CHUNK_TOKENS = torch.device("cpu"), 3, 64, 32
CONFIG: dict[str, Any] = {
    "model_type": "qwen3_moe", "hidden_size": 128, "moe_intermediate_size": 64, "num_hidden_layers": 1, "head_dim": 64,
    "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": CONTEXT_TOKENS,
    "vocab_size": VOCABULARY, "num_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": True,
}  # fmt: skip
GPT_OSS: dict[str, Any] = {
    "model_type": "gpt_oss", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "head_dim": 16,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": CONTEXT_TOKENS,
    "vocab_size": VOCABULARY, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 24,
    "layer_types": ["sliding_attention", "full_attention"],
}  # fmt: skip
PROMPT = [(7 * place) % 300 + 5 for place in range(24)]
# Of the logits' spread. A kernel that dequantizes rounds to half precision once.
TOLERANCE = 0.01
BOTH = ["experts.gate_up_proj", "experts.down_proj"]


@dataclass
class Case:
    """A checkpoint, the same model written out, and adapters of it."""

    checkpoint: Checkpoint
    plain: Path
    adapters: dict[str, Path]

    def peft_logits(self, adapter: str | None, tokens: list[int]) -> torch.Tensor:
        model: Any = AutoModelForCausalLM.from_pretrained(self.plain, dtype=torch.float32)
        if adapter is not None:
            model = PeftModel.from_pretrained(model, self.adapters[adapter])
        logits: torch.Tensor = model(torch.tensor([tokens])).logits[0, -1]
        return logits

    def use(self, adapter: str, weight: float = 1.0) -> AdapterUse:
        return AdapterUse(adapter, self.adapters[adapter], weight)


def make_case(folder: Path, config: dict[str, Any], recipe: Recipe, layout: Any = "by name") -> Case:
    model = make_family_checkpoint(folder / "tiny", config, recipe_of=lambda _: recipe, layout=layout)
    model.save_pretrained(folder / "plain")
    stacked = {
        "all": make_adapter(folder / "plain", folder / "all", target_parameters=BOTH, r=8, target_modules=["q_proj"]),
        "down": make_adapter(folder / "plain", folder / "down", target_parameters=BOTH[1:], r=4, target_modules=[]),
    }
    return Case(read_checkpoint(folder / "tiny"), folder / "plain", stacked)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    made = make_case(tmp_path_factory.mktemp("experts"), CONFIG, Recipe())
    made.adapters["one by one"] = write_one_by_one(made.adapters["all"], made.plain.parent / "single")
    return made


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


def load(
    case: Case, room: AdapterRoom, kernel: str = "dense", dtype: torch.dtype = torch.float32
) -> tuple[ModelRunner, AdapterReader]:
    shape = read_shape(case.checkpoint, merged=True)
    model: Any = load_model(
        case.checkpoint, shape, kernel_named(kernel), DeviceMap((CPU,)), dtype, CHUNK_TOKENS, lambda _: None
    )
    banks = add_adapters(model, adaptable_matrices(case.checkpoint), room, NUM_SLOTS)
    if room.has_experts:
        add_expert_adapters(model, adaptable_stacks(case.checkpoint), banks)
    if kernel != "dense":
        # As on a GPU: a tensor in a file begins anywhere.
        for parameter in model.parameters():
            parameter.data = parameter.clone()
        fuse_modules(model)
    runner = ModelRunner(model, NUM_SLOTS, CONTEXT_TOKENS, banks, full_pages(NUM_SLOTS, CONTEXT_TOKENS))
    return runner, AdapterReader(banks, case.checkpoint)


def put(reader: AdapterReader, uses: list[AdapterUse | None]) -> None:
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
    """After PROMPT, in all slots at once."""
    rows = torch.tensor([PROMPT] * NUM_SLOTS)
    positions = torch.arange(len(PROMPT)).expand(NUM_SLOTS, -1)
    return runner.forward(rows, positions, 0, len(PROMPT))


def is_near(got: torch.Tensor, wanted: torch.Tensor) -> bool:
    return bool((got - wanted).abs().max() < TOLERANCE * wanted.std())


def test_rows_with_different_adapters_are_what_peft_computes(case: Case) -> None:
    runner, reader = load(case, AdapterRoom(2, 8, True))
    put(reader, [case.use("all"), None, case.use("down")])
    got = logits_of_all(runner)
    for row, adapter in enumerate(("all", None, "down")):
        assert is_near(got[row], case.peft_logits(adapter, PROMPT)), adapter
    assert not is_near(got[0], got[1]) and not is_near(got[1], got[2])
    runner, reader = load(case, AdapterRoom(2, 8, True))
    put(reader, [case.use("down"), case.use("one by one"), None])
    again = logits_of_all(runner)
    for one, other in ((0, 2), (1, 0), (2, 1)):
        assert is_near(again[one], got[other])


@pytest.mark.parametrize("layout", ["by name", "halves", "one"])
def test_outputs_in_turns_get_what_belongs_to_them(tmp_path: Path, layout: str) -> None:
    """gpt-oss's gate and up, however files have cut them."""
    case = make_case(tmp_path, GPT_OSS, Recipe(), layout)
    runner, reader = load(case, AdapterRoom(1, 8, True))
    put(reader, [None, case.use("all"), None])
    got = logits_of_all(runner)
    assert is_near(got[1], case.peft_logits("all", PROMPT)) and is_near(got[0], case.peft_logits(None, PROMPT))
    assert not is_near(got[0], got[1])


def test_what_the_next_adapter_does_not_change_is_as_the_model_has_it(case: Case) -> None:
    """Gate and up, of which the adapter before in the same place had more."""
    runner, reader = load(case, AdapterRoom(1, 8, True))
    put(reader, [case.use("all"), None, None])
    put(reader, [case.use("down"), None, None])
    assert is_near(logits_of_all(runner)[0], case.peft_logits("down", PROMPT))


def test_adapters_of_experts_come_to_a_gpu_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch copies for what lies in no order there is as large as what it copies."""
    copied: list[int] = []
    copy = torch.Tensor.copy_
    monkeypatch.setattr(torch.Tensor, "copy_", lambda to, part: copied.append(part.nbytes) or copy(to, part))
    monkeypatch.setattr(adapters, "PIECE_BYTES", 5 * 6 * 4 * 3)
    source, target = torch.randn(10, 6, 5), torch.zeros(10, 6, 20)
    adapters.copy_in_pieces(source, target[..., 5:10])
    assert torch.equal(target[..., 5:10], source) and not target[..., :5].any() and not target[..., 10:].any()
    assert copied == [360, 360, 360, 120]
    adapters.copy_in_pieces(source[:, :0], target[:, :0, 5:10])
    adapters.copy_in_pieces(source[0], target[0, :, :5])
    assert torch.equal(target[0, :, :5], source[0])


def test_room_for_experts_takes_what_the_plan_says(case: Case) -> None:
    room = AdapterRoom(3, 24, True)
    runner, _ = load(case, room, dtype=torch.float16)
    sizes = [(one.a, one.b) for one in runner.adapters.banks[0].matrices.values()]
    allocated = sum(-(-tensor.numel() * 2 // 512) * 512 for pair in sizes for tensor in pair)
    assert allocated == room_bytes(case.checkpoint, room) == read_shape(case.checkpoint, True, room).adapter_bytes
    of_experts = 72 * 4 * 3 * (128 + 64) * 2
    assert allocated - room_bytes(case.checkpoint, AdapterRoom(3, 24)) == of_experts
    assert room_bytes(case.checkpoint, AdapterRoom(0, 24, True)) == 0


def test_a_load_makes_the_room_that_it_was_asked_for(case: Case) -> None:
    """By the kernels for a CPU."""
    command = Load(case.checkpoint.folder, CONTEXT_TOKENS, 2, on_cpu=True, adapters=AdapterRoom(1, 8, True))
    engine = load_engine(case.checkpoint, command, lambda *_: None)
    reader, steps = engine.adapters, engine.steps
    assert reader is not None and engine.facts.adapters == command.adapters
    first = []
    for use in (case.use("all"), None):
        adapter = reader.read(use) if use else None
        reader.set_slot(0, reader.hold(adapter, []) if adapter else None)
        steps.reset_slot(0, Sampling(temperature=0.0), 1, PROMPT)
        pending = steps.prefill(0, PROMPT, 0, True)
        assert pending is not None
        first += pending.wait()
    assert first == [int(case.peft_logits(adapter, PROMPT).argmax()) for adapter in ("all", None)]


def test_the_plan_counts_what_pairs_are_multiplied_to(case: Case) -> None:
    with_room, without = (
        read_shape(case.checkpoint, True, AdapterRoom(2, 16, has_experts)) for has_experts in (True, False)
    )
    mlp: Any = with_room.layers[0][0].mlp
    taken = LLAMADECK.expert_bytes(with_room, mlp, 100) - LLAMADECK.expert_bytes(without, mlp, 100)
    # Of gate, up and down in float32; and the place of the adapter, twice.
    assert taken == 100 * 2 * (3 * 16 * 4 + 2 * 4)


def reason(reader: AdapterReader, folder: Path) -> str:
    with pytest.raises(DeckError) as caught:
        reader.read(AdapterUse("x", folder))
    return caught.value.key


def test_an_adapter_of_experts_that_cannot_be_beside_the_model_is_refused_in_words(case: Case, tmp_path: Path) -> None:
    _, reader = load(case, AdapterRoom(2, 8))
    assert reason(reader, case.adapters["all"]) == "adapter_no_expert_room"
    _, reader = load(case, AdapterRoom(2, 4, True))
    assert reason(reader, case.adapters["all"]) == "adapter_over_rank"
    damaged = Path(shutil.copytree(case.adapters["down"], tmp_path / "nan"))
    tensors = load_file(damaged / WEIGHTS)
    next(iter(tensors.values()))[-1, 0] = torch.nan
    save_file(tensors, damaged / WEIGHTS)
    assert reason(reader, damaged) == "adapter_nan"


def test_experts_in_16_bit_are_changed_by_no_adapter(tmp_path: Path, case: Case) -> None:
    def partly(name: str) -> Recipe | None:
        return None if name.endswith("experts.3.up_proj") else Recipe()

    make_family_checkpoint(tmp_path / "model", CONFIG, recipe_of=partly)
    checkpoint = read_checkpoint(tmp_path / "model")
    assert adaptable_stacks(checkpoint) == {} and len(adaptable_stacks(case.checkpoint)) == 1
    _, reader = load(case, AdapterRoom(2, 8, True))
    for name in ("all", "one by one"):
        with pytest.raises(CheckpointError) as caught:
            match_adapter(read(case, name), checkpoint)
        assert caught.value.key == "adapter_plain_matrix"


def test_an_adapter_of_the_router_too_is_told_how_it_can_be_used(case: Case, tmp_path: Path) -> None:
    """ "all-linear" of today's PEFT takes it along."""
    folder = make_adapter(case.plain, tmp_path / "all", target_modules="all-linear")
    with pytest.raises(CheckpointError) as caught:
        match_adapter(read_adapter(folder), case.checkpoint)
    assert caught.value.key == "adapter_router" and 'exclude_modules: ["gate"]' in str(caught.value)


def test_what_no_room_mends_is_told_before_the_room(case: Case, tmp_path: Path) -> None:
    """It was sent to a load with more room, and then told that it can only be merged."""
    _, reader = load(case, AdapterRoom(1, 4))
    router = make_adapter(case.plain, tmp_path / "router", target_modules="all-linear", target_parameters=BOTH)
    assert reason(reader, router) == "adapter_router"
    damaged = Path(shutil.copytree(case.adapters["all"], tmp_path / "nan"))
    tensors = load_file(damaged / WEIGHTS)
    next(iter(tensors.values()))[-1, 0] = torch.nan
    save_file(tensors, damaged / WEIGHTS)
    assert reason(reader, damaged) == "adapter_nan"
    # The next load has room for its rank by itself, and for experts where somebody wants that.
    assert reason(reader, case.adapters["all"]) == "adapter_no_expert_room"


def read(case: Case, name: str) -> Any:
    return read_adapter(case.adapters[name])


# With our own kernels, run on a CPU ----------------------------------------------------------------------------------


@pytest.fixture
def own_kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    with cuda_on_cpu(), kernels_on_cpu():
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (8, 0))
        # Blocks that read one another's shared memory are not to be had here.
        monkeypatch.setattr(
            sampling_kernel, "SamplingKernel", lambda *what, clusters=False: SamplingKernel(*what, clusters=False)
        )
        yield


@pytest.mark.usefixtures("own_kernels")
@pytest.mark.parametrize("is_permuted", [False, True], ids=["in order", "act-order"])
def test_captured_steps_compute_each_chats_own_adapter(
    tmp_path: Path, is_permuted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prompt each, all read in one pass, and the token after it; then that alone, to the last bit."""
    recipe = Recipe(act_order=is_permuted, one_order=is_permuted)
    case = make_case(tmp_path, CONFIG, recipe)
    source = sys.modules["transformers.models.qwen3_moe.modeling_qwen3_moe"]
    rotate = source.apply_rotary_pos_emb

    def peft_logits(adapter: str | None, tokens: list[int]) -> torch.Tensor:
        # Fusing replaces it for the process.
        with monkeypatch.context() as patch:
            patch.setattr(source, "apply_rotary_pos_emb", rotate)
            return case.peft_logits(adapter, tokens)

    runner, reader = load(case, AdapterRoom(2, 8, True), "llamadeck", torch.float16)
    model = runner._model
    assert isinstance(model.model.layers[0].mlp.experts, PackedExperts)
    seen: list[torch.Tensor] = []
    run = runner.run_captured
    monkeypatch.setattr(runner, "run_captured", lambda *what: seen.append(out := run(*what)) or out)

    def fuse(cache: GraphCache, run_decode: Callable[[], object], run_prefill: Callable[[], object]) -> None:
        assert fuse_layers(model, cache, run_decode) == 1
        fuse_prefill(model, run_prefill)

    with runner.adapters.tried():
        steps = GraphSteps(runner, StepSizes(CHUNK_TOKENS, 0), PlainRecorder(), fuse)
    (layer,) = [module for module in model.modules() if isinstance(module, FusedDecoderLayer)]
    assert isinstance(layer._mlp, FusedExperts)
    chosen = ("all", None, "down")
    put(reader, [None if one is None else case.use(one) for one in chosen])
    texts, first = [PROMPT[: 9 + slot] for slot in range(NUM_SLOTS)], list[int]()
    for slot, text in enumerate(texts):
        steps.reset_slot(slot, Sampling(temperature=0.0), 1, text)
    pending = steps.prefill_chunks([PromptChunk(slot, text, 0, True) for slot, text in enumerate(texts)])
    assert pending is not None
    first += [token for token in pending.wait() if token is not None]
    for slot, text in enumerate(texts):
        wanted = peft_logits(chosen[slot], text)
        assert (seen[-1][slot].float() - wanted).abs().max() < 2 * TOLERANCE * wanted.std(), slot
    steps.decode([0, 1, 2]).wait()
    together = seen[-1][:NUM_SLOTS].float().clone()
    for slot, text in enumerate(texts):
        wanted = peft_logits(chosen[slot], [*text, first[slot]])
        assert (together[slot] - wanted).abs().max() < 2 * TOLERANCE * wanted.std(), slot
    for slot, text in enumerate(texts):
        steps.set_last(slot, first[slot], len(text))
        steps.decode([slot]).wait()
        assert torch.equal(seen[-1][0].float(), together[slot]), slot


@pytest.mark.usefixtures("own_kernels")
@pytest.mark.parametrize("damage", ["gate and up", "down", "low"])
def test_kernels_that_leave_an_adapter_out_are_found_before_they_are_used(
    monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    """The layers themselves cannot tell: the model's own experts are these kernels."""
    monkeypatch.setattr(expert_adapter_check, "NUM_TOKENS", (1, 17))
    format = MatrixFormat(4, 64, True, False, "gptq_v2")
    check_expert_adapters(LLAMADECK, format, torch.float16, CPU)
    if damage == "low":
        monkeypatch.setattr(expert_low_rank, "DOTS_PER_BLOCK", 16)
    else:
        own = expert_kernels._argument

        def without(low: Any) -> tuple[Any, ...]:
            if low is not None and (len(low.matrices.b) == 2) == (damage == "gate and up"):
                low.places.fill_(NO_PLACE)
            return own(low)

        monkeypatch.setattr(expert_kernels, "_argument", without)
    with pytest.raises(EngineError) as caught:
        check_expert_adapters(LLAMADECK, format, torch.float16, CPU)
    assert caught.value.key == "kernel_wrong"


@pytest.mark.parametrize("has_experts", [False, True])
def test_a_load_with_room_for_experts_tries_their_kernels_first(
    case: Case, has_experts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []
    for name in ("use_capturable_stream", "check_kernel", "check_experts", "check_expert_adapters"):
        monkeypatch.setattr(plan_load, name, lambda *_, name=name: tried.append(name))
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    card = DeviceMemory.empty("large", 80_000, (9, 0))
    report = check_fit(case.checkpoint, [card], 64, 1, adapters=AdapterRoom(1, 8, has_experts))
    assert report.load.kernel is LLAMADECK
    plan_load.check_kernels(report.load, case.checkpoint)
    assert tried[:2] == ["use_capturable_stream", "check_kernel"]
    assert ("check_expert_adapters" in tried) == has_experts and "check_experts" in tried


@pytest.mark.usefixtures("own_kernels")
def test_without_room_for_experts_the_kernels_are_those_of_a_model_without_adapters(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[bool] = []
    init = ExpertKernels.__init__

    def noted(self: ExpertKernels, dtype: Any, format: Any, device: Any, adapters: bool = False) -> None:
        made.append(adapters)
        init(self, dtype, format, device, adapters)

    monkeypatch.setattr(ExpertKernels, "__init__", noted)
    load(case, AdapterRoom(2, 8), "llamadeck", torch.float16)
    assert made == [False]
