"""The table in tests/arrows.py against the files: who imports whom, and who may import torch or Streamlit."""

import subprocess
import sys

import pytest

from core.common.paths import ROOT
from tests import arrows


def test_every_import_is_in_the_table() -> None:
    allowed = arrows.allowed()
    found = [pair for arrow, pairs in arrows.used().items() if arrow not in allowed for pair in pairs]
    lines = [f"{name} imports {target}" for name, target in found]
    assert not lines, "tests/arrows.py does not allow these; move what is shared:\n" + "\n".join(lines)


def test_every_arrow_of_the_table_is_used() -> None:
    lines = [f"{name} -> {target}" for name, target in sorted(arrows.allowed() - set(arrows.used()))]
    assert not lines, "no import needs these any more; take them out of tests/arrows.py:\n" + "\n".join(lines)


def test_there_is_no_circle_of_parts() -> None:
    assert set(arrows.order()) == {*arrows.ARROWS, *arrows.FREE}


def test_every_part_has_a_file() -> None:
    assert {arrows.part(name) for name in arrows.modules() if "." in name} >= set(arrows.ARROWS) - {"Home", "serve"}


@pytest.mark.parametrize(
    ("packages", "places"), [(arrows.TORCH, arrows.TORCH_PLACES), (("streamlit",), arrows.STREAMLIT_PLACES)]
)
def test_what_computes_and_what_draws_stays_in_its_place(packages: tuple[str, ...], places: tuple[str, ...]) -> None:
    found = [pair for pair in arrows.imports() if arrows.is_within(pair[1], packages)]
    assert found
    assert [pair for pair in found if not arrows.is_within(pair[0], places)] == []


def test_what_is_started_by_name_is_imported_by_nobody() -> None:
    found = [pair for pair in arrows.imports() if pair[1] in arrows.STARTED_BY_NAME]
    assert [pair for pair in found if not arrows.is_within(pair[0], arrows.FREE)] == []
    assert set(arrows.STARTED_BY_NAME) <= set(arrows.modules())


def test_the_first_step_needs_no_package() -> None:
    """core/bootstrap runs under the system's Python, before anything is installed."""
    command = [sys.executable, "-S", "-c", "import core.bootstrap.venv"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_no_test_imports_another_one() -> None:
    """What several need lies in tests/support."""
    found = [pair for pair in arrows.imports() if pair[1].rpartition(".")[2].startswith("test_")]
    assert [pair for pair in found if pair[1] in arrows.modules()] == []
