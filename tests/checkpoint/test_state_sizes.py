"""Tensors of recurrent layers that are not as large as the configuration says are found before a load."""

from __future__ import annotations

from typing import Any

import pytest

from core.checkpoint.headers import TensorInfo
from core.checkpoint.layers import LayerShape
from core.checkpoint.recurrent import GatedDeltaNet, Mamba2, Recurrent, ShortConv
from core.checkpoint.state_sizes import refuse_state_sizes

DELTA, MAMBA, CONV = GatedDeltaNet(2, 4, 16, 32, 4), Mamba2(2, 8, 16, 8, 4), ShortConv(64, 3)


def refusal(recurrent: Recurrent, name: str, *shape: int) -> str | None:
    """What is said of a tensor of the second of two layers, of which the first attends."""
    attending: Any = LayerShape(mixer=None, mlp=None)  # type: ignore[arg-type]
    layers = (attending, LayerShape(mixer=recurrent, mlp=None))  # type: ignore[arg-type]
    info = TensorInfo("f", "F16", shape, 0, 0)
    tensors = {f"model.layers.0.{name}": info, f"model.layers.1.{name}": info}
    error = refuse_state_sizes("m", layers, tensors)
    if error is None:
        return None
    assert error.key == "weight_shape" and error.params["name"] == f"model.layers.1.{name}"
    return f"{error.params['found']} for {error.params['wanted']}"


@pytest.mark.parametrize(
    ("recurrent", "name", "shape"),
    [
        (DELTA, "linear_attn.conv1d.weight", (192, 1, 4)),
        (DELTA, "linear_attn.A_log", (4,)),
        (MAMBA, "mamba.conv1d.weight", (128, 1, 4)),
        (MAMBA, "mamba.dt_bias", (8,)),
        (CONV, "conv.conv.weight", (64, 1, 3)),
    ],
)
def test_a_tensor_has_the_shape_that_the_configuration_gives_it(
    recurrent: Recurrent, name: str, shape: tuple[int, ...]
) -> None:
    """A Bamba whose configuration had lost the number of its heads, and an LFM2 of another width, were said to fit."""
    assert refusal(recurrent, name, *shape) is None
    other = (*shape[:-1], shape[-1] + 1)
    assert refusal(recurrent, name, *other) == f"{list(other)} for {list(shape)}"
