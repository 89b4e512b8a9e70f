"""The command that is run once nothing was done for long, while it goes on."""

from __future__ import annotations

import os
import subprocess
import tempfile
from typing import IO

MAX_SHOWN_CHARS = 300
# The most bytes of a character in UTF-8.
MAX_CHAR_BYTES = 4


class CommandRun:
    """A shell's command of its own process group, so that it outlives this process. Raises OSError where it cannot
    begin.

    It writes into a file: a pipe would end it at its next word once this process is gone.
    """

    def __init__(self, command: str) -> None:
        self.command = command
        try:
            self._said: IO[bytes] = tempfile.TemporaryFile()
        except OSError:  # A full disk must not keep a machine on.
            self._said = open(os.devnull, "w+b")
        try:
            self._process = subprocess.Popen(["/bin/sh", "-c", command], stdin=subprocess.DEVNULL, stdout=self._said,
                                             stderr=subprocess.STDOUT, start_new_session=True)  # fmt: skip
        except OSError:
            self._said.close()
            raise

    def exit_code(self) -> int | None:
        """None while it goes on. Waits for nothing."""
        return self._process.poll()

    def last_words(self) -> str:
        """The end of what it said, where it says why it failed; MAX_SHOWN_CHARS at most."""
        size_bytes = self._said.seek(0, 2)
        self._said.seek(max(0, size_bytes - MAX_CHAR_BYTES * MAX_SHOWN_CHARS))
        return self._said.read().decode("utf-8", "replace").strip()[-MAX_SHOWN_CHARS:]

    def close(self) -> None:
        self._said.close()
