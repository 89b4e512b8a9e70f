"""Download: find a model that fits the card, make one of your own, and see how far each is; each in its own part."""

import streamlit as st

from ui.download.jobs import draw_jobs, shown_now
from ui.download.own import draw_own
from ui.download.own_jobs import draw_own_jobs
from ui.download.search import draw_find
from ui.shared.i18n import tr
from ui.shared.identity import key_of
from ui.shared.routing import SECTION_KEY, require_router, show_section

require_router()
st.title(tr("nav.download"))


def draw_all_jobs() -> None:
    draw_own_jobs()
    draw_jobs()


def take_section(key: str) -> None:
    show_section(st.session_state[key])


SECTIONS = {"find": draw_find, "own": draw_own, "jobs": draw_all_jobs}
num_open = sum(phase not in ("done", "cancelled") for _, phase in shown_now())
labels = {name: tr(f"download.section_{name}") for name in SECTIONS}
if num_open:
    labels["jobs"] += f" ({num_open})"
section = st.session_state.setdefault(SECTION_KEY, "find")
key = key_of("download_section_choice", "", section)
st.segmented_control(tr("download.section"), list(SECTIONS), key=key, required=True,
                     format_func=labels.__getitem__, label_visibility="collapsed", width="stretch",
                     on_change=take_section, args=(key,))  # fmt: skip
SECTIONS[section]()
