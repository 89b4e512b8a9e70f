"""From a file's packing to the one form that all kernels take (MatrixTensors), one tensor at a time, on a CPU or a GPU.

Codes become int32 [in * bits / 32, out], a stream of bits down each column, lowest first; zeros the zero points
themselves, int32 [groups, out * bits / 32], along each row; scales [groups, out]. In this form no two kernels can read
a file differently.
"""

from __future__ import annotations

import torch

from core.checkpoint.quantization import MatrixFormat, Part

# Which output is at each place of an AWQ word, lowest bits first (AutoAWQ's gemm).
AWQ_OUTPUTS = (0, 2, 4, 6, 1, 3, 5, 7)
# A one in each field of a word, by bits.
ONES = {2: 0x55555555, 4: 0x11111111, 8: 0x01010101}
PER_WORD = 8
# Rows that are packed anew at once: what they take on the way stays in a processor's cache.
PIECE_ROWS = 512
# What is read to a CPU: bringing it into neutral form takes as much memory as the tensor.
REPACKED = ("awq", "pack_quantized")


def repack(format: MatrixFormat, part: Part, tensor: torch.Tensor) -> torch.Tensor:
    """The tensor `part` of a matrix, as its file has it, in neutral form. It may be changed in place."""
    if part == "input_groups":
        return tensor.to(torch.int32)
    if format.packing == "awq":
        return _from_awq(part, tensor)
    if format.packing == "pack_quantized":
        if tensor.dtype == torch.int8:
            return from_fields((tensor.t() + 2 ** (format.bits - 1)).to(torch.uint8), format.bits)
        return tensor.t().contiguous() if part in ("codes", "zeros", "scales") else tensor
    if part == "zeros" and format.packing != "gptq_v2":
        return _from_version_1(format, tensor)
    return tensor


def middle_zeros(format: MatrixFormat, num_groups: int, out_features: int, device: torch.device) -> torch.Tensor:
    """The zero points of a symmetric matrix, int32 [groups, out * bits / 32]."""
    fields = torch.full((1, out_features), 2 ** (format.bits - 1), dtype=torch.uint8)
    return from_fields(fields, format.bits).to(device).repeat(num_groups, 1)


def _from_version_1(format: MatrixFormat, words: torch.Tensor) -> torch.Tensor:
    """Zero points of 0 are the only ones that writers store differently.

    gptqmodel subtracts from a whole word, where 0 borrows from the next field; adding to the word gives it back. Others
    subtract from each field, where 0 becomes the largest number. That stands for 0 here too: the readers of their time
    differ, and no code is above a zero point of 2 ** bits.
    """
    ones = ONES.get(format.bits)
    if ones is not None and format.packing == "gptq_words":
        return words.add_(ones)
    if ones is not None:
        # One more in every field, and nothing carried: all bits but the highest are added, and that one is told apart.
        lower = ones * (2 ** (format.bits - 1) - 1)
        return ((words & lower) + ones) ^ (words & ~lower)
    fields = to_fields(words.cpu(), format.bits)
    return from_fields((fields + 1) & (2**format.bits - 1), format.bits).to(words.device)


def _from_awq(part: Part, tensor: torch.Tensor) -> torch.Tensor:
    if part not in ("codes", "zeros"):
        return tensor
    rows, words = tensor.shape
    if part == "zeros":
        out = torch.zeros_like(tensor)
        for place, output in enumerate(AWQ_OUTPUTS):
            out |= ((tensor >> 4 * place) & 15) << 4 * output
        return out
    out = torch.empty((rows // PER_WORD, words * PER_WORD), dtype=torch.int32, device=tensor.device)
    for at in range(0, rows, PIECE_ROWS):
        by_place = _transpose_fields([tensor[at + row : at + PIECE_ROWS : PER_WORD] for row in range(PER_WORD)])
        by_output = [by_place[AWQ_OUTPUTS.index(output)] for output in range(PER_WORD)]
        out[at // PER_WORD : (at + PIECE_ROWS) // PER_WORD] = torch.stack(by_output, -1).flatten(1)
    return out


def _transpose_fields(words: list[torch.Tensor]) -> list[torch.Tensor]:
    """Eight words of eight 4-bit fields -> word i has field i of all, the first word's lowest.

    In three steps blocks of 4 x 4, 2 x 2 and single fields change places across the diagonal.
    """
    for step, mask in ((4, 0x0000FFFF), (2, 0x00FF00FF), (1, 0x0F0F0F0F)):
        bits, moved = 4 * step, list(words)
        for i in (i for i in range(PER_WORD) if not i & step):
            low, high = words[i], words[i + step]
            moved[i] = (low & mask) | ((high & mask) << bits)
            moved[i + step] = ((low >> bits) & mask) | (high & ~mask)
        words = moved
    return words


def to_fields(words: torch.Tensor, bits: int) -> torch.Tensor:
    """Words int32 [rows, n] as the numbers of `bits` in them along each row, uint8 [rows, n * 32 // bits]."""
    rows, count = words.shape
    stream = ((words.unsqueeze(-1) >> torch.arange(32, dtype=torch.int32)) & 1).to(torch.uint8).view(rows, count * 32)
    planes = stream[:, : count * 32 // bits * bits].view(rows, -1, bits)
    return (planes << torch.arange(bits, dtype=torch.uint8)).sum(-1, dtype=torch.uint8)


def from_fields(fields: torch.Tensor, bits: int) -> torch.Tensor:
    """Numbers of `bits`, uint8 [rows, n], as words int32 [rows, ceil(n * bits / 32)] along each row."""
    rows, count = fields.shape
    stream = torch.zeros((rows, -(-count * bits // 32) * 32), dtype=torch.int64)
    stream[:, : count * bits] = ((fields.unsqueeze(-1) >> torch.arange(bits, dtype=torch.uint8)) & 1).reshape(rows, -1)
    words = (stream.view(rows, -1, 32) << torch.arange(32)).sum(-1)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)
