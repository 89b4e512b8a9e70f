"""Which errors are the machine's fault: too little memory, or a .venv with parts missing.

Libraries raise various types for these. The patterns are the words of CPython, the loader, C++, NumPy and torch.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

from core.bootstrap.stamp import mark_damaged
from core.common.errors import DeckError, causes
from core.common.paths import ROOT
from core.common.terminal import Terminal

NO_MEMORY = re.compile(
    r"can't allocate memory|cannot allocate memory|enforce fail at alloc_cpu|failed to map segment|bad_alloc"
    r"|can't start new thread|not enough memory|unable to allocate|^MemoryError",
    re.IGNORECASE | re.MULTILINE,
)
MISSING = re.compile(r"^(?:ModuleNotFound|Import)Error: (.+)$", re.MULTILINE)
MAX_CHARS = 200


def fault_of_machine(error: BaseException) -> DeckError | None:
    """The sentence for what `error`, or what it came from, says of the machine; None where it says nothing of that."""
    return fault_in_log("\n".join(f"{type(one).__name__}: {one}".rstrip(": ") for one in causes(error)))


def fault_in_log(text: str) -> DeckError | None:
    """The same by what a process wrote before it ended."""
    if line := next((line for line in text.splitlines() if NO_MEMORY.search(line)), ""):
        return DeckError("no_memory", why=line.strip()[:MAX_CHARS])
    if missing := MISSING.findall(text):
        return DeckError("venv_broken", why=missing[-1].strip()[:MAX_CHARS], path=str(ROOT / ".venv"))
    return None


def explain_faults(main: Callable[[], int], terminal: Terminal | None = None) -> int:
    """What `main` returns; 1 after a sentence where this machine is at fault. A broken .venv is put right at the next
    start."""
    try:
        return main()
    except (ImportError, MemoryError, RuntimeError, OSError) as error:
        fault = fault_of_machine(error)
        if fault is None:
            raise
        if fault.key == "venv_broken" and Path(sys.prefix) == ROOT / ".venv":
            mark_damaged(ROOT / ".venv")
        (terminal or Terminal()).error(fault)
        return 1
