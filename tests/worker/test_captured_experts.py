"""A mixture of experts from its files to captured steps, in our own kernels, which run on the CPU here."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.models.qwen3_moe import modeling_qwen3_moe

from core.checkpoint.checkpoint import read_checkpoint
from core.engine.sampling_params import Sampling
from core.memory.kernels.llamadeck import LLAMADECK
from core.memory.model_shape import read_shape
from core.worker.decode.cuda_graphs import GraphSteps
from core.worker.decode.fused_decoder_layer import FusedDecoderLayer
from core.worker.decode.fused_experts import FusedExperts
from core.worker.decode.fused_modules import fuse_modules
from core.worker.decode.graph_cache import GraphCache
from core.worker.decode.layer_fusion import fuse_head, fuse_layers, fuse_prefill
from core.worker.kernels.packed_experts import PackedExperts
from core.worker.model.device_map import DeviceMap
from core.worker.model.loader import load_model
from core.worker.model.model_runner import ModelRunner
from tests.support.cuda_on_cpu import cuda_on_cpu
from tests.support.family_checkpoints import VOCABULARY, make_family_checkpoint
from tests.support.plain_recorder import PlainRecorder
from tests.support.ptx_on_cpu import kernels_on_cpu

pytestmark = [pytest.mark.slow, pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")]
GREEDY = Sampling(temperature=0.0)
CONTEXT_TOKENS, CHUNK_TOKENS, NUM_DECODED = 64, 16, 2
# Of the logits' spread: half precision rounds each of two layers' operations.
TOLERANCE = 0.03
CONFIG: dict[str, Any] = {
    "model_type": "qwen3_moe",
    "hidden_size": 128,
    "intermediate_size": 128,
    "moe_intermediate_size": 64,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "norm_topk_prob": True,
    "max_position_embeddings": CONTEXT_TOKENS,
    "vocab_size": VOCABULARY,
}


@pytest.fixture(scope="module", autouse=True)
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with cuda_on_cpu(), kernels_on_cpu(tmp_path_factory.mktemp("compiled")), torch.inference_mode():
        yield


@pytest.fixture(autouse=True)
def rope(monkeypatch: pytest.MonkeyPatch) -> None:
    # An engine puts its own there, for its process.
    monkeypatch.setattr(modeling_qwen3_moe, "apply_rotary_pos_emb", modeling_qwen3_moe.apply_rotary_pos_emb)


class WatchedRunner(ModelRunner):
    """Keeps the logits of the last pass."""

    logits: torch.Tensor

    def _call(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        self.logits = super()._call(*args, **kwargs)
        return self.logits


def load(folder: Path) -> Any:
    checkpoint = read_checkpoint(folder)
    shape = read_shape(checkpoint, merged=True)
    assert LLAMADECK.can_capture(shape)
    places = DeviceMap((torch.device("cpu"),))
    return load_model(checkpoint, shape, LLAMADECK, places, torch.float16, 64, lambda _: None, CONTEXT_TOKENS)


def make_steps(model: Any, runner: WatchedRunner) -> GraphSteps:
    def fuse(cache: GraphCache, run_decode: Callable[[], object], run_prefill: Callable[[], object]) -> None:
        assert fuse_layers(model, cache, run_decode) == CONFIG["num_hidden_layers"]
        fuse_head(model)
        fuse_prefill(model, run_prefill)

    fuse_modules(model)
    return GraphSteps(runner, CHUNK_TOKENS, PlainRecorder(), fuse=fuse)


def test_captured_steps_of_experts_say_what_their_class_says(tmp_path: Path) -> None:
    reference = make_family_checkpoint(tmp_path, CONFIG)
    texts = {slot: [(7 * place + 31 * slot) % 300 + 5 for place in range(count)] for slot, count in ((0, 40), (1, 7))}
    wanted = {slot: reference(input_ids=torch.tensor([text]), use_cache=False).logits[0]
              for slot, text in texts.items()}  # fmt: skip
    model = load(tmp_path)
    assert sum(isinstance(module, PackedExperts) for module in model.modules()) == CONFIG["num_hidden_layers"]
    runner = WatchedRunner(model, 2, CONTEXT_TOKENS)
    steps = make_steps(model, runner)
    layers = [module for module in model.modules() if isinstance(module, FusedDecoderLayer)]
    assert [type(layer._mlp) for layer in layers] == [FusedExperts] * CONFIG["num_hidden_layers"]
    ends = {slot: len(text) - NUM_DECODED for slot, text in texts.items()}
    for slot, text in texts.items():
        steps.reset_slot(slot, GREEDY, 1, text[: ends[slot]])
        for begin in range(0, ends[slot], CHUNK_TOKENS):
            chunk = text[begin : min(begin + CHUNK_TOKENS, ends[slot])]
            pending = steps.prefill(slot, chunk, begin, begin + len(chunk) == ends[slot])
        assert pending is not None and pending.wait()
        assert_close(runner.logits[0], wanted[slot][ends[slot] - 1])
    for step in range(NUM_DECODED):
        for slot, text in texts.items():
            steps.tokens[slot] = text[ends[slot] + step]
        steps.decode([0, 1]).wait()
        for slot in texts:
            assert_close(runner.logits[slot], wanted[slot][ends[slot] + step])


def assert_close(got: torch.Tensor, wanted: torch.Tensor) -> None:
    assert (got.float() - wanted).abs().max() < TOLERANCE * wanted.std()
