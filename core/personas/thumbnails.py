"""Small square pictures of characters, made in a thread of their own and kept in memory."""

from __future__ import annotations

import io
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock

from PIL import Image, ImageOps

from core.common.errors import DeckError
from core.personas.character import CharacterError
from core.personas.listing import Entry, Listing
from core.personas.pictures import FAULTS
from core.personas.portrait import draw_portrait

# Twice the width of a card in the gallery, for displays with fine dots.
SIDE = 320
QUALITY = 82
# Faces are in the upper part of a portrait.
CENTERING = (0.5, 0.2)
MAX_KEPT = 1000

Stamp = tuple[str, str, int, int]


class Thumbnails:
    """One picture a character, made once until the character's picture changes."""

    def __init__(self) -> None:
        self._lock = Lock()
        # One at a time: the pages need the rest of the processor.
        self._maker = ThreadPoolExecutor(1, "thumbnails")
        self._made: OrderedDict[Stamp, Future[bytes]] = OrderedDict()

    def get(self, characters: Listing, entry: Entry) -> Future[bytes]:
        """The picture of `entry` as WebP, now or soon. One that cannot be read gives the drawn one."""
        stamp = _stamp(entry)
        with self._lock:
            if stamp not in self._made:
                self._made[stamp] = self._maker.submit(_make, characters, entry)
            self._made.move_to_end(stamp)
            while len(self._made) > MAX_KEPT:
                self._made.popitem(last=False)[1].cancel()
            return self._made[stamp]


def make_thumbnail(file: str, picture: bytes) -> bytes:
    """A picture as a small square in WebP. Raises CharacterError for what is none; `file` is the name it quotes."""
    try:
        opened = Image.open(io.BytesIO(picture), formats=("PNG",))
        mode = "RGBA" if opened.has_transparency_data else "RGB"
        # A copy of 50 million pixels takes 200 MB.
        colours = opened if opened.mode == mode else opened.convert(mode)
        written = io.BytesIO()
        ImageOps.fit(colours, (SIDE, SIDE), centering=CENTERING).save(written, "WEBP", quality=QUALITY)
    except FAULTS:
        raise CharacterError("picture_unreadable", file=file) from None
    return written.getvalue()


def _make(characters: Listing, entry: Entry) -> bytes:
    try:
        return make_thumbnail(entry.key, characters.picture(entry.key))
    except DeckError:
        return make_thumbnail(entry.key, draw_portrait(entry.key))


def _stamp(entry: Entry) -> Stamp:
    """What changes when the picture does."""
    if entry.picture_path is not None:
        try:
            status = entry.picture_path.stat()
        except OSError:
            return str(entry.picture_path), entry.key, 0, 0
        return str(entry.picture_path), "", status.st_mtime_ns, status.st_size
    return "", entry.key, 0, 0
