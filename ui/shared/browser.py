"""What only the browser can do: put a text on the clipboard, scroll to a place of the page, keep what is typed, sign
out, and notice that somebody was signed out."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

# Over plain HTTP from another machine, a browser offers the clipboard only through the old `execCommand`.
COPY = """
const byCommand = (text) => {
    const area = document.createElement("textarea");
    area.value = text;
    area.style.position = "fixed";
    area.style.opacity = "0";
    document.body.appendChild(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
};
export default function ({ parentElement, data }) {
    const button = parentElement.querySelector("button"), said = parentElement.querySelector("span");
    const name = (words) => {
        button.title = words;
        button.setAttribute("aria-label", words);
    };
    name(data.copy);
    button.onclick = async () => {
        let done = false;
        try {
            await navigator.clipboard.writeText(data.text);
            done = true;
        } catch {
            done = byCommand(data.text);
        }
        button.classList.toggle("done", done);
        said.textContent = done ? data.copied : data.failed;
        name(said.textContent);
        clearTimeout(button.llamadeckTimer);
        button.llamadeckTimer = setTimeout(() => {
            button.classList.remove("done");
            said.textContent = "";
            name(data.copy);
        }, 2000);
    };
}
"""
COPY_HTML = """<button type="button"><svg viewBox="0 0 24 24" aria-hidden="true">
<path class="sheets" d="M9 9h10v11H9zM5 15V4h10"/><path class="tick" d="M5 13l4.5 4.5L19 7"/></svg></button>
<span role="status"></span>"""
COPY_STYLE = """
button { background: none; border: 0; padding: 0; height: 2.5rem; cursor: pointer; color: inherit; display: flex; }
button:hover { color: var(--st-primary-color); }
button:focus-visible { outline: 2px solid var(--st-primary-color); border-radius: 0.3rem; }
svg { width: 1.15rem; margin: auto; fill: none; stroke: currentColor; stroke-width: 1.8; }
.tick, .done .sheets { display: none; }
.done .tick { display: inline; }
span { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
"""
SCROLL = """
export default function ({ parentElement }) {
    const place = parentElement.host ?? parentElement;
    setTimeout(() => place.scrollIntoView({ block: "center" }), 400);
}
"""
# The cookie is hidden from scripts: the server takes it away, then asks anew. Addresses are relative to the page's: a
# proxy may serve it below a path of its own.
LEAVE = """
export default function ({ data }) {
    if (data.now) {
        sessionStorage.clear();
    }
    if (data.now && data.provider) {
        window.location.assign("auth/logout");
    } else if (data.now) {
        fetch("sign-out", { method: "POST", redirect: "manual" }).finally(() => window.location.assign("./"));
    }
}
"""
# What is typed and not sent stays in the tab's sessionStorage, for each thing (a chat, say) apart. Where another thing
# is shown, the field's text is exchanged. An empty field, as after sending, is kept as well. `filled` counts the texts
# that the server put in: each of them stays, in front of what was typed meanwhile.
TYPED = """
const fieldOf = ({ key }) => document.querySelector(`.st-key-${CSS.escape(key)} textarea`);
const placeOf = ({ key, place }) => `${key} ${place}`;
const keepShown = () => {
    const shown = window.llamadeckShown, field = fieldOf(shown);
    if (field?.value) {
        sessionStorage.setItem(placeOf(shown), field.value);
    } else if (field) {
        sessionStorage.removeItem(placeOf(shown));
    }
};
const put = (shown, isExchange, tries) => {
    const field = fieldOf(shown), text = sessionStorage.getItem(placeOf(shown)) ?? "";
    if (window.llamadeckShown !== shown) {
        return;
    }
    if (!field && tries) {
        setTimeout(put, 50, shown, isExchange, tries - 1);
    } else if (field && field.value !== text && (isExchange || !field.value)) {
        Object.getOwnPropertyDescriptor(HTMLTextAreaElement.prototype, "value").set.call(field, text);
        field.dispatchEvent(new Event("input", { bubbles: true }));
    }
};
// A screen keyboard would cover half of the page, and whoever types in another field goes on there.
const focus = (shown, tries) => {
    const field = fieldOf(shown), typing = document.activeElement?.matches("input, textarea, select");
    if (window.llamadeckShown !== shown || typing || !window.matchMedia("(hover: hover)").matches) {
        return;
    }
    if (field && !field.disabled) {
        field.focus({ preventScroll: true });
    } else if (tries) {
        setTimeout(focus, 50, shown, tries - 1);
    }
};
const join = (shown) => {
    const typed = sessionStorage.getItem(placeOf(shown)) ?? "", { text } = shown;
    const isOther = typed.trim() && typed.trim() !== text.trim();
    sessionStorage.setItem(placeOf(shown), isOther ? `${text}\\n\\n${typed}` : text);
    put(shown, true, 40);
    // The page itself may put its text in after that.
    setTimeout(put, 200, shown, true, 0);
};
export default function ({ parentElement, data }) {
    if (!window.llamadeckShown) {
        document.addEventListener("input", keepShown);
        document.addEventListener("keyup", () => setTimeout(keepShown, 50));
        document.addEventListener("click", () => setTimeout(keepShown, 50));
    }
    const before = parentElement.llamadeckShown;
    parentElement.llamadeckShown = window.llamadeckShown = data;
    if (!before || (before.thing !== data.thing && before.thing !== data.born)) {
        focus(data, 40);
    }
    if (!before) {
        put(data, false, 40);
    } else if (before.filled !== data.filled) {
        join(data);
    } else if (before.thing === data.born) {
        sessionStorage.removeItem(placeOf(before));
        keepShown();
    } else if (before.thing !== data.thing) {
        put(data, true, 40);
    }
}
"""
# Streamlit itself would say "Connection failed with status 401". One timer a tab, however often this is drawn.
WATCH = """
// Keys, clicks and scrolling are told of at most every 20 s, and that a page was opened: a machine is not ended under
// whoever works at one.
const tell = () => {
    const now = Date.now();
    if (now - (window.llamadeckTold ?? 0) > 20000) {
        window.llamadeckTold = now;
        fetch("presence", { method: "POST" }).catch(() => null);
    }
};
export default function () {
    if (!window.llamadeckWatch) {
        ["keydown", "pointerdown", "wheel"].forEach((name) => document.addEventListener(name, tell, { passive: true }));
        if (document.visibilityState === "visible") {
            tell();
        }
    }
    window.llamadeckWatch ??= setInterval(async () => {
        const answer = await fetch("sign-in", { method: "HEAD", redirect: "manual" }).catch(() => null);
        if (answer?.status === 401) {
            window.location.reload();
        }
    }, 5000);
}
"""
# Streamlit's own links close the sidebar where it lies over the page; its buttons leave it open.
NARROW = """
export default function ({ data }) {
    const choices = data.keys.map((key) => `[class*="st-key-${key}"] :is(button, a)`).join();
    window.llamadeckChoices = choices;
    if (window.llamadeckClosing) {
        return;
    }
    window.llamadeckClosing = true;
    document.addEventListener("click", (event) => {
        const sidebar = event.target.closest?.('[data-testid="stSidebar"]');
        if (window.innerWidth <= 768 && sidebar && event.target.closest(window.llamadeckChoices)) {
            setTimeout(() => sidebar.querySelector('[data-testid="stSidebarCollapseButton"] button')?.click());
        }
    });
}
"""
_copy = st.components.v2.component("llamadeck_copy", html=COPY_HTML, css=COPY_STYLE, js=COPY)
_scroll = st.components.v2.component("llamadeck_scroll", html="<i></i>", js=SCROLL)
_typed = st.components.v2.component("llamadeck_typed", html="<i></i>", js=TYPED)
_watch = st.components.v2.component("llamadeck_watch", html="<i></i>", js=WATCH)
_leave = st.components.v2.component("llamadeck_leave", html="<i></i>", js=LEAVE)
_narrow = st.components.v2.component("llamadeck_narrow", html="<i></i>", js=NARROW)


def copy_button(text: str, key: str, copy: str, copied: str, failed: str) -> None:
    """A button named `copy` that puts `text` on the clipboard at once, and then says `copied` or `failed`."""
    _copy(key=key, data={"text": text, "copy": copy, "copied": copied, "failed": failed}, width="content",
          height="content")  # fmt: skip


def scroll_here(key: str) -> None:
    """Bring this place of the page into view, once for each key."""
    _scroll(key=key)


def keep_typed(key: str, thing: str, born: str, place: str, filled: tuple[int, str]) -> None:
    """Keep what is typed and not sent in the field `key`, for each `thing` apart, and focus it for each.

    `born` is the name of a thing before it was stored.
    The text is kept under the name of its `place`, which a reloaded tab knows again. `filled` is (number, text): the
    number changes where the server has just put the text into the field.
    """
    number, text = filled
    data = {"key": key, "thing": thing, "born": born, "place": place, "filled": number, "text": text}
    _typed(key=f"{key}_typed", data=data)


def leave(key: str, now: bool, provider: bool = False) -> None:
    """Once `now` is true, sign out of the `provider` or of the password, and show the sign-in page.

    Draw it before that too: a browser whose session has ended on the server can load no more code.
    """
    _leave(key=key, data={"now": now, "provider": provider})


def close_sidebar_on(keys: Sequence[str]) -> None:
    """In a narrow window, close the sidebar at a click on what is in it under a key that begins so."""
    _narrow(key="close_sidebar", data={"keys": list(keys)})


def watch_session(key: str) -> None:
    """Show the sign-in page once the session of this browser has ended, or a password was set. And tell the server that
    somebody works at the page."""
    _watch(key=key)
