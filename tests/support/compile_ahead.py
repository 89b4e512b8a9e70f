"""Compiles kernels into the caches that the GPU tests read, in a process of its own.

`python -m tests.support.compile_ahead 2 8` takes the third of eight shares.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from itertools import product

import torch

# Heads, key heads and a head's size: of the models that are loaded, and of those whose attention alone is tried.
MODEL_HEADS = [((8, 8), 64), ((8, 2), 64), ((8, 1), 64), ((4, 2), 128)]
ATTENTION_HEADS = [((8, 8), 128), ((16, 2), 128), ((32, 2), 128), ((7, 1), 64), ((12, 4), 64), ((4, 2), 256)]
# Sizes of heads that the attention of layers as they are is tried with.
CACHED_HEADS = (16, 32, 64, 100, 128, 512)
VOCABULARIES = (384, 500, 32000, 151936, 262144)
# The tests go first.
NICENESS = 5
DTYPES = (torch.float16, torch.bfloat16)


def own_kernels(device: torch.device) -> list[Callable[[], object]]:
    """Each kind of kernel that the tests use, as what makes it; those that take long come first."""
    from core.worker.kernels.cache_attention import kernels_for
    from core.worker.kernels.decode_attention import SPLITS, DecodeKernels
    from core.worker.kernels.expert_kernels import ExpertKernels
    from core.worker.kernels.expert_prompts import STAGES, ExpertPromptKernels
    from core.worker.kernels.packed_prefill import PrefillKernels
    from core.worker.kernels.packed_small_batch import SmallBatchKernels
    from core.worker.kernels.packing import CodeFormat
    from core.worker.kernels.sampling_kernel import SamplingKernel
    from core.worker.kernels.step_ops import module_for
    from tests.support.head_attention import CASES, SHARINGS

    is_hopper = torch.cuda.get_device_capability(device) >= (9, 0)
    kinds = [
        *((dtype, CodeFormat(4, *how)) for dtype, *how in product(DTYPES, (128, 64, 32, -1), (False, True))),
        *((dtype, CodeFormat(8, *how)) for dtype, *how in product(DTYPES, (128, 32), (False, True))),
    ]
    made: list[Callable[[], object]] = [partial(few_rows, SmallBatchKernels, *kind, device) for kind in kinds]
    of_experts = [
        *((dtype, CodeFormat(*how)) for dtype in DTYPES for how in ((4, 128, False), (4, 32, True), (8, -1, False))),
        (torch.float16, CodeFormat(4, 64, True)),
        (torch.float16, CodeFormat(4, -1, False)),
        (torch.float16, CodeFormat(4, 32, False)),
        (torch.bfloat16, CodeFormat(8, 32, True)),
    ]
    made += [partial(ExpertKernels, *kind, device) for kind in of_experts]
    if is_hopper:
        made += [partial(ExpertPromptKernels, *kind, rows, device) for kind in of_experts for rows in STAGES]
        made += [partial(PrefillKernels, *kind, device) for kind in kinds]
    made += [partial(DecodeKernels, dtype, *heads, 4, device) for dtype in DTYPES for heads in MODEL_HEADS]
    made += [partial(DecodeKernels, torch.float16, *heads, 4, device) for heads in ATTENTION_HEADS]
    for heads, blocks, clusters in product(ATTENTION_HEADS, SPLITS, (True, False) if is_hopper else (False,)):
        made.append(partial(DecodeKernels, torch.float16, *heads, 4, device, (blocks,), clusters))
    for case, dtype in product(CASES.values(), DTYPES):
        for way in SHARINGS if is_hopper else SHARINGS[:2]:
            made.append(partial(DecodeKernels, dtype, case.heads, case.kind.dim, 3, device, *way, case.kind))
    for dtype, vocabulary, clusters in product(DTYPES, VOCABULARIES, (True, False) if is_hopper else (False,)):
        made.append(partial(SamplingKernel, dtype, vocabulary, device, clusters))
    made += [partial(kernels_for, dtype, dim, device) for dtype in DTYPES for dim in CACHED_HEADS]
    made += [partial(module_for, dtype, device) for dtype in DTYPES]
    return made


def few_rows(make: Callable[..., object], *kind: object) -> None:
    """With 8 warps and with 16, which one row is multiplied with."""
    made = make(*kind)
    made.compile_variants(16)  # type: ignore[attr-defined]


def main(arguments: list[str]) -> None:
    os.nice(NICENESS)
    share, of = map(int, arguments)
    for make in own_kernels(torch.device("cuda", 0))[share::of]:
        make()


if __name__ == "__main__":
    main(sys.argv[1:])
