"""The model in the chat's head: what is offered in its place, what the chat loses by it, and the switch itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from core.gpu.known_gpus import lookup
from core.library import catalogue
from core.memory.device_memory import DeviceMemory
from core.memory.fit_report import FitReport
from tests.support.checkpoints import TEMPLATE, Recipe, make_checkpoint
from tests.support.pages import WAIT_S, ask, click, finish, load, open_tab, run, words
from tests.support.widgets import has, named
from ui.chat.model_menu import KEY, offer_of
from ui.shared import resources
from ui.shared.markdown import escape

LLAMA = "TheBloke/Llama-2-7B-Chat-GPTQ"


def card(total_mib: int) -> tuple[DeviceMemory, ...]:
    return (DeviceMemory.planned(replace(lookup("RTX 4090"), total_mib=total_mib)),)


@pytest.mark.parametrize(("total_mib", "kind"), [(24_000, "fits"), (6_400, "shorter"), (3_000, "too_large")])
def test_what_does_not_fit_whole_is_offered_with_the_longest_context_that_does(total_mib: int, kind: str) -> None:
    offer = offer_of(catalogue.checkpoint(catalogue.find(LLAMA)), card(total_mib), 4096, 1)
    assert offer.kind == kind
    if kind == "fits":
        assert offer.context_tokens == 4096
    elif kind == "shorter":
        assert 256 <= offer.context_tokens < 4096
        again = offer_of(catalogue.checkpoint(catalogue.find(LLAMA)), card(total_mib), offer.context_tokens, 1)
        assert again.kind == "fits" and offer.report == again.report
        assert isinstance(again.report, FitReport) and not again.report.is_slow
    else:
        assert offer.context_tokens == 0


@pytest.fixture
def roomy(models: Path) -> AppTest:
    """A chat page with a model of 2,048 tokens; the other one, "tiny", has room for 512."""
    make_checkpoint(models / "roomy", Recipe(context_tokens=2048))
    (models / "roomy" / "chat_template.jinja").write_text(TEMPLATE, "utf-8")
    load(open_tab(), "roomy")
    return open_tab("3_Chat")


def open_menu(tab: AppTest) -> AppTest:
    """What a browser says with every step while the popover is open."""
    tab.session_state[KEY] = True
    return run(tab)


def test_the_library_is_looked_through_only_when_it_is_asked_for(roomy: AppTest) -> None:
    assert not has(roomy.button, "chat_model_load")
    open_menu(roomy)
    assert has(roomy.button, "chat_model_load_tiny") and not has(roomy.button, "chat_model_load_roomy")
    assert "Fits with a context of" in words(roomy)


def test_a_long_name_is_told_letter_by_letter(roomy: AppTest, models: Path) -> None:
    name = f"![a](b){'x' * 60}"
    make_checkpoint(models / name, Recipe(context_tokens=512))
    open_menu(roomy)
    (tooltip,) = [one.proto.help for one in roomy.markdown if "xxxx" in one.value]
    assert tooltip == escape(name) != name


def test_what_the_chat_loses_is_said_before_and_the_switch_shows_its_progress(roomy: AppTest) -> None:
    tab = open_menu(roomy)
    assert "A shorter context than now (2,048)" in words(tab)
    finish(ask(tab, "word " * 130))
    assert "its beginning will no longer be read" in words(open_menu(tab))
    click(tab, "chat_model_load_tiny")
    resources.engine().wait_while_loading(WAIT_S)
    assert resources.engine().state.model == "tiny"
    tab = open_menu(open_tab("3_Chat", query={"chat": "1"}))
    assert has(tab.button, "chat_model_load_roomy") and not named(tab.chat_input, "chat_input").disabled
    assert "A shorter context" not in words(tab)


def test_a_second_click_does_not_begin_the_load_anew(roomy: AppTest) -> None:
    tab = open_menu(roomy)
    click(tab, "chat_model_load_tiny")
    resources.engine().wait_while_loading(WAIT_S)
    before = resources.engine().local.worker_pid
    tab = open_menu(open_tab("3_Chat"))
    assert not has(tab.button, "chat_model_load_tiny") and resources.engine().local.worker_pid == before
