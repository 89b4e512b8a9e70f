"""What the chat's input cannot do by itself: give its files away before anything is sent, and have its words counted.

Streamlit tells the server nothing of an input before it is sent.
"""

from __future__ import annotations

import streamlit as st

from ui.shared.i18n import text

# ui/server/typed_tokens.py answers here.
PATH = "typed-tokens"
# The field is looked at every INTERVAL_MS. Its words are counted once nobody has typed for PAUSE_MS, one question at a
# time, and of a long text the beginning: nobody feels any of this. What is not answered in COUNT_MS, or not as it
# should be, is not shown: files are still sent.
# Files are sent alone: the words are taken out of the field, and put back around what was typed in that moment.
JS = """
const INTERVAL_MS = 250, PAUSE_MS = 400, COUNTED_CHARS = 100000, COUNT_MS = 10000;
const state = (window.llamadeckInput ??= { tokens: 0, counted: "", seen: "", seenAt: 0, isBusy: false, tried: "" });
const pause = (ms) => new Promise((done) => setTimeout(done, ms));
const put = (field, text) => {
    Object.getOwnPropertyDescriptor(HTMLTextAreaElement.prototype, "value").set.call(field, text);
    field.dispatchEvent(new Event("input", { bubbles: true }));
};
const sendFiles = async (input, field) => {
    const names = [...input.querySelectorAll('[data-testid="stFileChip"]')].map((chip) => chip.ariaLabel).join("\\n");
    const isUnfinished = input.querySelector('[data-testid="stFileChipIconSpinner"], [aria-invalid="true"]');
    if (isUnfinished || state.isComposing || field.disabled || names === state.tried) {
        return;
    }
    state.tried = names;
    if (!names) {
        return;
    }
    const text = field.value, start = field.selectionStart, end = field.selectionEnd;
    put(field, "");
    await pause(0);
    input.querySelector('[data-testid="stChatInputSubmitButton"]')?.click();
    await pause(30);
    const typed = field.value;
    put(field, text.slice(0, start) + typed + text.slice(typed ? end : start));
    field.setSelectionRange(start + typed.length, typed ? start + typed.length : end);
};
const count = async (text) => {
    const part = text.slice(0, COUNTED_CHARS);
    const request = { method: "POST", body: part, signal: AbortSignal.timeout(COUNT_MS) };
    const answer = fetch(state.data.path, request).then((found) => (found.ok ? found.json() : null));
    const found = await answer.catch(() => null);
    state.tokens = Math.round(((found?.tokens ?? 0) * text.length) / part.length);
    state.counted = text;
};
const show = () => {
    const { place, data, tokens, counted } = state, sum = tokens + data.files;
    place.textContent = sum ? `+ ${counted.length > COUNTED_CHARS ? "≈ " : ""}${sum.toLocaleString("en-US")}` : "";
    place.title = data.help;
    place.classList.toggle("over", sum > data.room);
};
const look = async () => {
    const input = state.place?.isConnected && document.querySelector(`.st-key-${CSS.escape(state.data.key)}`);
    const field = input ? input.querySelector("textarea") : null;
    if (!field || state.isBusy) {
        return;
    }
    state.isBusy = true;
    const add = input.querySelector('[data-testid="stChatInputFileUploadButton"] button');
    add?.setAttribute("aria-label", state.data.add);
    await sendFiles(input, field);
    const text = field.value;
    if (text !== state.seen) {
        state.seen = text;
        state.seenAt = Date.now();
    }
    if (!text.trim()) {
        state.tokens = 0;
        state.counted = text;
    } else if (text !== state.counted && Date.now() - state.seenAt >= PAUSE_MS) {
        await count(text);
    }
    show();
    state.isBusy = false;
};
export default function ({ parentElement, data }) {
    state.place = parentElement.querySelector("span");
    if (state.data?.model !== data.model) {
        state.counted = "";
    }
    state.data = data;
    if (!state.timer) {
        document.addEventListener("compositionstart", () => (state.isComposing = true));
        document.addEventListener("compositionend", () => (state.isComposing = false));
        state.timer = setInterval(look, INTERVAL_MS);
    }
    show();
}
"""
STYLE = """
span { font: inherit; font-size: 0.875rem; opacity: 0.6; white-space: nowrap; }
span.over { color: var(--st-red-text-color, #b4475b); opacity: 1; }
"""
_watch = st.components.v2.component("llamadeck_input", html="<span></span>", css=STYLE, js=JS)


def watch_input(key: str, model: str, files_tokens: int, room_tokens: int) -> None:
    """Send the files of the field `key` as soon as they are there, and draw what it and they take: "+ 1,234" tokens.

    Red says that this is more than `room_tokens`. `model` counts: another one counts anew.
    """
    data = {"key": key, "model": model, "files": files_tokens, "room": room_tokens, "path": PATH,
            "help": text("chat.typed_help"), "add": text("chat.add_files")}  # fmt: skip
    _watch(key=f"{key}_watch", data=data, width="content")
