"""What quantizing a model takes, before anything is done: time, disk, RAM and GPU memory; and what the result will be.

Estimates: time is told to one digit, and the job corrects it while it runs.
"""

from __future__ import annotations

import math
import os
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from core.checkpoint.checkpoint import Checkpoint, make_checkpoint
from core.checkpoint.containers.registry import read_format
from core.checkpoint.expert_counts import CHOSEN, COUNTS
from core.checkpoint.experts import expert_matrix, first_value
from core.checkpoint.headers import DTYPE_BYTES, TensorInfo
from core.checkpoint.layers import LAYER
from core.checkpoint.text_config import text_config
from core.common.errors import DeckError
from core.common.values import is_whole
from core.memory.device_memory import DeviceMemory
from core.memory.fit import check_fit
from core.memory.fit_report import FitReport
from core.memory.sizes import FLOAT_BYTES, HALF_BYTES, MIB
from core.quantize.calibration import NUM_ROWS, row_tokens
from core.quantize.families import NOT_OFFLOADED
from core.quantize.options import BITS, GROUP_SIZES, QuantizeOptions
from core.quantize.resuming import can_resume, is_linked
from core.quantize.source import STACKED, PlainModel

# Libraries of the process: torch, transformers and gptqmodel, and of CUDA what lies in RAM; and its context on the GPU.
PROCESS_BYTES, CONTEXT_BYTES = {"cpu": 900 * MIB, "cuda": 1060 * MIB}, 600 * MIB
# A layer passes every row once for each group of its matrices, and once more to hand the results on.
FORWARD_PASSES = 5
# What an input of a matrix takes beside its arithmetic: on a GPU 128 of them are rounded by one kernel.
COLUMN_S = {"cpu": 150e-6, "cuda": 15e-6}
# What a middling GPU reaches in products of half precision and in those of float32; a CPU is measured.
GPU_HALF_FLOPS, GPU_FLOAT_FLOPS = 60e12, 20e12
# The libraries, and at the end the model's first answer.
START_S = {"cpu": 20.0, "cuda": 60.0}
# The source is read to be quantized and for its perplexity; the result is written twice and read.
DISK_BYTES_S, SOURCE_READS, RESULT_COPIES = 1e9, 2, 3
# Where a job can go on, the source is hashed once; what is kept after each layer is hashed twice and written.
HASH_BYTES_S, KEPT_PASSES = 1e9, 3
# How often the rows of all texts lie in memory: as they go into a layer and as they come out of it. Where a job can go
# on, also as a copy and as the bytes that are written, and with a GPU once more: a 7B took 6997 MiB beside an H200
# (2026-12-02, benchmarks/quantize_plan.py). The disk has up to four of them.
ROW_SETS, KEPT_ROW_SETS, ROW_SETS_ON_DISK = 2, {"cpu": 2, "cuda": 3}, 4
# What torch's allocator has of the GPU beside what is in use at once. A 7B took 4826 MiB on an H200 (2026-12-01,
# benchmarks/quantize_plan.py).
SPARE_VRAM = 0.3
# Rows of calibration that are in a layer at once, and what lies of each beside its input: gate, up and two products.
MOMENT_ROWS, ROW_COPIES = {"cpu": 4, "cuda": 8}, 4
# gptqmodel solves so many matrices with the same input at once.
SOLVED_TOGETHER = 4


@dataclass(frozen=True, slots=True)
class QuantizePlan:
    """Bytes and seconds. `disk_bytes` is what lies there at most beside the source, `result_bytes` what stays.

    `resumes`: whether a process that was ended goes on from the last finished layer.
    """

    time_s: float
    disk_bytes: int
    result_bytes: int
    ram_bytes: int
    vram_bytes: int
    resumes: bool


def plan_job(model: PlainModel, options: QuantizeOptions, device: str, is_meta: bool = False) -> QuantizePlan:
    """The plan of quantizing `model` on `device`, "cpu" or "cuda:N". `is_meta`: it is converted first."""
    kind = device.partition(":")[0]
    result_bytes = result_checkpoint(model, options).size_bytes
    length = row_tokens(model.config)
    tokens = NUM_ROWS[kind] * length
    bytes_each = FLOAT_BYTES if kind == "cpu" else HALF_BYTES
    rows = tokens * model.hidden * bytes_each
    layer_bytes = _layer_elements(model) * bytes_each
    widest = max((max(sides) for sides in model.matrices.values()), default=0)
    moment = layer_bytes + _solving_bytes(model) + MOMENT_ROWS[kind] * length * widest * ROW_COPIES * bytes_each
    ends = _end_elements(model) * bytes_each
    copies = model.size_bytes * (bool(options.adapters) + is_meta)
    is_copied = bool(copies) or model.folder is None
    resumes = can_resume(model.family) and (is_copied or not is_linked(model.folder or Path(), model.files))
    kept = result_bytes + ROW_SETS_ON_DISK * rows if resumes else 0
    keeping = model.size_bytes + KEPT_PASSES * (model.num_layers * rows + result_bytes) if resumes else 0
    ram = (
        PROCESS_BYTES[kind]
        + (ROW_SETS + KEPT_ROW_SETS[kind] * resumes) * rows
        + ends
        + layer_bytes
        + (moment if kind == "cpu" else 0)
        + (_elements(model) * bytes_each if model.family in NOT_OFFLOADED else 0)
    )
    return QuantizePlan(
        time_s=_time_s(model, tokens, kind, _expert_share(model, options.sees_all))
        + (SOURCE_READS * model.size_bytes + copies + RESULT_COPIES * result_bytes) / DISK_BYTES_S
        + keeping / HASH_BYTES_S,
        disk_bytes=copies + 2 * result_bytes + kept,
        result_bytes=result_bytes,
        ram_bytes=ram,
        vram_bytes=0 if kind == "cpu" else CONTEXT_BYTES + math.ceil((1 + SPARE_VRAM) * (ends + moment)),
        resumes=resumes,
    )


def result_checkpoint(model: PlainModel, options: QuantizeOptions) -> Checkpoint:
    """The checkpoint that quantizing `model` will make, as data: what the verdict needs."""
    settings = {
        "quant_method": "gptq",
        "bits": options.bits,
        "group_size": options.group_size,
        "desc_act": options.is_act_order,
        "sym": options.is_symmetric,
    }
    tensors: dict[str, TensorInfo] = {}
    for module, sides in model.matrices.items():
        tensors |= _packed(module, *sides, options)
    for name, tensor in model.tensors.items():
        if name.removesuffix(".weight") in model.matrices:
            continue
        if len(tensor.shape) == 3 and STACKED.match(name):
            continue
        tensors[name] = _tensor("F16" if tensor.dtype == "F32" else tensor.dtype, tensor.shape)
    config = model.config | {"quantization_config": settings}
    return make_checkpoint(model.name, config, read_format(model.name, settings), tensors)


def verdicts(
    model: PlainModel, options: QuantizeOptions, devices: Sequence[DeviceMemory]
) -> list[tuple[QuantizeOptions, FitReport]]:
    """What each choice of bits and group size would be on `devices`, the finest first; none that no kernel takes."""
    found = []
    for bits in sorted(BITS, reverse=True):
        for group_size in GROUP_SIZES:
            if group_size > 0 and any(sides[0] % group_size for sides in model.matrices.values()):
                continue
            choice = QuantizeOptions(bits, group_size, options.is_act_order, options.is_symmetric)
            try:
                found.append((choice, check_fit(result_checkpoint(model, choice), devices)))
            except DeckError:
                continue
    return found


@cache
def measured_flops() -> float:
    """Float32 operations a second of this machine's cores together; measured once, in a moment."""
    # It takes longer to import than the rest of a plan.
    import numpy as np

    size = 768
    matrix = np.ones((size, size), np.float32)
    begin_s = time.perf_counter()
    for _ in range(3):
        matrix @ matrix
    return 3 * 2 * size**3 / (time.perf_counter() - begin_s)


def _time_s(model: PlainModel, tokens: int, kind: str, share: float) -> float:
    """The passes of all rows, the Hessians (tokens * in^2 each) and the solving of each matrix (in^3, in^2 * out).

    `share`: how many of the tokens an expert sees.
    """
    passes = hessians = solving = 0.0
    columns = 0
    kinds = Counter((*sides, expert_matrix(name) is not None) for name, sides in model.matrices.items())
    for (inputs, outputs, is_expert), count in kinds.items():
        seen = tokens * share if is_expert else tokens
        passes += 2.0 * count * seen * inputs * outputs * FORWARD_PASSES
        hessians += 2.0 * count * seen * inputs**2
        solving += count * (2.0 * inputs**3 + 2.0 * inputs**2 * outputs)
        columns += count * inputs
    half_flops, float_flops = (measured_flops(),) * 2 if kind == "cpu" else (GPU_HALF_FLOPS, GPU_FLOAT_FLOPS)
    # Attention, norms and copies are about a tenth beside the matrices.
    return START_S[kind] + 1.1 * (passes / half_flops + (hessians + solving) / float_flops) + columns * COLUMN_S[kind]


def _expert_share(model: PlainModel, sees_all: bool) -> float:
    """How many of all tokens an expert sees: those that its router sends it, on the average."""
    text = text_config(model.config)
    count, chosen = first_value(text, COUNTS), first_value(text, CHOSEN)
    return chosen / count if not sees_all and is_whole(count) and is_whole(chosen) and count >= chosen > 0 else 1.0


def _solving_bytes(model: PlainModel) -> int:
    """The most that is there while matrices are solved: of one layer, those with the same input together."""
    layer = min((match[1] for name in model.matrices if (match := LAYER.match(f"{name}."))), default="")
    groups: defaultdict[tuple[str, int], list[int]] = defaultdict(list)
    for name, (inputs, outputs) in model.matrices.items():
        if (match := LAYER.match(f"{name}.")) and match[1] == layer:
            # All experts of a layer have one input.
            groups[name.rpartition(".")[0].rstrip("0123456789"), inputs].append(_matrix_bytes(inputs, outputs))
    together = (sum(sorted(sizes, reverse=True)[:SOLVED_TOGETHER]) for sizes in groups.values())
    return max(together, default=max((_matrix_bytes(i, o) for i, o in model.matrices.values()), default=0))


def _matrix_bytes(inputs: int, outputs: int) -> int:
    """While one matrix is solved: its Hessian, the inverse and a copy, and the matrix in float32 four times."""
    return FLOAT_BYTES * (3 * inputs**2 + 4 * inputs * outputs)


def _layer_elements(model: PlainModel) -> int:
    return sum(i * o for i, o in model.matrices.values()) // max(1, model.num_layers)


def _elements(model: PlainModel) -> int:
    return sum(math.prod(tensor.shape) for tensor in model.tensors.values())


def _end_elements(model: PlainModel) -> int:
    """The embedding and the head."""
    return sum(
        math.prod(tensor.shape)
        for name, tensor in model.tensors.items()
        if len(tensor.shape) == 2 and name.removesuffix(".weight") not in model.matrices
    )


def _packed(module: str, inputs: int, outputs: int, options: QuantizeOptions) -> dict[str, TensorInfo]:
    groups = 1 if options.group_size < 0 else math.ceil(inputs / options.group_size)
    return {
        f"{module}.qweight": _tensor("I32", (inputs * options.bits // 32, outputs)),
        f"{module}.qzeros": _tensor("I32", (groups, math.ceil(outputs * options.bits / 32))),
        f"{module}.scales": _tensor("F16", (groups, outputs)),
        f"{module}.g_idx": _tensor("I32", (inputs,)),
    }


def _tensor(dtype: str, shape: tuple[int, ...]) -> TensorInfo:
    return TensorInfo("model.safetensors", dtype, shape, 0, math.prod(shape) * DTYPE_BYTES[dtype])


def default_device(devices: Sequence[DeviceMemory]) -> str:
    """Where a job runs: the GPU with the most room, else the CPU. LLAMADECK_CPU keeps it on the CPU."""
    if not devices or os.environ.get("LLAMADECK_CPU") == "1":
        return "cpu"
    return f"cuda:{max(range(len(devices)), key=lambda index: free_bytes(devices[index]))}"


def free_bytes(device: DeviceMemory) -> int:
    """What is free of a GPU beside the model that is loaded, which stays."""
    return max(0, device.available_mib - device.returning_mib) * MIB
