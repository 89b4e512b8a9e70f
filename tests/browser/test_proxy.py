"""Behind the proxies of rented machines, in a real browser: signing in, the websocket, uploads, pictures, signing out,
below a path as well; and what a neighbour on the same site can do."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from core.access.access import Access
from core.access.secret_file import SecretFile
from core.access.visitors import COOKIE, SECURE_PREFIX
from tests.support.dashboard import CHROMIUM, FLAGS, dashboard, key
from tests.support.oidc_standin import oidc_provider
from tests.support.proxy_standin import WAYS, Proxy, proxy

PASSWORD, WAIT_MS = "correct horse battery", 60_000
NAME, NEIGHBOUR, PATH = "machine-1.rented.test", "neighbour.rented.test", "/proxy/6006"
# Whether a websocket to `address` opens, and what a request with the cookie is answered with.
TRY_SOCKET = """address => new Promise(resolve => {
    const socket = new WebSocket(address, ["streamlit"]);
    socket.onopen = () => resolve("open");
    socket.onclose = socket.onerror = () => resolve("closed");
})"""
TRY_POST = """address => fetch(address, { method: "POST", mode: "no-cors", credentials: "include" }).catch(() => 0)"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        rules = f"--host-resolver-rules=MAP {NAME} 127.0.0.1, MAP {NEIGHBOUR} 127.0.0.1"
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS, rules])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("proxy")


@pytest.fixture(scope="module")
def port(home: Path) -> Iterator[int]:
    Access(SecretFile(home / "data" / "access.json"), {}).set_password(PASSWORD)
    folders = {f"LLAMADECK_{name.upper()}": str(home / name) for name in ("models", "data", "characters")}
    with dashboard(os.environ | folders) as url:
        yield urlsplit(url).port or 0


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    context = browser.new_context(locale="en-US", ignore_https_errors=True)
    yield context.new_page()
    context.close()


def sign_in(page: Page, address: str) -> None:
    page.goto(address)
    page.locator("#password").fill(PASSWORD)
    page.keyboard.press("Enter")
    expect(page.get_by_test_id("stSidebarNav")).to_be_visible(timeout=WAIT_MS)


def import_character(page: Page, address: str, name: str) -> None:
    """The upload has to arrive, and what was uploaded has to be there."""
    page.goto(f"{address}/Characters")
    key(page, "characters_import").get_by_role("button").first.click(timeout=WAIT_MS)
    file = {"name": f"{name}.yaml", "mimeType": "text/yaml", "buffer": f"name: {name}\ngreeting: Hi\n".encode()}
    with page.expect_response(lambda response: "/_stcore/upload_file/" in response.url, timeout=WAIT_MS) as uploaded:
        page.locator("input[type=file]").set_input_files([file])  # type: ignore[list-item]
    assert uploaded.value.status == 204
    expect(page.get_by_text(name).first).to_be_visible(timeout=WAIT_MS)


@pytest.mark.parametrize("way", WAYS)
def test_the_password_opens_the_page_and_its_websocket(page: Page, port: int, home: Path, way: str) -> None:
    """Three of these four ended in "Sign in on this server's own page" after the right password."""
    with proxy(port, way, home) as before:
        address = f"https://{NAME}:{before.port}"
        sign_in(page, f"{address}/Characters")
        cookie = next(one for one in page.context.cookies() if one["name"] == f"{SECURE_PREFIX}{COOKIE}_{before.port}")
        assert cookie["secure"] and cookie["httpOnly"] and cookie["path"] == "/"
        expect(key(page, "characters_import")).to_be_visible(timeout=WAIT_MS)


@pytest.mark.parametrize("way", [WAYS[1], WAYS[3]])
def test_a_neighbour_on_the_same_site_does_not_ride_on_the_cookie(page: Page, port: int, home: Path, way: str) -> None:
    with proxy(port, way, home) as before:
        address = f"https://{NAME}:{before.port}"
        sign_in(page, address)
        neighbour = page.context.new_page()
        neighbour.goto(f"https://{NEIGHBOUR}:{before.port}/")
        assert neighbour.evaluate(TRY_SOCKET, f"wss://{NAME}:{before.port}/_stcore/stream") == "closed"
        neighbour.evaluate(TRY_POST, f"{address}/sign-out")
        tried = [head for head in before.seen if head.get("origin", "").startswith(f"https://{NEIGHBOUR}")]
        assert {head["target"] for head in tried} == {"/_stcore/stream", "/sign-out"}
        assert all(COOKIE in head["cookie"] for head in tried), "the browser sends it along: the gate has to refuse"
        assert page.evaluate(TRY_SOCKET, f"wss://{NAME}:{before.port}/_stcore/stream") == "open"
        import_character(page, address, f"Guest {WAYS.index(way)}")


@pytest.fixture
def below(port: int, home: Path) -> Iterator[Proxy]:
    with proxy(port, WAYS[3], home, PATH) as made:
        yield made


def test_below_a_path_that_is_taken_away_everything_stays_there(page: Page, below: Proxy) -> None:
    """The form once posted to /sign-in, outside of the path, where Jupyter answers 403."""
    address = f"https://{NAME}:{below.port}{PATH}"
    sign_in(page, f"{address}/Settings")
    assert page.url == f"{address}/Settings"
    assert {one["path"] for one in page.context.cookies() if COOKIE in one["name"]} == {PATH}
    expect(page.locator("code").first).to_have_text(f"{address}/v1", timeout=WAIT_MS)
    import_character(page, address, "Below")
    page.goto(f"{address}/Characters/")
    expect(page.locator("img[src*='/media/']").first).to_be_visible(timeout=WAIT_MS)
    assert page.url == f"{address}/Characters"
    page.goto(f"{address}/Settings")
    page.get_by_role("button", name="Sign out", exact=True).click(timeout=WAIT_MS)
    expect(page.locator("#password")).to_be_visible(timeout=WAIT_MS)
    assert page.url == f"{address}/"
    # What the frontend tries on its way to find out where it is.
    outside = {head["target"] for head in below.seen if not head["target"].startswith(f"{PATH}/")}
    assert not any("sign" in target or "media" in target or "upload" in target for target in outside)


def test_signing_in_through_a_provider_comes_back_below_the_path(page: Page, home: Path, tmp_path: Path) -> None:
    """Streamlit's own way back leads to /, and its way out to /auth/logout: outside of the path."""
    with oidc_provider() as provider, proxy(0, WAYS[3], home, PATH) as before:
        address = f"https://{NAME}:{before.port}{PATH}"
        secrets = provider.secrets_toml('[access]\nallow = ["*@example.org"]\n')
        (tmp_path / ".streamlit").mkdir()
        own = "http://127.0.0.1:{port}/oauth2callback"
        (tmp_path / ".streamlit" / "secrets.toml").write_text(
            secrets.replace(own, f"{address}/oauth2callback"), "utf-8"
        )
        folders = {f"LLAMADECK_{name.upper()}": str(tmp_path / name) for name in ("models", "data", "characters")}
        with dashboard(os.environ | folders | {"HOME": str(tmp_path)}) as url:
            before.upstream_port = urlsplit(url).port or 0
            page.goto(f"{address}/Settings")
            page.get_by_role("link", name="Sign in with your account").click()
            page.locator("#ann").click()
            expect(page.get_by_test_id("stSidebarNav")).to_be_visible(timeout=WAIT_MS)
            assert page.url == f"{address}/"
            page.goto(f"{address}/Settings")
            expect(page.get_by_text("ann@example.org")).to_be_visible(timeout=WAIT_MS)
            page.get_by_role("button", name="Sign out", exact=True).click(timeout=WAIT_MS)
            expect(page.get_by_role("link", name="Sign in with your account")).to_be_visible(timeout=WAIT_MS)
            assert page.url == f"{address}/"
