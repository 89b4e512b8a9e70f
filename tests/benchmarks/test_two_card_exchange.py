"""The exchange between two cards: its kernels compile, and what was measured becomes the table's rows."""

from __future__ import annotations

import ctypes
import json
from pathlib import Path

import pytest

from benchmarks import two_card_exchange
from benchmarks.figures import Figures
from benchmarks.two_card_exchange import CASES, SOURCE, Case, add_said, add_token
from core.worker.kernels import nvrtc


@pytest.mark.parametrize("verify", [0, 1])
@pytest.mark.parametrize("capability", [(8, 0), (9, 0)])
def test_kernels_compile(
    capability: tuple[int, int], verify: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = pytest.importorskip("nvidia.cuda_nvrtc", reason="there is one for Linux on x86 only")
    library = ctypes.CDLL(str(Path(package.__path__[0]) / "lib" / "libnvrtc.so.12"))
    monkeypatch.setattr(nvrtc, "library", lambda: library)
    monkeypatch.setattr(nvrtc, "cache_dir", lambda: tmp_path)
    source = nvrtc.read_source() + SOURCE.read_text("utf-8")
    code = nvrtc.compiled(source, {"BF16": 0, "VERIFY": verify}, capability)
    assert all(f"exchange_by_{way}".encode() in code for way in two_card_exchange.WAYS)


def test_rows_are_shared_by_blocks_that_run_at_once() -> None:
    assert [Case(1, 8192).num_blocks, Case(1, 28672).num_blocks, Case(32, 28672).num_blocks] == [2, 7, 96]
    # Pieces of 16 bytes of half a row.
    assert all(case.columns % 16 == 0 for case in CASES)


def test_a_step_takes_three_exchanges_of_the_hidden_size_and_one_of_the_larger_a_layer() -> None:
    figures = Figures("T")
    add_token(figures, 1, "flags")
    figures.add("1 x 8192", "flags", 3.0)
    add_token(figures, 1, "flags")
    assert len(figures.found) == 1
    for took_us in (5.0, 4.0, 9.0):
        figures.add("1 x 28672", "flags", took_us)
    add_token(figures, 1, "flags")
    last = figures.found[-1]
    assert (last.row, last.column, last.value) == ("a step of 1, ms", "flags", 80 * (3 * 3.0 + 5.0) / 1000)


def test_what_a_rank_told_is_read_between_other_lines() -> None:
    figures = Figures("T")
    add_said(figures, "NCCL version 2.28\n" + json.dumps({"row": "8 x 8192", "times_us": [11.0, 12.0]}) + "\n")
    assert [(one.row, one.column, one.value) for one in figures.found] == [
        ("8 x 8192", "NCCL", 11.0), ("8 x 8192", "NCCL", 12.0)
    ]  # fmt: skip
