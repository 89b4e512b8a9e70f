"""The choice between the light and the dark theme. Streamlit's menu has it as well, in English only."""

from __future__ import annotations

import streamlit as st

from ui.shared.i18n import text
from ui.shared.routing import PATHS

THEMES = ("System", "Light", "Dark")
# Streamlit reads the theme from the browser's store once, when a page's address is opened, by a name for each address.
CHOOSE = """
export default function ({ parentElement, data }) {
    const base = window.location.pathname.replace(/[^/]*$/, "");
    const nameOf = (path) => `stActiveTheme-${path}-v2`;
    let chosen = "System";
    try {
        chosen = JSON.parse(localStorage.getItem(nameOf(window.location.pathname)) ?? '"System"');
    } catch {
        // A browser may keep nothing, and anybody may have written anything.
    }
    const choose = (theme) => {
        data.paths.forEach((path) => localStorage.setItem(nameOf(base + path), JSON.stringify(theme)));
        window.location.reload();
    };
    const group = parentElement.querySelector(".themes");
    group.setAttribute("aria-label", data.label);
    group.replaceChildren(...data.themes.map(([theme, words]) => {
        const button = document.createElement("button");
        button.textContent = words;
        button.setAttribute("role", "radio");
        button.setAttribute("aria-checked", String(theme === chosen));
        button.onclick = () => choose(theme);
        return button;
    }));
    parentElement.querySelector(".about").textContent = data.about;
}
"""
STYLE = """
.themes { display: flex; flex-wrap: wrap; gap: 0.5rem; }
button {
    font: inherit; color: inherit; background: none; padding: 0.35rem 0.9rem; cursor: pointer;
    border: 1px solid var(--st-border-color, gray); border-radius: 0.6rem;
}
button[aria-checked="true"] { border-color: var(--st-primary-color); color: var(--st-primary-color); }
.about { margin: 0.5rem 0 0; font-size: 0.875rem; color: var(--st-gray-text-color, inherit); }
"""
_choose = st.components.v2.component(
    "llamadeck_theme", html='<div class="themes" role="radiogroup"></div><p class="about"></p>', css=STYLE, js=CHOOSE
)


def choose_theme(key: str) -> None:
    """Draw the choice; it holds in this browser, for all pages, and loads the page anew."""
    data = {
        "label": text("settings.theme"),
        "themes": [[theme, text(f"settings.theme_{theme}")] for theme in THEMES],
        "about": text("settings.theme_text"),
        "paths": sorted(path.removeprefix("/") for path in PATHS),
    }
    _choose(key=key, data=data)
