"""A real server that others could reach: what it refuses on the wire, how it ends, and what it never writes down."""

from __future__ import annotations

import os
import re
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest
from playwright.sync_api import Browser, expect

from core.access.access import Access
from core.access.secret_file import SecretFile
from core.common.paths import ROOT
from core.hub.tokens import store_token
from tests.support.checkpoints import TEMPLATE, Recipe, make_checkpoint
from tests.support.dashboard import dashboard, free_port, key, wait_until_healthy
from ui.server import slow_clients

PASSWORD, WRONG, TOKEN = "correct horse battery", "incorrect horse", "hf_SecretOfTheHub"
# What a websocket begins with.
UPGRADE = {"connection": "Upgrade", "upgrade": "websocket", "sec-websocket-version": "13",
           "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ=="}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    """A dashboard on every network of this machine, whose password is in a file and whose log is too."""
    Access(SecretFile(folder / "data" / "access.json"), {}).set_password(PASSWORD)
    (folder / "models").mkdir()
    environment = os.environ | {
        "LLAMADECK_MODELS": str(folder / "models"), "LLAMADECK_DATA": str(folder / "data"), "LLAMADECK_LOG": "debug",
    }  # fmt: skip
    with (folder / "log").open("wb") as log, dashboard(environment, "0.0.0.0", log) as address:
        yield address


def send(url: str, request: bytes) -> bytes:
    """What the server answers to these bytes, until it closes."""
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port), timeout=30) as connection:
        connection.sendall(request)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def status_of(reply: bytes) -> int:
    return int(reply.split(b" ", 2)[1])


def test_a_websocket_without_a_session_is_not_opened(url: str) -> None:
    reply = httpx2.get(f"{url}/_stcore/stream", headers=UPGRADE)
    assert reply.status_code == 403
    forged = UPGRADE | {"cookie": "llamadeck_session=a~9999999999.b", "x-llamadeck-person": "x"}
    assert httpx2.get(f"{url}/_stcore/stream", headers=forged).status_code == 403


@pytest.mark.parametrize("path", [
    "/v1/../_stcore/host-config", "/v1/..%2f_stcore/host-config", "/v1/%2e%2e/_stcore/health", "//_stcore/health",
    "/./_stcore/health", "/sign-in/../_stcore/health", "/static/../../../etc/passwd", "/..%5c..%5cetc/passwd",
    "/_stcore/health?next=/v1/", "/%00", "/media/%2e%2e/%2e%2e/etc/passwd", "http://localhost/_stcore/health",
])  # fmt: skip
def test_no_way_to_write_a_path_leads_inside(url: str, path: str) -> None:
    reply = send(url, f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    assert status_of(reply) in (400, 401, 403, 404)
    assert b"root:" not in reply and b"ok\r\n" not in reply and not reply.endswith(b"\r\n\r\nok")


def test_what_is_no_request_gets_400(url: str) -> None:
    assert status_of(send(url, b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n")) == 400
    assert status_of(send(url, b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\nConnection: close\r\n\r\n")) in (400, 401)


def test_a_form_longer_than_it_says_or_larger_than_it_may_is_refused(url: str) -> None:
    head = b"POST /sign-in HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: "
    assert status_of(send(url, head + b"1000000\r\n\r\n" + b"x" * 8000)) == 413
    assert httpx2.post(f"{url}/sign-in", content=b"x" * 5_000_000).status_code == 413


def test_the_right_password_opens_what_a_wrong_one_does_not(url: str) -> None:
    with httpx2.Client(base_url=url) as client:
        assert client.post("/sign-in", data={"password": WRONG}).status_code == 401
        assert client.get("/_stcore/health").status_code == 401
        assert client.post("/sign-in", data={"password": PASSWORD}).status_code == 303
        assert client.get("/_stcore/health").text == "ok"
        assert client.post("/sign-out").status_code == 303
        assert client.get("/_stcore/health").status_code == 401


def test_whoever_says_to_be_somebody_elses_proxy_waits_all_the_same(url: str) -> None:
    """Only a proxy at 127.0.0.1 is believed: no client gets a new name, and new tries with it, by a header."""
    with httpx2.Client(transport=httpx2.HTTPTransport(local_address="127.0.0.2")) as client:
        names = [{"x-forwarded-for": f"198.51.100.{number}"} for number in range(12)]
        replies = [client.post(f"{url}/sign-in", data={"password": WRONG}, headers=name) for name in names]
    assert [reply.status_code for reply in replies[:4]] == [401] * 4
    assert 429 in {reply.status_code for reply in replies}


@pytest.mark.usefixtures("url")
def test_secrets_lie_in_files_of_mode_600_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After all that was tried above: no password, token, hash or signing secret in the log or in what is readable."""
    monkeypatch.setenv("LLAMADECK_DATA", str(folder / "data"))
    store_token("https://huggingface.co", TOKEN)
    kept = SecretFile(folder / "data" / "access.json").read()
    secrets = [PASSWORD, WRONG, TOKEN, kept.secret, kept.password.rpartition("$")[2]]
    assert all(secrets)
    holding: dict[str, set[str]] = {}
    for path in (path for path in folder.rglob("*") if path.is_file()):
        content = path.read_bytes()
        found = {secret for secret in secrets if secret.encode() in content}
        if found:
            holding[path.name] = found
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert holding == {"access.json": {kept.secret, kept.password.rpartition("$")[2]}, "secrets.json": {TOKEN}}
    assert "a wrong password came from" in (folder / "log").read_text("utf-8")


# Slow clients ---------------------------------------------------------------------------------------------------------


def test_a_header_that_never_ends_is_not_waited_for(tmp_path: Path) -> None:
    """A client that sends a byte now and then held its connection, and one of the process's files, for ever."""
    code = (
        "import sys; from streamlit.web import cli; from ui.server import slow_clients;"
        "slow_clients.HEADER_S = 0.5; slow_clients.limit_slow_clients(); cli.main(['run', *sys.argv[1:]])"
    )
    port = free_port()
    options = ["--server.port", str(port), "--server.address", "127.0.0.1"]
    environment = os.environ | {"LLAMADECK_DATA": str(tmp_path), "LLAMADECK_MODELS": str(tmp_path / "models")}
    process = subprocess.Popen(
        [sys.executable, "-c", code, "serve.py", *options], cwd=ROOT, env=environment, stderr=subprocess.DEVNULL
    )
    try:
        wait_until_healthy(f"http://127.0.0.1:{port}", process)
        with socket.create_connection(("127.0.0.1", port), timeout=30) as slow:
            slow.sendall(b"GET / HTTP/1.1\r\nHost: loc")
            assert slow.recv(100) == b""
        with socket.create_connection(("127.0.0.1", port), timeout=30) as silent:
            assert silent.recv(100) == b""
        assert httpx2.get(f"http://127.0.0.1:{port}/_stcore/health").text == "ok"
    finally:
        process.kill()
        process.wait(30)


def test_the_limit_is_longer_than_any_honest_client_needs() -> None:
    assert slow_clients.HEADER_S >= 10


# The end --------------------------------------------------------------------------------------------------------------


def test_sigterm_keeps_the_answer_that_is_being_written_and_ends_the_engine(browser: Browser, tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "models" / "tiny", Recipe(context_tokens=4096))
    (tmp_path / "models" / "tiny" / "chat_template.jinja").write_text(TEMPLATE, "utf-8")
    port = free_port()
    environment = os.environ | {
        "LLAMADECK_MODELS": str(tmp_path / "models"), "LLAMADECK_DATA": str(tmp_path / "data"),
        "LLAMADECK_WORKER": "tests.support.fake_worker", "LLAMADECK_LOAD": "tiny", "LLAMADECK_PASSWORD": PASSWORD,
    }  # fmt: skip
    command = [sys.executable, "-m", "cli.main", "run", "--port", str(port), "--host", "0.0.0.0", "--model", "tiny"]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_healthy(url, process)
        context = browser.new_context(locale="en-US")
        page = context.new_page()
        page.goto(f"{url}/Chat?chat=new")
        page.locator("#password").fill(PASSWORD)
        page.keyboard.press("Enter")
        field = page.get_by_test_id("stChatInputTextArea")
        expect(field).to_be_enabled(timeout=30_000)
        field.fill("tell me forever wait=0.05")
        field.press("Enter")
        expect(page.get_by_test_id("stChatMessage").last).to_contain_text("two three", timeout=30_000)
        workers = children(process.pid)
        assert workers and all("correct horse" not in environment_of(worker) for worker in workers)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        context.close()
    finally:
        process.kill()
        process.wait(30)
    with sqlite3.connect(tmp_path / "data" / "chats.sqlite3") as db:
        state, text = db.execute("SELECT state, text FROM messages WHERE role = 'assistant'").fetchone()
    assert state == "stopped" and text.startswith("one two three")
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)


def children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for path in found for child in path.read_text().split()]


def environment_of(pid: int) -> str:
    return Path(f"/proc/{pid}/environ").read_bytes().decode("utf-8", "replace")


def test_started_by_hand_without_a_password_it_opens_for_nobody(tmp_path: Path) -> None:
    """`streamlit run serve.py` listens on every network, and asks nobody."""
    port = free_port()
    environment = os.environ | {"LLAMADECK_DATA": str(tmp_path), "LLAMADECK_MODELS": str(tmp_path / "models")}
    log = tmp_path / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "streamlit", "run", "serve.py", "--server.port", str(port)],
            cwd=ROOT, env=environment | {"LLAMADECK_LISTENS": "loopback"}, stdout=file, stderr=file,
        )  # fmt: skip
        try:
            wait_until_healthy(f"http://127.0.0.1:{port}", process)
            reply = httpx2.get(f"http://127.0.0.1:{port}/", headers={"accept": "text/html"})
            assert reply.status_code == 403 and "./llamadeck password" in reply.text
            assert httpx2.get(f"http://127.0.0.1:{port}/_stcore/stream", headers=UPGRADE).status_code == 403
        finally:
            process.kill()
            process.wait(30)
    assert re.search("others can reach LlamaDeck", log.read_text("utf-8"))


def test_pages_without_the_gate_draw_nothing(browser: Browser, tmp_path: Path) -> None:
    """`streamlit run Home.py` leaves serve.py, and the gate with it, out."""
    port = free_port()
    environment = os.environ | {"LLAMADECK_DATA": str(tmp_path), "LLAMADECK_MODELS": str(tmp_path / "models")}
    options = ["--server.port", str(port), "--server.address", "127.0.0.1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "streamlit", "run", "Home.py", *options], cwd=ROOT, env=environment,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_until_healthy(f"http://127.0.0.1:{port}", process)
        page = browser.new_page(extra_http_headers={"X-Llamadeck-Person": "x "})
        page.goto(f"http://127.0.0.1:{port}/Settings")
        expect(page.get_by_text("./llamadeck run")).to_be_visible(timeout=30_000)
        assert key(page, "settings_password_set").count() == 0
        page.close()
    finally:
        process.kill()
        process.wait(30)
