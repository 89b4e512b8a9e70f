"""Pictures that people choose, made into PNG within limits."""

from __future__ import annotations

import io
import struct
import warnings
import zlib

from PIL import Image, ImageOps

from core.personas.character import CharacterError
from core.personas.png import MAX_PIXELS, MAX_PNG_BYTES, SIGNATURE, check_png

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
# What a picture that is no PNG is made smaller to: a camera's would be 30 MB as PNG.
MAX_SIDE = 1024
# A JPEG of few bytes may have its pixels written anew thousands of times; cameras and programs do so ten times.
SCAN_MARK, MAX_SCANS = b"\xff\xda", 500
# Pillow raises these for files that are damaged, besides its own UnidentifiedImageError, an OSError: its readers take
# what a file says of itself for granted.
FAULTS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


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
            # With a list of further pictures in it, a JPEG is an MPO to Pillow.
            if picture.format in ("JPEG", "MPO") and content.count(SCAN_MARK) > MAX_SCANS:
                raise ValueError("too many scans")
            if width * height <= MAX_PIXELS:
                return _small_png(picture)
    except FAULTS:
        raise CharacterError("picture_unreadable", file=file) from None
    raise CharacterError("picture_too_large", file=file, width=width, height=height, limit=MAX_PIXELS // 10**6)


def _small_png(picture: Image.Image) -> bytes:
    # Made smaller first: a JPEG is then not even read in full, and turning needs a second picture of its size.
    picture.thumbnail((MAX_SIDE, MAX_SIDE))
    upright = ImageOps.exif_transpose(picture)
    small = upright.convert("RGBA" if upright.has_transparency_data else "RGB")
    written = io.BytesIO()
    small.save(written, "PNG", optimize=True)
    return written.getvalue()
