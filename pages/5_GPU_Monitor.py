"""GPU Monitor: what the GPUs do, second by second, and what the loaded model has of what was planned for it."""

import streamlit as st

from ui.monitor.page import POLL_S, choose_window, draw_monitor
from ui.shared.fragment import redraw_every
from ui.shared.i18n import tr
from ui.shared.routing import require_router

require_router()
st.title(tr("nav.gpu_monitor"))
redraw_every(POLL_S, draw_monitor, choose_window())
