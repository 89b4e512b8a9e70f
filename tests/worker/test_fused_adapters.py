"""Layers in few kernels with LoRA adapters beside their matrices, against models with the adapters merged in.

The kernels' own sources run on a CPU, so the model is tiny, and only the decoding of a token is tried.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from core.checkpoint.checkpoint import read_checkpoint
from core.engine.sampling_params import Sampling
from core.memory.adapter_room import AdapterRoom, adaptable_matrices
from core.memory.kernels.registry import kernel_named
from core.memory.model_shape import read_shape
from core.memory.pages import full_pages
from core.memory.step_sizes import StepSizes
from core.worker.decode.cuda_graphs import GraphSteps
from core.worker.decode.fused_attention import FusedAttention
from core.worker.decode.fused_decoder_layer import FusedDecoderLayer
from core.worker.decode.fused_mlp import FusedDenseMlp
from core.worker.decode.fused_modules import fuse_modules
from core.worker.decode.graph_cache import GraphCache
from core.worker.decode.layer_fusion import fuse_layers, fuse_prefill
from core.worker.decode.split_pass import SplitPass
from core.worker.kernels import packed_small_batch
from core.worker.kernels.low_rank import low_rank_kernels_for
from core.worker.model.adapters import AdapterBanks, AdapterLinear, AdapterWeights, add_adapters
from core.worker.model.device_map import DeviceMap, add_device_hooks
from core.worker.model.loader import load_model
from core.worker.model.model_runner import ModelRunner
from tests.support.checkpoints import Recipe, make_checkpoint
from tests.support.cuda_on_cpu import cuda_on_cpu
from tests.support.plain_recorder import PlainRecorder
from tests.support.ptx_on_cpu import kernels_on_cpu

pytestmark = [pytest.mark.slow, pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")]

CPU, NUM_SLOTS, CONTEXT, PROMPT = torch.device("cpu"), 3, 32, [5, 9, 77]
ROOM, ONE = AdapterRoom(3, 8), DeviceMap((CPU,))
# Of the logits' spread, over one layer in float16.
TOLERANCE = 0.02
RECIPE = Recipe(hidden=128, intermediate=192, num_layers=1, num_heads=2, num_kv_heads=1)


@pytest.fixture(scope="module", autouse=True)
def on_cpu() -> Iterator[None]:
    with cuda_on_cpu(), kernels_on_cpu(), torch.inference_mode():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.cuda, "get_device_capability", lambda device=None: (8, 0))
            yield


@dataclass
class FusedModel:
    """A model with adapters in all of its places, whose layers may be fused; and each adapter merged into it."""

    runner: ModelRunner
    cache: GraphCache
    banks: AdapterBanks
    adapters: list[AdapterWeights]
    merged: list[torch.Tensor]

    def decode(self, slots: list[int]) -> torch.Tensor:
        """The logits [slots, vocabulary] after PROMPT, token by token."""
        rows = torch.tensor(slots)
        for place, token in enumerate(PROMPT):
            at = torch.full((len(slots), 1), place)
            self.cache.set_targets(rows, at, torch.full((len(slots),), place + 1))
            logits = self.runner.run_captured(torch.full_like(at, token), at, self.cache, 1)
        return logits.float()


class EachRow(torch.nn.Module):
    """Multiplies each row by itself: some CPUs round one row in half precision otherwise than several."""

    def __init__(self, head: torch.nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.head(row) for row in x.split(1)])


def random_adapter(sizes: dict[str, tuple[int, int]], seed: int) -> AdapterWeights:
    random = torch.Generator().manual_seed(seed)
    return {
        name: (
            (torch.randn((ROOM.rank, inputs), generator=random) / inputs**0.5).half(),
            (torch.randn((outputs, ROOM.rank), generator=random) / 4).half(),
        )
        for name, (inputs, outputs) in sizes.items()
    }


def merged_logits(folder: Path, dense: dict[str, np.ndarray], adapters: list[AdapterWeights]) -> list[torch.Tensor]:
    """After PROMPT, by transformers' model: without an adapter, then with each one merged in."""
    config = AutoConfig.from_pretrained(folder)
    del config.quantization_config
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    state = {name: value.float() for name, value in load_file(folder / "model.safetensors").items()}
    merged = []
    for adapter in (None, *adapters):
        for name, matrix in dense.items():
            state[f"{name}.weight"] = torch.from_numpy(matrix)
            if adapter is not None:
                a, b = adapter[name]
                state[f"{name}.weight"] = state[f"{name}.weight"] + b.float() @ a.float()
        plain.load_state_dict({name: state[name] for name in plain.state_dict()})
        merged.append(plain(torch.tensor([PROMPT])).logits[0, -1])
    return merged


def open_model(folder: Path, recipe: Recipe, places: DeviceMap = ONE) -> FusedModel:
    dense = make_checkpoint(folder, recipe)
    checkpoint = read_checkpoint(folder)
    kernel, shape = kernel_named("llamadeck"), read_shape(checkpoint, merged=True)
    model = load_model(checkpoint, shape, kernel, places, torch.float16, 16, lambda _: None, CONTEXT)
    # As on a GPU: a tensor in a file begins anywhere.
    for parameter in model.parameters():
        parameter.data = parameter.clone()
    model.lm_head = EachRow(model.lm_head)
    sizes = adaptable_matrices(checkpoint)
    banks = add_adapters(model, sizes, ROOM, NUM_SLOTS, places)
    for bank in banks.banks:
        bank.kernels = low_rank_kernels_for(torch.float16, CPU)
    adapters = [random_adapter(sizes, seed) for seed in range(ROOM.count)]
    for place, adapter in enumerate(adapters):
        banks.put(place, adapter)
    merged = merged_logits(folder, dense, adapters)
    runner = ModelRunner(model, NUM_SLOTS, CONTEXT, banks, full_pages(NUM_SLOTS, CONTEXT))
    assert "FusedMlp" in fuse_modules(model)
    cache = GraphCache(runner.cache, 3)
    ALL_ATTENTION_FUNCTIONS.register("tests_fused_adapters", cache.attend)
    runner.use_attention("tests_fused_adapters")
    return FusedModel(runner, cache, banks, adapters, merged)


@pytest.mark.parametrize("is_permuted", [False, True], ids=["in order", "act-order"])
def test_rows_with_adapters_are_decoded_by_fused_layers(tmp_path: Path, is_permuted: bool) -> None:
    recipe = Recipe(
        act_order=is_permuted, one_order=is_permuted, hidden=RECIPE.hidden, intermediate=RECIPE.intermediate,
        num_layers=1, num_heads=2, num_kv_heads=1,
    )  # fmt: skip
    one = open_model(tmp_path / "model", recipe)
    one.banks.set_slot(0, 2)
    one.banks.set_slot(2, 0)
    plain = one.decode([0, 1, 2])
    model = one.runner._model
    with one.banks.tried():
        assert fuse_layers(model, one.cache, lambda: one.decode([0, 1, 2])) == 1
    one.banks.put(0, one.adapters[0])
    one.banks.set_slot(0, 2)
    (layer,) = [module for module in model.modules() if isinstance(module, FusedDecoderLayer)]
    assert isinstance(layer._mixer, FusedAttention) and isinstance(layer._mlp, FusedDenseMlp)
    assert isinstance(layer._mlp._matrices.gate_up, AdapterLinear)
    together = one.decode([0, 1, 2])
    for row, place in enumerate((2, None, 0)):
        wanted = one.merged[0 if place is None else 1 + place]
        for got in (plain[row], together[row]):
            assert (got - wanted).abs().max() < TOLERANCE * wanted.std(), row
    assert (together[0] - together[1]).abs().max() > 10 * TOLERANCE * together[1].std()
    # Alone, one row is normed on its way into the product; and beside rows with other adapters.
    one.banks.set_slot(1, 1, 0.5)
    for row in (0, 2):
        assert torch.equal(one.decode([row])[0], together[row])
        assert torch.equal(one.decode([1, row])[1], together[row])


def test_captured_steps_over_two_gpus_add_each_chats_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = DeviceMap((CPU, CPU), (1, 1))
    one = open_model(tmp_path / "model", replace(RECIPE, num_layers=2), places)
    model, logits = one.runner._model, list[torch.Tensor]()
    run_captured = one.runner.run_captured

    def fuse(cache: GraphCache, run_decode: Callable[[], object], run_prefill: Callable[[], object]) -> None:
        assert fuse_layers(model, cache, run_decode) == 2
        add_device_hooks(model, places)

    with one.banks.tried():
        steps = GraphSteps(one.runner, StepSizes(8), PlainRecorder(), fuse, split=SplitPass(places))
    one.banks.put(0, one.adapters[0])
    monkeypatch.setattr(one.runner, "run_captured", lambda *what: logits.append(run_captured(*what)) or logits[-1])
    of_slots = (2, None, 0)
    for slot, place in enumerate(of_slots):
        one.banks.set_slot(slot, place)
        steps.reset_slot(slot, Sampling(temperature=0.0), 1, PROMPT[:2])
        pending = steps.prefill(slot, PROMPT[:2], 0, True)
        assert pending is not None
        pending.wait()
        steps.set_last(slot, PROMPT[2], 2)
    steps.decode(range(NUM_SLOTS)).wait()
    for got, place in zip(logits[-1].float(), of_slots, strict=False):
        wanted = one.merged[0 if place is None else 1 + place]
        assert (got - wanted).abs().max() < TOLERANCE * wanted.std(), place


def test_prompts_are_not_read_by_kernels_that_know_no_adapters(tmp_path: Path) -> None:
    one = open_model(tmp_path / "model", RECIPE)
    assert fuse_layers(one.runner._model, one.cache, lambda: one.decode([0])) == 1
    assert fuse_prefill(one.runner._model, lambda: pytest.fail("it needs no try")) == 0


def test_products_that_leave_an_adapter_out_are_found_before_they_are_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A load tries the layers with an adapter of random numbers. Nothing of it stays."""

    def read_source(*names: str, **made: object) -> str:
        source = read(*names, **made)
        assert source.count("return round_half(value + sum);") == 1
        return source.replace("return round_half(value + sum);", "return value;")

    one = open_model(tmp_path / "model", RECIPE)
    read = packed_small_batch.read_source
    monkeypatch.setattr(packed_small_batch, "read_source", read_source)
    packed_small_batch.kernels_for.cache_clear()
    with one.banks.tried():
        fuse_layers(one.runner._model, one.cache, lambda: one.decode([0, 1]))
    packed_small_batch.kernels_for.cache_clear()
    assert not any(isinstance(module, FusedDecoderLayer) for module in one.runner._model.modules())
    assert not any(matrix.a[: ROOM.rank].any() for matrix in one.banks.banks[0].matrices.values())
    wanted = one.merged[0]
    assert (one.decode([0])[0] - wanted).abs().max() < TOLERANCE * wanted.std()


def test_without_kernels_for_adapters_layers_stay_as_they_are(tmp_path: Path) -> None:
    """A fused layer would leave them out."""
    one = open_model(tmp_path / "model", RECIPE)
    one.banks.banks[0].kernels = None
    one.banks.set_slot(0, 1)
    assert fuse_layers(one.runner._model, one.cache, lambda: one.decode([0])) == 0
    got, wanted = one.decode([0])[0], one.merged[2]
    assert (got - wanted).abs().max() < TOLERANCE * wanted.std()
