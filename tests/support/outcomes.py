"""A plugin of pytest: `-p tests.support.outcomes --outcomes FILE` appends how each test ended, the moment it did.

A run that is cut off loses nothing so. A JSON object a line: test, outcome, seconds, and what a failure says.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks.figures import append_line, now


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--outcomes", type=Path, metavar="FILE", help="append how each test ended to it")


def pytest_configure(config: pytest.Config) -> None:
    if (path := config.getoption("--outcomes")) is not None:
        config.pluginmanager.register(Outcomes(path))


class Outcomes:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._seconds: dict[str, float] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        seconds = self._seconds[report.nodeid] = self._seconds.get(report.nodeid, 0.0) + report.duration
        if report.when == "call" or report.outcome != "passed":
            self._append(report.nodeid, report.outcome, seconds, report.longreprtext)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._append(report.nodeid, "failed", 0.0, report.longreprtext)

    def _append(self, test: str, outcome: str, seconds: float, said: str) -> None:
        card = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        line = {"test": test, "outcome": outcome, "seconds": round(seconds, 2), "said": said, "card": card}
        append_line(self._path, line | {"at": now()})
