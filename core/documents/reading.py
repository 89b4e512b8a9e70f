"""The text of a file that a person adds to a question: text in any encoding, web pages, PDF, DOCX.

Files are read in a process of its own with limits on time and memory: each of these formats can be made endless.
"""

from __future__ import annotations

import math

from core.common.errors import DeckError
from core.common.sandbox import LimitReached, Sandbox, SandboxError, SandboxLimits
from core.common.values import printable
from core.documents.document import Document, file_name
from core.documents.limits import MAX_CHARS, NO_TEXT, WHOLE

MIB = 2**20
MAX_FILE_BYTES = 50 * MIB
# A PDF of 1,000 pages takes some 10 s; it is given up page by page before this.
LIMITS = SandboxLimits(cpu_s=20.0, memory_mib=1024, wait_s=60.0)
NUM_PROCESSES = 2
LIMIT_WORDS = {"time": "slow", "busy": "busy", "memory": "memory"}
_sandbox = Sandbox("core.documents.reading_child", LIMITS, NUM_PROCESSES)


class DocumentError(DeckError):
    """A file has no text that can be read."""


def read_document(name: str, data: bytes) -> Document:
    """The document in a file's bytes. May take seconds. Raises DocumentError."""
    name = file_name(name)
    if not data:
        raise DocumentError("unreadable_empty", name=name)
    if len(data) > MAX_FILE_BYTES:
        raise DocumentError("document_large", name=name, mib=math.ceil(len(data) / MIB), limit=MAX_FILE_BYTES // MIB)
    try:
        # The same file waits for itself; of two others neither waits.
        answer = _sandbox.ask(hash(data) % NUM_PROCESSES, None, (name, data), 1 + MAX_CHARS)
    except LimitReached as error:
        raise DocumentError(f"unreadable_{LIMIT_WORDS.get(error.kind, 'damaged')}", name=name) from error
    except SandboxError as error:
        raise DocumentError("unreadable_damaged", name=name) from error
    mark, text = answer[:1], answer[1:]
    if mark == NO_TEXT:
        raise DocumentError(f"unreadable_{text}", name=name)
    return Document(name, len(data), printable(text), mark == WHOLE)
