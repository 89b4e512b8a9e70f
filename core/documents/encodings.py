"""The text of a file's bytes, in whichever encoding it was written."""

from __future__ import annotations

import codecs
import re

from charset_normalizer import from_bytes

# A longer mark comes first: that of UTF-32 begins like that of UTF-16.
MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
# So much of a file is looked at where its bytes have to tell the encoding.
PROBE_BYTES = 64 * 1024
# UTF-8 with a few wrong bytes, such as a file that was cut off, has more good characters beyond ASCII than this.
GOOD_FOR_EACH_WRONG = 10
# Two bytes of GB18030; those in the rows of signs and of usual characters have both halves above 0xA0.
PAIR = re.compile(rb"[\x81-\xfe][\x40-\x7e\x80-\xfe]")
USUAL = re.compile(rb"[\xa1\xa3\xb0-\xd7][\xa1-\xfe]")
MIN_USUAL_SHARE = 0.9
# What else people still have. The library takes short texts for far rarer encodings where it may choose among all.
OTHERS = ["big5", "cp932", "cp949", "cp1251", "cp1252"]
# No text needs these; it has tabs, ends of lines and pages, and the colours of terminals.
CONTROL = re.compile("[\x00-\x08\x0b\x0e-\x1a\x1c-\x1f]")
MAX_CONTROL_SHARE = 0.02


def decode(data: bytes) -> str | None:
    """The text of `data`; None where it is no text. A wrong character becomes a mark."""
    text = _decoded(data)
    if text is None or len(CONTROL.findall(text)) > MAX_CONTROL_SHARE * len(text):
        return None
    return text


def _decoded(data: bytes) -> str | None:
    for mark, encoding in MARKS:
        if data.startswith(mark):
            return data[len(mark) :].decode(encoding, "replace")
    if b"\0" in data[:PROBE_BYTES]:
        return _utf16(data)
    text = data.decode("utf-8", "replace")
    wrong = text.count("\ufffd")
    if not wrong or wrong * GOOD_FOR_EACH_WRONG <= len(re.findall("[^\x00-\x7f\ufffd]", text)):
        return text
    pairs = PAIR.findall(data[:PROBE_BYTES])
    if sum(1 for pair in pairs if USUAL.fullmatch(pair)) >= MIN_USUAL_SHARE * max(1, len(pairs)):
        try:
            # The last character may be cut off.
            return codecs.getincrementaldecoder("gb18030")().decode(data)
        except UnicodeDecodeError:
            pass
    found = from_bytes(data[:PROBE_BYTES], cp_isolation=OTHERS).best()
    return data.decode(found.encoding if found is not None else "cp1252", "replace")


def _utf16(data: bytes) -> str | None:
    """UTF-16 without a mark: of mostly Latin text every other byte is 0."""
    first, second = data[:PROBE_BYTES:2], data[1:PROBE_BYTES:2]
    for zeros, others, encoding in ((second, first, "utf-16-le"), (first, second, "utf-16-be")):
        if zeros.count(0) > len(zeros) // 2 and others.count(0) <= len(others) // 100:
            return data.decode(encoding, "replace")
    return None
