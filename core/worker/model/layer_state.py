"""What a recurrent layer keeps of every chat: a state of fixed size for each slot, all in one tensor."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from core.checkpoint.recurrent import Recurrent
from core.memory.layer_state import num_state_rows


@dataclass(frozen=True, slots=True)
class RecurrentState:
    """A recurrent layer's states. Row r is slot r's; row `num_slots` takes what nobody reads; then the snapshots.

    conv: the convolution's last inputs [rows, channels, conv width - 1], oldest first, in the model's dtype.
    state: [rows, *the mixer's state_shape] float32; None of a layer that has its convolution alone.
    """

    conv: torch.Tensor
    state: torch.Tensor | None

    @staticmethod
    def allocate(mixer: Recurrent, num_slots: int, dtype: torch.dtype, device: torch.device) -> RecurrentState:
        rows = num_state_rows(num_slots)
        conv = torch.zeros((rows, mixer.channels, mixer.conv_width - 1), dtype=dtype, device=device)
        if not mixer.state_shape:
            return RecurrentState(conv, None)
        return RecurrentState(conv, torch.zeros((rows, *mixer.state_shape), dtype=torch.float32, device=device))

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        return (self.conv,) if self.state is None else (self.conv, self.state)
