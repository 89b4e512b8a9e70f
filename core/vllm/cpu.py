"""What vLLM can do on this machine's CPU."""

from __future__ import annotations

from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
# With these torch calls a CPU one with AVX-512, and vLLM takes its library for it.
AVX512 = frozenset(("avx512f", "avx512bw", "avx512dq", "avx512vl"))


def has_4_bit_kernel() -> bool:
    """Whether vLLM has its kernel for 4 bit here, cpu_gemm_wna16: for x86 it is in the library for AVX-512 alone
    (vllm-project/vllm#55613). True where that is not known, as on other machines."""
    try:
        lines = CPUINFO.read_text("utf-8", "replace").splitlines()
    except OSError:
        return True
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), None)
    return flags is None or AVX512.issubset(flags)
