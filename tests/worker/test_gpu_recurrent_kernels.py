"""On a GPU: the kernels of Gated DeltaNet layers, also with a real model's sizes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from core.checkpoint.recurrent import GatedDeltaNet
from tests.support.recurrent_kernel_tests import *  # noqa: F403
from tests.support.recurrent_kernel_tests import (
    BLOCK_TOLERANCES,
    HALVES,
    TOLERANCES,
    assert_close,
    differs,
    far,
    make_layer,
    make_rows,
    reference,
    some,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
# Of Qwen3.5-27B.
REAL = GatedDeltaNet(num_key_heads=16, num_value_heads=48, key_dim=128, value_dim=128, conv_width=4)


@pytest.fixture(autouse=True)
def on_the_gpu() -> Iterator[None]:
    with torch.device("cuda", 0):
        yield


@HALVES
@pytest.mark.parametrize("in_blocks", [False, True], ids=["token by token", "in blocks"])
def test_a_real_layer_reads_a_prompt_and_goes_on(in_blocks: bool, dtype: torch.dtype) -> None:
    layer = make_layer(REAL, dtype, in_blocks)
    rows, wanted = make_rows(REAL, dtype, 700), layer.copy()
    parts = [layer.chunk(some(rows, slice(0, 512)), 1, 0, 512), layer.chunk(some(rows, slice(512, 699)), 1, 512, 187)]
    parts.append(layer.step(some(rows, slice(699, 700)), [1], [699]))
    answers = reference(wanted, rows, 1, True)
    if in_blocks:
        assert differs(torch.cat(parts), answers) < BLOCK_TOLERANCES[dtype]
        assert differs(layer.state[1], wanted.state[1]) < BLOCK_TOLERANCES[dtype]
    else:
        assert far(torch.cat(parts), answers) < TOLERANCES[dtype]
        assert_close(layer, wanted, 1)


def test_a_captured_step_reads_which_slots_and_places_it_is_for() -> None:
    layer = make_layer(REAL, torch.bfloat16)
    rows, wanted = make_rows(REAL, torch.bfloat16, 4), layer.copy()
    slots, columns = torch.tensor([4, 4, 4, 4]), torch.tensor([-1, -1, -1, -1])
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        layer.kernels.step(rows, layer.weights, *layer.memory(), slots, columns)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            got = layer.kernels.step(rows, layer.weights, *layer.memory(), slots, columns)
        slots.copy_(torch.tensor([2, 0, 4, 1]))
        columns.copy_(torch.tensor([5, 0, -1, 9]))
        for _ in range(3):
            graph.replay()
    stream.synchronize()
    for _ in range(3):
        out = wanted.step(rows, [2, 0, 4, 1], [5, 0, -1, 9])
    assert torch.equal(got, out)
    assert torch.equal(layer.state, wanted.state) and torch.equal(layer.conv, wanted.conv)
