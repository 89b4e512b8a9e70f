"""Files with one chat."""

from __future__ import annotations

from core.chat.importing import read_chats
from core.chat.records import CopiedChat


def read_chat_file(data: bytes) -> CopiedChat:
    """The chat in a file's bytes, the first one where there are several. Raises ChatFileError."""
    return read_chats(data).chats[0]
