"""Whether the tensors of recurrent layers have the sizes that the configuration tells.

The memory plan counts a state by the configuration alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from core.checkpoint.headers import TensorInfo
from core.checkpoint.layers import LAYER, LayerShape
from core.checkpoint.recurrent import Recurrent, ShortConv
from core.common.errors import CheckpointError


def refuse_state_sizes(
    model: str, layers: Sequence[LayerShape], tensors: Mapping[str, TensorInfo]
) -> CheckpointError | None:
    """The first tensor of another shape, None where there is none."""
    if not any(layer.recurrent for layer in layers):
        return None
    for name, tensor in tensors.items():
        if (match := LAYER.match(name)) is None or int(match[1]) >= len(layers):
            continue
        recurrent = layers[int(match[1])].recurrent
        for ending, shape in _shapes(recurrent) if recurrent else ():
            if name.endswith(ending) and tensor.shape != shape:
                found, wanted = str(list(tensor.shape)), str(list(shape))
                return CheckpointError("weight_shape", folder=model, name=name, found=found, wanted=wanted)
    return None


def _shapes(recurrent: Recurrent) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The endings of tensors' names, and their shapes: those that no quantization packs."""
    if isinstance(recurrent, ShortConv):
        yield ".conv.conv.weight", (recurrent.channels, 1, recurrent.conv_width)
        return
    yield ".conv1d.weight", (recurrent.channels, 1, recurrent.conv_width)
    yield ".A_log", recurrent.state_shape[:1]
    yield ".dt_bias", recurrent.state_shape[:1]
