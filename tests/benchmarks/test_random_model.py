"""Models of random weights: every byte of the file is what its tensor asks for, by however many writes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from benchmarks import random_model
from benchmarks.random_model import (
    SHAPES,
    Content,
    Quantization,
    Tensor,
    list_tensors,
    make_empty,
    make_random_model,
    written_parts,
)
from tests.support.checkpoints import WEIGHTS
from tests.support.dense_models import load_dense

NUM_EXPERTS = 8
SMALL = {"hidden_size": 64, "moe_intermediate_size": 64, "num_experts": NUM_EXPERTS, "num_local_experts": NUM_EXPERTS,
         "intermediate_size": 64, "num_experts_per_tok": 2, "head_dim": 16,
         "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 512}  # fmt: skip


@pytest.mark.parametrize("hollow", [False, True])
@pytest.mark.parametrize("act_order", [False, True])
def test_each_tensor_has_its_content_or_is_a_hole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hollow: bool, act_order: bool
) -> None:
    monkeypatch.setattr(random_model, "RUN_BYTES", 5000)
    monkeypatch.setattr(random_model, "MOST_BUFFERS", 3)
    monkeypatch.setattr(random_model, "WHOLE_BYTES", 8 * 64 * 2)
    monkeypatch.setattr(random_model, "STRIPE_ROWS", 16)
    monkeypatch.setattr(random_model, "WRITTEN_ROWS", 4)
    config, quantization = SHAPES["Qwen3-30B-A3B"] | SMALL, Quantization(4, 32, act_order)
    make_random_model(tmp_path, config, quantization, hollow)
    content, tensors = Content(quantization, hollow), list(list_tensors(make_empty(config), config, quantization))
    with safe_open(tmp_path / WEIGHTS, "np") as file:
        assert set(file.keys()) == {tensor.name for tensor in tensors}
        for tensor in tensors:
            wanted = np.concatenate([piece.reshape(-1) for piece in content.of(tensor)]).reshape(tensor.shape)
            if hollow:
                wanted[~is_written(tensor)] = 0
            assert file.get_tensor(tensor.name).tobytes() == wanted.tobytes(), tensor.name


def is_written(tensor: Tensor) -> np.ndarray:
    """Which rows of `tensor` a hollow model has. Keys and values are too few to be quantized."""
    rows = np.arange(tensor.shape[0])
    if tensor.name.endswith((".k_proj.weight", ".v_proj.weight")):
        return rows % 16 < 4
    return np.full(len(rows), not tensor.name.endswith(".qweight"))


def test_of_large_embeddings_a_hollow_model_has_those_of_its_tokenizer() -> None:
    tensor = Tensor("model.embed_tokens.weight", "F16", (151_936, 2048))
    assert [*written_parts(24, tensor)] == [(24, replace(tensor, shape=(512, 2048)))]


def test_a_hollow_model_takes_little_of_the_disk(tmp_path: Path) -> None:
    """What lies there of a 7B with two layers: embeddings of 512 tokens, scales and zero points."""
    config = SHAPES["7B"] | {"num_hidden_layers": 2}
    make_random_model(tmp_path, config, Quantization(), hollow=True)
    found = (tmp_path / WEIGHTS).stat()
    assert found.st_size > 700e6 and 512 * found.st_blocks < 30e6


@pytest.mark.parametrize("shape", ["Qwen3-30B-A3B", "Mixtral-8x7B"])
def test_layers_of_a_hollow_model_compute_with_numbers(tmp_path: Path, shape: str) -> None:
    """All of its weights were zeros once: so was each layer's output, a share of which is no number, and no layer with
    experts was fused. The memory ladder measured what no real model does."""
    make_random_model(tmp_path, SHAPES[shape] | SMALL, Quantization(4, 32), hollow=True)
    model = load_dense(tmp_path)
    outputs: list[torch.Tensor] = []
    chosen: list[torch.Tensor] = []
    for layer in model.model.layers:
        layer.register_forward_hook(lambda _, args, output: outputs.append(output - args[0]))
        layer.mlp.register_forward_hook(lambda _, args, output: outputs.append(output))
        layer.mlp.gate.register_forward_hook(lambda _, args, output: chosen.append(output[-1].sort().values))
    with torch.inference_mode():
        logits = model(torch.arange(3, 67)[None]).logits
    assert len(outputs) == 2 * len(chosen) == 4
    for output in (*outputs, logits):
        assert output.isfinite().all() and output.any(-1).all()
    for ids in chosen:
        assert len(set(ids.flatten().tolist())) == NUM_EXPERTS and len({*map(tuple, ids.tolist())}) > 8


def test_a_write_that_takes_only_a_part_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = random_model.os.pwrite
    monkeypatch.setattr(random_model.os, "pwritev", lambda fd, buffers, place: plain(fd, buffers[0][:1], place))
    monkeypatch.setattr(random_model.os, "pwrite", lambda fd, data, place: plain(fd, data[:7], place))
    path = tmp_path / "file"
    with path.open("wb") as file:
        buffers = [np.arange(9, dtype=np.int32), np.ones(5, np.float16)]
        assert random_model.write_buffers(file.fileno(), buffers, 3) == 46
    assert path.read_bytes() == bytes(3) + b"".join(one.tobytes() for one in buffers)
