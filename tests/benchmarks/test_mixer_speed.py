"""The benchmark of Gated DeltaNet kernels, over kernels that run on a CPU: its figures mean nothing here."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from benchmarks import mixer_speed
from benchmarks.mixer_speed import SHAPES, Bench, Figure, Shape, layers_of, state_bytes
from core.checkpoint.recurrent import GatedDeltaNet
from tests.support.cuda_on_cpu import cuda_on_cpu
from tests.support.ptx_on_cpu import kernels_on_cpu


def test_a_row_names_the_bytes_and_the_part_of_the_ceiling() -> None:
    mixer = SHAPES["qwen3.5-27b"].mixer
    assert state_bytes(mixer) == 48 * 128 * 128 * 4 + 10240 * 3 * 2
    assert Figure("rule", 8, 2e-6, 4_000_000).row(4e12) == "| rule | 8 | 2.0 | 4.0 | 1.0 | 50 |"
    assert Figure("chunk", 512, 2e-6, 4_000_000).row(4e12) == "| chunk | 512 | 2.0 | 4.0 | 1.0 |  |"
    assert layers_of(1 << 27) == 2 and layers_of(1) == 32


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_everything_that_is_measured_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def time_of(run: object) -> float:
        assert callable(run)
        run()
        return 1.0

    monkeypatch.setattr(mixer_speed, "time_of", time_of)
    monkeypatch.setattr(mixer_speed, "LEAST_BYTES", 1)
    shape = Shape(64, GatedDeltaNet(1, 2, 32, 32, 4))
    with cuda_on_cpu(), kernels_on_cpu(), torch.inference_mode():
        figures = list(Bench(shape, torch.float16, torch.device("cpu")).measure([1, 3], [20]))
    assert [(one.what, one.size) for one in figures] == [
        *((what, rows) for rows in (1, 3) for what in ("before", "rule", "after")),
        ("chunk", 20),
    ]
    assert all(one.num_bytes > 0 for one in figures)
