"""The engine's own kernels compile for the GPUs they are for, which needs no GPU.

By an NVRTC of CUDA 12.4: what an older one takes, the newer ones that come with torch take as well.
"""

from __future__ import annotations

import ctypes
import locale
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from core.checkpoint.recurrent import GatedDeltaNet
from core.worker.kernels import (
    cache_attention,
    decode_attention,
    dense_small_batch,
    expert_kernels,
    expert_low_rank,
    expert_prompts,
    gptq_block,
    logprobs_kernel,
    low_rank,
    narrow_products,
    nvrtc,
    packed_prefill,
    packed_small_batch,
    recurrent,
    routed_pairs,
    router_kernel,
    row_norm,
    sampling_kernel,
    step_ops,
)
from core.worker.kernels.decode_attention import DecodeKernels, HeadKind
from core.worker.kernels.dense_small_batch import DenseKernels
from core.worker.kernels.gptq_block import GptqBlockKernel
from core.worker.kernels.logprobs_kernel import LogprobsKernel
from core.worker.kernels.low_rank import LowRankKernels
from core.worker.kernels.narrow_products import NarrowKernels
from core.worker.kernels.packed_prefill import ODD_ROW_TILES, ONE_ROW_TILES, PrefillKernels
from core.worker.kernels.packed_small_batch import SmallBatchKernels
from core.worker.kernels.packing import CodeFormat
from core.worker.kernels.recurrent import DeltaKernels
from core.worker.kernels.sampling_kernel import MAX_SCORES, SamplingKernel

package = pytest.importorskip("nvidia.cuda_nvrtc", reason="there is one for Linux on x86 only")


class Gpu:
    """What kernels ask of a GPU before they are compiled."""

    multi_processor_count = 132
    shared_memory_per_block_optin = 227 * 1024
    shared_memory_per_multiprocessor = 228 * 1024


class Compiled:
    """A module that is compiled and goes nowhere."""

    capability = (9, 0)

    def __init__(self, source: str, defines: Mapping[str, str | int], device: torch.device) -> None:
        code = nvrtc.compiled(source, defines, self.capability)
        assert code.startswith(b"\x7fELF")
        self._code = code

    def kernel(self, name: str, shared_bytes: int = 0) -> Compiled:
        assert name.encode() in self._code
        return self

    def most_blocks(self, num_threads: int) -> int:
        return 132


@pytest.fixture(autouse=True)
def compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    library = ctypes.CDLL(str(Path(package.__path__[0]) / "lib" / "libnvrtc.so.12"))
    monkeypatch.setattr(nvrtc, "library", lambda: library)
    monkeypatch.setattr(nvrtc, "cache_dir", lambda: tmp_path)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Gpu)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: Compiled.capability)
    for module in (
        packed_small_batch,
        sampling_kernel,
        logprobs_kernel,
        gptq_block,
        low_rank,
        packed_prefill,
        narrow_products,
        decode_attention,
        cache_attention,
        step_ops,
        row_norm,
        expert_kernels,
        expert_low_rank,
        expert_prompts,
        routed_pairs,
        recurrent,
        dense_small_batch,
        router_kernel,
    ):
        monkeypatch.setattr(module, "CudaModule", Compiled)
    caches = (
        decode_attention.module_for,
        cache_attention.kernels_for,
        step_ops.module_for,
        row_norm.norm_kernel,
        recurrent.module_for,
        dense_small_batch.module_for,
    )
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


@pytest.mark.parametrize(
    ("capability", "dtype", "format"),
    [
        ((8, 0), torch.float16, CodeFormat(4, 128, False)),
        ((8, 9), torch.bfloat16, CodeFormat(4, 32, True)),
        ((9, 0), torch.float16, CodeFormat(4, 128, False)),
        ((9, 0), torch.bfloat16, CodeFormat(4, -1, True)),
        ((8, 0), torch.bfloat16, CodeFormat(8, 32, False)),
        ((9, 0), torch.float16, CodeFormat(8, 128, True)),
    ],
    ids=str,
)
def test_the_products_compile(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], dtype: torch.dtype, format: CodeFormat
) -> None:
    monkeypatch.setattr(Compiled, "capability", capability)
    kernels = SmallBatchKernels(dtype, format, torch.device("cpu"))
    # Those of one row are compiled at their first use.
    kernels.compile_variants(16)
    if capability == (9, 0):
        for tile_rows in ONE_ROW_TILES:
            PrefillKernels(dtype, format, tile_rows, torch.device("cpu"))
        for tile_rows in ODD_ROW_TILES:
            PrefillKernels(dtype, format, tile_rows, torch.device("cpu"), is_odd=True)


@pytest.mark.parametrize(
    ("capability", "dtype", "format"),
    [
        ((8, 9), torch.bfloat16, CodeFormat(4, 32, True)),
        ((9, 0), torch.float16, CodeFormat(4, 128, False)),
        ((9, 0), torch.bfloat16, CodeFormat(8, 128, True)),
    ],
    ids=str,
)
def test_the_products_with_adapters_compile(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], dtype: torch.dtype, format: CodeFormat
) -> None:
    monkeypatch.setattr(Compiled, "capability", capability)
    SmallBatchKernels(dtype, format, torch.device("cpu"), adapters=True).compile_variants(16)


@pytest.mark.parametrize(
    ("capability", "shared_kib", "dtype", "format"),
    [
        ((8, 0), 163, torch.float16, CodeFormat(4, 128, False)),
        ((8, 9), 99, torch.bfloat16, CodeFormat(8, 32, True)),
        ((9, 0), 227, torch.bfloat16, CodeFormat(4, 128, False)),
        ((9, 0), 227, torch.float16, CodeFormat(8, 32, True)),
    ],
    ids=str,
)
def test_the_products_with_experts_compile(
    monkeypatch: pytest.MonkeyPatch,
    capability: tuple[int, int],
    shared_kib: int,
    dtype: torch.dtype,
    format: CodeFormat,
) -> None:
    monkeypatch.setattr(Compiled, "capability", capability)
    monkeypatch.setattr(Gpu, "shared_memory_per_block_optin", shared_kib * 1024)
    expert_kernels.ExpertKernels(dtype, format, torch.device("cpu"))
    routed_pairs.PairKernels(dtype, torch.device("cpu"))
    router_kernel.RouterKernels(dtype, 128, 2048, torch.device("cpu"))
    if capability == (9, 0):
        for rows in expert_prompts.STAGES:
            expert_prompts.ExpertPromptKernels(dtype, format, rows, torch.device("cpu"))


@pytest.mark.parametrize("tile_rows", ONE_ROW_TILES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_products_of_narrow_matrices_compile(dtype: torch.dtype, tile_rows: int) -> None:
    NarrowKernels(dtype, tile_rows, torch.device("cpu"))


@pytest.mark.parametrize(
    ("capability", "dtype", "format"),
    [((8, 0), torch.float16, CodeFormat(8, 32, True)), ((9, 0), torch.bfloat16, CodeFormat(4, 128, False))],
    ids=str,
)
def test_the_products_with_experts_and_their_adapters_compile(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], dtype: torch.dtype, format: CodeFormat
) -> None:
    monkeypatch.setattr(Compiled, "capability", capability)
    expert_kernels.ExpertKernels(dtype, format, torch.device("cpu"), adapters=True)
    expert_low_rank.ExpertLowRankKernels(dtype, torch.device("cpu"))


@pytest.mark.parametrize("capability", [(8, 0), (8, 9), (9, 0)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_products_of_unquantized_matrices_compile(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], dtype: torch.dtype
) -> None:
    monkeypatch.setattr(Compiled, "capability", capability)
    DenseKernels(dtype, torch.device("cpu"))


@pytest.mark.parametrize("capability", [(8, 0), (9, 0)])
@pytest.mark.parametrize(
    ("dtype", "heads", "dim"),
    [
        (torch.float16, (32, 32), 128),
        (torch.bfloat16, (64, 8), 128),
        (torch.float16, (7, 1), 64),
        (torch.bfloat16, (24, 4), 256),
    ],
)
def test_the_attention_of_new_tokens_compiles(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], dtype: torch.dtype, heads: tuple[int, int], dim: int
) -> None:
    """The end of an attention was a function that CUDA 12.4 does not take, so models were loaded with slow steps."""
    monkeypatch.setattr(Compiled, "capability", capability)
    for clusters in {False, capability >= (9, 0)}:
        DecodeKernels(dtype, heads, dim, 2, torch.device("cpu"), clusters=clusters)
    row_norm.norm_kernel(dtype, torch.device("cpu"))


@pytest.mark.parametrize("capability", [(8, 0), (9, 0)])
@pytest.mark.parametrize(
    ("heads", "kind"),
    [((16, 2), HeadKind(256, 64, True, True)), ((32, 4), HeadKind(128, 128, True)), ((64, 8), HeadKind(64, 64))],
    ids=str,
)
def test_the_attention_of_normed_and_gated_heads_compiles(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], heads: tuple[int, int], kind: HeadKind
) -> None:
    monkeypatch.setattr(Compiled, "capability", capability)
    clusters = capability >= (9, 0)
    DecodeKernels(torch.bfloat16, heads, kind.dim, 2, torch.device("cpu"), clusters=clusters, kind=kind)


@pytest.mark.parametrize(("dtype", "vocabulary"), [(torch.float16, 500), (torch.bfloat16, MAX_SCORES * 4096)])
def test_sampling_compiles(dtype: torch.dtype, vocabulary: int) -> None:
    SamplingKernel(dtype, vocabulary, torch.device("cpu"), clusters=True)


# Cards of every way that the kernels have: no tensor cores, those of float16, all.
ANY_GPU = pytest.mark.parametrize("capability", [(6, 1), (7, 5), (8, 0), (8, 9), (9, 0)], ids=str)


@ANY_GPU
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_small_operations_of_a_step_compile_for_any_gpu(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], dtype: torch.dtype
) -> None:
    monkeypatch.setattr(Compiled, "capability", capability)
    step_ops.module_for(dtype, torch.device("cpu"))
    SamplingKernel(dtype, 151936, torch.device("cpu"), clusters=False)
    LowRankKernels(dtype, torch.device("cpu"))


@ANY_GPU
@pytest.mark.parametrize(("dtype", "dim"), [(torch.float16, 100), (torch.bfloat16, 128), (torch.float16, 256)])
def test_the_attention_of_any_layer_compiles_for_any_gpu(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], dtype: torch.dtype, dim: int
) -> None:
    monkeypatch.setattr(Compiled, "capability", capability)
    cache_attention.kernels_for(dtype, dim, torch.device("cpu"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (9, 0)], ids=str)
def test_attention_over_keys_and_values_in_8_bit_compiles(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], dtype: torch.dtype
) -> None:
    monkeypatch.setattr(Compiled, "capability", capability)
    cpu = torch.device("cpu")
    step_ops.module_for(dtype, cpu, 8)
    for dim in (100, 128):
        cache_attention.kernels_for(dtype, dim, cpu, 8)
    if capability >= (8, 0):
        DecodeKernels(dtype, (8, 2), 128, 2, cpu, clusters=capability >= (9, 0), bits=8)


@pytest.mark.parametrize("capability", [(8, 9), (9, 0)], ids=str)
def test_the_attention_of_gemma_4s_largest_heads_compiles(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]
) -> None:
    monkeypatch.setattr(Compiled, "capability", capability)
    cache_attention.kernels_for(torch.bfloat16, 512, torch.device("cpu"))


@ANY_GPU
@pytest.mark.parametrize(
    ("dtype", "dims", "conv_width"),
    [(torch.bfloat16, (128, 128), 4), (torch.float16, (64, 192), 4), (torch.bfloat16, (256, 256), 8)],
)
def test_recurrent_layers_compile_for_any_gpu(
    monkeypatch: pytest.MonkeyPatch,
    capability: tuple[int, int],
    dtype: torch.dtype,
    dims: tuple[int, int],
    conv_width: int,
) -> None:
    monkeypatch.setattr(Compiled, "capability", capability)
    DeltaKernels(GatedDeltaNet(2, 4, *dims, conv_width), dtype, 8, torch.device("cpu"))


def test_text_is_read_after_compiling_as_before() -> None:
    """NVRTC 12.4 leaves the thread that calls it with the locale "C": the tests after these read files as ASCII."""
    before = locale.getpreferredencoding(False)
    nvrtc.compiled('extern "C" __global__ void nothing() {}', {}, (9, 0))
    with pytest.raises(nvrtc.CudaCodeError, match="error"):
        nvrtc.compiled("no kernel", {}, (9, 0))
    assert locale.getpreferredencoding(False) == before


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (9, 0)])
def test_log_probabilities_compile(dtype: torch.dtype, capability: tuple[int, int], monkeypatch: Any) -> None:
    monkeypatch.setattr(Compiled, "capability", capability)
    LogprobsKernel(dtype, torch.device("cpu"))


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (9, 0)])
def test_gptq_compiles(capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Compiled, "capability", capability)
    GptqBlockKernel(torch.device("cpu"))


KERNELS = {path.name: text for path in nvrtc.SOURCES.glob("*.cu") if "__global__" in (text := path.read_text("utf-8"))}


@pytest.mark.parametrize("name", sorted(KERNELS))
def test_every_kernel_waits_for_the_one_before(name: str) -> None:
    """All are launched to begin while the one before still runs. The one of log-probabilities did not wait, and could
    tell of a token that was not drawn yet."""
    assert "pdl_wait();" in KERNELS[name]
