"""The security headers that every response carries."""

from __future__ import annotations

from starlette.types import Message, Send

# What Streamlit's pages need: its bundles and the scripts of components that come as text (blob:), charts that make
# functions of their specification ('unsafe-eval'), styles from everywhere in it. Pictures only from here: a model's
# answer or a stranger's character card must not make a browser call another server, with what was said in the address.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; "
    "worker-src 'self' blob:; frame-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'; "
    "frame-ancestors 'self'"
)
# same-origin: with no referrer at all, browsers would send "Origin: null" with the sign-in form.
HEADERS = {
    b"content-security-policy": POLICY.encode(),
    b"x-content-type-options": b"nosniff",
    b"x-frame-options": b"SAMEORIGIN",
    b"referrer-policy": b"same-origin",
    b"cross-origin-opener-policy": b"same-origin",
    b"cross-origin-resource-policy": b"same-origin",
    b"permissions-policy": b"camera=(), geolocation=(), microphone=()",
}


def with_security_headers(send: Send) -> Send:
    """`send`, which adds the headers that a response does not have by itself."""

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            given = message.get("headers", [])
            names = {name.lower() for name, _ in given}
            message["headers"] = [*given, *((name, value) for name, value in HEADERS.items() if name not in names)]
        await send(message)

    return send_with_headers


def with_header(send: Send, name: bytes, value: bytes) -> Send:
    """`send`, which adds a header to the response."""

    async def send_with_header(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", []), (name, value)]
        await send(message)

    return send_with_header


def with_relative_location(send: Send, root: str) -> Send:
    """`send`, which leads on below the address that the browser asked for: a proxy may have taken a path from it.

    `root` leads from that address to where we begin. No Host is believed for it."""

    async def send_with_location(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [
                (name, root.encode() + value[1:])
                if name.lower() == b"location" and value.startswith(b"/") and value[1:2] not in (b"/", b"\\")
                else (name, value)
                for name, value in message.get("headers", [])
            ]
        await send(message)

    return send_with_location
