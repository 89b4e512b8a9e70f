"""Whether the tensors of recurrent layers have the sizes that the configuration tells.

The memory plan counts a state by the configuration alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from core.checkpoint.headers import TensorInfo
from core.checkpoint.layers import LAYER, LayerShape
from core.checkpoint.recurrent import Recurrent
from core.common.errors import CheckpointError

# The endings of tensors' names: of those that no quantization packs.
CONVOLUTIONS, OF_HEADS = (".conv.conv.weight", ".conv1d.weight"), (".A_log", ".dt_bias")


def refuse_state_sizes(
    model: str, layers: Sequence[LayerShape], tensors: Mapping[str, TensorInfo]
) -> CheckpointError | None:
    """The first tensor of another shape, None where there is none."""
    if not any(layer.recurrent for layer in layers):
        return None
    for name, tensor in tensors.items():
        # First, and quickly: a mixture has 300,000 tensors of experts.
        if not name.endswith(CONVOLUTIONS + OF_HEADS):
            continue
        if (match := LAYER.match(name)) is None or int(match[1]) >= len(layers):
            continue
        recurrent = layers[int(match[1])].recurrent
        if recurrent is not None and tensor.shape != (shape := _shape(recurrent, name)):
            found, wanted = str(list(tensor.shape)), str(list(shape))
            return CheckpointError("weight_shape", folder=model, name=name, found=found, wanted=wanted)
    return None


def _shape(recurrent: Recurrent, name: str) -> tuple[int, ...]:
    if name.endswith(CONVOLUTIONS):
        return recurrent.channels, 1, recurrent.conv_width
    return recurrent.state_shape[:1]
