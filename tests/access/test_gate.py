"""The gate around an app that says whom it was let in as, asked as a server would: who passes, and who does not."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import HTTPConnection

from core.access import exposure
from core.access.access import Access
from core.access.exposure import LISTENS, LOOPBACK, NETWORK, is_loopback, is_loopback_only, note_listening
from core.access.gate import Gate
from core.access.headers import HEADERS
from core.access.requests import is_cross_origin, language_of, local_path
from core.access.scopes import PERSON_HEADER, TRUST_TOKEN, person_in
from core.access.secret_file import SecretFile
from core.access.visitors import COOKIE
from tests.support.gate_client import (
    AWAY,
    HERE,
    PAGE,
    PASSWORD,
    SignedInPeople,
    access,
    app,
    ask,
    cookie_of,
    make_scope,
    says_who,
    settings,
    sign_in,
    talk,
)

__all__ = ["access", "app", "settings"]

# Who passes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/Chat", "/sign-in/", "/v1/../_stcore/health", "/v1/..", "/v1/a/./b",
                                  "/v1/..\\x", "//v1/models", "/Health", "/health/", "/metrics/x",
                                  "/auth/login", "/oauth2callback", "/sign-in/default"])  # fmt: skip
def test_a_page_asks_who_this_is(app: Gate, path: str) -> None:
    reply = ask(app, path, PAGE)
    assert reply.status == 401 and re.search(r'action="[./]+/sign-in"', reply.text)
    assert reply.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("path", ["/_stcore/health", "/_stcore/upload_file/a/b", "/static/index.html", "/media/x.png",
                                  "/component/x/y", "/app/static/x"])  # fmt: skip
def test_what_is_no_page_is_refused(app: Gate, path: str) -> None:
    for method in ("GET", "POST", "PUT", "DELETE"):
        reply = ask(app, path, PAGE, method)
        assert (reply.status, reply.text) == (401, "Sign in first.\n")


@pytest.mark.parametrize(
    "path",
    [
        *("/v1/models", "/v1/chat/completions", "/metrics", "/health", "/ready", "/openapi.json"),
        *("/v1/messages", "/messages", "/v1/messages/count_tokens", "/messages/count_tokens", "/v1/responses"),
        *("/responses", "/api/chat", "/api/generate", "/api/show", "/api/tags", "/api/ps", "/api/version"),
    ],
)
def test_the_api_asks_for_its_keys_itself(app: Gate, path: str) -> None:
    assert ask(app, path, method="POST").text == "None False"


def test_the_right_password_opens_and_leads_on(app: Gate) -> None:
    page = ask(app, "/Chat?chat=3", PAGE)
    wanted = re.search(r'name="next" value="([^"]*)"', page.text)
    assert wanted is not None
    reply = sign_in(app, next=wanted[1])
    assert (reply.status, reply.headers["location"]) == (303, "./Chat?chat=3")
    assert ask(app, "/Chat", cookie_of(reply)).text == "'' False"
    assert ask(app, "/sign-in?next=/Chat", cookie_of(reply)).headers["location"] == "./Chat"


def test_a_wrong_password_opens_nothing(app: Gate) -> None:
    for wrong in ("", "wrong password", PASSWORD + "\0"):
        reply = sign_in(app, password=wrong)
        assert reply.status == 401 and "set-cookie" not in reply.headers
        assert "That is not the password" in reply.text and PASSWORD not in reply.text


def test_a_damaged_file_is_said_where_people_sign_in(app: Gate, access: Access, tmp_path: Path) -> None:
    (tmp_path / "access.json").write_text("{", "utf-8")
    reply = sign_in(app, password=PASSWORD)
    assert reply.status == 401 and "set-cookie" not in reply.headers and "./llamadeck password" in reply.text
    assert ask(app, "/").status == 401


def test_the_cookie_is_hidden_from_scripts_and_other_sites_and_ends(app: Gate) -> None:
    parts = sign_in(app).headers["set-cookie"].split("; ")
    assert {"HttpOnly", "SameSite=lax", f"Max-Age={7 * 24 * 3600}"} <= set(parts)
    # A browser that is told no path takes the one below which it signed in.
    assert "Secure" not in parts and not any(part.startswith(("Path", "Domain")) for part in parts)


@pytest.mark.parametrize(
    ("headers", "place"),
    [({}, AWAY | {"scheme": "https"}), ({"origin": "https://deck.example.org"}, AWAY)],
    ids=["https", "https before a proxy elsewhere"],
)
def test_over_https_the_cookie_is_for_https_only(app: Gate, headers: dict[str, str], place: dict[str, Any]) -> None:
    assert "Secure" in sign_in(app, headers, place).headers["set-cookie"]


@pytest.mark.parametrize("cookie", ["", "x", "a~9999999999.b", "~", "\xe9", "a" * 5000])
def test_a_forged_cookie_opens_nothing(app: Gate, cookie: str) -> None:
    assert ask(app, "/_stcore/health", {"cookie": f"{COOKIE}={cookie}"}).status == 401


def test_signing_out_ends_the_session_also_for_a_copied_cookie(app: Gate) -> None:
    cookie = cookie_of(sign_in(app))
    reply = ask(app, "/sign-out", cookie, "POST")
    assert reply.status == 303 and 'llamadeck_session=""' in reply.headers["set-cookie"]
    assert ask(app, "/_stcore/health", cookie).status == 401


def test_nobody_else_can_say_whom_the_gate_let_in(app: Gate) -> None:
    assert ask(app, "/v1/models", {PERSON_HEADER: f"{TRUST_TOKEN} ann"}).text == "None False"
    cookie = cookie_of(sign_in(app))
    assert ask(app, "/", cookie | {PERSON_HEADER: f"{TRUST_TOKEN} ann"}).text == "'' False"
    assert person_in({PERSON_HEADER: "x ann"}) is None and person_in({}) is None


def test_without_a_password_nobody_gets_in_and_the_page_says_what_to_do(tmp_path: Path) -> None:
    app = Gate(says_who, Access(SecretFile(tmp_path / "none.json"), {}))
    for reply in (ask(app, "/", PAGE), sign_in(app, PAGE), ask(app, "/sign-in", PAGE)):
        assert reply.status == 403 and "./llamadeck password" in reply.text


# Delays, forms, other sites -------------------------------------------------------------------------------------------


def test_too_many_tries_are_told_when_to_come_back(app: Gate) -> None:
    replies = [sign_in(app, password="wrong password") for _ in range(5)]
    assert [reply.status for reply in replies] == [401] * 4 + [429]
    assert replies[-1].headers["retry-after"] == "1" and "Wait 1 s" in replies[-1].text
    assert sign_in(app).status == 429
    assert sign_in(app, place=AWAY | {"client": ("192.0.2.8", 1)}).status == 303


def test_a_form_larger_than_a_password_is_not_read_to_its_end(app: Gate) -> None:
    unread = [b"x" * 4000] * 5
    reply = ask(app, "/sign-in", method="POST", body=unread)
    assert reply.status == 413 and "set-cookie" not in reply.headers


def test_a_form_that_does_not_come_is_not_waited_for(app: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.access.sign_in.FORM_S", 0.05)
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        await asyncio.Event().wait()
        return {}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    asyncio.run(app(make_scope("http", "/sign-in", {}, "POST", AWAY), receive, send))
    assert sent[0]["status"] == 408


@pytest.mark.parametrize("body", [b"", b"&&&===", b"password", b"\xff\xfe", b"password=%ff%fe", b"%" * 4000])
def test_a_form_of_nonsense_is_a_wrong_password(app: Gate, body: bytes) -> None:
    assert ask(app, "/sign-in", method="POST", body=[body]).status == 401


@pytest.mark.parametrize("origin", ["http://evil.example", "http://deck.example.org:81", "null", "http://[", "x",
                                    "https://deck.example.org.evil.example"])  # fmt: skip
def test_no_other_site_signs_anybody_out_or_opens_a_socket(app: Gate, origin: str) -> None:
    cookie = cookie_of(sign_in(app))
    away = {"origin": origin}
    assert ask(app, "/sign-out", cookie | away, "POST").status == 403
    assert ask(app, "/_stcore/upload_file/a/b", cookie | away, "PUT").status == 403
    assert talk(app, cookie | away, ["hello"]) == [1008]
    assert ask(app, "/", cookie).status == 200


@pytest.mark.parametrize("headers", [{"origin": "null"}, {"origin": "http://["}, {"origin": "x"},
                                     {"origin": "https://evil.example", "sec-fetch-site": "cross-site"},
                                     {"origin": "https://deck.example.org", "sec-fetch-site": "same-site"},
                                     {"sec-fetch-site": "cross-site"}])  # fmt: skip
def test_no_page_that_is_known_to_be_elsewhere_signs_anybody_in(app: Gate, headers: dict[str, str]) -> None:
    assert sign_in(app, headers).status == 403


@pytest.mark.parametrize("origin", ["http://deck.example.org", "http://deck.example.org:80", "HTTP://DECK.example.org"])
def test_our_own_pages_do(app: Gate, origin: str) -> None:
    assert sign_in(app, {"origin": origin}).status == 303


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_signing_out_is_no_link(app: Gate, method: str) -> None:
    assert ask(app, "/sign-out", method=method).status == 405


# Websockets -----------------------------------------------------------------------------------------------------------


def test_a_websocket_needs_a_session_and_ends_with_it(app: Gate, access: Access) -> None:
    assert talk(app, {}, ["hello"]) == [1008]
    cookie = cookie_of(sign_in(app))
    token = cookie["cookie"].partition("=")[2]
    said = talk(app, cookie, ["one", lambda: access.sessions.end(token), "two", "three"])
    assert said == ["accept", "'' one", 1008]
    cookie = cookie_of(sign_in(app))
    assert talk(app, cookie, ["one", lambda: access.set_password("another one"), "two"]) == ["accept", "'' one", 1008]


# This machine ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def unguarded(tmp_path: Path) -> Gate:
    """With no password, so that nothing is asked on this machine."""
    return Gate(says_who, Access(SecretFile(tmp_path / "none.json"), {}))


@pytest.fixture
def on_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LISTENS, LOOPBACK)


@pytest.mark.usefixtures("on_loopback")
@pytest.mark.parametrize("host", ["localhost", "localhost:6006", "127.0.0.1:6006", "[::1]:6006", "a.localhost:1"])
def test_on_loopback_nothing_is_asked(unguarded: Gate, host: str) -> None:
    assert ask(unguarded, "/", place=HERE | {"host": host}).text == "'' True"
    assert ask(unguarded, "/v1/models", place=HERE | {"host": host}).text == "None True"


@pytest.mark.usefixtures("on_loopback")
def test_where_a_password_is_set_it_is_asked_for_on_this_machine_too(app: Gate) -> None:
    """A proxy on this machine that leaves no trace once counted as this machine, and a password did not help."""
    assert ask(app, "/", PAGE, place=HERE).status == 401
    assert ask(app, "/", cookie_of(sign_in(app, place=HERE)), place=HERE).text == "'' True"


@pytest.mark.usefixtures("on_loopback")
@pytest.mark.parametrize(
    "change",
    [{"host": "evil.example:6006"}, {"host": "localhost.evil.example"}, {"host": ""}, {"host": "127.0.0.1.evil"},
     {"client": ("192.0.2.7", 1)}, {"server": ("192.0.2.2", 6006)}, {"client": None}, {"server": ("/run/deck", None)}],
)  # fmt: skip
def test_a_name_that_was_pointed_at_loopback_is_asked(unguarded: Gate, app: Gate, change: dict[str, Any]) -> None:
    assert ask(app, "/", PAGE, place=HERE | change).status == 401
    assert ask(unguarded, "/", PAGE, place=HERE | change).status == 403
    assert ask(unguarded, "/v1/models", place=HERE | change).text == "None False"


@pytest.mark.usefixtures("on_loopback")
@pytest.mark.parametrize("header", ["x-forwarded-for", "forwarded", "x-real-ip", "x-forwarded-host", "via", "cf-ray",
                                    "x-forwarded-proto", "x-forwarded-port", "true-client-ip", "x-envoy-peer-metadata",
                                    "x-amzn-trace-id", "cdn-loop", "fly-client-ip", "x-original-host", "tailscale-user",
                                    "x-forwarded-server", "x-client-ip"])  # fmt: skip
def test_what_a_proxy_passes_on_is_asked(unguarded: Gate, app: Gate, header: str) -> None:
    assert ask(app, "/", PAGE | {header: "127.0.0.1"}, place=HERE).status == 401
    assert ask(unguarded, "/", PAGE | {header: "127.0.0.1"}, place=HERE).status == 403
    assert ask(unguarded, "/v1/models", {header: "127.0.0.1"}, place=HERE).text == "None False"


@pytest.mark.usefixtures("on_loopback")
@pytest.mark.parametrize("header", ["x-forwarded-prefix", "x-forwarded-context", "x-proxycontextpath", "accept"])
def test_a_path_that_was_taken_away_says_nothing_of_who_asks(unguarded: Gate, header: str) -> None:
    """Jupyter tells it to what its own user runs beside it."""
    assert ask(unguarded, "/", PAGE | {header: "/proxy/6006"}, place=HERE).text == "'' True"


@pytest.mark.usefixtures("on_loopback")
def test_a_page_elsewhere_reaches_no_loopback_api_without_a_key(unguarded: Gate) -> None:
    app, away = unguarded, {"origin": "http://evil.example"}
    for method in ("POST", "GET"):
        assert ask(app, "/v1/chat/completions", away, method, place=HERE).status == 403
    assert ask(app, "/v1/models", {"sec-fetch-site": "cross-site"}, "POST", place=HERE).status == 403
    # With one it counts as from elsewhere: the API sees whether the key is right. Any made-up one once was enough.
    for away_too in (away, {"origin": "null"}, {"origin": "http://127.0.0.1:7000"}):
        for key in ({"authorization": "Bearer x"}, {"x-api-key": "x"}):
            assert ask(app, "/v1/models", away_too | key, place=HERE).text == "None False"
    assert ask(app, "/v1/models", away, "OPTIONS", place=HERE).status == 200
    assert ask(app, "/health", {"sec-fetch-site": "cross-site"}, place=HERE).status == 200


@pytest.mark.parametrize(
    ("host", "is_one"),
    [("127.0.0.1", True), ("127.0.0.53", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False),
     ("192.0.2.1", False), ("", False), ("no such host", False)],
)  # fmt: skip
def test_which_addresses_are_loopback(host: str, is_one: bool) -> None:
    assert (is_loopback(host) if host else False) == is_one
    environment: dict[str, str] = {LISTENS: LOOPBACK}
    note_listening(host, environment)
    assert exposure.is_network(environment) != is_one


def test_nobody_knows_is_every_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(LISTENS)
    assert not is_loopback_only()
    environment: dict[str, str] = {}
    note_listening(None, environment)
    assert environment == {LISTENS: NETWORK}


# People ---------------------------------------------------------------------------------------------------------------


def test_who_signed_on_gets_in_under_their_own_name(access: Access, monkeypatch: pytest.MonkeyPatch) -> None:
    app = Gate(says_who, access, SignedInPeople())
    monkeypatch.setenv(LISTENS, LOOPBACK)
    for place in (AWAY, HERE):
        assert ask(app, "/", PAGE, place=place).status == 401
        assert ask(app, "/", {"cookie": "who=ann"}, place=place).text.startswith("'ann' ")
    assert talk(app, {"cookie": "who=ann"}, ["hello"]) == ["accept", "'ann' hello"]
    assert ask(app, "/sign-in/default").headers["location"] == "../auth/login?provider=default"
    assert ask(app, "/auth/login?x=1").text == "None False"


def test_who_is_not_invited_is_told_so(access: Access) -> None:
    app = Gate(says_who, access, SignedInPeople())
    reply = ask(app, "/", PAGE | {"cookie": "who=<b>eve*"})
    assert reply.status == 403 and "&lt;b&gt;eve* may not use" in reply.text
    assert ask(app, "/_stcore/health", {"cookie": "who=eve*"}).status == 401


def test_the_password_opens_beside_a_provider(access: Access) -> None:
    app = Gate(says_who, access, SignedInPeople())
    page = ask(app, "/", PAGE).text
    assert 'href="./sign-in/default"' in page and 'type="password"' in page
    assert ask(app, "/", cookie_of(sign_in(app))).text.startswith("'' ")


# What is said ---------------------------------------------------------------------------------------------------------


def test_every_answer_carries_the_security_headers(app: Gate) -> None:
    cookie = cookie_of(sign_in(app))
    for reply in (ask(app, "/", PAGE), ask(app, "/x"), ask(app, "/", cookie), ask(app, "/v1/x"), sign_in(app)):
        assert {name.decode() for name in HEADERS} <= set(reply.headers)
    assert "default-src 'none'" in ask(app, "/", PAGE).headers["content-security-policy"]


@pytest.mark.parametrize(
    ("accepted", "language"),
    [("zh-CN,zh;q=0.9,en;q=0.8", "zh"), ("en-US,en;q=0.9,zh;q=0.1", "en"), ("fr,zh;q=0.5,en;q=0.4", "zh"),
     ("", "en"), ("fr", "en"), (";q=x,zh;q=y,,", "en"), ("zh;q=0.1,en;q=0.9", "en")],
)  # fmt: skip
def test_the_page_speaks_the_browsers_language(app: Gate, accepted: str, language: str) -> None:
    request = HTTPConnection(make_scope("http", "/", {"accept-language": accepted}, "GET", AWAY))
    assert language_of(request) == language
    words = {"en": "Sign in", "zh": "登录"}
    assert f"<h1>{words[language]}</h1>" in ask(app, "/", PAGE | {"accept-language": accepted}).text


@pytest.mark.parametrize("wanted", ["//evil.example", "/\\evil.example", "http://evil.example", "evil", "", "/a\r\nx:",
                                    "/a b", '/"><script>', "/" + "x" * 2000, "\\\\evil", "/\t/evil.org"])  # fmt: skip
def test_no_link_leads_from_the_sign_in_page_elsewhere(app: Gate, wanted: str) -> None:
    assert local_path(wanted) == "/"
    assert sign_in(app, next=wanted).headers["location"] == "./"


def test_a_host_with_a_path_in_it_moves_no_path(app: Gate) -> None:
    place = AWAY | {"host": "deck.example.org/v1/x?"}
    assert ask(app, "/_stcore/health", place=place).status == 401


def test_without_an_origin_the_browsers_word_counts() -> None:
    for site, is_elsewhere in (("cross-site", True), ("same-site", True), ("same-origin", False), ("none", False)):
        scope = make_scope("http", "/", {"sec-fetch-site": site}, "POST", AWAY)
        assert is_cross_origin(HTTPConnection(scope)) == is_elsewhere
