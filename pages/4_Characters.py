"""Characters: the gallery, one character, the form that changes it, who the user is, and lorebooks of their own."""

import streamlit as st

from ui.characters.book import draw_book
from ui.characters.book_draft import renew_book_drafts
from ui.characters.books import draw_books
from ui.characters.detail import draw_detail
from ui.characters.draft import renew_drafts
from ui.characters.form import draw_form
from ui.characters.gallery import draw_gallery
from ui.characters.persona import draw_persona, renew_user_drafts
from ui.characters.personas import draw_user
from ui.characters.view import current_view
from ui.shared.i18n import tr
from ui.shared.routing import has_arrived, require_router

require_router()
part, key = current_view(has_arrived())
if has_arrived():
    renew_drafts()
    renew_user_drafts()
    renew_book_drafts()
if part == "form":
    draw_form(key)
elif part == "user":
    draw_user()
elif part == "persona":
    draw_persona(key)
elif part == "books":
    draw_books()
elif part == "book" and key is not None:
    draw_book(key)
elif part == "detail" and key is not None:
    draw_detail(key)
else:
    st.title(tr("nav.characters"))
    draw_gallery()
