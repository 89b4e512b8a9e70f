"""Download: what fits the card, before anything is downloaded, and how a model gets into the library."""

import streamlit as st

from core.settings import models_dir
from ui.cards import choose_card
from ui.catalogue import draw_catalogue
from ui.i18n import tr
from ui.routing import require_router

require_router()
st.title(tr("nav.download"))
st.markdown(tr("download.by_hand"))
st.code(str(models_dir().resolve()), language=None)
st.markdown(tr("download.what_counts"))
st.subheader(tr("download.catalogue"))
draw_catalogue(choose_card())
