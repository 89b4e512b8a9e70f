"""Worker processes that do what none should; the name of the folder that they are told to load says what.

Each loads at once where nothing else is said, beats, and answers the prompt N with the text "N".
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import struct
import sys
import threading
from multiprocessing.connection import Connection

from core.engine.protocol import (
    AnswerStats,
    Finished,
    Generate,
    Heartbeat,
    Load,
    Loaded,
    LoadProgress,
    ModelFacts,
    TextChunk,
)
from core.worker.heartbeat import Outlet, Pulse

# A name in a module that nobody has.
UNREADABLE = b"\x80\x04\x8c\x0bno.such.mod\x8c\x01X\x93."
FACTS = ModelFacts("odd", "Llama", "cpu", "dense", "dense", 4096, 4, 0.0, 0, 0)
STATS = AnswerStats(1, 0, 1, 0.0, 0.0, 0.0, 1)


def main(connection: Connection) -> None:
    outlet = Outlet(connection)
    command = connection.recv()
    assert isinstance(command, Load)
    odd = command.folder.name
    if odd != "mute":
        Pulse(outlet).start()
    before_loaded(odd, connection, outlet)
    outlet.send(Loaded(FACTS))
    after_loaded(odd, connection, outlet)
    while True:
        command = connection.recv()
        if isinstance(command, Generate):
            answer(odd, command, connection, outlet)


def before_loaded(odd: str, connection: Connection, outlet: Outlet) -> None:
    match odd:
        case "unreadable":
            connection.send_bytes(UNREADABLE)
            forever()
        case "no_event":
            connection.send({"event": "loaded"})
            forever()
        case "no_pickle":
            connection.send_bytes(b"Traceback (most recent call last):")
            forever()
        case "huge":
            # Four bytes that say -1, then eight with the length: 1 TiB.
            os.write(connection.fileno(), struct.pack("!iQ", -1, 2**40))
            forever()
        case "half":
            os.write(connection.fileno(), struct.pack("!i", 1000) + b"half of it")
            os._exit(3)
        case "lingers":
            os.close(connection.fileno())
            forever()
        case "damaged":
            connection.send(Loaded(None))  # type: ignore[arg-type]
            forever()
        case "frozen":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "slow_library":
            # As a library that is read with the interpreter's lock held: work, and no heartbeat.
            outlet.send(LoadProgress("read", 0.5))
            re.match(r"(a+)+$", "a" * 36 + "b")
        case "flood":
            while True:
                outlet.send(LoadProgress("read", 0.5))


def after_loaded(odd: str, connection: Connection, outlet: Outlet) -> None:
    match odd:
        case "deaf":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            outlet.send(Heartbeat())
        case "reads_nothing":
            forever()
        case "stuck":
            # A main thread that is at one step of its answers for ever, as where a GPU hangs.
            pulse = Pulse(outlet, longest_s=0.0)
            pulse.start()
            with pulse.step():
                forever()


def answer(odd: str, command: Generate, connection: Connection, outlet: Outlet) -> None:
    if command.prompt == "unreadable":
        connection.send_bytes(UNREADABLE)
    elif command.prompt == "no text":
        outlet.send(TextChunk(command.request, None, 1))  # type: ignore[arg-type]
    else:
        outlet.send(TextChunk(command.request, str(command.prompt)[:20], 1))
        if command.prompt != "unfinished":
            outlet.send(Finished(command.request, "end", STATS))


def forever() -> None:
    threading.Event().wait()


if __name__ == "__main__":
    with contextlib.suppress(EOFError, OSError):
        main(Connection(int(sys.argv[1])))
