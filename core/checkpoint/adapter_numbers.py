"""Whether an adapter's numbers are numbers: a training that went wrong leaves NaN, in a file like any other."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from core.checkpoint.base_copies import split_copies
from core.checkpoint.headers import TensorInfo, read_header, unreadable
from core.common.errors import CheckpointError

# So much of a file lies in memory at once.
PIECE_BYTES = 1 << 22
# By safetensors' name of a type: numpy's name of an unsigned one as wide, and the bits that are all 1 in what is no
# finite number. Of F8_E4M3 these are all but the sign: it has NaN and nothing infinite.
NOT_FINITE: dict[str, tuple[str, int]] = {
    "F64": ("<u8", 0x7FF0_0000_0000_0000),
    "F32": ("<u4", 0x7F80_0000),
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
    "F8_E5M2": ("u1", 0x7C),
    "F8_E4M3": ("u1", 0x7F),
}


def first_not_finite(weights: Path) -> str | None:
    """The first tensor of the file `weights` with NaN or infinite numbers; None where all are well.

    Copies of the base are left out: they are compared with the base, and may be as large as its embedding. A file is
    read once until it changes. Raises CheckpointError where it cannot be read.
    """
    try:
        status = weights.stat()
        return _first_not_finite(weights, status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise unreadable(weights, error) from error


@lru_cache(1024)
def _first_not_finite(weights: Path, size_bytes: int, changed_ns: int) -> str | None:
    """Size and time only say that nothing has changed since. Raises OSError, CheckpointError."""
    # The commands that look at models start without it.
    import numpy as np

    _, tensors = split_copies(read_header(weights))
    with weights.open("rb", buffering=0) as file:
        for name, tensor in sorted(tensors.items(), key=lambda one: one[1].begin):
            if tensor.dtype not in NOT_FINITE:
                continue
            name_of_wide, bits = NOT_FINITE[tensor.dtype]
            wide = np.dtype(name_of_wide)
            file.seek(tensor.begin)
            for piece_bytes in _pieces(tensor):
                data = file.read(piece_bytes)
                if len(data) != piece_bytes:
                    raise CheckpointError("adapter_rewritten", adapter=weights.parent.name)
                piece = np.frombuffer(data, wide)
                if bool(((piece & wide.type(bits)) == bits).any()):
                    return name
    return None


def _pieces(tensor: TensorInfo) -> list[int]:
    """The bytes of each piece in which a tensor is read."""
    whole, rest = divmod(tensor.num_bytes, PIECE_BYTES)
    return [PIECE_BYTES] * whole + [rest] * (rest > 0)
