"""Recurrent layers in captured steps without a GPU: their kernels run on the CPU (tests/support/cuda_on_cpu)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import linear

from core.checkpoint.checkpoint import read_checkpoint
from core.engine.sampling_params import Sampling
from core.memory.kernels.registry import kernel_named
from core.memory.model_shape import read_shape
from core.memory.pages import full_pages
from core.memory.step_sizes import StepSizes
from core.worker.decode import mixer_matrices
from core.worker.decode.cuda_graphs import GraphSteps
from core.worker.decode.delta_rule import FusedDeltaNet
from core.worker.decode.fused_decoder_layer import FusedDecoderLayer
from core.worker.decode.fused_modules import fuse_modules
from core.worker.decode.graph_cache import GraphCache
from core.worker.decode.layer_fusion import fuse_layers, fuse_prefill
from core.worker.decode.prompt_chunk import PromptChunk
from core.worker.decode.steps import EagerSteps
from core.worker.kernels import step_ops
from core.worker.kernels.fused_norm import FusedRmsNorm
from core.worker.model.device_map import DeviceMap
from core.worker.model.loader import load_model
from core.worker.model.model_runner import ModelRunner
from core.worker.model.recurrent_layers import FLOAT_MATRICES_ON_CPU
from tests.support.cuda_on_cpu import cuda_on_cpu
from tests.support.family_checkpoints import make_family_checkpoint
from tests.support.family_checks import SIZES
from tests.support.plain_recorder import PlainRecorder

pytestmark = pytest.mark.slow
GREEDY = Sampling(temperature=0.0)
CONTEXT_TOKENS, CHUNK_TOKENS = 128, 40
# Of the logits' spread: half precision rounds each of four layers' operations, in another order than torch's own.
TOLERANCE = 0.03
DELTA: dict[str, Any] = {
    "head_dim": 16,
    "num_hidden_layers": 4,
    "full_attention_interval": 2,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 32,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3_5_text": {"model_type": "qwen3_5_text", **SIZES, **DELTA},
    "qwen3_next": {"model_type": "qwen3_next", **SIZES, **DELTA, "num_experts": 0},
}
MAMBA: dict[str, Any] = {"mamba_n_heads": 8, "mamba_n_groups": 2, "mamba_d_state": 16, "mamba_d_head": "auto"}
# Those whose rules torch computes in captured steps too.
BY_TORCH: dict[str, dict[str, Any]] = {
    "lfm2": {"model_type": "lfm2", **SIZES, "num_hidden_layers": 3, "full_attn_idxs": [1],
             "block_auto_adjust_ff_dim": False},
    "bamba": {"model_type": "bamba", **SIZES, **MAMBA, "attn_layer_indices": [1]},
    "falcon_h1": {"model_type": "falcon_h1", **SIZES, **MAMBA, "mamba_d_ssm": 64, "ssm_in_multiplier": 0.7},
    "granitemoehybrid": {"model_type": "granitemoehybrid", **SIZES, **MAMBA, "layer_types": ["mamba", "attention"],
                         "num_local_experts": 0, "shared_intermediate_size": 128, "position_embedding_type": "rope"},
}  # fmt: skip
ALL_FAMILIES = pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)


class TorchDense:
    """In place of DenseKernels, whose instructions need another stand-in (tests/worker/test_dense_numbers.py)."""

    def multiply(
        self,
        weights: Sequence[torch.Tensor],
        x: torch.Tensor,
        residual: torch.Tensor | None = None,
        norm: FusedRmsNorm | None = None,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        x = x if norm is None else step_ops.rms_norm(x, norm.weight, norm.eps, norm.offset)
        done = torch.cat([linear(x, weight) for weight in weights], -1)
        done = done if residual is None else done + residual
        return done if out is None else out.copy_(done)


@pytest.fixture(scope="module", autouse=True)
def kernels() -> Iterator[None]:
    with cuda_on_cpu():
        yield


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


def load(folder: Path) -> Any:
    checkpoint, places = read_checkpoint(folder), DeviceMap((torch.device("cpu"),))
    shape = read_shape(checkpoint, merged=True)
    assert shape.is_capturable
    model = load_model(checkpoint, shape, kernel_named("dense"), places, torch.float16, 64, lambda _: None, 128)
    for name, module in model.named_modules():
        if name.endswith(FLOAT_MATRICES_ON_CPU):
            module.half()  # As on a GPU.
    return model


class WatchedRunner(ModelRunner):
    """Keeps the logits of the last pass."""

    logits: torch.Tensor

    def _call(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        self.logits = super()._call(*args, **kwargs)
        return self.logits


def play(runner: WatchedRunner, steps: EagerSteps | GraphSteps) -> torch.Tensor:
    """Two chats that are read in chunks and write together; then one of them is asked again, from a part of its
    text on. The logits of each step, with the same tokens whatever was drawn."""
    text = [(7 * place) % 300 + 5 for place in range(128)]
    logits: list[torch.Tensor] = []

    def read(slot: int, begin: int, end: int) -> None:
        steps.reset_slot(slot, GREEDY, 1, text[:end])
        for at in range(begin, end, CHUNK_TOKENS):
            chunk = text[at : min(end, at + CHUNK_TOKENS)]
            steps.prefill(slot, chunk, at, at + len(chunk) == end)
        logits.append(runner.logits[-1:].float().clone())

    read(0, 0, 93)
    read(1, 0, 7)
    for step in range(3):
        for slot in (0, 1):
            if isinstance(steps, GraphSteps):
                steps.tokens[slot] = text[step]
            else:
                steps._states[slot].token = text[step]
        steps.decode([0, 1])
        logits.append(runner.logits[:2].float().clone())
    begin = steps.reusable_tokens(0, 93)
    read(0, begin, 99)
    return torch.cat(logits)


@ALL_FAMILIES
def test_a_prompt_goes_on_from_a_state_that_a_pass_kept_on_its_way(tmp_path: Path, config: dict[str, Any]) -> None:
    make_family_checkpoint(tmp_path, config)
    text = [(11 * place) % 300 + 5 for place in range(100)]
    edited = [*text[:70], *range(20, 45)]
    plain = WatchedRunner(load(tmp_path), 1, CONTEXT_TOKENS)
    eager = EagerSteps(plain)
    eager.reset_slot(0, GREEDY, 1, edited)
    eager.prefill(0, edited, 0, True)
    runner = WatchedRunner(load(tmp_path), 1, CONTEXT_TOKENS, num_pages=full_pages(1, CONTEXT_TOKENS))
    steps = GraphSteps(runner, StepSizes(CONTEXT_TOKENS), PlainRecorder())
    assert steps.keeps_states and not eager.keeps_states
    steps.reset_slot(0, GREEDY, 1, text)
    steps.prefill_chunks([PromptChunk(0, text, 0, True, kept_at=64)])
    assert [steps.reusable_tokens(0, count) for count in (63, 64, 99, 100)] == [0, 64, 64, 100]
    steps.reset_slot(0, GREEDY, 1, edited)
    steps.prefill_chunks([PromptChunk(0, edited[64:], 64, True)])
    got, wanted = (one.logits[-1].float() for one in (runner, plain))
    assert (got - wanted).abs().max() < TOLERANCE * wanted.std()


@pytest.mark.parametrize("config", BY_TORCH.values(), ids=BY_TORCH)
def test_states_that_torch_leads_on_are_kept_between_passes_alone(tmp_path: Path, config: dict[str, Any]) -> None:
    make_family_checkpoint(tmp_path, config)
    runner = WatchedRunner(load(tmp_path), 1, CONTEXT_TOKENS, num_pages=full_pages(1, CONTEXT_TOKENS))
    steps = GraphSteps(runner, StepSizes(CHUNK_TOKENS), PlainRecorder())
    assert steps.has_states and not steps.keeps_states


@pytest.mark.parametrize("config", [*FAMILIES.values(), *BY_TORCH.values()], ids=[*FAMILIES, *BY_TORCH])
def test_captured_steps_say_what_plain_ones_say(tmp_path: Path, config: dict[str, Any]) -> None:
    make_family_checkpoint(tmp_path, config)
    plain = WatchedRunner(load(tmp_path), 3, CONTEXT_TOKENS)
    wanted = play(plain, EagerSteps(plain))
    model = load(tmp_path)
    fuse_modules(model)
    runner = WatchedRunner(model, 3, CONTEXT_TOKENS, num_pages=full_pages(3, CONTEXT_TOKENS))
    got = play(runner, GraphSteps(runner, StepSizes(CHUNK_TOKENS), PlainRecorder()))
    assert (got - wanted).abs().max() < TOLERANCE * wanted.std()


@pytest.mark.parametrize("config", BY_TORCH.values(), ids=BY_TORCH)
def test_steps_are_compared_from_the_same_states(
    tmp_path: Path, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replayed step once went on from what the plain one had left, and its logits were others."""
    monkeypatch.setattr(mixer_matrices, "dense_kernels_for", lambda dtype, device: TorchDense())
    make_family_checkpoint(tmp_path, config)
    plain = WatchedRunner(load(tmp_path), 3, CONTEXT_TOKENS)
    wanted = play(plain, EagerSteps(plain))
    model = load(tmp_path)

    def fuse(cache: GraphCache, run_decode: Any, run_prefill: Any) -> None:
        fuse_layers(model, cache, run_decode)
        fuse_prefill(model, run_prefill)

    fuse_modules(model)
    runner = WatchedRunner(model, 3, CONTEXT_TOKENS, num_pages=full_pages(3, CONTEXT_TOKENS))
    got = play(runner, GraphSteps(runner, StepSizes(CHUNK_TOKENS), PlainRecorder(), fuse))
    assert (got - wanted).abs().max() < TOLERANCE * wanted.std()


@ALL_FAMILIES
def test_a_recurrent_mixer_is_fused_and_computes_the_same(
    tmp_path: Path, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The layers' own states are as they were after the comparison: it was once made with those that a step left."""
    monkeypatch.setattr(mixer_matrices, "dense_kernels_for", lambda dtype, device: TorchDense())
    make_family_checkpoint(tmp_path, config)
    plain = WatchedRunner(load(tmp_path), 3, CONTEXT_TOKENS)
    wanted = play(plain, EagerSteps(plain))
    model, counts = load(tmp_path), []

    def fuse(cache: GraphCache, run_decode: Any, run_prefill: Any) -> None:
        counts.extend((fuse_layers(model, cache, run_decode), fuse_prefill(model, run_prefill)))

    fuse_modules(model)
    runner = WatchedRunner(model, 3, CONTEXT_TOKENS, num_pages=full_pages(3, CONTEXT_TOKENS))
    got = play(runner, GraphSteps(runner, StepSizes(CHUNK_TOKENS), PlainRecorder(), fuse))
    fused = [one for one in model.modules() if isinstance(one, FusedDecoderLayer)]
    assert counts == [2, 2] and all(isinstance(one._mixer, FusedDeltaNet) for one in fused)
    assert (got - wanted).abs().max() < TOLERANCE * wanted.std()
