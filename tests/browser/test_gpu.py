"""The gauge and the monitor in a real browser, with two GPUs of the stand-in driver and an engine without a model."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from tests.support.checkpoints import TEMPLATE, make_checkpoint
from tests.support.dashboard import dashboard, key, make_hollow_model
from tests.support.nvml_standin import SOURCES, Standin

pytest_plugins = ("tests.support.nvml_standin",)

WAIT_MS = 60_000
NARROW = {"width": 390, "height": 844}
# Counts the charts that were taken away since the page was marked: a chart that is drawn anew flashes.
MARK = """() => { window.removed = 0; new MutationObserver(changes => changes.forEach(change =>
    change.removedNodes.forEach(node => {
        if (node.matches?.("svg.marks") || node.querySelector?.("svg.marks")) window.removed += 1;
    }))).observe(document.body, {subtree: true, childList: true}); }"""


@pytest.fixture(scope="module")
def standin(nvml_library: Path, tmp_path_factory: pytest.TempPathFactory) -> Standin:
    made = Standin(tmp_path_factory.mktemp("nvml_browser"), nvml_library)
    made.use("two_4090")
    return made


@pytest.fixture(scope="module")
def address(standin: Standin, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    home = tmp_path_factory.mktemp("home_gpu")
    for size in ("7B", "70B"):
        make_hollow_model(home / "models" / size, f"TheBloke/Llama-2-{size}-Chat-GPTQ")
    make_checkpoint(home / "models" / "tiny")
    (home / "models" / "tiny" / "chat_template.jinja").write_text(TEMPLATE, "utf-8")
    environment = standin.environment() | {
        "LLAMADECK_MODELS": str(home / "models"),
        "LLAMADECK_DATA": str(home / "data"),
        "LLAMADECK_WORKER": "tests.support.fake_worker",
    }
    with dashboard(environment) as url:
        yield url


@pytest.fixture
def page(browser: Browser, address: str, standin: Standin) -> Iterator[Page]:
    standin.use("two_4090")
    context = browser.new_context(locale="en-US")
    page = context.new_page()
    yield page
    context.close()


def open_page(page: Page, address: str, name: str) -> None:
    page.goto(f"{address}/{name}")
    expect(page.get_by_role("heading", level=1)).to_be_visible(timeout=WAIT_MS)


def bar(page: Page, words: str) -> Locator:
    """The bar whose spoken text holds `words`."""
    return page.get_by_role("img", name=re.compile(words))


def test_moving_a_slider_moves_the_bar_and_the_sentence(page: Page, address: str) -> None:
    open_page(page, address, "Load_Model")
    expect(bar(page, "7B fits")).to_contain_text("Context memory 2.0 GiB", use_inner_text=True)
    thumb = key(page, "gauge_context_7B").get_by_role("slider")
    thumb.focus()
    for _ in range(16):
        thumb.press("ArrowLeft")
    expect(page.get_by_text("with a context of 2,048 tokens")).to_be_visible()
    expect(bar(page, "7B fits")).to_contain_text("Context memory 1.0 GiB", use_inner_text=True)


def test_the_tokens_in_all_follow_the_context(page: Page, address: str) -> None:
    """The choice went on to show the tokens of the context that it was made with."""
    open_page(page, address, "Load_Model")
    chats = key(page, "gauge_chats_7B").get_by_role("slider")
    chats.focus()
    chats.press("ArrowRight")
    pool = page.get_by_role("combobox", name="Tokens that can be kept")
    expect(pool).to_have_value("Every chat can be full")
    pool.click()
    page.get_by_role("option").last.click()
    expect(pool).to_have_value("4,096 tokens in all")
    context = key(page, "gauge_context_7B").get_by_role("slider")
    context.focus()
    for _ in range(16):
        context.press("ArrowLeft")
    expect(pool).to_have_value("2,048 tokens in all")


def test_a_model_that_does_not_fit_can_be_loaded_only_on_purpose(page: Page, address: str) -> None:
    open_page(page, address, "Load_Model")
    expect(bar(page, "70B does not fit")).to_be_visible()
    expect(key(page, "load_model_70B")).to_have_count(0)
    expect(key(page, "force_load_70B")).to_have_count(0)
    page.get_by_role("button", name="Load anyway").click()
    key(page, "force_load_70B").get_by_role("button").click()
    expect(page.get_by_text("Successfully loaded")).to_be_visible(timeout=WAIT_MS)
    key(page, "load_unload").get_by_role("button").click()
    expect(page.get_by_text("No model loaded")).to_be_visible(timeout=WAIT_MS)


def test_the_catalogue_answers_for_a_card_that_is_not_here(page: Page, address: str) -> None:
    open_page(page, address, "Download")
    expect(bar(page, "fits on NVIDIA GeForce RTX 4090")).to_be_visible(timeout=WAIT_MS)
    field = key(page, "plan_gpu").get_by_role("combobox")
    field.fill("A40")
    field.press("Enter")
    expect(bar(page, "fits on A40")).to_be_visible()


def test_the_monitor_moves_without_drawing_a_chart_anew_while_an_answer_is_written(
    page: Page, address: str, standin: Standin
) -> None:
    open_page(page, address, "Load_Model")
    key(page, "load_model_tiny").get_by_role("button").click()
    expect(page.get_by_text("Successfully loaded")).to_be_visible(timeout=WAIT_MS)
    page.get_by_test_id("stSidebarNav").get_by_role("link", name="Chat").click()
    field = page.get_by_test_id("stChatInputTextArea")
    field.fill("forever")
    field.press("Enter")
    expect(key(page, "chat_stop")).to_be_visible(timeout=WAIT_MS)
    page.get_by_test_id("stSidebarNav").get_by_role("link", name="GPU monitor").click()
    expect(page.locator("svg.marks")).to_have_count(4, timeout=WAIT_MS)
    page.evaluate(MARK)
    expect(page.get_by_text(re.compile(r"writes [1-9]\d*\.\d tokens/s"))).to_be_visible(timeout=WAIT_MS)
    for used_mib in (2431, 4431, 8431):
        standin.write((SOURCES / "two_4090.ini").read_text("utf-8").replace("used = 431", f"used = {used_mib}"))
        shown = f"Driver and other programs {(used_mib + 513) / 1024:.1f} GiB"
        expect(bar(page, "GPU 0")).to_contain_text(shown, use_inner_text=True, timeout=WAIT_MS)
    assert page.evaluate("window.removed") == 0
    assert page.locator("svg.marks").count() == 4


def test_a_gpu_that_is_lost_says_so_and_comes_back(page: Page, address: str, standin: Standin) -> None:
    open_page(page, address, "GPU_Monitor")
    expect(page.get_by_text("97 % busy")).to_be_visible(timeout=WAIT_MS)
    standin.use("lost_gpu")
    expect(page.get_by_text("has fallen off the bus")).to_be_visible(timeout=WAIT_MS)
    expect(page.get_by_text("12 % busy")).to_be_visible()
    standin.use("two_4090")
    expect(page.get_by_text("97 % busy")).to_be_visible(timeout=WAIT_MS)
    expect(page.get_by_text("has fallen off the bus")).to_have_count(0)


@pytest.mark.parametrize("locale", ["en-US", "zh-CN"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["", "Download", "Load_Model", "GPU_Monitor"])
def test_nothing_is_wider_than_a_phone(
    browser: Browser, address: str, tmp_path: Path, name: str, scheme: str, locale: str
) -> None:
    context = browser.new_context(locale=locale, color_scheme=scheme, viewport=NARROW)  # type: ignore[arg-type]
    page = context.new_page()
    open_page(page, address, name)
    expect(page.get_by_role("img", name=re.compile("RTX 4090")).first).to_be_visible(timeout=WAIT_MS)
    main = page.get_by_test_id("stMain")
    assert main.evaluate("element => element.scrollWidth <= element.clientWidth")
    picture = page.screenshot(path=tmp_path / f"{name or 'Home'}-{scheme}-{locale}.png")
    assert len(picture) > 10_000
    context.close()
