"""Where the reader of a chat is: at the answer that they asked for, or at the message whose versions they leaf through.

Streamlit follows a growing page while it stands at its end. It knows neither that something was sent, nor that a key
or a finger moved the page while it grew.
"""

from __future__ import annotations

import streamlit as st

SENT_KEY, TURNED_KEY = "chat_sent", "chat_turned"
PLACE = """
// Streamlit stops following at a turn of the wheel: the first ends its movement alone, one soon after the rest.
const RELEASE_FRAMES = 12;
const turn = (main, frames) => {
    main.dispatchEvent(new Event("wheel"));
    if (frames && !main.llamadeckFollows) {
        requestAnimationFrame(() => turn(main, frames - 1));
    }
};
const release = (main) => {
    main.llamadeckFollows = false;
    main.llamadeckMoved = performance.now();
    turn(main, RELEASE_FRAMES);
};
const goToEnd = (main) => main.scrollTo({ top: main.scrollHeight, behavior: "instant" });
const isAtEnd = (main) => main.scrollHeight - main.clientHeight - main.scrollTop < 40;
const watch = (main) => {
    // After the reader's hand the page moves on for a moment. It goes down by a hand alone: else it is Streamlit.
    let downUntil = 0, last = { top: main.scrollTop, height: main.scrollHeight }, finger = 0;
    const moved = (isUp) => {
        if (isUp) {
            downUntil = 0;
            release(main);
            main.llamadeckReading = main.scrollTop;
        } else {
            main.llamadeckMoved = performance.now();
            downUntil = main.llamadeckMoved + 1000;
            main.llamadeckReading = Infinity;
        }
    };
    main.addEventListener("wheel", ({ isTrusted, deltaY }) => isTrusted && moved(deltaY < 0), { passive: true });
    main.addEventListener("touchstart", ({ touches }) => (finger = touches[0].clientY), { passive: true });
    main.addEventListener("touchmove", ({ touches }) => {
        moved(touches[0].clientY > finger);
        finger = touches[0].clientY;
    }, { passive: true });
    main.addEventListener("pointerdown", ({ isTrusted, target }) => {
        // The scroll bar.
        if (isTrusted && target === main) {
            release(main);
            moved(false);
        }
    });
    document.addEventListener("keydown", ({ key, target }) => {
        if (!target.matches?.("input, textarea, select")) {
            const up = ["PageUp", "ArrowUp", "Home"].includes(key);
            if (up || ["PageDown", "ArrowDown", "End"].includes(key)) {
                moved(up);
            }
        }
    });
    main.addEventListener("scroll", () => {
        const { scrollTop: top, scrollHeight: height } = main, isByHand = performance.now() < downUntil;
        const isUp = top < last.top - 1 && height >= last.height;
        last = { top, height };
        if (isByHand && isAtEnd(main)) {
            main.llamadeckFollows = true;
        } else if (isUp && main.llamadeckFollows) {
            // The browser went to what was searched for, or to what a key gave the focus to.
            moved(true);
        } else if (top > main.llamadeckReading + 1) {
            main.scrollTo({ top: main.llamadeckReading, behavior: "instant" });
            turn(main, RELEASE_FRAMES);
        } else if (main.llamadeckReading < Infinity) {
            main.llamadeckReading = top;
        }
    }, { passive: true });
    new ResizeObserver(() => main.llamadeckFollows && goToEnd(main)).observe(main.firstElementChild);
    document.addEventListener("click", ({ target }) => {
        main.llamadeckReading = Infinity;
        const row = target.closest?.('[class*="st-key-icons_message_"]');
        main.llamadeckTop = row?.getBoundingClientRect().top;
    }, true);
};
// A run of the page draws piece by piece: the row stays until that has settled, or the reader moves the page. An answer
// that grows elsewhere is drawn run after run, so there is an end to it.
const SETTLED_MS = 1200, MOST_MS = 10000;
const isDrawn = () => document.querySelector(".stApp")?.dataset.testScriptState !== "running";
const hold = (main, message, top) => {
    const begin = performance.now();
    let settled = begin;
    const step = () => {
        const row = document.querySelector(`.st-key-icons_message_${message}`), now = performance.now();
        const by = row ? row.getBoundingClientRect().top - top : 0;
        if (by || !isDrawn()) {
            settled = now;
        }
        main.scrollBy({ top: by, behavior: "instant" });
        if (main.llamadeckMoved <= begin && now - settled < SETTLED_MS && now - begin < MOST_MS) {
            requestAnimationFrame(step);
        }
    };
    step();
};
export default function ({ data }) {
    const main = document.querySelector(".stMain");
    if (!main) {
        return;
    }
    if (!main.llamadeckPlace) {
        watch(main);
    }
    const before = main.llamadeckPlace ?? data;
    main.llamadeckPlace = data;
    if (before.sent !== data.sent) {
        main.llamadeckFollows = true;
        main.llamadeckReading = Infinity;
        goToEnd(main);
    } else if (before.turned !== data.turned && main.llamadeckTop !== undefined) {
        release(main);
        hold(main, data.message, main.llamadeckTop);
    }
}
"""
_place = st.components.v2.component("llamadeck_place", html="<i></i>", js=PLACE)


def go_to_end() -> None:
    """Show what comes next, an answer that was just asked for, wherever the reader is."""
    st.session_state[SENT_KEY] = _count(SENT_KEY) + 1


def stay_at(message: int) -> None:
    """Leave this version of a message where the one was that is exchanged for it."""
    st.session_state[TURNED_KEY] = (_turned()[0] + 1, message)


def keep_place() -> None:
    """Draw it once, below the messages."""
    number, message = _turned()
    _place(key="chat_place", data={"sent": _count(SENT_KEY), "turned": number, "message": message})


def _count(key: str) -> int:
    return int(st.session_state.get(key, 0))


def _turned() -> tuple[int, int]:
    found: tuple[int, int] = st.session_state.get(TURNED_KEY, (0, 0))
    return found
