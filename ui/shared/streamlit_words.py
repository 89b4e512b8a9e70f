"""Streamlit's own words in the reader's language. It has English ones only and no way to give it others, so the browser
exchanges them where they appear: a text or a label is exchanged only if all of it is one of them."""

from __future__ import annotations

import streamlit as st

from ui.shared.i18n import language, text

# Each text as a pattern, whose groups are {1}, {2} of the sentence in the locale files.
ENGLISH = {
    "upload": "Upload",
    "uploading": r"Uploading\.\.\.",
    "drop": "Drag and drop (?:a file|files) here",
    "per_file": "(.+) per file",
    "enter_apply": "Press Enter to apply",
    "enter_submit": "Press Enter to submit form",
    "ctrl_enter_apply": r"Press (.+)\+Enter to apply",
    "ctrl_enter_submit": r"Press (.+)\+Enter to submit form",
    "no_results": "No results",
    "select_all": "Select all",
    "clear": "Clear value",
    "csv": "Download as CSV",
    "search": "Search",
    "close_search": "Close Search",
    "columns": "Show/hide columns",
    "fullscreen": "Fullscreen",
    "close_fullscreen": "Close fullscreen",
    "ascending": "Sort ascending",
    "descending": "Sort descending",
    "autosize": "Autosize",
    "format": "Format",
    "pin": "Pin column",
    "unpin": "Unpin column",
    "hide": "Hide column",
    "copy_column": "Copy column name",
    "copy": "Copy to clipboard",
    "running": r"Running\.\.\.",
    "stop": "Stop",
    "connecting": "Connecting",
    "show_password": "Show password",
    "hide_password": "Hide password",
    "send": "Send message",
    "open": "Open",
    "heading": "Link to heading",
    "skip": "Skip to main content",
    "help": "Help for (.+)",
    "to_home": "Navigate to home page",
    "pages": "App pages",
    "sidebar": "Sidebar",
    "expand": "Expand sidebar",
    "collapse": "Collapse sidebar",
}
# Markdown is what this program or a model wrote; Streamlit's are the short help of a tool and the button of an upload.
EXCHANGE = """
const WRITTEN = '[data-testid="stMarkdownContainer"], [data-testid="stIconMaterial"], pre, code, textarea';
const LABELS = ["aria-label", "title", "placeholder"];
const kept = new WeakMap();
const exchanged = (holder, name, shown) => {
    const texts = kept.get(holder) ?? {}, last = texts[name];
    const original = last?.now === shown ? last.original : shown;
    let now = original;
    for (const [pattern, words] of window.llamadeckWords) {
        const found = original.match(pattern);
        if (found) {
            now = words.replace(/\\{(\\d)\\}/g, (_, group) => found[group] ?? "");
            break;
        }
    }
    kept.set(holder, { ...texts, [name]: { original, now } });
    return now;
};
const ITS_OWN = '[data-testid="stTooltipContent"], [data-testid="stFileUploaderDropzone"]';
const isWritten = (element) => element?.closest(WRITTEN) && !element.closest(ITS_OWN);
const exchangeText = (node) => {
    const now = isWritten(node.parentElement) ? node.data : exchanged(node, "text", node.data);
    if (now !== node.data) {
        node.data = now;
    }
};
const exchangeLabels = (element) => {
    for (const name of LABELS) {
        const shown = element.getAttribute(name);
        const now = shown && exchanged(element, name, shown);
        if (shown && now !== shown) {
            element.setAttribute(name, now);
        }
    }
};
const exchangeAll = (root) => {
    if (root.nodeType === Node.TEXT_NODE) {
        exchangeText(root);
    } else if (root.nodeType === Node.ELEMENT_NODE) {
        exchangeLabels(root);
        root.querySelectorAll("[aria-label], [title], [placeholder]").forEach(exchangeLabels);
        const walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
        while (walker.nextNode()) {
            exchangeText(walker.currentNode);
        }
    }
};
const watch = () => new MutationObserver((changes) => {
    for (const { type, target, addedNodes } of changes) {
        if (type === "characterData") {
            exchangeText(target);
        } else if (type === "attributes") {
            exchangeLabels(target);
        } else {
            addedNodes.forEach(exchangeAll);
        }
    }
}).observe(document.body, { subtree: true, childList: true, characterData: true, attributeFilter: LABELS });
export default function ({ data }) {
    const isNew = !window.llamadeckWords;
    const before = window.llamadeckWordsOf;
    window.llamadeckWords = data.words.map(([pattern, words]) => [new RegExp(`^${pattern}$`), words]);
    window.llamadeckWordsOf = data.language;
    if (before !== data.language) {
        exchangeAll(document.body);
    }
    if (isNew) {
        watch();
    }
}
"""
_exchange = st.components.v2.component("llamadeck_words", html="<i></i>", js=EXCHANGE)


def exchange_words(key: str) -> None:
    """Show Streamlit's words in the reader's language on this page; in English they are as they come."""
    words = [] if language() == "en" else [[pattern, text(f"streamlit.{name}")] for name, pattern in ENGLISH.items()]
    _exchange(key=key, data={"words": words, "language": language()})
