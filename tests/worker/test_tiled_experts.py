"""A mixture of experts in captured steps without a GPU: the kernels' own sources run on a CPU.

Those of compute capability 9.0 are among them, which multiply a prompt's experts in tiles.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from core.checkpoint.checkpoint import read_checkpoint
from core.engine.sampling_params import Sampling
from core.memory.kernels.registry import kernel_named
from core.memory.model_shape import read_shape
from core.memory.pages import full_pages
from core.memory.step_sizes import StepSizes
from core.worker.decode.cuda_graphs import GraphSteps
from core.worker.decode.fused_decoder_layer import FusedDecoderLayer
from core.worker.decode.fused_experts import FusedExperts
from core.worker.decode.fused_modules import fuse_modules
from core.worker.decode.graph_cache import GraphCache
from core.worker.decode.layer_fusion import fuse_layers, fuse_prefill
from core.worker.kernels import sampling_kernel
from core.worker.kernels.packed_experts import PackedExperts
from core.worker.kernels.sampling_kernel import SamplingKernel
from core.worker.model.device_map import DeviceMap
from core.worker.model.loader import load_model
from core.worker.model.model_runner import ModelRunner
from tests.support.cuda_on_cpu import cuda_on_cpu
from tests.support.family_checkpoints import VOCABULARY, make_family_checkpoint
from tests.support.plain_recorder import PlainRecorder
from tests.support.ptx_on_cpu import kernels_on_cpu

pytestmark = [pytest.mark.slow, pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")]
CPU, CONTEXT_TOKENS, CHUNK_TOKENS = torch.device("cpu"), 128, 64
# The last layer's experts take only the row that a token is drawn from: too few for tiles.
LAYERS = 2
CONFIG: dict[str, Any] = {
    "model_type": "qwen3_moe", "hidden_size": 128, "moe_intermediate_size": 64, "num_hidden_layers": LAYERS,
    "head_dim": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": CONTEXT_TOKENS,
    "vocab_size": VOCABULARY, "num_experts": 3, "num_experts_per_tok": 2, "norm_topk_prob": True,
}  # fmt: skip
PROMPT = [(7 * place) % 300 + 5 for place in range(50)]
# Of the logits' spread, over two layers in float16.
TOLERANCE = 0.01


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with cuda_on_cpu(), kernels_on_cpu(), torch.inference_mode():
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
        # Blocks that read one another's shared memory are not to be had here.
        monkeypatch.setattr(
            sampling_kernel, "SamplingKernel", lambda *what, clusters=False: SamplingKernel(*what, clusters=False)
        )
        yield


def test_a_mixture_reads_and_writes_in_few_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = make_family_checkpoint(tmp_path / "model", CONFIG)
    read = reference(torch.tensor([PROMPT])).logits[0, -1]
    first = int(read.argmax())
    written = reference(torch.tensor([[*PROMPT, first]])).logits[0, -1]
    checkpoint, kernel = read_checkpoint(tmp_path / "model"), kernel_named("llamadeck")
    shape = read_shape(checkpoint, merged=True)
    assert kernel.can_capture(shape)
    places = DeviceMap((CPU,))
    model: Any = load_model(checkpoint, shape, kernel, places, torch.float16, CHUNK_TOKENS, lambda _: None)
    fuse_modules(model)
    runner = ModelRunner(model, 1, CONTEXT_TOKENS, num_pages=full_pages(1, CONTEXT_TOKENS))
    logits, in_tiles = list[torch.Tensor](), list[int]()
    watch(monkeypatch, runner, "run_captured", lambda out, *_: logits.append(out[0].float().clone()))
    watch(monkeypatch, PackedExperts, "_multiply_tiles", lambda out, *_: in_tiles.append(len(out)))

    def fuse(cache: GraphCache, run_decode: Callable[[], object], run_prefill: Callable[[], object]) -> None:
        assert fuse_layers(model, cache, run_decode) == LAYERS
        assert fuse_prefill(model, run_prefill) == LAYERS

    steps = GraphSteps(runner, StepSizes(CHUNK_TOKENS), PlainRecorder(), fuse)
    layers = [module for module in model.modules() if isinstance(module, FusedDecoderLayer)]
    for layer in layers:
        assert isinstance(layer._mlp, FusedExperts) and layer._mixer.is_fused and layer.prefills
    assert [layer.is_last for layer in layers] == [False, True]
    in_tiles.clear()
    steps.reset_slot(0, Sampling(temperature=0.0), 1, PROMPT)
    pending = steps.prefill(0, PROMPT, 0, True)
    assert pending is not None and pending.wait() == [first] and in_tiles == [CHUNK_TOKENS]
    assert (logits[-1] - read).abs().max() < TOLERANCE * read.std()
    steps.decode([0]).wait()
    assert (logits[-1] - written).abs().max() < TOLERANCE * written.std()


def watch(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, seen: Callable[..., object]) -> None:
    """Call `seen` with the result of each call of a method, and its arguments."""
    call = getattr(owner, name)

    def watched(*args: Any, **kwargs: Any) -> Any:
        out = call(*args, **kwargs)
        seen(out, *args)
        return out

    monkeypatch.setattr(owner, name, watched)
