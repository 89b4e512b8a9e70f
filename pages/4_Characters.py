"""Characters: where they live."""

import streamlit as st

from ui.i18n import tr
from ui.routing import require_router

require_router()
st.title(tr("nav.characters"))
st.markdown(tr("characters.where"))
