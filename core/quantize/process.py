"""The child process of a job: started, listened to, ended."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from core.bootstrap.machine_faults import fault_in_log
from core.bootstrap.pip import DISK_FULL
from core.common.errors import CheckpointError, DeckError
from core.common.paths import ROOT
from core.quantize.folders import LOG, disk_full, has_no_room
from core.starter.build import messages

MODULE = "core.quantize.child.main"
NO_GPU_MEMORY = re.compile(r"OutOfMemoryError|CUDA out of memory|CUDA error: out of memory")
MAX_LOG_BYTES = 4 << 20
MAX_WORKERS = 8


class QuantizeProcess:
    """`core/quantize/child/main.py` over the job in `folder`. It ends with the process that began it."""

    def __init__(self, folder: Path, device: str) -> None:
        """Raises OSError."""
        self._log = folder / LOG
        environment = os.environ | {
            # gptqmodel wants two workers for its queues, also where there is one core. What they do, torch spreads over
            # all cores.
            "GPTQMODEL_CPU_WORKERS": str(min(MAX_WORKERS, max(2, len(os.sched_getaffinity(0))))),
            # As the engine has it: what one layer leaves free fits the next, of other sizes.
            "PYTORCH_ALLOC_CONF": "expandable_segments:True",
            "HF_HUB_OFFLINE": "1",
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
            "TMPDIR": str(folder / "work"),
        }
        if device == "cpu":
            environment["CUDA_VISIBLE_DEVICES"] = ""
        (folder / "work").mkdir(exist_ok=True)
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", MODULE, str(folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=ROOT,
                env=environment,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def run(self, tell: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        """Hand on what the process tells, until it ends; returns its result. Raises DeckError where it has none."""
        answer: dict[str, Any] = {}
        with self._process as process:
            try:
                assert process.stdout is not None
                for message in messages(process.stdout):
                    if "stage" in message:
                        tell(message)
                    else:
                        answer = message
            except BaseException:
                self.kill()
                raise
        if "error" in answer:
            raise CheckpointError(answer["error"]["key"], **answer["error"]["params"])
        if "result" not in answer:
            raise self._failure(process.returncode)
        result: dict[str, Any] = answer["result"]
        return result

    def kill(self) -> None:
        """End it and all that it began, such as a compiler. Any thread may call it."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _failure(self, returncode: int) -> DeckError:
        text = tail(self._log)
        if re.search(DISK_FULL, text):
            return disk_full()
        if NO_GPU_MEMORY.search(text):
            return DeckError("quantize_vram_full", log=str(self._log))
        if fault := fault_in_log(text):
            return fault
        # Nothing but the system's watch over its memory ends a process like that unasked.
        if returncode == -signal.SIGKILL:
            return DeckError("quantize_killed", log=str(self._log))
        # The log lies on the same disk: it cannot tell.
        if has_no_room():
            return disk_full()
        # What is mapped into memory ended before it was read: a library has no error for it.
        if returncode == -signal.SIGBUS:
            return DeckError("quantize_file_lost", log=str(self._log))
        how = signal.Signals(-returncode).name if returncode < 0 else f"exit code {returncode}"
        return DeckError("quantize_died", how=how, log=str(self._log))


def tail(path: Path) -> str:
    """The end of a log: progress bars make it long."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - MAX_LOG_BYTES))
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""
