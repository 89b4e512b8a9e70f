"""Character cards for the tests: made by hand, or any that hypothesis can think of."""

from __future__ import annotations

import base64
import io
import json
import struct
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st

from core.personas.png import SIGNATURE
from core.personas.portrait import draw_portrait

PICTURE = draw_portrait("test")
V1 = {
    "name": "Rosa",
    "description": "{{char}} keeps bees.",
    "personality": "calm",
    "scenario": "A garden.",
    "first_mes": "Hello, {{user}}!",
    "mes_example": "<START>\n{{user}}: Hi\n{{char}}: Hello!",
}
V2_DATA = V1 | {
    "creator_notes": "notes",
    "system_prompt": "{{original}} Be brief.",
    "post_history_instructions": "Stay calm.",
    "alternate_greetings": ["Hm?", "Oh!"],
    "character_book": {
        "name": "Bees",
        "extensions": {"x": 1},
        "entries": [
            {"keys": ["bee"], "content": "Bees sting.", "extensions": {}, "enabled": True, "insertion_order": 1}
        ],
    },
    "tags": ["Garden", "bees"],
    "creator": "me",
    "character_version": "1.2",
    "extensions": {"depth_prompt": {"depth": 4, "prompt": "x"}, "fav": False},
}
V2: dict[str, Any] = {"spec": "chara_card_v2", "spec_version": "2.0", "data": V2_DATA}
V3_DATA = V2_DATA | {
    "nickname": "Rosie",
    "assets": [{"type": "icon", "uri": "ccdefault:", "name": "main", "ext": "png"}],
    "creator_notes_multilingual": {"zh": "说明"},
    "source": ["https://example.com/rosa"],
    "group_only_greetings": ["Hello, all."],
    "creation_date": 1700000000,
    "modification_date": 1700000001.5,
    "character_book": {
        "extensions": {},
        "entries": [
            {"keys": ["bee"], "content": "@@depth 2\nBees sting.", "extensions": {}, "enabled": True,
             "insertion_order": 1, "use_regex": False, "constant": True, "unknown": [1, None]},
        ],
    },
}  # fmt: skip
V3: dict[str, Any] = {"spec": "chara_card_v3", "spec_version": "3.0", "data": V3_DATA}
WEBUI = """name: Chen
greeting: |-
  *waves*
  Hello!
context: |-
  Chen's Persona: Chen repairs radios.

  {{user}}: Hi
  {{char}}: Hi there.
your_name: Sam
example_dialogue: ''
turn: 3
"""


def encoded(card: Mapping[str, Any]) -> bytes:
    return base64.b64encode(json.dumps(card).encode())


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def text_chunk(kind: bytes, keyword: str, text: bytes) -> bytes:
    """A chunk of text as each of the three kinds has it."""
    middle = {b"tEXt": b"", b"zTXt": b"\0", b"iTXt": b"\1\0en\0word\0"}[kind]
    return chunk(kind, keyword.encode() + b"\0" + middle + (text if kind == b"tEXt" else zlib.compress(text)))


def with_chunks(*chunks: bytes, after_pixels: bool = False) -> bytes:
    """The picture with further chunks right behind its head or before its end."""
    place = len(PICTURE) - 12 if after_pixels else len(SIGNATURE) + 25
    return PICTURE[:place] + b"".join(chunks) + PICTURE[place:]


def png_card(card: Mapping[str, Any], keyword: str = "chara") -> bytes:
    return with_chunks(text_chunk(b"tEXt", keyword, encoded(card)))


def charx(files: Mapping[str, bytes | str]) -> bytes:
    """The archive, always the same bytes: a test that is named by them has one name in all processes."""
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, content in files.items():
            opened.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return written.getvalue()


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30) | st.sampled_from(
    [
        "a\nb\n",
        " x\n\n y ",
        "\n",
        "yes",
        "1e5",
        "0x1f",
        "1_0",
        "~",
        "- a",
        "#",
        "a: b",
        "\t",
        "2024-01-01",
        "|",
        "\r\n",
        "<<",
        "=",
    ]
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3))
OBJECTS = st.dictionaries(TEXTS, VALUES, max_size=3)
NAMES = st.from_regex(r"[A-Za-z\u4e00-\u4fff][A-Za-z \u4e00-\u4fff]{0,20}[A-Za-z]", fullmatch=True)
KNOWN = ("description", "personality", "scenario", "first_mes", "mes_example", "creator_notes", "system_prompt",
         "post_history_instructions", "creator", "character_version")  # fmt: skip
ENTRIES = st.fixed_dictionaries(
    {"keys": st.lists(TEXTS, max_size=3), "content": TEXTS, "extensions": OBJECTS, "enabled": st.booleans(),
     "insertion_order": st.integers(), "use_regex": st.booleans()},
    optional={"priority": st.integers(), "comment": TEXTS, "position": st.sampled_from(["before_char", "after_char"])},
)  # fmt: skip
BOOKS = st.fixed_dictionaries({"entries": st.lists(ENTRIES, max_size=3), "extensions": OBJECTS})
DATA = st.builds(
    lambda strange, known: strange | known,
    OBJECTS.map(lambda values: {f"x_{key}": value for key, value in values.items()}),
    st.fixed_dictionaries(
        {"name": NAMES, "tags": st.lists(NAMES, max_size=3), "alternate_greetings": st.lists(TEXTS, max_size=3),
         "extensions": OBJECTS, "group_only_greetings": st.lists(TEXTS, max_size=2)} | dict.fromkeys(KNOWN, TEXTS),
        optional={"character_book": BOOKS, "nickname": TEXTS, "assets": st.lists(OBJECTS, max_size=2)},
    ),
)  # fmt: skip
CARDS = st.builds(
    lambda version, data, outer: (
        outer | {"spec": f"chara_card_v{version}", "spec_version": f"{version}.0", "data": data}
    ),
    st.sampled_from([2, 3]),
    DATA,
    OBJECTS.map(lambda values: {f"y_{key}": value for key, value in values.items()}),
)
