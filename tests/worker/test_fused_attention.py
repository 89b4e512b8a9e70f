"""A layer in few kernels: the attention of Qwen3 and of Qwen3.5 is recognized, and computes what the model does.

The kernels' own sources run on a CPU, so the models are tiny, and only the decoding of a token is tried.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from core.checkpoint.checkpoint import read_checkpoint
from core.memory.kernels.registry import kernel_named
from core.memory.model_shape import read_shape
from core.memory.pages import full_pages
from core.worker.decode.delta_rule import FusedDeltaNet
from core.worker.decode.fused_attention import FusedAttention
from core.worker.decode.fused_decoder_layer import FusedDecoderLayer
from core.worker.decode.fused_experts import FusedExperts
from core.worker.decode.fused_mlp import FusedDenseMlp
from core.worker.decode.fused_modules import fuse_modules
from core.worker.decode.graph_cache import GraphCache
from core.worker.decode.layer_fusion import fuse_layers, fuse_prefill
from core.worker.kernels.packed_prefill import MIN_STEP_ROWS, FusedDequantGemm
from core.worker.model.device_map import DeviceMap
from core.worker.model.loader import load_model
from core.worker.model.model_runner import ModelRunner
from core.worker.model.recurrent_layers import FLOAT_MATRICES_ON_CPU
from tests.support.cuda_on_cpu import cuda_on_cpu
from tests.support.family_checkpoints import VOCABULARY, make_family_checkpoint
from tests.support.ptx_on_cpu import kernels_on_cpu

pytestmark = [pytest.mark.slow, pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")]

CPU, CONTEXT, PROMPT = torch.device("cpu"), 96, [5, 9, 2, 77, 31]
# A chunk of the fewest tokens that are multiplied from the codes, of which some are not there.
CHUNK, NUM_THERE = 66, 61
QUARTER_ROPE = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.25}
SIZES: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 1, "head_dim": 64,
                         "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": CONTEXT,
                         "vocab_size": VOCABULARY}  # fmt: skip
# Of the logits' spread, over one layer in float16.
TOLERANCE = 0.02


@pytest.fixture(scope="module", autouse=True)
def on_cpu() -> Iterator[None]:
    with cuda_on_cpu(), kernels_on_cpu(), torch.inference_mode():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.cuda, "get_device_capability", lambda device=None: (8, 0))
            yield


@pytest.mark.parametrize(
    ("family", "more"),
    [
        ("qwen3", {}),
        ("qwen3_5_text", {"layer_types": ["full_attention"], "rope_parameters": QUARTER_ROPE}),
        ("qwen3_moe", {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 64}),
    ],
    ids=["normed heads", "gated heads, a quarter turned", "experts"],
)  # fmt: skip
def test_a_token_is_decoded_by_fused_attention(tmp_path: Path, family: str, more: dict[str, Any]) -> None:
    reference = make_family_checkpoint(tmp_path / "model", {"model_type": family, **SIZES, **more})
    wanted = reference(torch.tensor([PROMPT])).logits[0, -1]
    before, run, (layer,) = open_fused(tmp_path / "model")
    assert isinstance(layer._mixer, FusedAttention)
    assert isinstance(layer._mlp, FusedExperts if "num_experts" in more else FusedDenseMlp)
    for got in (before, run.decode()):
        assert (got[0].float() - wanted).abs().max() < TOLERANCE * wanted.std()


def test_a_chunk_is_read_by_fused_attention(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Norms, RoPE on a quarter, gates: after the products from the codes, which compute capability 9.0 has."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    config = {"model_type": "qwen3_5_text", **SIZES, "layer_types": ["full_attention"], "rope_parameters": QUARTER_ROPE}
    reference = make_family_checkpoint(tmp_path / "model", config)
    wanted = reference(chunk_tokens()[:, :NUM_THERE]).logits[0, -1]
    _, run, (layer,) = open_fused(tmp_path / "model")
    assert fuse_prefill(run.model, run.prefill) == 1 and layer.prefills
    read_whole = run.prefill()[0].float()
    # Of the last layer, the MLP of nothing but the row whose logits are read.
    counted = counts_of(FusedDequantGemm, "_run", monkeypatch)
    read_few = run.prefill(is_last_read=True)[0].float()
    assert len(counted) == 2
    for got in (read_whole, read_few):
        assert (got - wanted).abs().max() < TOLERANCE * wanted.std()


def test_experts_of_the_last_layer_take_the_rows_that_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    experts = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
    reference = make_family_checkpoint(tmp_path / "model", {"model_type": "qwen3_moe", **SIZES, **experts})
    wanted = reference(chunk_tokens()[:, :NUM_THERE]).logits[0, -1]
    _, run, (layer,) = open_fused(tmp_path / "model")
    assert fuse_prefill(run.model, run.prefill) == 1 and layer.reads_few
    rows = list[int]()
    method = FusedExperts._run
    monkeypatch.setattr(
        FusedExperts, "_run", lambda self, hidden, *more: rows.append(len(hidden)) or method(self, hidden, *more)
    )
    for is_last_read in (False, True):
        got = run.prefill(is_last_read)[0].float()
        assert (got - wanted).abs().max() < TOLERANCE * wanted.std()
    assert rows == [CHUNK, 1]


@pytest.mark.parametrize("is_quantized", [True, False], ids=["4 bit", "16 bit"])
def test_many_chats_take_the_products_of_prompts(
    tmp_path: Path, is_quantized: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which compute capability 9.0 has: a token of each, in as many chats as are too many for the other products."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    reference = make_recurrent(tmp_path / "model", is_quantized)
    num_slots = MIN_STEP_ROWS
    slots = (0, 1, num_slots - 1)
    wanted = [reference(torch.tensor([[slot + 3]])).logits[0, -1] for slot in slots]
    _, run, _ = open_fused(tmp_path / "model", num_slots)
    counted = counts_of(FusedDequantGemm, "_run", monkeypatch)
    got = run.decode_many(num_slots)
    # Of the MLP gate and up, and down; and before and after the mixer.
    assert len(counted) == 2 * (4 if is_quantized else 2)
    for slot, logits in zip(slots, wanted, strict=True):
        assert (got[slot].float() - logits).abs().max() < TOLERANCE * logits.std()


def test_gate_and_up_and_down_may_each_have_a_product_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where one is in 4 bit and the other in 8: both went through the kernels for few rows."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    reference = make_recurrent(tmp_path / "model", is_quantized=False)
    wanted = reference(torch.tensor([[3]])).logits[0, -1]
    _, run, layers = open_fused(tmp_path / "model", MIN_STEP_ROWS)
    for layer in layers:
        down = layer._mlp._matrices.down
        down.prefill_backend = FusedDequantGemm(*down.prefill_backend._kind)
        assert layer._mlp.can_prefill()
    counted = counts_of(FusedDequantGemm, "_run", monkeypatch)
    got = run.decode_many(MIN_STEP_ROWS)
    assert len(counted) == 2 * 2
    assert (got[0].float() - wanted).abs().max() < TOLERANCE * wanted.std()


@pytest.mark.parametrize("is_quantized", [True, False], ids=["4 bit", "16 bit"])
def test_a_token_is_decoded_by_a_fused_recurrent_layer(tmp_path: Path, is_quantized: bool) -> None:
    """Also as Qwen published Qwen3.5: all but the MLPs in 16 bit, those of the attention as well."""
    reference = make_recurrent(tmp_path / "model", is_quantized)
    wanted = reference(torch.tensor([PROMPT])).logits[0, -1]
    before, run, layers = open_fused(tmp_path / "model")
    assert [type(one._mixer) for one in layers] == [FusedDeltaNet, FusedAttention]
    for got in (before, run.decode()):
        assert (got[0].float() - wanted).abs().max() < TOLERANCE * wanted.std()


def make_recurrent(folder: Path, is_quantized: bool) -> PreTrainedModel:
    """A checkpoint with a recurrent layer and one of attention; its own model. Not `is_quantized`: but for the MLPs."""
    sizes = {**SIZES, "num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"],
             "linear_num_key_heads": 1, "linear_num_value_heads": 2, "linear_key_head_dim": 64,
             "linear_value_head_dim": 32}  # fmt: skip
    return make_family_checkpoint(
        folder, {"model_type": "qwen3_5_text", **sizes}, is_quantized=lambda name: is_quantized or "mlp" in name
    )


def counts_of(owner: type, name: str, monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """One more for each call of the method `name` from now on."""
    counted, method = list[None](), getattr(owner, name)

    def counting(*args: Any, **kwargs: Any) -> Any:
        counted.append(None)
        return method(*args, **kwargs)

    monkeypatch.setattr(owner, name, counting)
    return counted


def open_fused(folder: Path, num_slots: int = 2) -> tuple[torch.Tensor, GraphRun, list[FusedDecoderLayer]]:
    """A checkpoint's model with fused layers; what it said before they were."""
    checkpoint = read_checkpoint(folder)
    kernel, shape = kernel_named("llamadeck"), read_shape(checkpoint, merged=True)
    model = load_model(checkpoint, shape, kernel, DeviceMap((CPU,)), torch.float16, 16, lambda _: None, CONTEXT)
    for name, module in model.named_modules():
        if name.endswith(FLOAT_MATRICES_ON_CPU):
            module.half()
        if isinstance(module, torch.nn.Linear):
            # As on a GPU: a tensor in a file begins anywhere.
            module.weight.data = module.weight.clone()
    runner = ModelRunner(model, num_slots, CONTEXT, num_pages=full_pages(num_slots, CONTEXT))
    assert "FusedNorm" in fuse_modules(model)
    cache = GraphCache(runner.cache, num_slots)
    run = GraphRun(runner, cache)
    before = run.decode()
    assert fuse_layers(model, cache, run.decode) == model.config.num_hidden_layers
    return before, run, [module for module in model.modules() if isinstance(module, FusedDecoderLayer)]


TWO_SIZES: dict[str, Any] = {**SIZES, "num_hidden_layers": 4, "global_head_dim": 128, "sliding_window": 3,
                             "layer_types": ["sliding_attention", "full_attention"] * 2}  # fmt: skip


@pytest.mark.parametrize(
    ("family", "more"),
    [
        ("gemma4_text", {**TWO_SIZES, "num_kv_shared_layers": 2, "hidden_size_per_layer_input": 64,
                         "vocab_size_per_layer_input": VOCABULARY}),
        ("granite_swa", {**SIZES, "num_hidden_layers": 2, "sliding_window": 3, "pad_token_id": 0,
                         "layer_types": ["full_attention", "sliding_attention"]}),
    ],
    ids=["heads of two sizes, shared keys", "sinks"],
)  # fmt: skip
def test_a_token_is_decoded_over_the_cache_of_captured_steps(tmp_path: Path, family: str, more: dict[str, Any]) -> None:
    reference = make_family_checkpoint(tmp_path / "model", {"model_type": family, **more})
    wanted = reference(torch.tensor([PROMPT])).logits[0, -1]
    checkpoint = read_checkpoint(tmp_path / "model")
    kernel, shape = kernel_named("dense"), read_shape(checkpoint, merged=True)
    model = load_model(checkpoint, shape, kernel, DeviceMap((CPU,)), torch.bfloat16, 16, lambda _: None, CONTEXT)
    runner = ModelRunner(model, 2, CONTEXT, num_pages=full_pages(2, CONTEXT))
    got = GraphRun(runner, GraphCache(runner.cache, 2)).decode()
    # Of a model in bfloat16 by itself, over as many layers.
    assert (got[0].float() - wanted).abs().max() < 0.25 * wanted.std()
    plain = prefilled(reference.bfloat16(), PROMPT)
    assert (got[0].float() - wanted).norm() < 2 * (plain - wanted).norm()


def prefilled(model: PreTrainedModel, tokens: list[int]) -> torch.Tensor:
    logits: torch.Tensor = model(torch.tensor([tokens]), use_cache=False).logits[0, -1].float()
    return logits


def chunk_tokens() -> torch.Tensor:
    """[1, CHUNK]"""
    return (torch.arange(CHUNK) * 7 % 300 + 3).unsqueeze(0)


class GraphRun:
    """Decodes the tokens of a prompt one by one, and reads a chunk, over the cache of captured steps."""

    def __init__(self, runner: ModelRunner, cache: GraphCache) -> None:
        self._runner, self._cache, self.model = runner, cache, runner._model
        ALL_ATTENTION_FUNCTIONS.register("tests_fused_attention", cache.attend)
        runner.use_attention("tests_fused_attention")

    def decode(self) -> torch.Tensor:
        """The logits [1, vocabulary] after the last token."""
        for place, token in enumerate(PROMPT):
            at = torch.tensor([[place]])
            self._cache.set_targets(torch.tensor([1]), at, torch.tensor([place + 1]))
            logits = self._runner.run_captured(torch.tensor([[token]]), at, self._cache, 1)
        return logits

    def decode_many(self, num_slots: int) -> torch.Tensor:
        """The logits [num_slots, vocabulary] after the first token of each slot, its number and three."""
        self._runner.cache.clear_states()
        slots, places = torch.arange(num_slots), torch.zeros((num_slots, 1), dtype=torch.long)
        self._cache.set_targets(slots, places, torch.ones(num_slots).long())
        return self._runner.run_captured((slots + 3).unsqueeze(1), places, self._cache, 1)

    def prefill(self, is_last_read: bool = False) -> torch.Tensor:
        """The logits [1, vocabulary] after the last token of the chunk that is there. is_last_read: the pass is told
        that no other row is read."""
        places = torch.arange(CHUNK)
        columns = torch.where(places < NUM_THERE, places, -1).unsqueeze(0)
        self._cache.set_chunks(torch.tensor([[1, 0, NUM_THERE, 0]]), torch.ones(CHUNK).long(), columns)
        last = torch.tensor([NUM_THERE - 1])
        self._cache.rows_read = last if is_last_read else None
        return self._runner.run_captured(chunk_tokens(), places.unsqueeze(0), self._cache, last)
