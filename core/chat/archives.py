"""The chats in a ZIP, as ChatGPT and Claude hand out their exports."""

from __future__ import annotations

import io
import math
import re
import zipfile
import zlib
from collections.abc import Iterator

from core.chat.importing import MAX_FILE_BYTES, MIB
from core.chat.parsing import ChatFileError

SIGNATURE = b"PK\x03\x04"
# ChatGPT splits a long history: conversations-000.json and so on.
WANTED = re.compile(r"(?:.*/)?conversations(?:[-_]\d{1,4})?\.json", re.IGNORECASE)
MAX_ENTRIES = 200_000
MAX_FILES = 100


def chat_files_in(name: str, data: bytes) -> Iterator[tuple[str, bytes]]:
    """The files to read of an upload, one by one, each with its name: the upload itself, or what of a ZIP holds chats.

    Raises ChatFileError for a ZIP that cannot be read or holds no chats.
    """
    if not data.startswith(SIGNATURE):
        yield name, data
        return
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            if len(entries) > MAX_ENTRIES:
                raise ChatFileError("chat_file_unknown")
            wanted = [entry for entry in entries if WANTED.fullmatch(entry.filename)][:MAX_FILES]
            if not wanted:
                raise ChatFileError("chat_file_unknown")
            for entry in wanted:
                yield f"{name}: {entry.filename}", _content(archive, entry)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError, ValueError) as error:
        raise ChatFileError("chat_file_unknown") from error


def _content(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    """What an entry unpacks to. Its own word for its size is not believed."""
    with archive.open(entry) as file:
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise ChatFileError(
            "chat_file_large", mib=math.ceil(max(len(data), entry.file_size) / MIB), limit=MAX_FILE_BYTES // MIB
        )
    return data
