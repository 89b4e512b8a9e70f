"""Load model: the models on disk or those of another server, and the one that answers."""

import streamlit as st

from ui.load.page import draw_here
from ui.load.remote import choose_place, draw_remote
from ui.shared.i18n import tr
from ui.shared.routing import require_router

require_router()
st.title(tr("nav.load_model"))
if choose_place() == "server":
    draw_remote()
else:
    draw_here()
