"""The picture in a form: what it is now, a new one, or none."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import streamlit as st

from core.common.errors import DeckError
from core.personas.pictures import as_png
from core.personas.png import MAX_PNG_BYTES
from core.personas.portrait import draw_portrait
from core.personas.thumbnails import make_thumbnail
from ui.shared.errors import show_error
from ui.shared.i18n import tr

WIDTH = 132
FORMATS = ["png", "jpg", "jpeg", "webp", "gif", "bmp"]


@dataclass
class PictureChoice:
    """The picture that a form was given: a new one, none any more, or neither, which leaves it as it is."""

    new: bytes | None = None
    thumbnail: bytes | None = None
    is_removed: bool = False
    error: DeckError | None = None
    num_uploads: int = 0

    @property
    def is_changed(self) -> bool:
        return self.new is not None or self.is_removed

    def take(self, file: str, content: bytes) -> None:
        """Take what was uploaded, or keep the reason why it is no picture."""
        self.num_uploads += 1
        try:
            png = as_png(file, content)
            self.new, self.thumbnail, self.error = png, make_thumbnail(file, png), None
            self.is_removed = False
        except DeckError as error:
            self.error = error

    def remove(self) -> None:
        self.new, self.thumbnail, self.error, self.is_removed = None, None, None, True


def draw_picture_choice(choice: PictureChoice, key: str, number: int, own: bytes | None, name: str) -> None:
    """Draw the picture of the draft `number` with the fields that change `choice`.

    `own` is the stored picture, made small; without one a portrait is drawn for `name`.
    """
    shown = choice.thumbnail or (None if choice.is_removed else own)
    # After each upload the field is another one, and so is empty again.
    upload_key = f"{key}_upload_{choice.num_uploads}_{number}"
    with st.container(horizontal=True, vertical_alignment="center"):
        st.image(shown or _drawn(name), width=WIDTH, alt=tr("characters.picture"))
        with st.container(gap="xsmall", width=320):
            st.file_uploader(tr("characters.picture"), key=upload_key, max_upload_size=MAX_PNG_BYTES // 2**20,
                             on_change=_take, args=(choice, upload_key), help=tr("characters.picture_help"),
                             type=FORMATS)  # fmt: skip
            if shown is not None:
                st.button(tr("characters.picture_remove"), key=f"{key}_remove_{number}", icon=":material/hide_image:",
                          type="tertiary", on_click=choice.remove)  # fmt: skip
    if choice.error is not None:
        show_error(choice.error)


@lru_cache(32)
def _drawn(name: str) -> bytes:
    return draw_portrait(name)


def _take(choice: PictureChoice, upload_key: str) -> None:
    upload = st.session_state.get(upload_key)
    if upload is not None:
        choice.take(upload.name, upload.getvalue())
