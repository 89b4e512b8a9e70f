"""Files of strangers that say little of themselves and become much: bounded by what they are, not by what they say."""

from __future__ import annotations

import io
import json
import random
import sqlite3
import struct
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from core.chat.exporting import to_json
from core.chat.presets import check_values, read_recommended
from core.chat.records import CopiedChat, CopiedMessage
from core.chat.store import ChatStore
from core.chat.tokens import TokenizerError, read_counter
from core.checkpoint.checkpoint import read_checkpoint
from core.checkpoint.headers import read_header, read_json
from core.common.errors import CheckpointError, DeckError
from core.common.plain_json import check_num_values, load_json
from core.common.values import printable
from core.hub.manifest import next_page
from core.hub.record import FILE, read_record
from core.hub.search import parse_results
from core.personas.cards import read_card
from core.personas.character import CharacterError
from core.personas.pictures import as_png
from core.personas.png import SIGNATURE
from core.personas.thumbnails import make_thumbnail
from core.tokenizer.read import read_tokenizer
from core.worker.end_tokens import find_end_tokens
from tests.support.cards import chunk
from tests.support.chat_files import read_chat_file
from tests.support.checkpoints import WEIGHTS, make_checkpoint

MIB = 2**20
CARD = json.dumps(
    {"spec": "chara_card_v2", "spec_version": "2.0", "data": {"name": "Ada", "first_mes": "Hi."}}
).encode()


def peak_mib(work: Callable[[], object]) -> float:
    """The most that Python's objects took while `work` was done, which ends in a sentence or well."""
    tracemalloc.start()
    try:
        try:
            work()
        except DeckError as error:
            assert error.sentence("en") and error.sentence("zh")
        return tracemalloc.get_traced_memory()[1] / MIB
    finally:
        tracemalloc.stop()


# Archives -------------------------------------------------------------------------------------------------------------


def zipped(files: dict[str, bytes], packing: int = zipfile.ZIP_DEFLATED) -> bytearray:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", packing) as made:
        for name, content in files.items():
            made.writestr(name, content)
    return bytearray(written.getvalue())


def lie(content: bytearray, entry: int, unpacked: int | None = None, packed: int | None = None) -> bytes:
    """The zip with other sizes of an entry in its list and before the entry itself."""
    places = [place for place in range(len(content)) if content[place : place + 4] == b"PK\x01\x02"]
    heads = [place for place in range(len(content)) if content[place : place + 4] == b"PK\x03\x04"]
    for place, offset in ((places[entry], 20), (heads[entry], 18)):
        if packed is not None:
            content[place + offset : place + offset + 4] = struct.pack("<I", packed)
        if unpacked is not None:
            content[place + offset + 4 : place + offset + 8] = struct.pack("<I", unpacked)
    return bytes(content)


def sharing(count: int) -> bytes:
    """A zip whose list names one entry `count` times."""
    content = zipped({"card.json": CARD, "assets/a": bytes(100_000)})
    begin = content.rindex(b"PK\x01\x02")
    end = content.rindex(b"PK\x05\x06")
    entry, last = content[begin:end], content[end:]
    body = content[:begin] + entry * count
    size = struct.pack("<HHI", min(count + 1, 65535), min(count + 1, 65535), len(body) - content.index(b"PK\x01\x02"))
    return bytes(body + last[:8] + size + last[16:])


ARCHIVES: dict[str, bytes] = {
    "the card is said to be small": lie(zipped({"card.json": bytes(50 * MIB)}), 0, unpacked=100),
    "the card is said to be packed large": lie(zipped({"card.json": bytes(50 * MIB)}), 0, packed=0xFFFFFFF0),
    "a picture is said to be small": lie(
        zipped({"card.json": CARD.replace(b'"Hi."', b'"", "assets": [{"type": "icon", "uri": "embeded://a.png"}]'),
                "a.png": bytes(80 * MIB)}), 1, unpacked=64),
    "packed with bzip2": bytes(zipped({"card.json": bytes(50 * MIB)}, zipfile.ZIP_BZIP2)),
    "packed with LZMA": bytes(zipped({"card.json": bytes(50 * MIB)}, zipfile.ZIP_LZMA)),
    "one entry twenty thousand times": sharing(20_000),
    "a zip in a zip": bytes(zipped({"card.json": bytes(zipped({"card.json": bytes(50 * MIB)}))})),
}  # fmt: skip


@pytest.mark.parametrize("content", ARCHIVES.values(), ids=ARCHIVES.keys())
def test_an_archive_takes_no_more_than_it_may_whatever_it_says(content: bytes) -> None:
    assert peak_mib(lambda: read_card("x.charx", content)) < 40


def test_a_card_that_names_one_icon_without_end_is_read_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each was unpacked and looked at, as often as the card named it."""
    read: list[str] = []
    card = json.loads(CARD)
    card["data"]["assets"] = [{"type": "icon", "uri": "embeded://a.png", "name": "main"}] * 20_000
    content = zipped({"card.json": json.dumps(card).encode(), "a.png": b"no picture"}, zipfile.ZIP_STORED)
    as_written = zipfile.ZipFile.open
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda self, name: read.append(name) or as_written(self, name))
    assert read_card("x.charx", bytes(content)).character.name == "Ada"
    assert len(read) < 2000


# Pictures -------------------------------------------------------------------------------------------------------------


def png(width: int, height: int, *more: bytes, pixels: bytes = b"\0" * 10, colour: int = 6) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0))
    return b"".join((SIGNATURE, head, *more, chunk(b"IDAT", zlib.compress(pixels)), chunk(b"IEND", b"")))


def packed_text(kind: bytes, size: int) -> bytes:
    text = zlib.compress(bytes(size), 9)
    return chunk(kind, b"chara\0\0" + text if kind == b"zTXt" else b"chara\0\1\0\0\0" + text)


def jpeg_with_scans(count: int) -> bytes:
    written = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(written, "JPEG", progressive=True)
    content = written.getvalue()
    last = content.rindex(b"\xff\xda")
    return content[:last] + content[last:-2] * count + content[-2:]


def mpo_with_scans(count: int) -> bytes:
    """A JPEG that says it holds a second picture."""
    ifd = struct.pack("<HHHI4sHHIIHHII", 3, 0xB000, 7, 4, b"0100", 0xB001, 4, 1, 2, 0xB002, 7, 32, 50)
    pictures = struct.pack("<IIIHH", 0x030000, 100, 0, 0, 0) * 2
    marks = b"MPF\0II*\0" + struct.pack("<I", 8) + ifd + bytes(4) + pictures
    content = jpeg_with_scans(count)
    return content[:2] + b"\xff\xe2" + struct.pack(">H", len(marks) + 2) + marks + content[2:]


def gif(width: int, height: int) -> bytes:
    written = io.BytesIO()
    Image.new("P", (8, 8)).save(written, "GIF")
    content = bytearray(written.getvalue())
    content[6:10] = struct.pack("<HH", width, height)
    return bytes(content)


def bmp(width: int, height: int) -> bytes:
    written = io.BytesIO()
    Image.new("RGB", (8, 8)).save(written, "BMP")
    content = bytearray(written.getvalue())
    content[18:26] = struct.pack("<ii", width, height)
    return bytes(content)


def webp(width: int, height: int) -> bytes:
    """An animation on a large canvas with one small picture."""
    written = io.BytesIO()
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(written, "WEBP", save_all=True, append_images=frames[1:])
    content = bytearray(written.getvalue())
    place = content.index(b"VP8X") + 12
    content[place : place + 6] = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return bytes(content)


PICTURES: dict[str, bytes] = {
    "a packed text of gigabytes": png(8, 8, *[packed_text(b"zTXt", 120 * MIB)]),
    "an international text of gigabytes": png(8, 8, *[packed_text(b"iTXt", 120 * MIB)]),
    "sides of two thousand million": png(2**31 - 1, 2**31 - 1),
    "pixels that are not there": png(7000, 7000),
    "a colour profile of gigabytes": png(8, 8, chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(120 * MIB), 9))),
    "ten thousand frames": png(8, 8, chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0))),
    "a GIF of 65,535 a side": gif(65535, 65535),
    "a BMP of two thousand million a side": bmp(2**31 - 1, 2**31 - 1),
    "a WebP of 16,383 a side": webp(16383, 16383),
    "a JPEG that is written anew without end": jpeg_with_scans(20_000),
    "a JPEG with another in it that is written anew without end": mpo_with_scans(20_000),
}


@pytest.mark.parametrize("content", PICTURES.values(), ids=PICTURES.keys())
def test_a_picture_takes_no_more_than_it_may_whatever_it_says(content: bytes) -> None:
    def use() -> None:
        make_thumbnail("x", as_png("x", content))

    assert peak_mib(use) < 90
    assert peak_mib(lambda: read_card("x.png", content)) < 90


def test_a_jpeg_with_another_in_it_is_no_way_round_the_limit_of_scans() -> None:
    with Image.open(io.BytesIO(mpo_with_scans(3))) as opened:
        assert opened.format == "MPO"
    assert as_png("x", mpo_with_scans(3)).startswith(SIGNATURE)
    with pytest.raises(CharacterError):
        as_png("x", mpo_with_scans(1000))


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_a_picture_of_a_palette_that_is_not_there_is_a_sentence(bits: int) -> None:
    """Pillow asserts that there is one, and the gallery showed a traceback."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, bits, 3, 0, 0, 0))
    content = SIGNATURE + head + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    with pytest.raises(CharacterError):
        make_thumbnail("x", content)


# JSON -----------------------------------------------------------------------------------------------------------------

MUCH = ("[]", "{}", "1.5", '"a"', '{"a":0}', "[[0]]")


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize("value", MUCH)
def test_json_is_counted_before_it_is_built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, value: str) -> None:
    """Three bytes became seventy in memory: a file of 50 MB became gigabytes."""
    for module in ("core.common.plain_json", "core.personas.parse", "core.chat.importing"):
        monkeypatch.setattr(f"{module}.MAX_VALUES", 1000)
    monkeypatch.setattr("core.common.plain_json.load_json.__defaults__", (1000,))
    monkeypatch.setattr("core.checkpoint.headers.MAX_HEADER_VALUES", 1000)
    text = '{"a": [' + f"{value}," * 200_000 + "0]}"
    path = write(tmp_path / "config.json", text)
    weights = write(tmp_path / "x.safetensors", struct.pack("<Q", len(text)) + text.encode())
    for work in (
        lambda: read_json(path),
        lambda: read_header(weights),
        lambda: read_card("x.json", text.encode()),
        lambda: read_chat_file(text.encode()),
        lambda: read_chat_file(b"\n".join([text.encode()] * 2)),
        lambda: parse_results(b"[" + text.encode() + b"]", "hub"),
    ):
        with pytest.raises(DeckError):
            work()
        assert peak_mib(work) < 10


@pytest.mark.parametrize(
    "text",
    [
        '{"a":' + "[" * 20_000 + "]" * 20_000 + "}",
        '{"a": "' + "\\\\" * 1_000_000,
        '{"a": ' + '"\\' * 2_000_000,
        '{"a": "' + '\\"' * 2_000_000 + "\\",
    ],
)
def test_json_that_is_deep_or_has_no_end_is_a_sentence(text: str) -> None:
    for work in (lambda: read_card("x.json", text.encode()), lambda: read_chat_file(text.encode())):
        with pytest.raises(DeckError):
            work()
        assert peak_mib(work) < 30


def test_what_stands_inside_of_texts_is_not_counted() -> None:
    text = json.dumps({"a": 'x[{,"\\' * 1000, "b": [1, 2]})
    check_num_values(text, 4)
    with pytest.raises(ValueError, match="more than 3 values"):
        check_num_values(text, 3)


def test_a_number_beyond_any_size_is_no_whole_number() -> None:
    assert load_json("[123456789012345678, -99999999999999999]") == [123456789012345678, -99999999999999999]
    (found,) = load_json("[1000000000000000019884624838656]")
    assert isinstance(found, float)
    assert load_json(b"\xff\xfe[\x001\x00]\x00") == [1]


# One damage in every place --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny"
    make_checkpoint(path)
    return path


ODD: list[Any] = [
    None, True, -1, 0, 1.5, 10**17, 10**30, float("inf"), float("nan"), "", "x", "\ud83d", "9" * 5000, [], {}, [None],
]  # fmt: skip
SMALL_FILES: dict[str, tuple[dict[str, Any], Callable[[Path], object]]] = {
    "generation_config.json": ({"temperature": 0.5, "top_k": 5, "top_p": 0.9}, read_recommended),
    "quantize_config.json": ({"bits": 4, "group_size": 32, "desc_act": False, "sym": True}, read_checkpoint),
    FILE: (
        {"kind": "huggingface", "endpoint": "https://x.org", "repo": "a/b", "revision": "main", "commit": "c",
         "files": [{"name": "a", "size_bytes": 1, "sha256": None, "git_sha1": None, "url_path": "/a"}]},
        read_record,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SMALL_FILES)
def test_odd_values_in_a_models_small_files_end_in_a_sentence_or_well(folder: Path, name: str) -> None:
    values, read = SMALL_FILES[name]
    path = folder / name
    try:
        for odd in ODD:
            for key in values:
                write(path, json.dumps(values | {key: odd}))
                assert peak_mib(lambda: read(folder)) < 10
            if isinstance(values.get("files"), list):
                for key in values["files"][0]:
                    write(path, json.dumps(values | {"files": [values["files"][0] | {key: odd}]}))
                    read(folder)
        for content in (b"", b"\xff", b"[]", b"null", b"[" * 5000, b"\xef\xbb\xbf{}", b"{" + b'"a":{' * 5000):
            write(path, content)
            peak_mib(lambda: read(folder))
    finally:
        path.unlink(missing_ok=True)


def test_an_index_that_is_damaged_is_a_sentence(folder: Path) -> None:
    path = folder / "model.safetensors.index.json"
    weights = (folder / WEIGHTS).rename(folder / "elsewhere")
    try:
        for odd in [*ODD, {"a": 5}, {"a": "../x"}, {"a": "\ud83d"}, {"a": "gone.safetensors"}]:
            write(path, json.dumps({"metadata": odd, "weight_map": odd}))
            with pytest.raises(CheckpointError):
                read_checkpoint(folder)
    finally:
        path.unlink()
        weights.rename(folder / WEIGHTS)


# Half characters ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("a\ud83d", "a?"), ("\ude00b", "?b"), ("\ud83d\ude00", "\U0001f600"), ("\ude00\ud83d", "??"), ("", "")],
)  # fmt: skip
def test_half_characters_become_a_mark_and_two_halves_one(text: str, wanted: str) -> None:
    assert printable(text) == wanted


def test_nothing_that_is_stored_with_half_characters_fails_later(tmp_path: Path) -> None:
    """A chat's settings kept them, and every prompt and every export of the chat failed for good."""
    half = "half \ud83d"
    message = CopiedMessage(None, "user", half, 0.0, stats={"model": half, "error": {"key": half, "params": {}}})
    store = ChatStore(tmp_path / "chats.sqlite3")
    settings = {"system": half, "sampling": {"stop": [half]}}
    number = store.add(CopiedChat((message,), half, character=half, settings=settings, draft=half))
    store.change_settings(number, lambda _: settings)
    store.add_draft(number, half)
    store.rename(number, half)
    answer = store.begin_answer(number, store.read(number).messages[-1].id, half)
    store.finish_answer(answer, half, "done", {"model": half})
    for text in (repr(store.read(number)), repr(store.chats()), to_json(store.copy(number)), repr(store.search(half))):
        text.encode()
    assert store.info(number).settings == {"system": "half ?", "sampling": {"stop": ["half ?"]}}
    store.close()


def test_what_an_older_version_stored_is_read_without_them(tmp_path: Path) -> None:
    path = tmp_path / "chats.sqlite3"
    store = ChatStore(path)
    number = store.create("chat", "Ada", {"system": "x"}, ["Hi."])
    store.close()
    with sqlite3.connect(path) as db:
        db.execute("UPDATE chats SET settings = ?", (r'{"system": "half \ud83d, whole \ud83d\ude00"}',))
        db.execute("UPDATE messages SET stats = ?", (r'{"model": "\udc00"}',))
    store = ChatStore(path)
    assert store.info(number).settings == {"system": "half ?, whole \U0001f600"}
    to_json(store.copy(number)).encode()
    store.close()


# A damaged history ----------------------------------------------------------------------------------------------------


def test_a_damaged_row_hides_no_other_chat(tmp_path: Path) -> None:
    path = tmp_path / "chats.sqlite3"
    store = ChatStore(path)
    whole, odd = (store.create("chat", "Ada", {"system": "x"}, ["Hi.", "Hello."]) for _ in range(2))
    store.close()
    with sqlite3.connect(path) as db:
        db.execute("UPDATE chats SET title = CAST(x'ff41' AS TEXT), settings = '{' WHERE id = ?", (odd,))
        db.execute("UPDATE messages SET text = CAST(x'4869fffe' AS TEXT), stats = '[1' WHERE chat = ?", (odd,))
        # Two messages that stand above each other.
        db.execute("UPDATE messages SET is_shown = 0 WHERE chat = ?", (odd,))
        db.execute("UPDATE messages SET parent = (SELECT max(id) FROM messages), is_shown = 1 WHERE id = 3")
        db.execute("UPDATE messages SET parent = 3, is_shown = 1 WHERE id = 4")
    store = ChatStore(path)
    assert [info.id for info in store.chats()] == [odd, whole]
    assert store.info(odd).title == "\ufffdA" and store.info(odd).settings == {}
    assert [message.text for message in store.read(whole).messages] == ["Hi."]
    store.read(odd)
    store.copy(odd)
    assert {hit.chat for hit in store.search("hi")} >= {whole}
    store.close()


def test_bytes_of_the_history_that_are_turned_over_end_in_a_sentence(tmp_path: Path) -> None:
    path, odd = tmp_path / "chats.sqlite3", tmp_path / "odd.sqlite3"
    store = ChatStore(path)
    for _ in range(3):
        store.create("chat", "Ada", {"system": "x"}, ["Hi.", "Hello."])
    store.close()
    content = path.read_bytes()
    chance = random.Random(7)
    for _ in range(40):
        damaged = bytearray(content)
        for _ in range(chance.randint(1, 40)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        for old in tmp_path.glob("odd.sqlite3*"):
            old.unlink()
        write(odd, bytes(damaged))
        try:
            store = ChatStore(odd)
        except DeckError:
            continue
        try:
            for info in store.chats():
                store.read(info.id)
                to_json(store.copy(info.id)).encode()
            store.search("hello")
        except DeckError:
            pass
        finally:
            store.close()


# What servers and settings say ----------------------------------------------------------------------------------------


def test_the_address_of_a_next_page_that_is_none_is_a_sentence() -> None:
    """Brackets that hold no address ended a download with a traceback."""
    assert next_page("https://hub.example/api?cursor=2", "hub.example") == "cursor=2"
    with pytest.raises(DeckError) as caught:
        next_page("http://[::1", "hub.example")
    assert "hub.example" in str(caught.value)


def test_half_a_character_in_a_stop_string_is_a_mark() -> None:
    """A preset's YAML may write one, and no tokenizer takes it."""
    assert check_values({"stop": ["a\ud83d", "b"]}) == {"stop": ["a?", "b"]}


def test_a_models_end_that_is_no_word_ends_nothing(folder: Path) -> None:
    for odd in (["</s>"], {"content": ["x"]}, {"content": {}}, 5, None):
        write(folder / "tokenizer_config.json", json.dumps({"eos_token": odd}))
        assert 2 in find_end_tokens(read_checkpoint(folder), read_tokenizer(folder))


def test_a_tokenizer_that_makes_thousands_of_letters_of_one_is_refused(tmp_path: Path) -> None:
    """Four replacements of a letter by ten made fifty million tokens of a word of 5,000, in the pages' own process."""
    make_checkpoint(tmp_path / "tiny")
    path = tmp_path / "tiny" / "tokenizer.json"
    values = json.loads(path.read_text("utf-8"))
    once = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 10}
    path.write_text(json.dumps(values | {"normalizer": once}), "utf-8")
    assert read_counter(tmp_path / "tiny").count("a") == 10
    path.write_text(json.dumps(values | {"normalizer": {"type": "Sequence", "normalizers": [once] * 4}}), "utf-8")
    with pytest.raises(CheckpointError, match="replacements"):
        read_counter(tmp_path / "tiny")


def test_tokens_that_are_megabytes_of_text_are_not_written_out(tmp_path: Path) -> None:
    """The library ends the process where it finds no memory: a token may be 100,000 letters, and be asked for often."""
    make_checkpoint(tmp_path / "tiny")
    path = tmp_path / "tiny" / "tokenizer.json"
    values = json.loads(path.read_text("utf-8"))
    word = {"id": 3, "content": "Q" * 100_000, "special": True, "normalized": False}
    sides = {"single_word": False, "lstrip": False, "rstrip": False}
    path.write_text(json.dumps(values | {"added_tokens": [*values["added_tokens"], word | sides]}), "utf-8")
    counter = read_counter(tmp_path / "tiny")
    (token,) = counter.encode("Q" * 100_000) or ()
    assert counter.decode([1] * 200_000) == "<s>" * 200_000
    with pytest.raises(TokenizerError):
        counter.decode([token] * 20_000)
