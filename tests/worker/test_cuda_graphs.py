"""The captured steps without a GPU: their kernels run in Triton's interpreter, in a process of its own.

Triton is not among the packages of the dashboard on a CPU; tests/run.py puts it beside them, where only this finds it.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from core.common.paths import ROOT
from core.worker.main import ENVIRONMENT
from tests.run import triton_folder


@pytest.mark.timeout(900)
@pytest.mark.skipif(not triton_folder().is_dir(), reason="Triton is not there; ./llamadeck test fetches it")
def test_captured_steps_and_their_kernels_are_right_in_tritons_interpreter() -> None:
    path = os.pathsep.join([str(ROOT), str(triton_folder())])
    environment = os.environ | ENVIRONMENT | {"TRITON_INTERPRET": "1", "PYTHONPATH": path}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/worker/interpreted_steps.py"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:]
