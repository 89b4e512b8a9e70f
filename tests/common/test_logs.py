"""What is said in the log: a fault that comes at each turn of a loop is said a few times a minute."""

from __future__ import annotations

import io
import logging
import subprocess
import sys
from collections.abc import Iterator

import pytest

from core.common.logs import MAX_FAULTS, MOST_TIMES, WINDOW_S, RepeatFilter
from core.common.paths import ROOT


class Journal:
    """A logger of its own whose lines are kept, and a clock that is set by hand."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self._stream = io.StringIO()
        handler = logging.StreamHandler(self._stream)
        handler.addFilter(RepeatFilter(lambda: self.now_s))
        self.log = logging.Logger("tests.journal")
        self.log.addHandler(handler)

    @property
    def lines(self) -> list[str]:
        return self._stream.getvalue().splitlines()


@pytest.fixture
def journal() -> Iterator[Journal]:
    return Journal()


def test_a_loops_fault_is_said_a_few_times_and_counted_after_a_minute(journal: Journal) -> None:
    for turn in range(1000):
        if turn == 999:
            journal.now_s += WINDOW_S
        journal.log.warning("try %d of %s failed", turn, "x" * turn)
    assert len(journal.lines) == MOST_TIMES + 1
    assert journal.lines[-1] == f"try 999 of {'x' * 999} failed [{999 - MOST_TIMES} more of these were left out]"


def test_a_text_that_is_put_together_beforehand_counts_as_one_too(journal: Journal) -> None:
    for turn in range(100):
        journal.log.error(f"socket 0x{turn:x} of {turn} is closed")
    assert len(journal.lines) == MOST_TIMES


def test_each_fault_of_several_in_one_loop_is_said(journal: Journal) -> None:
    for _ in range(100):
        journal.log.warning("one")
        journal.log.warning("other")
        try:
            raise ValueError("third")
        except ValueError:
            journal.log.exception("one")
    for text in ("one", "other", "ValueError: third"):
        assert text in journal.lines
    assert journal.lines.count("one") == 2 * MOST_TIMES and journal.lines.count("other") == MOST_TIMES


def test_what_is_no_fault_is_always_said(journal: Journal) -> None:
    for _ in range(10):
        journal.log.info("a step")
    assert journal.lines == ["a step"] * 10


def test_a_fault_that_is_rare_is_always_said(journal: Journal) -> None:
    for _ in range(10):
        journal.log.error("now and then")
        journal.now_s += WINDOW_S
    assert journal.lines == ["now and then"] * 10


def test_words_with_a_percent_sign_are_said_as_they_are(journal: Journal) -> None:
    for _ in range(2):
        for _ in range(MOST_TIMES + 1):
            journal.log.error("100%")
        journal.now_s += WINDOW_S
    assert journal.lines[-MOST_TIMES:] == ["100% [1 more of these were left out]", "100%", "100%"]


def test_only_so_many_faults_are_remembered(journal: Journal) -> None:
    sparing = RepeatFilter(lambda: 0.0)
    for number in range(3 * MAX_FAULTS):
        sparing.filter(logging.LogRecord("a", logging.ERROR, "file", number, "x", (), None))
    assert len(sparing._said) == MAX_FAULTS


def test_libraries_that_write_their_own_lines_are_held_to_it_too() -> None:
    """Running out of files, asyncio writes a line for each connection in the queue, and so did Streamlit for each run
    of a page that fails."""
    code = (
        "import logging; from core.common.logs import set_up_logs;"
        "own = logging.getLogger('library'); own.propagate = False;"
        "own.addHandler(logging.StreamHandler()); set_up_logs();"
        "[(own.error('own'), logging.getLogger('asyncio').error('root')) for _ in range(500)]"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    lines = done.stderr.splitlines()
    assert len([line for line in lines if line == "own"]) == MOST_TIMES
    assert len([line for line in lines if line.endswith("root")]) == MOST_TIMES
