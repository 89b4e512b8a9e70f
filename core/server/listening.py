"""An address to listen on: whether it is one, whether it is free, how to open it."""

from __future__ import annotations

import errno
import socket

from core.common.errors import DeckError, InputError

PORTS = range(1, 65536)


def parse_port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 6 and int(text) in PORTS):
        raise InputError("bad_port", port=text, first=PORTS[0], last=PORTS[-1])
    return int(text)


def check_address(host: str, port: int) -> None:
    """Raise where the dashboard could not listen; Streamlit itself would end with a traceback."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
    except PermissionError:
        raise InputError("port_forbidden", port=port) from None
    except (socket.gaierror, UnicodeError):
        raise InputError("bad_host", host=host) from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise DeckError("port_taken", port=port) from None
        raise InputError("bad_host", host=host) from None


def url_of(host: str, port: int) -> str:
    """The address to open on this machine."""
    name = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"
