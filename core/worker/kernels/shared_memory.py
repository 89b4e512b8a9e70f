"""How much shared memory the thread blocks of a GPU have."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class SharedMemory:
    """block_bytes: the most that a thread block may have; multiprocessor_bytes: what all blocks on a multiprocessor
    share, 1 KiB of each being CUDA's."""

    block_bytes: int
    multiprocessor_bytes: int

    @classmethod
    def of(cls, device: torch.device) -> SharedMemory:
        properties = torch.cuda.get_device_properties(device)
        return cls(properties.shared_memory_per_block_optin, properties.shared_memory_per_multiprocessor)

    @property
    def half_bytes(self) -> int:
        """What each of two blocks on a multiprocessor has."""
        return min(self.block_bytes, self.multiprocessor_bytes // 2 - 1024)
