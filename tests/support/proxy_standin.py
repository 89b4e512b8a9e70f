"""A proxy on loopback as rented machines have one: https, what it tells of the address that was asked for, and a path
that it takes away. A name that begins with "neighbour" shows a page of somebody else's."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

WAYS = ("as the browser sent it", "without its port", "its own, told beside it", "its own, nothing told")
NEIGHBOUR = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 9\r\nConnection: close\r\n\r\nneighbour"
NOT_HERE = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


@dataclass
class Proxy:
    """`way` is what becomes of Host, `path` what is taken away. `seen` are the heads of all requests that came."""

    upstream_port: int
    way: str
    path: str = ""
    port: int = 0
    seen: list[dict[str, str]] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request a connection, or one websocket."""
        with suppress(OSError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            first, *lines = head.rstrip("\r\n").split("\r\n")
            method, target, version = first.split(" ")
            headers = dict(line.split(": ", 1) for line in lines)
            named = {name.lower(): value for name, value in headers.items()}
            self.seen.append(named | {"target": target})
            if named["host"].startswith("neighbour") or not target.startswith(f"{self.path}/"):
                writer.write(NEIGHBOUR if named["host"].startswith("neighbour") else NOT_HERE)
            else:
                await self._pass_on(f"{method} {target.removeprefix(self.path)} {version}", headers, reader, writer)
        writer.close()

    async def _pass_on(
        self, first: str, headers: dict[str, str], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        asked = headers["Host"]
        told = {"X-Forwarded-For": "203.0.113.9", "X-Forwarded-Proto": "https"}
        headers |= {
            WAYS[0]: told,
            WAYS[1]: {"Host": asked.partition(":")[0], **told},
            WAYS[2]: {"Host": f"127.0.0.1:{self.upstream_port}", "X-Forwarded-Host": asked, **told},
            WAYS[3]: {"Host": f"127.0.0.1:{self.upstream_port}"},
        }[self.way]
        if headers.get("Upgrade") is None:
            headers["Connection"] = "close"
        upstream_reader, upstream = await asyncio.open_connection("127.0.0.1", self.upstream_port)
        lines = [first, *(f"{name}: {value}" for name, value in headers.items())]
        upstream.write("\r\n".join([*lines, "", ""]).encode("latin-1"))
        sending = asyncio.ensure_future(copy(reader, upstream))
        await copy(upstream_reader, writer)
        sending.cancel()
        upstream.close()


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()


@contextmanager
def proxy(upstream_port: int, way: str, folder: Path, path: str = "") -> Iterator[Proxy]:
    """It runs in a thread of its own; its certificate is nobody's."""
    made, started = Proxy(upstream_port, way, path), threading.Event()
    ends: list[Callable[[], object]] = []

    async def run() -> None:
        loop, end = asyncio.get_running_loop(), asyncio.Event()
        ends.append(lambda: loop.call_soon_threadsafe(end.set))
        server = await asyncio.start_server(made.serve, "127.0.0.1", 0, ssl=tls_context(folder))
        made.port = server.sockets[0].getsockname()[1]
        started.set()
        await end.wait()

    thread = threading.Thread(target=asyncio.run, args=(run(),), daemon=True)
    thread.start()
    assert started.wait(30)
    try:
        yield made
    finally:
        ends[0]()
        thread.join(10)


def tls_context(folder: Path) -> ssl.SSLContext:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "rented.test")])
    now = datetime.now(UTC)
    made = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + timedelta(1))
    file = folder / "proxy.pem"
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file.write_bytes(secret + made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    return context
