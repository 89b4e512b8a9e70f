"""The command `gpus`: lists this machine's GPUs as NVML sees them, or those that are known by name."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from dataclasses import asdict
from typing import Any

from core.common.errors import DeckError
from core.common.terminal import Terminal, table
from core.gpu.known_gpus import KnownGpu, known_gpus
from core.gpu.snapshot import Gpu, GpuSnapshot, read_snapshot
from core.gpu.torch_support import find_gpu_error, installed_torch

COLUMNS = ("index", "name", "total", "free", "reserved", "capability", "utilization", "temperature", "power")
KNOWN_COLUMNS = ("name", "total", "capability", "bandwidth")
NO_VALUE = "-"


def add_arguments(parser: ArgumentParser, terminal: Terminal) -> None:
    parser.add_argument("--known", action="store_true", help=terminal.text("help_gpus_known"))
    parser.add_argument("--json", action="store_true", help=terminal.text("help_json"))


def run(arguments: Namespace, terminal: Terminal) -> int:
    """Print the list. The exit code is 1 where there is no GPU or no driver."""
    out = terminal.to_stdout()
    if arguments.known:
        gpus = known_gpus()
        if arguments.json:
            out.write_json(known_as_object(gpus))
            return 0
        return _print(known_lines(gpus, out), out)
    snapshot = read_snapshot()
    if arguments.json:
        out.write_json(as_object(snapshot))
    elif snapshot.error is None:
        _print(gpu_lines(snapshot, out), out)
        if error := find_gpu_error(snapshot, installed_torch()):
            terminal.error(error)
    if snapshot.error is not None:
        terminal.error(snapshot.error)
        return 1
    return 0


def as_object(snapshot: GpuSnapshot) -> dict[str, Any]:
    """The snapshot for programs. `error` is a sentence or null, for the machine and for each GPU; `unused` says why a
    model could not be loaded on any of them."""
    return {
        "driver": snapshot.driver_version,
        "cuda": snapshot.cuda_version,
        "error": snapshot.error and str(snapshot.error),
        "unused": _sentence(find_gpu_error(snapshot, installed_torch())),
        "gpus": [gpu_as_object(gpu) for gpu in snapshot.gpus],
    }


def _sentence(error: DeckError | None) -> str | None:
    return None if error is None else str(error)


def gpu_as_object(gpu: Gpu) -> dict[str, Any]:
    return asdict(gpu) | {
        "compute_capability": gpu.compute_capability and _dotted(gpu.compute_capability),
        "error": gpu.error and str(gpu.error),
    }


def known_as_object(gpus: tuple[KnownGpu, ...]) -> dict[str, Any]:
    rows = [
        {
            "name": gpu.name,
            "total_mib": gpu.total_mib,
            "compute_capability": _dotted(gpu.compute_capability),
            "bandwidth_gb_s": gpu.bandwidth_gb_s,
        }
        for gpu in gpus
    ]
    return {"known": rows}


def gpu_lines(snapshot: GpuSnapshot, out: Terminal) -> list[str]:
    """The versions, a row for each GPU, and below it the sentences of those that are broken."""
    versions = out.text("gpus_versions", driver=snapshot.driver_version or "?", cuda=snapshot.cuda_version or "?")
    head = [out.text(f"gpus_{name}") for name in COLUMNS]
    broken = [gpu.error.sentence(out.language) for gpu in snapshot.gpus if gpu.error is not None]
    return [versions, *table([head, *map(gpu_row, snapshot.gpus)], left=(0, 1)), *broken]


def gpu_row(gpu: Gpu) -> list[str]:
    capability = gpu.compute_capability and _dotted(gpu.compute_capability)
    power = None if gpu.power_w is None else f"{gpu.power_w:.0f}"
    numbers = (gpu.total_mib, gpu.free_mib, gpu.reserved_mib, capability)
    readings = (gpu.utilization_percent, gpu.temperature_c, power)
    return [gpu.label, gpu.name or NO_VALUE, *(_cell(value) for value in (*numbers, *readings))]


def known_lines(gpus: tuple[KnownGpu, ...], out: Terminal) -> list[str]:
    head = [out.text(f"gpus_{name}") for name in KNOWN_COLUMNS]
    rows = [[gpu.name, str(gpu.total_mib), _dotted(gpu.compute_capability), f"{gpu.bandwidth_gb_s:g}"] for gpu in gpus]
    return table([head, *rows])


def _cell(value: object) -> str:
    return NO_VALUE if value is None else str(value)


def _dotted(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))


def _print(lines: list[str], out: Terminal) -> int:
    for line in lines:
        out.write(line)
    return 0
