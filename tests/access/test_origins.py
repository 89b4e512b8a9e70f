"""Which origin a request came from and was sent to, as the proxies that people use tell it; the gate behind them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import pytest
from starlette.datastructures import Headers
from starlette.requests import HTTPConnection

from core.access.access import Access
from core.access.exposure import LISTENS
from core.access.gate import Gate
from core.access.origins import Origin, parse_forwarded, parse_host, parse_origin, requested_hosts
from core.access.requests import cookies_named, from_here, is_cross_origin, local_path
from core.access.scopes import with_trust_token
from core.access.secret_file import SecretFile
from core.access.visitors import COOKIE, DEVICE_COOKIE, SECURE_PREFIX, is_session_cookie
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
    form,
    make_scope,
    says_who,
    settings,
    sign_in,
    talk,
)

__all__ = ["access", "app", "settings"]

# Texts ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "origin"),
    [
        ("https://deck.example.org", ("https", "deck.example.org", 443)),
        ("https://deck.example.org:443", ("https", "deck.example.org", 443)),
        ("HTTPS://Deck.Example.ORG.:8443", ("https", "deck.example.org", 8443)),
        ("http://localhost:6006", ("http", "localhost", 6006)),
        ("http://[::1]:6006", ("http", "::1", 6006)),
        ("http://[2001:DB8:0:0::1]", ("http", "2001:db8::1", 80)),
        ("https://例え.example", ("https", "xn--r8jz45g.example", 443)),
        ("https://xn--r8jz45g.example", ("https", "xn--r8jz45g.example", 443)),
        ("https://deck.example.org/with/a/path", ("https", "deck.example.org", 443)),
    ],
)
def test_an_origin_has_one_way_to_be_written(text: str, origin: tuple[str, str, int]) -> None:
    found = parse_origin(text)
    assert found == Origin(*origin) and parse_origin(str(found)) == found


@pytest.mark.parametrize("text", ["", "null", "x", "file://", "http://", "http://[", "http://a:b", "http://a:99999",
                                  "http://a:0", "//deck.example.org", "javascript:alert(1)", "http://a b", "ws://a",
                                  "http://ann@deck.example.org", "http://" + "a" * 300, "chrome-extension://abc",
                                  "http://a,b", "http://a\\b"])  # fmt: skip
def test_what_is_no_origin_is_none(text: str) -> None:
    assert parse_origin(text) is None


@pytest.mark.parametrize(
    ("text", "place"),
    [("deck:80", ("deck", 80)), ("deck", ("deck", None)), (" Deck. ", ("deck", None)), ("[::1]:6006", ("::1", 6006)),
     ("[::1]", ("::1", None)), ("10.0.0.7:6006", ("10.0.0.7", 6006)), ("deck:", ("deck", None))],
)  # fmt: skip
def test_a_place_has_a_port_or_none(text: str, place: tuple[str, int | None]) -> None:
    found = parse_host(text)
    assert found is not None and (found.host, found.port) == place


@pytest.mark.parametrize("text", ["", "deck/path", "deck?x", "deck#x", "a:b", "a@b", "a b", "\\evil"])
def test_what_is_no_place_is_none(text: str) -> None:
    assert parse_host(text) is None


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ('for=192.0.2.1;host="deck.example.org:8443";proto=https', {"host": "deck.example.org:8443", "proto": "https"}),
        ("for=192.0.2.1; host=deck.example.org ;proto=https", {"host": "deck.example.org", "proto": "https"}),
        ('for="[2001:db8::1]:4711";Host="[::1]:80", for=10.0.0.1;host=inner', {"host": "[::1]:80"}),
        ("host=outer, host=inner", {"host": "outer"}),
        ('host="a\\"b,c"', {"host": 'a"b,c'}),
        ("", {}), (";;;", {}), ("host", {}), ('host="open', {}), ("=x", {}),
    ],
)  # fmt: skip
def test_forwarded_is_read_as_it_is_written(text: str, pairs: dict[str, str]) -> None:
    found = parse_forwarded(text)
    assert {name: value for name, value in found.items() if name != "for"} == pairs


# What proxies tell ----------------------------------------------------------------------------------------------------

# What the browser says its page's origin is, and what arrives here.
TOLD: dict[str, tuple[str, dict[str, str]]] = {
    "nobody between": ("http://192.0.2.2:6006", {"host": "192.0.2.2:6006"}),
    "ssh -L": ("http://localhost:8080", {"host": "localhost:8080"}),
    "nginx with $http_host": ("https://deck.example.org:8443", {"host": "deck.example.org:8443"}),
    "nginx with $host on 443": ("https://deck.example.org", {"host": "deck.example.org", "x-forwarded-proto": "https"}),
    "Caddy": ("https://deck.example.org:8443", {
        "host": "deck.example.org:8443", "x-forwarded-host": "deck.example.org:8443", "x-forwarded-proto": "https",
        "via": "1.1 Caddy"}),
    "Traefik, whose X-Forwarded-Host has no port": ("https://deck.example.org:8443", {
        "host": "10.42.0.7:6006", "x-forwarded-host": "deck.example.org", "x-forwarded-port": "8443",
        "x-forwarded-proto": "https", "x-forwarded-server": "traefik"}),
    "Traefik's websockets, whose scheme is wss": ("https://deck.example.org", {
        "host": "deck.example.org", "x-forwarded-host": "deck.example.org", "x-forwarded-proto": "wss",
        "x-forwarded-port": "443"}),
    "a proxy before a proxy, which names itself second": ("https://deck.example.org", {
        "host": "inner:6006", "x-forwarded-host": "deck.example.org, inner:8080", "x-forwarded-proto": "https, http",
        "x-forwarded-port": "443, 8080"}),
    "RunPod": ("https://abc123-6006.proxy.runpod.net", {
        "host": "abc123-6006.proxy.runpod.net", "x-forwarded-proto": "https", "cf-ray": "x"}),
    "AutoDL": ("https://u1-2.westb.seetacloud.com:8443", {"host": "u1-2.westb.seetacloud.com:8443"}),
    "cloudflared": ("https://deck.trycloudflare.com", {
        "host": "deck.trycloudflare.com", "cf-visitor": '{"scheme":"https"}', "x-forwarded-proto": "https"}),
    "ngrok": ("https://deck.ngrok-free.app", {
        "host": "deck.ngrok-free.app", "x-forwarded-host": "deck.ngrok-free.app"}),
    "ngrok --host-header=rewrite": ("https://deck.ngrok-free.app", {
        "host": "localhost:6006", "x-forwarded-host": "deck.ngrok-free.app", "x-forwarded-proto": "https"}),
    "VS Code's forwarded ports in a browser": ("https://abc-6006.euw.devtunnels.ms", {
        "host": "localhost:6006", "x-forwarded-host": "abc-6006.euw.devtunnels.ms", "x-original-host": "x"}),
    "a standardized Forwarded": ("https://deck.example.org:8443", {
        "host": "127.0.0.1:6006", "forwarded": 'for="[2001:db8::1]";host="Deck.example.org:8443";proto=https'}),
    "Jupyter": ("http://[::1]:8888", {
        "host": "[::1]:8888", "x-forwarded-context": "/proxy/6006", "x-forwarded-prefix": "/proxy/6006"}),
    "Hugging Face Spaces": ("https://ann-deck.hf.space", {
        "host": "ann-deck.hf.space", "x-forwarded-host": "ann-deck.hf.space", "x-forwarded-port": "443"}),
    "Apache with ProxyPreserveHost": ("http://deck.example.org", {
        "host": "deck.example.org", "x-forwarded-host": "deck.example.org", "x-forwarded-server": "deck.example.org"}),
}  # fmt: skip
# Those that do not tell it: only the origin that the password was given to shows which pages are ours.
UNTOLD: dict[str, tuple[str, dict[str, str]]] = {
    "nginx with $host on a port of its own": ("https://deck.example.org:8443", {
        "host": "deck.example.org", "x-forwarded-for": "203.0.113.5", "x-forwarded-proto": "https"}),
    "nginx's bare proxy_pass": ("https://deck.example.org:8443", {"host": "127.0.0.1:6006", "connection": "close"}),
    "a proxy that tells its own inner port": ("https://deck.example.org", {"host": "deck.example.org:8096"}),
    "cloudflared with httpHostHeader": ("https://deck.example.org", {"host": "localhost", "cf-ray": "x"}),
    "a service in docker compose": ("https://deck.example.org", {"host": "llamadeck:6006"}),
}  # fmt: skip
EVERY = TOLD | UNTOLD
NEIGHBOURS = ["https://evil.example", "https://evil.deck.example.org", "https://deck.example.org:9443", "null",
              "http://deck.example.org:8443", "https://xyz-6006.proxy.runpod.net", "https://evil.hf.space",
              "https://deck.example.org.evil.example", "http://127.0.0.1:6006", "http://localhost:7007"]  # fmt: skip


def place(headers: Mapping[str, str]) -> dict[str, Any]:
    return AWAY | {"host": headers["host"]}


def browser(way: str, **more: str) -> dict[str, str]:
    origin, headers = EVERY[way]
    return {"origin": origin, **headers, **more}


@pytest.mark.parametrize("way", TOLD)
def test_a_page_of_ours_is_known_where_it_is_told(way: str) -> None:
    origin, headers = TOLD[way]
    found = parse_origin(origin)
    assert found is not None and any(one.is_of(found) for one in requested_hosts(Headers(headers)))
    assert not is_cross_origin(HTTPConnection(make_scope("http", "/", browser(way), "POST", place(headers))))


@pytest.mark.parametrize("way", EVERY)
@pytest.mark.parametrize("neighbour", NEIGHBOURS)
def test_no_neighbour_is_taken_for_ours(way: str, neighbour: str) -> None:
    headers = browser(way, origin=neighbour)
    # Where no scheme is told, and where the proxy sends its own place on.
    is_told = neighbour == "http://deck.example.org:8443" and way == "nginx with $http_host"
    is_told |= neighbour == "http://127.0.0.1:6006" and way == "nginx's bare proxy_pass"
    assert is_cross_origin(HTTPConnection(make_scope("http", "/", headers, "POST", place(headers)))) != is_told


@pytest.mark.parametrize("way", EVERY)
def test_behind_every_proxy_the_password_opens_and_only_its_own_pages_come_in(app: Gate, way: str) -> None:
    """Host without the port, the dashboard's own Host, nothing told: three ways of four ended in 403."""
    origin, headers = EVERY[way]
    at = place(headers)
    assert ask(app, "/Chat", headers | PAGE, place=at).status == 401
    reply = sign_in(app, browser(way), at)
    assert reply.status == 303
    assert ("Secure" in reply.headers["set-cookie"]) == origin.startswith("https")
    given = browser(way) | cookie_of(reply)
    page = headers | cookie_of(reply)
    assert ask(app, "/Chat", page | PAGE, place=at).text == "'' False"
    assert ask(app, "/media/x.png", page | {"sec-fetch-site": "same-origin"}, place=at).text == "'' False"
    assert ask(app, "/_stcore/upload_file/a/b", given, "PUT", place=at).text == "'' False"
    assert talk(app, given, ["hello"]) == ["accept", "'' hello"]
    for neighbour in NEIGHBOURS:
        away = page | {"origin": neighbour}
        assert talk(app, away, ["hello"]) == [1008], neighbour
        assert ask(app, "/_stcore/upload_file/a/b", away, "PUT", place=at).status == 403, neighbour
        assert ask(app, "/sign-out", away, "POST", place=at).status == 403, neighbour
    assert ask(app, "/sign-out", given, "POST", place=at).status == 303
    assert talk(app, given, ["hello"]) == [1008]


def test_a_browser_that_leaves_origin_out_says_it_by_the_referer(app: Gate) -> None:
    headers = {"host": "127.0.0.1:6006", "referer": "https://deck.example.org:8443/sign-in?next=/Chat"}
    given = cookie_of(sign_in(app, headers, place(headers)))
    assert talk(app, given | {"origin": "https://deck.example.org:8443"}, ["hello"]) == ["accept", "'' hello"]
    assert talk(app, given | {"origin": "https://evil.example"}, ["hello"]) == [1008]


def test_a_proxy_that_hides_the_referrer_does_not_hide_the_origin(app: Gate) -> None:
    """With such a policy browsers say "Origin: null" with a form; what the page itself says comes after it."""
    assert '<meta name="referrer" content="same-origin">' in ask(app, "/", PAGE).text
    null = {"origin": "null", "sec-fetch-site": "same-origin"}
    given = cookie_of(sign_in(app, null))
    assert ask(app, "/x", given | null, "POST").status == 200
    assert ask(app, "/x", given | {"origin": "null"}, "POST").status == 403


@pytest.mark.parametrize("way", EVERY)
def test_what_a_neighbours_page_embeds_does_not_come_with_the_cookie(app: Gate, way: str) -> None:
    """A picture or a script of ours in a page of the same site is asked for with the cookie, and without an Origin."""
    _, headers = EVERY[way]
    at = place(headers)
    given = headers | cookie_of(sign_in(app, browser(way), at))
    for site in ("same-site", "cross-site"):
        embedded = given | {"sec-fetch-site": site, "sec-fetch-mode": "no-cors", "sec-fetch-dest": "image"}
        assert ask(app, "/media/x.png", embedded, place=at).status == 403
        link = given | {"sec-fetch-site": site, "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
        assert ask(app, "/Chat", link | PAGE, place=at).status == 200
        assert ask(app, "/Chat", link, "POST", place=at).status == 403


def test_another_port_of_the_same_name_is_asked_for_the_password_again(app: Gate) -> None:
    """Cookies know no ports: the page would come, and its websocket would be refused for ever."""
    here, there = {"host": "localhost:6006"}, {"host": "localhost:6007"}
    given = cookie_of(sign_in(app, {"origin": "http://localhost:6006"} | here, place(here)))
    assert ask(app, "/", given | here | PAGE, place=place(here)).status == 200
    assert ask(app, "/", given | there | PAGE, place=place(there)).status == 401
    assert ask(app, "/sign-in?next=/Chat", given | there | PAGE, place=place(there)).status == 401
    second = cookie_of(sign_in(app, {"origin": "http://localhost:6007"} | there, place(there)))
    both = {"cookie": f"{given['cookie']}; {second['cookie']}"}
    for at in (here, there):
        assert talk(app, both | at | {"origin": f"http://{at['host']}"}, ["hello"]) == ["accept", "'' hello"]
        assert ask(app, "/", both | at | PAGE, place=place(at)).status == 200


def test_signing_in_at_one_port_of_a_name_signs_out_at_no_other(app: Gate, tmp_path: Path) -> None:
    """A browser keeps one cookie of a name: two machines at the near ends of two tunnels signed each other out."""
    other = Access(SecretFile(tmp_path / "other.json"), {})
    other.set_password(PASSWORD)
    jar: dict[str, str] = {}
    for gate, port in ((app, 6006), (Gate(says_who, other), 6007)):
        at = {"host": f"localhost:{port}", "origin": f"http://localhost:{port}"}
        name, _, value = cookie_of(sign_in(gate, at, place(at)))["cookie"].partition("=")
        jar[name] = value
    kept = {"cookie": "; ".join(f"{name}={value}" for name, value in jar.items())}
    here = {"host": "localhost:6006"}
    assert ask(app, "/", kept | here | PAGE, place=place(here)).status == 200
    away = ask(app, "/sign-out", kept | here | {"origin": "http://localhost:6006"}, "POST", place=place(here))
    assert away.headers["set-cookie"].startswith(f'{COOKIE}_6006=""') and "6007" not in away.headers["set-cookie"]
    there = {"host": "localhost:6007"}
    assert ask(app, "/", kept | here | PAGE, place=place(here)).status == 401
    assert ask(Gate(says_who, other), "/", kept | there | PAGE, place=place(there)).status == 200


def test_a_cookie_of_the_same_name_that_a_neighbour_adds_shuts_nobody_out(app: Gate) -> None:
    given = cookie_of(sign_in(app))["cookie"]
    for tossed in (f"{COOKIE}=x; {given}", f"{given}; {COOKIE}=x", f"{COOKIE}=; {COOKIE}=a~9999999999.b; {given}"):
        assert ask(app, "/", {"cookie": tossed}).status == 200
    scope = make_scope("http", "/", {"cookie": f"a=1; {COOKIE}=x;{COOKIE}=y; {COOKIE}x=z"}, "GET", AWAY)
    assert cookies_named(HTTPConnection(scope), is_session_cookie) == [(COOKIE, "x"), (COOKIE, "y")]


def test_a_session_from_before_origins_were_remembered_is_held_against_the_host(app: Gate, access: Access) -> None:
    given = {"cookie": f"{COOKIE}={access.sessions.begin()}"}
    assert talk(app, given | {"origin": "http://deck.example.org"}, ["hello"]) == ["accept", "'' hello"]
    assert talk(app, given | {"origin": "http://evil.example"}, ["hello"]) == [1008]
    at = {"host": "deck.example.org", "origin": "http://deck.example.org"}
    assert ask(app, "/x", given | at, "POST").status == 200
    assert ask(app, "/x", given | at | {"origin": "http://evil.example"}, "POST").status == 403


def test_the_websocket_gets_the_host_that_streamlit_compares(access: Access) -> None:
    seen: list[str] = []

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        headers = Headers(scope=scope)
        seen.append(f"{headers['origin']} {headers['host']}")
        await receive()
        await send({"type": "websocket.accept"})

    gate = Gate(app, access)
    way = browser("nginx's bare proxy_pass")
    talk(gate, way | cookie_of(sign_in(gate, way, place(way))), [])
    assert seen == ["https://deck.example.org:8443 deck.example.org:8443"]


def test_a_token_of_streamlits_that_a_proxy_escaped_is_put_right() -> None:
    """code-server's proxy writes 2%7Cab where Streamlit wrote 2|ab, and every upload was refused."""
    headers = [(b"cookie", b"a=%7C; _streamlit_xsrf=2%7Cab%7ccd%7C17; b=%7C")]
    assert (
        dict(with_trust_token({"headers": headers}, "")["headers"])[b"cookie"]
        == b"a=%7C; _streamlit_xsrf=2|ab|cd|17; b=%7C"
    )


# Addresses that were fixed --------------------------------------------------------------------------------------------


def test_with_public_urls_only_their_pages_are_ours(access: Access) -> None:
    app = Gate(says_who, access, public_urls=["https://deck.example.org:8443/", "https://other.example"])
    for way in ("nginx's bare proxy_pass", "nginx with $http_host"):
        reply = sign_in(app, browser(way), place(EVERY[way][1]))
        assert reply.status == 303
        assert talk(app, browser(way) | cookie_of(reply), ["hello"]) == ["accept", "'' hello"]
    assert sign_in(app, browser("RunPod"), place(EVERY["RunPod"][1])).status == 403
    assert sign_in(app, browser("ssh -L"), place(EVERY["ssh -L"][1])).status == 303, "of this machine itself"
    assert sign_in(app, {"host": "x", "origin": "http://localhost:7"}, place({"host": "x"})).status == 403
    assert sign_in(app).status == 303, "a program"


def test_a_path_that_the_proxy_leaves_there_is_taken_away_here(access: Access) -> None:
    app = Gate(says_who, access, public_urls=["https://deck.example.org/user/ann/proxy/absolute/6006/"])
    base = "/user/ann/proxy/absolute/6006"
    page = ask(app, f"{base}/Chat?chat=3", PAGE)
    assert page.status == 401 and 'action="./sign-in"' in page.text and 'value="/Chat?chat=3"' in page.text
    reply = ask(app, f"{base}/sign-in", {"origin": "https://deck.example.org"}, "POST", form(password=PASSWORD))
    assert (reply.status, reply.headers["location"]) == (303, "./")
    assert ask(app, f"{base}/Chat", cookie_of(reply)).text == "'' False"
    assert ask(app, "/Chat", cookie_of(reply)).text == "'' False", "where it was taken away"
    assert ask(app, base, PAGE).headers["location"] == "6006/"
    assert ask(app, f"{base}x/Chat", PAGE).status == 401


# Addresses in addresses -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("below", ["", "/proxy/6006", "/hub/user/ann%40x/proxy/6006", "/a/b/c"])
@pytest.mark.parametrize("path", ["/", "/Chat", "/Chat/", "/a/b/c", "/a%20b", "/%E8%81%8A"])
def test_addresses_lead_on_below_a_path_that_a_proxy_took_away(app: Gate, below: str, path: str) -> None:
    asked = f"https://deck.example.org{below}{path}"
    scope = make_scope("http", path, {}, "GET", AWAY) | {"raw_path": path.encode()}
    for target in ("/sign-in", "/", "/Chat?chat=3"):
        assert urljoin(asked, from_here(HTTPConnection(scope), target)) == f"https://deck.example.org{below}{target}"
    page = ask(app, path, PAGE)
    action = re.search(r'action="([^"]*)"', page.text)
    assert action is not None and urljoin(asked, action[1]) == f"https://deck.example.org{below}/sign-in"
    reply = sign_in(app, next="/Chat?chat=3")
    assert urljoin(f"https://deck.example.org{below}/sign-in", reply.headers["location"]).endswith(
        f"{below}/Chat?chat=3"
    )


def test_the_path_is_taken_where_it_is_told_and_the_address_may_end_without_a_slash(app: Gate) -> None:
    told = {"x-forwarded-prefix": "/proxy/6006"}
    assert 'action="/proxy/6006/sign-in"' in ask(app, "/", PAGE | told).text
    for wrong in ("//evil.example", "https://evil.example", '/"><script>', "/..", "evil"):
        assert 'action="./sign-in"' in ask(app, "/", PAGE | {"x-forwarded-prefix": wrong}).text


INDEX = b"<html><head><title>x</title></head></html>"


async def shows_a_page(scope: dict[str, Any], receive: Any, send: Any) -> None:
    length = str(len(INDEX)).encode()
    assert scope["path"] != "/" or b"accept-encoding" not in dict(scope["headers"])
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", length)]})
    await send({"type": "http.response.body", "body": INDEX})


def test_a_page_goes_to_the_address_with_a_slash_where_a_path_was_taken_away(access: Access) -> None:
    """Jupyter passes /proxy/6006 on as /, and everything that the page then asks for is outside of the path."""
    app = Gate(shows_a_page, access)
    headers = cookie_of(sign_in(app)) | PAGE | {"accept-encoding": "gzip"}
    reply = ask(app, "/", headers | {"x-forwarded-prefix": "/proxy/6006"})
    assert 'location.pathname==="/proxy/6006"&&location.replace("/proxy/6006/"' in reply.text
    assert reply.headers["content-length"] == str(len(reply.text)) and reply.text.endswith("</html>")
    for path, more in (("/Chat", {"x-forwarded-prefix": "/proxy/6006"}), ("/x", {"x-forwarded-prefix": "//x"})):
        assert ask(app, path, headers | more).text == INDEX.decode()


async def leads_on(scope: dict[str, Any], receive: Any, send: Any) -> None:
    location = dict(scope["headers"])[b"x-location"]
    await send({"type": "http.response.start", "status": 307, "headers": [(b"Location", location)]})
    await send({"type": "http.response.body", "body": b""})


@pytest.mark.parametrize(
    ("location", "expected"),
    [("/", "../"), ("/Chat?chat=3", "../Chat?chat=3"), ("Chat", "Chat"), ("https://id.example/x", "https://id.example/x"),
     ("//evil.example", "//evil.example"), ("/\\evil.example", "/\\evil.example"), ("/%2f%2fevil", "../%2f%2fevil")],
)  # fmt: skip
def test_what_leads_to_a_path_of_ours_leads_there_from_below(access: Access, location: str, expected: str) -> None:
    """Streamlit's own redirects, such as after signing in through a provider, begin with a slash."""
    app = Gate(leads_on, access)
    given = cookie_of(sign_in(app))
    assert ask(app, "/auth/x", given | {"x-location": location}).headers["location"] == expected


@pytest.mark.parametrize("wanted", ["/..", "/../x", "/a/../../x", "/%2e%2e/x", "/%2E./x", "/./x", "/a/.%2e",
                                    "/%0d%0aSet-Cookie:x\r\n", "/\u2028", "/聊天", "/a'\"", "/a\\..\\b"])  # fmt: skip
def test_no_way_to_write_next_leads_out_of_our_path(app: Gate, wanted: str) -> None:
    assert local_path(wanted) == "/"
    reply = sign_in(app, next=wanted)
    assert reply.headers["location"] == "./" and "x" not in reply.headers


@pytest.mark.parametrize("path", ["/%0d%0aSet-Cookie:%20x=y", "/%2f%2fevil.example", "/\"'><script>alert(1)</script>",
                                  "/聊天 室", "/a%22b?x=\"'><b>&y=%0d%0a", "/{title}{0}", "/\\evil",
                                  "/\x7f\x01"])  # fmt: skip
def test_a_path_of_nonsense_comes_back_as_text_only(app: Gate, path: str) -> None:
    reply = ask(app, path, PAGE)
    assert reply.status == 401 and "<script>" not in reply.text and "<b>" not in reply.text
    assert "\r" not in reply.text and not any("\r" in value or "\n" in value for value in reply.headers.values())
    wanted = re.search(r'name="next" value="([^"]*)"', reply.text)
    assert wanted is not None and re.fullmatch(r"/[!-~]*", wanted[1])
    assert 'action="http' not in reply.text and 'action="//' not in reply.text


# What was open --------------------------------------------------------------------------------------------------------


def test_a_browser_that_signed_in_before_does_not_wait_with_those_who_guess(app: Gate) -> None:
    given = {"origin": "https://deck.example.org:8443", "host": "127.0.0.1:6006"}
    page = ask(app, "/Chat", PAGE | cookie_of(sign_in(app, given, AWAY | {"client": ("192.0.2.8", 1)})))
    mine = cookie_of(page)
    assert mine["cookie"].startswith(f"{SECURE_PREFIX}{DEVICE_COOKIE}_8443=")
    assert {"Secure", "HttpOnly", "SameSite=lax"} <= set(page.headers["set-cookie"].split("; "))
    for _ in range(6):
        sign_in(app, given, password="wrong password")
    assert sign_in(app, given).status == 429
    # A neighbour's page, which comes with the cookie but from its own origin, uses up nothing.
    assert sign_in(app, mine | {"origin": "https://evil.example"}).status == 429
    reply = sign_in(app, given | mine)
    assert reply.status == 303
    known = {"cookie": f"{mine['cookie']}; {cookie_of(reply)['cookie']}"}
    assert "set-cookie" not in ask(app, "/Chat", PAGE | known).headers


@pytest.mark.parametrize("path", ["/auth/logout", "/auth/logout?x=1"])
def test_signing_out_of_a_provider_ends_what_was_open(access: Access, path: str) -> None:
    app = Gate(says_who, access, SignedInPeople())
    given = {"cookie": "who=ann"}
    at = given | {"origin": SignedInPeople.origin}
    with ThreadPoolExecutor(1) as elsewhere:
        steps = ["one", lambda: elsewhere.submit(ask, app, path, given).result(), "two"]
        assert talk(app, at, steps) == ["accept", "'ann' one", 1008]
    assert ask(app, "/", given | PAGE).status == 401
    other = {"cookie": "who=bob"}
    assert ask(app, "/auth/logout", other | {"sec-fetch-site": "cross-site"}).status == 403
    assert ask(app, "/", other).status == 200


def test_who_signed_on_comes_in_from_where_the_provider_leads_back_alone(access: Access) -> None:
    app = Gate(says_who, access, SignedInPeople())
    given = {"cookie": "who=ann", "host": "127.0.0.1:6006"}
    assert talk(app, given | {"origin": SignedInPeople.origin}, ["hello"]) == ["accept", "'ann' hello"]
    for origin in ("https://deck.example.org", "http://127.0.0.1:6006", "https://evil.example"):
        assert talk(app, given | {"origin": origin}, ["hello"]) == [1008]


# The API from a browser -----------------------------------------------------------------------------------------------

PREFLIGHT = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,content-type"}


def test_a_page_that_was_named_may_use_the_api_with_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LISTENS, "loopback")
    app = Gate(says_who, Access(SecretFile(tmp_path / "none.json"), {}), cors_origins=["https://app.example", "null"])
    for origin in ("https://app.example", "null"):
        given = {"origin": origin}
        reply = ask(app, "/v1/chat/completions", given | PREFLIGHT, "OPTIONS", place=HERE)
        assert (reply.status, reply.headers["access-control-allow-origin"]) == (200, origin)
        assert "authorization" in reply.headers["access-control-allow-headers"].lower()
        assert "access-control-allow-credentials" not in reply.headers
        # Let through as from elsewhere: the API itself asks for a key, and the page may read that it does.
        for more in ({}, {"authorization": "Bearer x"}):
            reply = ask(app, "/v1/models", given | more, place=HERE)
            assert (reply.text, reply.headers["access-control-allow-origin"]) == ("None False", origin)


def test_a_page_that_was_not_named_may_not_and_no_page_may_use_pages(access: Access) -> None:
    app = Gate(says_who, access, cors_origins=["https://app.example"])
    away = {"origin": "https://evil.example"}
    assert "access-control-allow-origin" not in ask(app, "/v1/models", away | PREFLIGHT, "OPTIONS").headers
    assert ask(app, "/v1/models", away).status == 403
    given = cookie_of(sign_in(app)) | {"origin": "https://app.example"}
    reply = ask(app, "/media/x.png", given)
    assert reply.status == 403 and "access-control-allow-origin" not in reply.headers
    assert ask(app, "/sign-in", given | PREFLIGHT, "OPTIONS").headers.get("access-control-allow-origin") is None
