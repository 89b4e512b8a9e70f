"""The pages before anybody is signed in, as HTML that loads nothing."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from html import escape
from urllib.parse import quote

from core.common.i18n import translate

SIGN_IN, SIGN_OUT = "/sign-in", "/sign-out"

STYLE = """
:root { color-scheme: light dark; --back: #ffffff; --card: #f7f9f8; --text: #1c2422; --quiet: #64706d; --line: #dfe5e3;
    --main: #0f766e; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --back: #121615; --card: #171c1b; --text: #e6ebe9; --quiet: #9aa6a3;
    --line: #2f3836; --main: #0f8a80; --bad: #ff8a80; } }
* { box-sizing: border-box; }
body { margin: 0; min-height: 100vh; display: grid; place-items: center; padding: 1rem; background: var(--back);
    color: var(--text); font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "PingFang SC", "Microsoft YaHei",
    "Noto Sans CJK SC", sans-serif; }
main { width: 100%; max-width: 23rem; padding: 2rem; background: var(--card); border: 1px solid var(--line);
    border-radius: .8rem; }
img { display: block; width: 3.5rem; height: 3.5rem; }
h1 { margin: 1rem 0 .25rem; font-size: 1.5rem; font-weight: 650; }
p { margin: 0 0 1rem; color: var(--quiet); overflow-wrap: anywhere; }
p[role=alert] { color: var(--bad); }
label { display: block; margin-bottom: .25rem; font-size: .9rem; }
input[type=password] { width: 100%; padding: .6rem .75rem; font: inherit; color: inherit; background: var(--back);
    border: 1px solid var(--line); border-radius: .6rem; }
button, a { display: block; width: 100%; margin-top: 1rem; padding: .6rem .75rem; font: inherit; text-align: center;
    color: #fff; background: var(--main); border: 1px solid var(--main); border-radius: .6rem; cursor: pointer;
    text-decoration: none; }
form + a { color: inherit; background: none; border-color: var(--line); }
:focus-visible { outline: 2px solid var(--main); outline-offset: 2px; }
code { color: var(--text); }
"""
# form-action is left out of what the provider's pages would need: there only a link leads.
POLICY = (
    "default-src 'none'; img-src data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'; style-src 'sha256-"
    + base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    + "'"
)


class SignInPage:
    """`logo` is an SVG; `providers` are the names of those through whom people can sign in instead."""

    def __init__(self, logo: str = "", providers: Sequence[str] = ()) -> None:
        self._logo = base64.b64encode(logo.encode()).decode()
        self._providers = providers

    def sign_in(self, language: str, root: str, next_path: str, ticket: str | None, alert: str = "") -> str:
        """The page that asks; `root` leads from its address to where we begin, `ticket` says which page it is, or is
        None where there is no password, `alert` is a whole sentence on why the last try was none."""
        form = ""
        if ticket is not None:
            form = (
                f'<form method="post" action="{escape(root + SIGN_IN[1:])}">'
                f'<input type="hidden" name="next" value="{escape(next_path)}">'
                f'<input type="hidden" name="page" value="{escape(ticket)}">'
                f'<label for="password">{_text(language, "password")}</label>'
                '<input type="password" id="password" name="password" autocomplete="current-password" maxlength="256"'
                f" required autofocus><button>{_text(language, 'button')}</button></form>"
            )
        links = "".join(self._link(language, root, name) for name in self._providers)
        lead = "lead" if ticket is not None else "lead_people"
        return self._page(language, "title", lead, alert, form + links)

    def closed(self, language: str) -> str:
        """The page of a server that others can reach although nothing was set to ask them for."""
        commands = "<p><code>./llamadeck password</code></p>"
        return self._page(language, "closed_title", "closed_lead", "", commands)

    def not_invited(self, language: str, root: str, person: str) -> str:
        """The page for somebody whom a provider knows, but who is not on this installation's list."""
        alert = translate(language, "access.not_invited", person=person)
        link = f'<a href="{escape(root)}auth/logout">{_text(language, "other")}</a>'
        return self._page(language, "title", "", alert, link)

    def _link(self, language: str, root: str, provider: str) -> str:
        """Streamlit calls the only provider "default"."""
        is_only = provider == "default"
        said = _text(language, "provider_own") if is_only else _text(language, "provider", name=provider.capitalize())
        return f'<a href="{escape(root + SIGN_IN[1:])}/{quote(provider, safe="")}">{said}</a>'

    def _page(self, language: str, title: str, lead: str, alert: str, body: str) -> str:
        said = f"<p>{_text(language, lead)}</p>" if lead else ""
        said += f'<p role="alert">{escape(alert)}</p>' if alert else ""
        logo = f'<img src="data:image/svg+xml;base64,{self._logo}" alt="">' if self._logo else ""
        return (
            f'<!doctype html><html lang="{"zh-CN" if language == "zh" else "en"}"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            # A proxy that adds "no-referrer" would have browsers say "Origin: null" with the form.
            '<meta name="referrer" content="same-origin">'
            f"<title>LlamaDeck · {_text(language, title)}</title>"
            f'<link rel="icon" href="data:image/svg+xml;base64,{self._logo}"><style>{STYLE}</style></head>'
            f"<body><main>{logo}<h1>{_text(language, title)}</h1>{said}{body}</main></body></html>"
        )


def _text(language: str, key: str, **params: str) -> str:
    return escape(translate(language, f"access.{key}", **params))
