"""The memory of one GPU that a model could be loaded on: measured now, or planned for a GPU that nobody has yet."""

from __future__ import annotations

from dataclasses import dataclass

from core.gpu.known_gpus import KnownGpu
from core.gpu.snapshot import Gpu

# What the driver keeps for itself where NVML cannot be asked, by the GPU's memory: the largest of the readings that
# are known (8 to 24 GB: 253 to 510 MiB; 40 GB and more: 479 to 696 MiB).
RESERVED_MIB = 510
RESERVED_LARGE_MIB = 700
LARGE_MIB = 32_000


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """The memory of one GPU, real or only named, in MiB.

    `others_mib` is what other processes hold, `returning_mib` what the model about to be unloaded will give back.
    """

    name: str
    total_mib: int
    capability: tuple[int, int]
    reserved_mib: int = 0
    others_mib: int = 0
    returning_mib: int = 0
    has_c_compiler: bool = True

    @property
    def available_mib(self) -> int:
        return max(0, self.total_mib - self.reserved_mib - self.others_mib + self.returning_mib)

    @classmethod
    def measured(cls, gpu: Gpu, own_pids: frozenset[int] = frozenset(), has_c_compiler: bool = True) -> DeviceMemory:
        """A GPU as NVML sees it now. What the processes `own_pids` hold comes back when their model is unloaded."""
        total, free = gpu.total_mib or 0, gpu.free_mib or 0
        reserved = gpu.reserved_mib or 0
        returning = sum(process.used_mib or 0 for process in gpu.processes if process.pid in own_pids)
        others = max(0, total - reserved - free)
        capability = gpu.compute_capability or (0, 0)
        return cls(
            gpu.name or gpu.label,
            total,
            capability,
            reserved,
            others,
            min(returning, others),
            has_c_compiler,
        )

    @classmethod
    def planned(cls, known: KnownGpu) -> DeviceMemory:
        """A GPU that somebody thinks of renting: empty, with what a driver keeps of one of its size."""
        return cls.empty(known.name, known.total_mib, known.compute_capability)

    @classmethod
    def empty(cls, name: str, total_mib: int, capability: tuple[int, int]) -> DeviceMemory:
        """A GPU that nothing runs on; `total_mib` is as NVML reports it."""
        return cls(name, total_mib, capability, RESERVED_LARGE_MIB if total_mib >= LARGE_MIB else RESERVED_MIB)
