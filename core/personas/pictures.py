"""Pictures that people choose, made into PNG within limits; knows no card and no character."""

from __future__ import annotations

import io
import warnings

from PIL import Image, ImageOps

from core.personas.character import CharacterError
from core.personas.png import MAX_PIXELS, MAX_PNG_BYTES, SIGNATURE, check_png

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
# What a picture that is no PNG is made smaller to: a camera's would be 30 MB as PNG.
MAX_SIDE = 1024
# Pillow raises these for files that are damaged, besides its own UnidentifiedImageError, an OSError.
FAULTS = (OSError, SyntaxError, ValueError, EOFError, OverflowError, Image.DecompressionBombError)


def as_png(file: str, content: bytes) -> bytes:
    """`content` as it is where it is a PNG, else turned upright, made smaller and written as PNG.

    Raises CharacterError for what is no picture, damaged or too large. `file` is the name that a sentence quotes.
    """
    if content.startswith(SIGNATURE):
        check_png(file, content)
        return content
    if len(content) > MAX_PNG_BYTES:
        raise CharacterError("card_too_large", file=file, limit_mib=MAX_PNG_BYTES // 2**20)
    try:
        with warnings.catch_warnings():
            # Pillow warns of pictures that the limit below refuses.
            warnings.simplefilter("ignore")
            picture = Image.open(io.BytesIO(content), formats=FORMATS)
            width, height = picture.size
            if width * height <= MAX_PIXELS:
                return _small_png(picture)
    except FAULTS:
        raise CharacterError("picture_unreadable", file=file) from None
    raise CharacterError("picture_too_large", file=file, width=width, height=height, limit=MAX_PIXELS // 10**6)


def _small_png(picture: Image.Image) -> bytes:
    upright = ImageOps.exif_transpose(picture)
    upright.thumbnail((MAX_SIDE, MAX_SIDE))
    small = upright.convert("RGBA" if upright.has_transparency_data else "RGB")
    written = io.BytesIO()
    small.save(written, "PNG", optimize=True)
    return written.getvalue()
