"""Compiles kernels into the cache that the GPU tests read, in processes of its own.

`python -m tests.support.compile_ahead FOLDER` compiles what no other process with the same FOLDER has begun.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from itertools import product
from pathlib import Path

import torch

from core.checkpoint.recurrent import GatedDeltaNet
from core.worker.kernels import nvrtc
from core.worker.kernels.cache_attention import kernels_for
from core.worker.kernels.decode_attention import SPLITS, DecodeKernels, HeadKind
from core.worker.kernels.dense_small_batch import DenseKernels
from core.worker.kernels.expert_kernels import ExpertKernels
from core.worker.kernels.expert_low_rank import ExpertLowRankKernels
from core.worker.kernels.expert_prompts import STAGES, ExpertPromptKernels
from core.worker.kernels.gptq_block import GptqBlockKernel
from core.worker.kernels.logprobs_kernel import LogprobsKernel
from core.worker.kernels.low_rank import LowRankKernels
from core.worker.kernels.narrow_products import NarrowKernels
from core.worker.kernels.packed_prefill import ODD_ROW_TILES, ONE_ROW_TILES, PrefillKernels
from core.worker.kernels.packed_small_batch import SmallBatchKernels
from core.worker.kernels.packing import CodeFormat
from core.worker.kernels.recurrent import DeltaKernels
from core.worker.kernels.routed_pairs import PairKernels
from core.worker.kernels.router_kernel import RouterKernels
from core.worker.kernels.row_norm import norm_kernel
from core.worker.kernels.sampling_kernel import SamplingKernel
from core.worker.kernels.step_ops import module_for
from tests.support.head_attention import CASES, SHARINGS

FLOAT16, BFLOAT16 = DTYPES = (torch.float16, torch.bfloat16)
# What matrices are quantized to, with each type.
FORMATS = {
    FLOAT16: [
        *(CodeFormat(4, group_size, zeros) for group_size, zeros in product((128, 64, 32, -1), (False, True))),
        CodeFormat(8, 128, False),
        CodeFormat(8, 32, True),
        CodeFormat(8, -1, True),
    ],
    BFLOAT16: [CodeFormat(4, 128, False), CodeFormat(8, 32, True), CodeFormat(4, 64, True), CodeFormat(4, 32, False)],
}
# Of matrices with adapters beside them.
ADAPTED_FORMATS = [CodeFormat(4, 128, False), CodeFormat(4, 64, False), CodeFormat(8, 128, False)]
EXPERT_FORMATS = {
    FLOAT16: [
        CodeFormat(4, 128, False),
        CodeFormat(4, 128, True),
        CodeFormat(4, 64, True),
        CodeFormat(4, -1, False),
        CodeFormat(8, 128, False),
        CodeFormat(8, -1, True),
    ],
    BFLOAT16: [CodeFormat(4, 128, False), CodeFormat(8, 32, True), CodeFormat(4, 32, False)],
}
# Of experts with adapters beside them.
ADAPTED_EXPERT_FORMATS = [
    (FLOAT16, CodeFormat(4, 128, False)),
    (FLOAT16, CodeFormat(4, 64, True)),
    (FLOAT16, CodeFormat(4, 64, False)),
    (BFLOAT16, CodeFormat(4, 32, True)),
    (FLOAT16, CodeFormat(8, 64, True)),
]
# Experts and the size of a row.
ROUTERS = [(128, 2048), (8, 4096), (512, 2048), (16, 256), (8, 256), (4, 256)]
# Heads, key heads and a head's size: of the models that are loaded, and of those whose attention alone is tried.
MODEL_HEADS = [((8, 8), 64), ((8, 2), 64), ((8, 1), 64), ((4, 2), 64), ((4, 2), 128)]
BFLOAT16_MODEL_HEADS = [((8, 8), 64), ((8, 2), 64)]
NORMED_HEADS = [HeadKind(64, 64, True), HeadKind(64, 16, True, True)]
ATTENTION_HEADS = [((8, 8), 128), ((16, 2), 128), ((32, 2), 128), ((7, 1), 64), ((12, 4), 64), ((4, 2), 256)]
# Sizes of heads that the attention of layers as they are is tried with.
CACHED_HEADS = (16, 32, 64, 100, 128, 512)
# Vocabularies with each type: of models, of tests of a draw, and of those that compare the ways to draw.
VOCABULARIES = [*product(DTYPES, (384, 500)), (BFLOAT16, 2500)]
COMPARED_VOCABULARIES = [(FLOAT16, 500), (BFLOAT16, 32000), (FLOAT16, 151936), (BFLOAT16, 262144)]
# Sizes of Gated DeltaNet layers; whether chunks are read in blocks.
RECURRENT = [((32, 16, 4), (False, True)), ((128, 128, 4), (False, True)), ((20, 44, 2), (False,))]
# The tests go first.
NICENESS = 5


class CompiledModule:
    """Stands in for CudaModule: the code is in the cache then, and nothing is loaded on the GPU."""

    capability = (0, 0)

    def __init__(self, source: str, defines: Mapping[str, str | int], device: torch.device) -> None:
        nvrtc.compiled(source, defines, self.capability)

    def kernel(self, name: str, shared_bytes: int = 0) -> CompiledModule:
        return self

    def most_blocks(self, num_threads: int) -> int:
        return 1


def own_kernels(is_hopper: bool) -> list[Callable[[], object]]:
    """Each kind of kernel that the tests use, as what compiles it; those that take long come first."""
    device = torch.device("cpu")
    formats = [(dtype, format) for dtype, some in FORMATS.items() for format in some]
    expert_formats = [(dtype, format) for dtype, some in EXPERT_FORMATS.items() for format in some]
    made: list[Callable[[], object]] = [
        partial(few_rows, dtype, format, device, adapters)
        for dtype, format, adapters in (
            *((FLOAT16, format, True) for format in ADAPTED_FORMATS),
            *((*kind, False) for kind in formats),
        )
    ]
    ways = (True, False) if is_hopper else (False,)
    made += [partial(SamplingKernel, *one, device, way) for one in COMPARED_VOCABULARIES[::-1] for way in ways]
    plain_formats = dict.fromkeys([*expert_formats, *ADAPTED_EXPERT_FORMATS])
    made += [partial(ExpertKernels, *kind, device, True) for kind in ADAPTED_EXPERT_FORMATS]
    made += [partial(ExpertKernels, *kind, device) for kind in plain_formats]
    if is_hopper:
        made += [partial(PrefillKernels, *kind, rows, device) for kind in formats for rows in ONE_ROW_TILES]
        made += [partial(NarrowKernels, dtype, rows, device) for dtype in DTYPES for rows in ONE_ROW_TILES]
        made += [partial(PrefillKernels, *kind, rows, device, True) for kind in formats for rows in ODD_ROW_TILES]
    made += [partial(DecodeKernels, FLOAT16, *heads, 4, device) for heads in (*MODEL_HEADS, *ATTENTION_HEADS)]
    made += [partial(DecodeKernels, BFLOAT16, *heads, 4, device) for heads in BFLOAT16_MODEL_HEADS]
    made += [partial(DecodeKernels, FLOAT16, *heads, 4, device, bits=8) for heads in MODEL_HEADS]
    made += [partial(DecodeKernels, FLOAT16, (4, 2), 64, 4, device, kind=kind) for kind in NORMED_HEADS]
    made += [
        partial(DeltaKernels, GatedDeltaNet(1, 2, *sizes), dtype, 1, device, in_blocks)
        for sizes, blocks in RECURRENT
        for in_blocks, dtype in product(blocks, DTYPES)
    ]
    made.append(partial(GptqBlockKernel, device))
    kinds = (DenseKernels, LowRankKernels, ExpertLowRankKernels, module_for, norm_kernel, PairKernels, LogprobsKernel)
    made += [partial(kind, dtype, device) for kind in kinds for dtype in DTYPES]
    made += [partial(kernels_for, *one, device, bits) for one in product(DTYPES, CACHED_HEADS) for bits in (16, 8)]
    made += [partial(module_for, dtype, device, 8) for dtype in DTYPES]
    made += [partial(RouterKernels, FLOAT16, *sizes, device) for sizes in ROUTERS]
    made += [partial(SamplingKernel, *one, device, is_hopper) for one in VOCABULARIES]
    if is_hopper:
        made += [partial(ExpertPromptKernels, *kind, rows, device) for kind in expert_formats for rows in STAGES]
    for heads, blocks, clusters in product(ATTENTION_HEADS, SPLITS, ways):
        made.append(partial(DecodeKernels, FLOAT16, *heads, 4, device, (blocks,), clusters))
    for case, dtype, bits in product(CASES.values(), DTYPES, (16, 8)):
        for way in SHARINGS if is_hopper else SHARINGS[:2]:
            made.append(partial(DecodeKernels, dtype, case.heads, case.kind.dim, 3, device, *way, case.kind, bits))
    return made


def few_rows(dtype: torch.dtype, format: CodeFormat, device: torch.device, adapters: bool) -> None:
    """With 8 warps and with 16, which one row is multiplied with."""
    SmallBatchKernels(dtype, format, device, adapters).compile_variants(16)


def compile_each_once() -> None:
    """Let whoever needs a kernel that another process compiles wait for it, and not compile it as well."""
    plain, folder = nvrtc.compiled, Path(tempfile.gettempdir()) / f"llamadeck-compiling-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)

    def compiled(source: str, defines: Mapping[str, str | int], capability: tuple[int, int]) -> bytes:
        key = hashlib.sha256(f"{source}{sorted(defines.items())}{capability}".encode()).hexdigest()
        with (folder / key).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            return plain(source, defines, capability)

    nvrtc.compiled = compiled


def compile_without_loading(capability: tuple[int, int], properties: object) -> None:
    """Let kernels be made for a GPU of `capability` and `properties` without touching it."""
    CompiledModule.capability = capability
    torch.cuda.get_device_properties = lambda device=None: properties
    torch.cuda.get_device_capability = lambda device=None: capability
    for name, module in list(sys.modules.items()):
        if name.startswith("core.worker.kernels.") and hasattr(module, "CudaModule"):
            module.CudaModule = CompiledModule  # type: ignore[attr-defined]


def main(claims: Path) -> None:
    os.nice(NICENESS)
    capability = torch.cuda.get_device_capability(0)
    compile_without_loading(capability, torch.cuda.get_device_properties(0))
    compile_each_once()
    for number, make in enumerate(own_kernels(capability >= (9, 0))):
        try:
            (claims / str(number)).touch(exist_ok=False)
        except FileExistsError:
            continue
        make()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
