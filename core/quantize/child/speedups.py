"""Two loops of gptqmodel 7.6 in other words, with the same results to the bit: the rest of it stays as it is.

For each it has code that is compiled on the machine at the first use, which takes most of a minute where there are
compilers, and a loop of torch operations else, which takes minutes more for a 7B. Ours are compiled by NVRTC, which
comes with torch, and by nothing.
"""

from __future__ import annotations

import logging

import torch

from core.worker.kernels.gptq_block import gptq_block_kernel_for
from core.worker.kernels.nvrtc import CudaCodeError

log = logging.getLogger(__name__)
# Inputs of a matrix that are packed at once: what lies between is small beside the matrix.
PACKED_INPUTS = 512


def install(device: torch.device) -> None:
    """Let gptqmodel, in this process, round on `device` and pack by what is here."""
    from gptqmodel.nn_modules.qlinear import pack_block_ext
    from gptqmodel.quantization import gptq_cuda

    pack_block_ext.pack_block_cpu = pack
    if device.type != "cuda":
        return
    try:
        gptq_block_kernel_for(device)
    except CudaCodeError as error:
        log.warning("matrices are rounded by gptqmodel's own code: %s", error)
        return
    gptq_cuda.block_update_available = lambda: True
    gptq_cuda.gptq_block_update = block_update


def block_update(
    work: torch.Tensor,
    hinv: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor,
    column_group: torch.Tensor,
    quantized: torch.Tensor,
    errors: torch.Tensor,
    losses: torch.Tensor,
    maxq: int,
) -> None:
    """As gptqmodel's quantization/gptq_cuda.py, but that `work` stays as it was: nothing reads it afterwards."""
    kernel = gptq_block_kernel_for(work.device)
    kernel(work, hinv, scale, zero, column_group, quantized, errors, losses, maxq)


def pack(
    weight: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor,
    g_idx: torch.Tensor,
    bits: int,
    word_bits: int,
    block_in: int,
    threads: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As gptqmodel's nn_modules/qlinear/pack_block_ext.py: the codes of a rounded matrix `weight` [out, in], whose
    groups have `scales` and `zeros` [groups, out], as int32 words: [in * bits / 32, out] and [groups, out * bits / 32].
    `block_in` and `threads` change nothing."""
    assert word_bits == 32 and bits in (4, 8)
    groups, highest = g_idx.long(), (1 << bits) - 1
    scales, zeros = scales.float().T.contiguous(), zeros.float().T.contiguous()
    offsets = scales * zeros
    words = torch.empty((weight.shape[1] * bits // word_bits, weight.shape[0]), dtype=torch.int32)
    for begin in range(0, weight.shape[1], PACKED_INPUTS):
        own = groups[begin : begin + PACKED_INPUTS]
        codes = weight[:, begin : begin + PACKED_INPUTS] + offsets[:, own]
        codes = codes.div_(scales[:, own]).round_().clamp_(0, highest).to(torch.uint8)
        packed = _joined(codes, bits)
        first = begin * bits // word_bits
        words[first : first + packed.shape[1]] = packed.T
    return words, _joined(zeros.T.to(torch.uint8), bits)


def _joined(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes [rows, columns] as int32 words [rows, columns * bits / 32], the first in the lowest bits."""
    if bits == 4:
        codes = codes[:, ::2] | codes[:, 1::2] << 4
    # Words begin with their lowest byte wherever there are NVIDIA GPUs.
    return codes.contiguous().view(torch.int32)
