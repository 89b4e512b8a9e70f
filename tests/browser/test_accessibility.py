"""Every page as axe-core sees it: nothing that keeps people from reading or using it, light and dark."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect

from tests.support.chat_page import WAIT_MS, ask, chat_dashboard, messages, open_chat
from tests.support.checkpoints import make_chat_checkpoint

PAGES = ("home", "Download", "Load_Model", "Chat?chat=1", "Chat?chat=new", "Characters", "GPU_Monitor", "Settings")
# Streamlit colours the words of code in its own way.
OTHERS = {"exclude": [[".token"]]}
IS_DRAWN = """() => document.querySelector('[data-testid="stApp"]')?.dataset.testScriptState === "notRunning"
    && !document.querySelector('[data-testid="stSkeleton"], [data-stale="true"]')"""


@pytest.fixture(scope="module")
def address(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("accessibility")
    make_chat_checkpoint(folder / "models" / "tiny", 4096)
    (folder / "characters").mkdir()
    card = "name: Ada\ngreeting: Good morning.\ncontext: Ada knows machines.\n"
    (folder / "characters" / "Ada.yaml").write_text(card, "utf-8")
    with chat_dashboard(folder) as url:
        page = browser.new_page()
        open_chat(page, url, "chat=new")
        ask(page, "sample")
        expect(messages(page).last.get_by_role("button", name="Copy", exact=True)).to_be_visible(timeout=WAIT_MS)
        page.close()
        yield url


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("path", PAGES)
def test_a_page_keeps_nobody_out(browser: Browser, address: str, path: str, scheme: str) -> None:
    from axe_playwright_python.sync_playwright import Axe

    context = browser.new_context(color_scheme="dark" if scheme == "dark" else "light", reduced_motion="reduce")
    page = context.new_page()
    page.goto(f"{address}/{path}")
    expect(page.get_by_test_id("stSidebarNav")).to_be_visible(timeout=WAIT_MS)
    page.wait_for_function(IS_DRAWN, timeout=WAIT_MS)
    if path == "Chat?chat=1":
        expect(page.get_by_role("button", name="Copy", exact=True)).to_have_count(2, timeout=WAIT_MS)
    found = [
        f"{one['id']}: {node['target']} {node['html'][:200]} {node['failureSummary']}"
        for one in Axe().run(page, OTHERS).response["violations"]
        if one["impact"] in ("serious", "critical")
        for node in one["nodes"]
    ]
    context.close()
    assert found == []
