"""Whether two tensors in files have the same numbers, in whatever types: both are read in pieces."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from core.checkpoint.headers import DTYPE_BYTES, TensorInfo, unreadable
from core.common.errors import CheckpointError
from core.common.values import printable

# So many numbers of each lie in memory at once.
PIECE_NUMBERS = 1 << 20
# What rounding to half precision may change of a number: that to bfloat16 in proportion, float16's last step otherwise.
ROUNDING, SMALLEST = 2**-8, 2**-24
# By safetensors' name of a type that is of Python's; bfloat16 is the upper half of a float32.
NUMPY = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


def read_pieces(path: Path, tensor: TensorInfo) -> Iterator[Any]:
    """The numbers of `tensor` in the file `path`, as float32 arrays of up to PIECE_NUMBERS. Its type is one of NUMPY.

    Raises CheckpointError where they cannot be read.
    """
    import numpy as np  # The commands that look at models start without it.

    left, wide = tensor.num_bytes, DTYPE_BYTES[tensor.dtype]
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(tensor.begin)
            while left > 0:
                data = file.read(min(left, PIECE_NUMBERS * wide))
                # Less than was asked for: the file was written anew since its header was read.
                if len(data) != min(left, PIECE_NUMBERS * wide):
                    raise CheckpointError("corrupt_weights", folder=path.parent.name, file=printable(path.name))
                piece = np.frombuffer(data, NUMPY[tensor.dtype])
                if tensor.dtype == "BF16":
                    piece = (piece.astype(np.uint32) << 16).view(np.float32)
                yield piece.astype(np.float32, copy=False)
                left -= len(data)
    except OSError as error:
        raise unreadable(path, error) from error


def are_same(one: Iterator[Any], other: Iterator[Any]) -> bool:
    """Whether the pieces of two tensors of one shape have the same numbers, up to a rounding to half precision."""
    import numpy as np  # As above.

    with np.errstate(invalid="ignore", over="ignore"):
        return all(np.allclose(a, b, rtol=ROUNDING, atol=SMALLEST) for a, b in zip(one, other, strict=True))
