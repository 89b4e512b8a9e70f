"""What the pages notice of the API's answers: that the engine works, and no reason to be drawn anew."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import streamlit as st

from core.engine.sampling_params import Sampling
from tests.support.api_server import LOAD_S, MODEL
from tests.support.checkpoints import make_checkpoint
from tests.support.pages import open_tab, run, words
from ui.shared import resources
from ui.shared.engine_status import shown_now


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("LLAMADECK_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("LLAMADECK_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("LLAMADECK_WORKER", "tests.support.fake_worker")
    st.cache_resource.clear()
    make_checkpoint(tmp_path / "models" / MODEL)
    resources.engine().load(tmp_path / "models" / MODEL)
    assert resources.engine().wait_while_loading(LOAD_S).phase == "ready"
    yield
    resources.engine().unload()
    st.cache_resource.clear()


def test_answers_of_the_api_leave_the_pages_at_rest() -> None:
    """Twenty open dashboards were drawn anew with every request, and a click into one of them could be lost."""
    tab = open_tab()
    at_rest = shown_now()
    assert "Ready" in words(tab)
    answer = resources.engine().generate("forever", Sampling())
    assert shown_now() != at_rest, "a page's own answer is followed"
    answer.is_for_page = False
    assert shown_now() == at_rest
    assert "Answering" in words(run(tab))
    answer.cancel()
    assert answer.wait(LOAD_S)
    assert "Ready" in words(run(tab))
