"""Files that people add to questions: their text, or a sentence, whatever their bytes are."""

from __future__ import annotations

import io
import zipfile
from random import Random

import pytest
from pypdf import PdfWriter
from pypdf.generic import DecodedStreamObject, DictionaryObject, NameObject

from core.documents import limits
from core.documents.document import MAX_NAME_CHARS, file_name
from core.documents.docx import SPACES
from core.documents.limits import MAX_CHARS, MAX_PAGES
from core.documents.reading import MAX_FILE_BYTES, DocumentError, read_document
from core.documents.reading_child import read

CHINESE = "第一章 春天来了，小草绿了，花也开了。\n"


def pdf(*pages: str, password: str | None = None) -> bytes:
    """A PDF with a line of text on each page; an empty one shows only a picture's place."""
    writer = PdfWriter()
    font = DictionaryObject({NameObject(name): NameObject(value) for name, value in
                             (("/Type", "/Font"), ("/Subtype", "/Type1"), ("/BaseFont", "/Helvetica"))})  # fmt: skip
    for text in pages:
        page = writer.add_blank_page(200, 200)
        content = DecodedStreamObject()
        content.set_data(f"BT /F1 12 Tf 20 100 Td ({text}) Tj ET".encode() if text else b"0 0 100 100 re f")
        page[NameObject("/Contents")] = writer._add_object(content)
        page[NameObject("/Resources")] = DictionaryObject(
            {NameObject("/Font"): DictionaryObject({NameObject("/F1"): font})}
        )
    if password is not None:
        writer.encrypt(password, algorithm="AES-256")
    file = io.BytesIO()
    writer.write(file)
    return file.getvalue()


def zipped(**entries: str | bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name.replace("__", "/").replace("_xml", ".xml"), content)
    return file.getvalue()


def docx(body: str, head: str = "") -> bytes:
    space = SPACES[0].strip("{}")
    return zipped(word__document_xml=f'{head}<w:document xmlns:w="{space}"><w:body>{body}</w:body></w:document>')


def paragraph(text: str) -> str:
    return f"<w:p><w:r><w:t>{text}</w:t></w:r></w:p>"


@pytest.mark.parametrize(
    ("name", "data", "text"),
    [
        ("a.txt", b"one\r\ntwo\rthree", "one\ntwo\nthree"),
        ("a.md", "# 标题".encode("utf-8-sig"), "# 标题"),
        ("a.txt", CHINESE.encode("gb18030"), CHINESE),
        ("价格.csv", "名称,价格\n苹果,3.5\n".encode("gbk"), "名称,价格\n苹果,3.5\n"),
        ("a.txt", CHINESE.encode("utf-16"), CHINESE),
        ("a.txt", "plain words".encode("utf-16-be"), "plain words"),
        ("a.txt", "Größe über Öl".encode("cp1252"), "Größe über Öl"),
        ("a.txt", "這是一個繁體中文的測試檔案，內容不多。".encode("big5"), "這是一個繁體中文的測試檔案，內容不多。"),
        ("a.txt", (CHINESE * 3).encode()[:-2], CHINESE * 2 + CHINESE[:-2] + "\ufffd"),
        ("a.py", b"def f():\n\treturn 1\n", "def f():\n\treturn 1\n"),
        ("no_ending", b'{"a": 1}', '{"a": 1}'),
        ("a.html", b"<title>T</title><style>x{}</style><p>One <b>two</b><script>no()</script><pre>a\n b</pre>",
         "T\n\nOne two\na\n b"),
        ("a.html", b"<p>One<![. no]><p>Two<![", "One\nTwo<!["),
        ("a.pdf", pdf("One", "", "Three"), "One\n\nThree"),
        ("called.txt", pdf("Open", password=""), "Open"),
        ("a.docx", docx(paragraph("One") + paragraph("Two")), "One\nTwo\n"),
    ],
)  # fmt: skip
def test_a_file_is_read_whatever_its_encoding(name: str, data: bytes, text: str) -> None:
    found = read_document(name, data)
    assert (found.text, found.is_whole, found.size_bytes) == (text, True, len(data))


def test_a_file_that_is_a_byte_too_large_has_more_than_it_may() -> None:
    with pytest.raises(DocumentError) as caught:
        read_document("big.txt", bytes(MAX_FILE_BYTES + 1))
    assert caught.value.params["mib"] > caught.value.params["limit"]


def test_a_tables_cells_stand_beside_each_other() -> None:
    cell = "<w:tc>{}</w:tc>"
    row = f"<w:tr>{cell.format(paragraph('1'))}{cell.format(paragraph('2') + paragraph('3'))}</w:tr>"
    assert read_document("a.docx", docx(f"<w:tbl>{row}{row}</w:tbl>")).text.split("\n")[:2] == ["1\t2 3", "1\t2 3"]


@pytest.mark.parametrize(
    ("name", "data", "key"),
    [
        ("a.txt", b"", "unreadable_empty"),
        ("a.txt", b" \n\t", "unreadable_empty"),
        ("a.docx", docx(""), "unreadable_empty"),
        ("a.txt", Random(1).randbytes(5000), "unreadable_kind"),
        ("a.png", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "unreadable_kind"),
        ("a.zip", zipped(readme="text"), "unreadable_kind"),
        ("a.doc", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600), "unreadable_old_office"),
        ("a.pdf", pdf("Secret", password="word"), "unreadable_encrypted"),
        ("a.pdf", pdf("", ""), "unreadable_no_text"),
        ("a.pdf", b"%PDF-1.7\nno more than that", "unreadable_damaged"),
        ("a.docx", docx(paragraph("One"))[:-40], "unreadable_damaged"),
        ("a.docx", docx("<w:p>"), "unreadable_damaged"),
        ("a.docx", docx(paragraph("&b;"), '<!DOCTYPE d [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]>'),
         "unreadable_damaged"),
        ("a.docx", docx("<w:p/>" + " " * (limits.MAX_XML_BYTES + 1)), "unreadable_unpacked"),
        ("big.txt", bytes(MAX_FILE_BYTES + 1), "document_large"),
    ],
)  # fmt: skip
def test_a_file_without_text_gets_a_sentence(name: str, data: bytes, key: str) -> None:
    with pytest.raises(DocumentError) as caught:
        read_document(name, data)
    assert caught.value.key == key
    assert name in str(caught.value)
    assert "{" not in caught.value.sentence("zh")


def test_of_a_text_without_end_the_beginning_is_read() -> None:
    for text, encoding in (("line\n", "utf-8"), ("春", "utf-8"), ("一春天", "gb18030"), ("😀", "utf-16")):
        found = read_document("a.log", (text * (8 * MAX_CHARS // len(text.encode(encoding)))).encode(encoding))
        assert (len(found.text), found.is_whole) == (MAX_CHARS, False)
        assert found.text.startswith(text) and "\ufffd" not in found.text


def test_of_ten_thousand_pages_the_first_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.documents.pdf.MAX_PAGES", 3)
    assert MAX_PAGES < 10_000
    assert read(("a.pdf", pdf("1", "2", "3", "4"))) == "-1\n\n2\n\n3"


class Clock:
    """The processor time of a process that has worked for long, and works `step_s` between two looks at it."""

    def __init__(self, step_s: float) -> None:
        self._now_s, self._step_s = 1000.0, step_s

    def process_time(self) -> float:
        self._now_s += self._step_s
        return self._now_s


@pytest.mark.parametrize(("step_s", "text"), [(0.0, "+1\n\n2\n\n3"), (limits.PAGES_S / 2.5, "-1\n\n2")])
def test_a_pdfs_time_is_its_own(monkeypatch: pytest.MonkeyPatch, step_s: float, text: str) -> None:
    """The process that reads files goes on from one to the next."""
    monkeypatch.setattr("core.documents.pdf.time", Clock(step_s))
    assert read(("a.pdf", pdf("1", "2", "3"))) == text


def test_two_hundred_harmed_files_give_text_or_sentences() -> None:
    random = Random(5)
    for number in range(200):
        data = bytearray((pdf("One", "Two"), docx(paragraph("One")))[number % 2])
        for _ in range(random.randrange(1, 20)):
            data[random.randrange(len(data))] = random.randrange(256)
        try:
            assert read_document("a", bytes(data)).text
        except DocumentError as error:
            assert error.key.startswith("unreadable_")


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a.txt", "a.txt"),
        ("C:\\papers\\a.txt", "a.txt"),
        ("../../etc/passwd", "passwd"),
        ("a\nb\t.txt", "a b .txt"),
        ("", "?"),
        ("\ud800.txt", "?.txt"),
    ],
)
def test_a_name_is_one_line_without_folders(name: str, shown: str) -> None:
    assert file_name(name) == shown


def test_an_endless_name_keeps_its_ending() -> None:
    name = file_name("n" * 5000 + ".pdf")
    assert (len(name), name[-4:]) == (MAX_NAME_CHARS, ".pdf")
