"""What a recurrent layer keeps of every chat: a state of fixed size for each slot, all in one tensor."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from core.checkpoint.recurrent import Recurrent
from core.memory.layer_state import num_state_rows


@dataclass(frozen=True, slots=True)
class StateRows:
    """The `rows` [rows] of recurrent states that a pass reads and writes.

    A captured pass has two things in GPU memory besides. is_first [rows]: whether a row's first token is its text's, so
    that nothing counts that stands in its state. count [1]: how many tokens of a chunk there are.
    """

    rows: torch.Tensor
    is_first: torch.Tensor | None = None
    count: torch.Tensor | None = None

    def read(self, states: torch.Tensor) -> torch.Tensor:
        """A copy of these rows of `states` [all rows, ...]."""
        found = states[self.rows]
        if self.is_first is None:
            return found
        return found.masked_fill_(self.is_first.view(-1, *[1] * (found.dim() - 1)), 0)


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
