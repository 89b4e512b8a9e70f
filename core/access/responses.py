"""The gate's own responses. No cache stores them."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response

from core.access.sign_in_page import POLICY
from core.access.visitors import SECURE_PREFIX


def page(status: int, html: str) -> Response:
    return HTMLResponse(html, status, {"content-security-policy": POLICY, "cache-control": "no-store"})


def plain(status: int, text: str, headers: Mapping[str, str] | None = None) -> Response:
    return PlainTextResponse(f"{text}\n", status, {"cache-control": "no-store", **(headers or {})})


def redirect(path: str) -> Response:
    """Redirect to `path` with GET. The header has no host: no Host is trusted."""
    return RedirectResponse(path, 303, {"cache-control": "no-store"})


def set_cookie(answer: Response, name: str, value: str, max_age_s: int) -> None:
    """Without a path of its own: it then holds below the address that was asked for, whatever a proxy took away from
    that one. Nothing but a browser knows it."""
    secure = name.startswith(SECURE_PREFIX)
    answer.set_cookie(name, value, max_age=max_age_s, path=None, httponly=True, samesite="lax", secure=secure)
