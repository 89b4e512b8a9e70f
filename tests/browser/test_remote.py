"""Load model with another server, and the chat over it: what a page shows of a server that is well, wrong or lost."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.support.browser_page import open_from_sidebar, type_message
from tests.support.checkpoints import Recipe, make_checkpoint
from tests.support.dashboard import dashboard, free_port, key
from tests.support.openai_standin import OpenAiStandin

WAIT_MS = 60_000


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("remote")
    make_checkpoint(folder / "models" / "tiny", Recipe(context_tokens=4096))
    environment = {
        **os.environ,
        "LLAMADECK_MODELS": str(folder / "models"),
        "LLAMADECK_DATA": str(folder / "data"),
        "LLAMADECK_WORKER": "tests.support.fake_worker",
    }
    environment.pop("LLAMADECK_LOAD", None)
    with dashboard(environment) as url:
        yield url


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    context = browser.new_context(locale="en-US")
    page = context.new_page()
    page.set_default_timeout(WAIT_MS)
    yield page
    context.close()


@pytest.fixture
def server() -> Iterator[OpenAiStandin]:
    with OpenAiStandin() as standin:
        standin.behaviour.models = [{"id": "far-away", "owned_by": "me"}]
        yield standin


def open_form(page: Page, address: str) -> None:
    page.goto(f"{address}/Load_Model")
    key(page, "load_place").get_by_text("Another server").click()
    expect(key(page, "remote_find")).to_be_visible(timeout=WAIT_MS)


def find(page: Page, url: str, secret: str = "") -> None:
    key(page, "remote_address").get_by_role("textbox").fill(url)
    if secret:
        key(page, "remote_key").locator("input").fill(secret)
    key(page, "remote_find").get_by_role("button").click()


def use(page: Page, url: str) -> None:
    find(page, url)
    key(page, "remote_use").get_by_role("button").click()
    expect(page.get_by_text("Connected", exact=True)).to_be_visible(timeout=WAIT_MS)


def test_what_is_wrong_with_an_address_is_said_where_it_was_typed(
    page: Page, address: str, server: OpenAiStandin
) -> None:
    open_form(page, address)
    find(page, "ftp://host")
    expect(page.get_by_text("is no address of a server")).to_be_visible(timeout=WAIT_MS)
    find(page, f"http://127.0.0.1:{free_port()}")
    expect(page.get_by_text("cannot be reached (Connection refused)")).to_be_visible(timeout=WAIT_MS)
    server.behaviour.key = "right"
    find(page, server.url, "wrong")
    expect(page.get_by_text("does not accept the key")).to_be_visible(timeout=WAIT_MS)
    find(page, server.url, "right")
    expect(key(page, "remote_use")).to_be_visible(timeout=WAIT_MS)
    expect(key(page, "remote_key").locator("input")).to_have_value("")
    server.behaviour.statuses["models"] = (200, b"<html>a page</html>")
    find(page, server.url)
    expect(page.get_by_text("not as an OpenAI-compatible API does")).to_be_visible(timeout=WAIT_MS)
    server.behaviour.statuses.clear()
    server.behaviour.models = []
    find(page, server.url)
    expect(page.get_by_text("has no model at the moment")).to_be_visible(timeout=WAIT_MS)


def test_a_chat_over_a_server_that_is_lost_and_comes_back(page: Page, address: str) -> None:
    """The partial answer stays, the page says what is wrong, and the next answer comes when the server is back."""
    with OpenAiStandin() as first:
        first.behaviour.models = [{"id": "far-away", "owned_by": "me"}]
        open_form(page, address)
        use(page, first.url)
        expect(page.get_by_text(f"The model is in the memory of 127.0.0.1:{first.port}")).to_be_visible()
        expect(page.get_by_text("Tokens are estimated")).to_be_visible()
        open_from_sidebar(page, "GPU monitor")
        expect(page.get_by_text("it takes that machine's memory")).to_be_visible(timeout=WAIT_MS)
        open_from_sidebar(page, "Chat")
        first.behaviour.words = ["Halfway", " there"]
        first.behaviour.silent_after = 1
        type_message(page, "Hello?")
        expect(page.get_by_text("Halfway")).to_be_visible(timeout=WAIT_MS)
        expect(key(page, "chat_stop")).to_be_visible(timeout=WAIT_MS)
        expect(page.get_by_text(re.compile(r"≈ \d+ / 4,096"))).to_be_visible(timeout=WAIT_MS)
    expect(page.get_by_text("Connection lost")).to_be_visible(timeout=WAIT_MS)
    expect(page.get_by_text("Halfway")).to_be_visible()
    expect(page.get_by_text(re.compile("broke off|cannot be reached")).first).to_be_visible(timeout=WAIT_MS)
    expect(page.get_by_text("Traceback")).to_have_count(0)
    with OpenAiStandin(first.port) as second:
        second.behaviour.models = [{"id": "far-away", "owned_by": "me"}]
        key(page, "engine_reconnect").get_by_role("button").click()
        expect(page.get_by_text("Connection lost")).to_have_count(0, timeout=WAIT_MS)
        type_message(page, "And now?")
        expect(page.get_by_text("Hello from there")).to_be_visible(timeout=WAIT_MS)
        open_from_sidebar(page, "Load model")
        key(page, "remote_disconnect").get_by_role("button").click()
        expect(page.get_by_text("No model loaded")).to_be_visible(timeout=WAIT_MS)


def test_what_a_server_cannot_do_is_said_and_nothing_is_lost(page: Page, address: str, server: OpenAiStandin) -> None:
    open_form(page, address)
    use(page, server.url)
    open_from_sidebar(page, "Chat")
    type_message(page, "First question")
    expect(page.get_by_text("Hello from there")).to_be_visible(timeout=WAIT_MS)
    key(page, "chat_go_on").get_by_role("button").click()
    expect(page.get_by_text("cannot go on from given words")).to_be_visible(timeout=WAIT_MS)
    expect(page.get_by_text("Hello from there")).to_be_visible()
    assert len(server.asked("/v1/chat/completions")) == 1


def test_a_model_of_this_machine_takes_the_place_of_the_servers(
    page: Page, address: str, server: OpenAiStandin
) -> None:
    """Also where both have the same name: the one on disk is not shown as loaded."""
    server.behaviour.models = [{"id": "tiny", "owned_by": "vllm", "max_model_len": 2048}]
    open_form(page, address)
    use(page, server.url)
    key(page, "load_place").get_by_text("This machine").click()
    expect(page.get_by_text("answers now. Loading a model here lets go of it.")).to_be_visible(timeout=WAIT_MS)
    key(page, "load_model_tiny").get_by_role("button").click()
    expect(page.get_by_text("Successfully loaded")).to_be_visible(timeout=WAIT_MS)
    expect(page.get_by_text("lets go of it")).to_have_count(0)


@pytest.mark.parametrize("locale", ["en-US", "zh-CN"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_a_phone(
    browser: Browser, address: str, server: OpenAiStandin, scheme: str, locale: str
) -> None:
    server.behaviour.models = [{"id": "a-model-with-a-very-long-name/" + "GPTQ-" * 12, "owned_by": "somebody"}]
    context = browser.new_context(locale=locale, color_scheme=scheme, viewport={"width": 390, "height": 844})  # type: ignore[arg-type]
    page = context.new_page()
    page.set_default_timeout(WAIT_MS)
    page.goto(f"{address}/Load_Model")
    key(page, "load_place").get_by_role("radio").nth(1).click()
    find(page, server.url)
    key(page, "remote_use").get_by_role("button").click()
    expect(key(page, "remote_disconnect")).to_be_visible(timeout=WAIT_MS)
    assert page.get_by_test_id("stMain").evaluate("element => element.scrollWidth <= element.clientWidth")
    context.close()


def test_a_context_given_for_one_model_is_not_anothers(page: Page, address: str, server: OpenAiStandin) -> None:
    server.behaviour.models = [{"id": "first", "owned_by": "me"}, {"id": "second", "owned_by": "me"}]
    open_form(page, address)
    find(page, server.url)
    field = key(page, "remote_context").get_by_role("spinbutton")
    field.fill("9000")
    field.press("Enter")
    key(page, "remote_model").get_by_role("combobox").click()
    page.get_by_role("option", name="second").click()
    key(page, "remote_use").get_by_role("button").click()
    expect(page.get_by_text("Connected", exact=True)).to_be_visible(timeout=WAIT_MS)
    expect(page.get_by_text("4,096")).to_be_visible(timeout=WAIT_MS)
