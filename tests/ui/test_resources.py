"""What every tab shares, asked for where there is no tab."""

from __future__ import annotations

import subprocess
import sys

from core.common.paths import ROOT


def test_the_characters_are_asked_for_outside_of_a_tab_without_a_warning() -> None:
    """Streamlit wrote two lines about a missing context below LlamaDeck's address at each start."""
    code = "from ui.shared.resources import characters; print(type(characters()).__name__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout == "Characters\n"
    assert "ScriptRunContext" not in done.stderr and "Session state" not in done.stderr
