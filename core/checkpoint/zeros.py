"""Which zero points a checkpoint stores, told by their values.

Version 1 of GPTQ stores each less one, version 2 the zero point itself, and files have been written in one under the
other's name. In a symmetric matrix every zero point is the middle of the codes, so what is stored tells the version.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from core.checkpoint.quantization import MatrixFormat, Packing

# So many are not equal by chance: they tell the version whatever the configuration says.
MIN_EQUAL_ZEROS = 256
GPTQ_PACKINGS: tuple[Packing, ...] = ("gptq", "gptq_words", "gptq_v2")


@dataclass(frozen=True, slots=True)
class StoredZeros:
    """What is stored for one matrix: how many, whether all are the middle of the codes, whether all are one less."""

    count: int
    are_middle: bool
    are_one_less: bool


def look_at_zeros(words: np.ndarray, out_features: int, bits: int) -> StoredZeros:
    """`words`: uint32 [groups, out * bits / 32]."""
    middle = 2 ** (bits - 1)
    mask = constant_words(out_features, bits, 2**bits - 1)
    used = words & mask
    are_middle = bool((used == constant_words(out_features, bits, middle)).all())
    are_one_less = bool((used == constant_words(out_features, bits, middle - 1)).all())
    return StoredZeros(words.shape[0] * out_features, are_middle, are_one_less)


def constant_words(count: int, bits: int, value: int) -> np.ndarray:
    """`count` numbers of `bits` as uint32 words [ceil(count * bits / 32)], all of them `value`; 0 behind the last."""
    stream = np.zeros(-(-count * bits // 32) * 32, np.uint8)
    stream[: count * bits] = np.tile([value >> bit & 1 for bit in range(bits)], count)
    return np.packbits(stream, bitorder="little").view("<u4")


def stored_version(found: Collection[StoredZeros]) -> Packing | None:
    """The version that all symmetric matrices of a checkpoint have; None where they tell none, or two."""
    telling = [one for one in found if one.count >= MIN_EQUAL_ZEROS and (one.are_middle or one.are_one_less)]
    versions = {one.are_middle for one in telling}
    if len(versions) != 1:
        return None
    return "gptq_v2" if versions.pop() else "gptq"


def settle_zeros(format: MatrixFormat, stored: StoredZeros | None, version: Packing | None) -> MatrixFormat:
    """`format` with the version and the symmetry that the values tell. `version`: that of the whole checkpoint."""
    if stored is None:
        return format
    if format.packing not in GPTQ_PACKINGS:
        return _with_zeros(format, format.packing, stored.are_middle)
    first: Packing = "gptq" if format.packing == "gptq_v2" else format.packing
    is_telling = format.is_symmetric or stored.count >= MIN_EQUAL_ZEROS
    if stored.are_middle and (is_telling or format.packing == "gptq_v2"):
        return _with_zeros(format, "gptq_v2", True)
    if stored.are_one_less and (is_telling or format.packing != "gptq_v2"):
        return _with_zeros(format, first, True)
    if version is None:
        return _with_zeros(format, format.packing, False)
    return _with_zeros(format, "gptq_v2" if version == "gptq_v2" else first, False)


def _with_zeros(format: MatrixFormat, packing: Packing, is_symmetric: bool) -> MatrixFormat:
    return MatrixFormat(format.bits, format.group_size, format.is_permuted, is_symmetric, packing)
