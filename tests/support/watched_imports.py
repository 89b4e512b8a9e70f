"""Imports what a warm worker imports, told that there is a GPU, and ends with who began to use it, if anybody did."""

from __future__ import annotations

import os
import sys
import traceback

from core.worker.main import ENVIRONMENT, import_libraries

os.environ.update(ENVIRONMENT)

import torch

touches: list[str] = []


def note_touch() -> None:
    touches.append("".join(traceback.format_stack()))
    raise RuntimeError("there is no GPU")


if __name__ == "__main__":
    torch.version.cuda = "13.0"
    torch.cuda.is_available = lambda: True
    torch.cuda.device_count = lambda: 1
    torch.cuda._lazy_init = note_touch
    import_libraries()
    sys.exit("\n".join(touches) or None)
