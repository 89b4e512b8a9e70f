"""The entry page and router: the frame around every page, and which page is shown."""

import streamlit as st

from core.common.panics import panics_as_errors
from core.common.paths import ROOT
from ui.chat.answering import sidebar_answering
from ui.download.jobs import sidebar_downloads
from ui.home import draw_home
from ui.settings.files import sidebar_files
from ui.shared.browser import watch_session
from ui.shared.engine_status import sidebar_status
from ui.shared.i18n import choose_language, tr
from ui.shared.icon_buttons import style_icon_buttons
from ui.shared.idle import sidebar_idle
from ui.shared.people import begin_run, has_passed_gate
from ui.shared.pictures import hide_picture_tools
from ui.shared.routing import follow, note_page
from ui.shared.streamlit_words import exchange_words

st.set_page_config(page_title="LlamaDeck", page_icon=str(ROOT / "ui" / "logo.svg"), layout="centered")
st.logo(str(ROOT / "ui" / "wordmark.svg"), icon_image=str(ROOT / "ui" / "logo.svg"), size="large")

if not has_passed_gate():
    st.error(tr("settings.no_gate"), icon=":material/lock:")
    st.stop()
begin_run()
style_icon_buttons()
page = st.navigation(
    [
        st.Page(draw_home, title=tr("nav.home"), icon=":material/home:", url_path="home", default=True),
        st.Page("pages/1_Download.py", title=tr("nav.download"), icon=":material/download:"),
        st.Page("pages/2_Load_Model.py", title=tr("nav.load_model"), icon=":material/deployed_code:"),
        st.Page("pages/3_Chat.py", title=tr("nav.chat"), icon=":material/chat:"),
        st.Page("pages/4_Characters.py", title=tr("nav.characters"), icon=":material/theater_comedy:"),
        st.Page("pages/5_GPU_Monitor.py", title=tr("nav.gpu_monitor"), icon=":material/monitor_heart:"),
        st.Page("pages/6_Settings.py", title=tr("nav.settings"), icon=":material/settings:"),
    ]
)
follow()
with st.sidebar:
    sidebar_status()
    sidebar_answering()
    sidebar_downloads()
    sidebar_idle()
    sidebar_files()
    choose_language()
    watch_session("watch_session")
    exchange_words("exchange_words")
note_page(page.url_path)
hide_picture_tools()
with panics_as_errors():
    page.run()
