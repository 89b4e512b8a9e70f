"""Bytes of a repository's files from any offset on, over HTTP.

Weights go through urllib3, metadata through httpx2: urllib3 hands over what the socket has, at three times the speed.
"""

from __future__ import annotations

import re
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import httpx2
import urllib3

from core.common.errors import DeckError
from core.common.urls import host_name, origin
from core.hub.cancellation import CancelToken
from core.hub.metadata import Repository, refusal
from core.hub.retry import TransferLimits, TransientError, parse_retry_after, root_reason
from core.hub.source import RemoteFile

# What is in memory at once of a file, and with that what a killed process can have read and not written.
CHUNK_BYTES = 256 * 1024
REDIRECTS = (301, 302, 303, 307, 308)
MAX_REDIRECTS = 8
# As many connections to a host as files are fetched at once are kept for the next file.
MAX_IDLE = 4
CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-[0-9]{1,18}/([0-9]{1,18})")


class Transport:
    """The connections to one hub; threads share it. `token` is shown to the endpoint's own origin and to no other."""

    def __init__(self, repository: Repository, endpoint: str, token: str | None, limits: TransferLimits) -> None:
        self._repository = repository
        self._endpoint = endpoint
        self._token = token
        self._timeout = urllib3.Timeout(connect=limits.connect_s, read=limits.stall_s)
        # The certificates that the metadata's client trusts.
        self._tls = httpx2.create_ssl_context()
        self._pools: dict[str, urllib3.PoolManager] = {}

    @property
    def host(self) -> str:
        return self._repository.host

    def close(self) -> None:
        for pool in self._pools.values():
            pool.clear()

    @contextmanager
    def read(self, file: RemoteFile, begin: int, cancel: CancelToken) -> Iterator[Iterator[bytes]]:
        """The bytes of `file` from `begin` on, as they come; they may end too early, and be more than `file` has.

        Raises TransientError where the network or the server fails, DeckError where the server refuses, and Cancelled.
        """
        url = self._endpoint + file.url_path
        with _network_errors(host_name(url)), self._ask(url, begin) as response:
            with cancel.on_cancel(lambda: _hang_up(response)):
                skipped = self._first_byte(response, file, begin)
                yield _chunks(response, begin - skipped, cancel)

    @contextmanager
    def _ask(self, url: str, begin: int) -> Iterator[urllib3.BaseHTTPResponse]:
        """The response with the file, after at most a few redirects."""
        for _ in range(MAX_REDIRECTS):
            response = self._request(url, begin)
            try:
                if response.status not in REDIRECTS:
                    self._check_status(response, url)
                    yield response
                    return
                url = urllib.parse.urljoin(url, response.headers.get("Location", ""))
            finally:
                # A body that was not read to its end makes the connection useless for the next request.
                response.close()
        raise DeckError("hub_redirects", host=host_name(url))

    def _request(self, url: str, begin: int) -> urllib3.BaseHTTPResponse:
        headers = {"User-Agent": "llamadeck", "Accept-Encoding": "identity"}
        if begin:
            headers["Range"] = f"bytes={begin}-"
        if self._token and origin(url) == origin(self._endpoint):
            headers["Authorization"] = f"Bearer {self._token}"
        return self._pool(url).request(
            "GET", url, headers=headers, timeout=self._timeout, retries=False, redirect=False, preload_content=False
        )

    def _pool(self, url: str) -> urllib3.PoolManager:
        """The connections through the proxy that the environment names for `url`, or without one."""
        parts = urllib.parse.urlsplit(url)
        proxies = urllib.request.getproxies()
        proxy = proxies.get(parts.scheme) or proxies.get("all") or ""
        if urllib.request.proxy_bypass(parts.hostname or ""):
            proxy = ""
        if proxy not in self._pools:
            self._pools[proxy] = self._make_pool(proxy)
        return self._pools[proxy]

    def _make_pool(self, proxy: str) -> urllib3.PoolManager:
        if not proxy:
            return urllib3.PoolManager(maxsize=MAX_IDLE, ssl_context=self._tls)
        try:
            address = urllib3.util.parse_url(proxy)
            login = urllib3.make_headers(proxy_basic_auth=urllib.parse.unquote(address.auth)) if address.auth else None
            return urllib3.ProxyManager(proxy, maxsize=MAX_IDLE, ssl_context=self._tls, proxy_headers=login)
        except (ValueError, urllib3.exceptions.HTTPError) as error:
            raise DeckError("hub_proxy", why=type(error).__name__) from error

    def _check_status(self, response: urllib3.BaseHTTPResponse, url: str) -> None:
        """Raise what an answer means that is no file. Of the store behind the hub only the status is known.

        A file that was listed and is not there: the commit went, or the mirror lacks it.
        """
        if response.status in (200, 206):
            return
        if origin(url) == origin(self._endpoint) and response.status != 404:
            raise refusal(self._repository, response.status, response.headers)
        if response.status == 404:
            raise DeckError("hub_failed", host=host_name(url), status=response.status)
        wait_s = parse_retry_after(response.headers.get("Retry-After"))
        raise TransientError("hub_failed", host=host_name(url), status=response.status).after(wait_s)

    def _first_byte(self, response: urllib3.BaseHTTPResponse, file: RemoteFile, begin: int) -> int:
        """Where the response's bytes begin in the file: a server may ignore the range and send all of it."""
        if response.status == 200:
            return 0
        told = CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if told is None or int(told[1]) != begin or int(told[2]) != file.size_bytes:
            raise DeckError("hub_range", host=self._repository.host, file=file.name)
        return begin


def _chunks(response: urllib3.BaseHTTPResponse, skip: int, cancel: CancelToken) -> Iterator[bytes]:
    """What comes, without the first `skip` bytes."""
    while chunk := response.read1(CHUNK_BYTES):
        cancel.raise_if_cancelled()
        yield chunk[skip:]
        skip = max(0, skip - len(chunk))
    cancel.raise_if_cancelled()


def _hang_up(response: urllib3.BaseHTTPResponse) -> None:
    """End a read that another thread waits in; a connection that has ended already is no error."""
    with suppress(OSError, ValueError, RuntimeError):
        response.shutdown()


@contextmanager
def _network_errors(host: str) -> Iterator[None]:
    try:
        yield
    except urllib3.exceptions.LocationValueError as error:
        raise DeckError("hub_redirects", host=host) from error
    except urllib3.exceptions.HTTPError as error:
        raise TransientError("hub_broken", host=host, why=root_reason(error)) from error
