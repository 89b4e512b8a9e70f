"""Models of random weights: every byte of the file is what its tensor asks for, by however many writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from benchmarks import random_model
from benchmarks.random_model import SHAPES, Content, Quantization, list_tensors, make_empty, make_random_model
from tests.support.checkpoints import WEIGHTS

SMALL = {"hidden_size": 64, "moe_intermediate_size": 64, "num_experts": 8, "num_experts_per_tok": 2, "head_dim": 16,
         "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 512}  # fmt: skip


@pytest.mark.parametrize("hollow", [False, True])
@pytest.mark.parametrize("act_order", [False, True])
def test_each_tensor_has_its_content_or_is_a_hole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hollow: bool, act_order: bool
) -> None:
    monkeypatch.setattr(random_model, "RUN_BYTES", 5000)
    monkeypatch.setattr(random_model, "MOST_BUFFERS", 3)
    config, quantization = SHAPES["Qwen3-30B-A3B"] | SMALL, Quantization(4, 32, act_order)
    make_random_model(tmp_path, config, quantization, hollow)
    content, tensors = Content(quantization), list(list_tensors(make_empty(config), config, quantization))
    with safe_open(tmp_path / WEIGHTS, "np") as file:
        assert set(file.keys()) == {tensor.name for tensor in tensors}
        for tensor in tensors:
            got = file.get_tensor(tensor.name)
            wanted = np.concatenate([piece.reshape(-1) for piece in content.of(tensor)])
            is_hole = hollow and not tensor.name.endswith((".qzeros", ".g_idx"))
            assert got.tobytes() == (bytes(wanted.nbytes) if is_hole else wanted.tobytes())


def test_a_write_that_takes_only_a_part_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = random_model.os.pwrite
    monkeypatch.setattr(random_model.os, "pwritev", lambda fd, buffers, place: plain(fd, buffers[0][:1], place))
    monkeypatch.setattr(random_model.os, "pwrite", lambda fd, data, place: plain(fd, data[:7], place))
    path = tmp_path / "file"
    with path.open("wb") as file:
        buffers = [np.arange(9, dtype=np.int32), np.ones(5, np.float16)]
        assert random_model.write_buffers(file.fileno(), buffers, 3) == 46
    assert path.read_bytes() == bytes(3) + b"".join(one.tobytes() for one in buffers)
