"""Logging on stderr. $LLAMADECK_LOG is debug, info, warning (the default) or error."""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from core.common.errors import InputError

VARIABLE = "LLAMADECK_LOG"
LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
# Only this program's own loggers get the level: libraries may log addresses and headers at theirs.
OURS = ("cli", "core", "ui", "serve", "llamadeck", "__main__")
# At every load these warn of parts that this build of torch lacks and that nobody uses.
CHATTY = ("torchao", "torch.utils._pytree")
FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
# A message is logged MOST_TIMES in WINDOW_S: a loop that fails at each turn would fill the disk.
MOST_TIMES, WINDOW_S = 3, 60.0
MAX_FAULTS = 256
_NUMBER = re.compile(r"0x[0-9a-fA-F]+|\d+")


def log_level(environment: Mapping[str, str] = os.environ) -> int:
    """The level in $LLAMADECK_LOG. Raises InputError for an unknown word."""
    word = environment.get(VARIABLE, "").strip().lower() or "warning"
    if word not in LEVELS:
        raise InputError("bad_log_level", level=word, levels=", ".join(LEVELS))
    return LEVELS[word]


@dataclass(slots=True)
class _Repeats:
    began_s: float
    times: int = 0
    left_out: int = 0


class RepeatFilter(logging.Filter):
    """Lets the same warning or error through a few times a minute; the next one says how many were left out.

    Two are the same that come from one line of code with one text, whatever numbers and values it quotes.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._lock = threading.Lock()
        self._said: dict[tuple[object, ...], _Repeats] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            return True
        key, now_s = _identity(record), self._clock()
        with self._lock:
            said = self._said.get(key)
            if said is None or now_s - said.began_s >= WINDOW_S:
                left_out = said.left_out if said is not None else 0
                self._said.pop(key, None)
                said = self._said[key] = _Repeats(now_s)
                if len(self._said) > MAX_FAULTS:
                    del self._said[next(iter(self._said))]
                if left_out:
                    record.msg = f"{record.msg} [{left_out} more of these were left out]"
            said.times += 1
            said.left_out += said.times > MOST_TIMES
            return said.times <= MOST_TIMES


def _identity(record: logging.LogRecord) -> tuple[object, ...]:
    kind = record.exc_info[0] if record.exc_info else None
    text = _NUMBER.sub("", str(record.msg)[:300])
    return record.name, record.levelno, record.pathname, record.lineno, text, kind


def set_up_logs() -> None:
    """Call it once at the start of a process. A wrong $LLAMADECK_LOG is logged and ignored."""
    logging.basicConfig(level=logging.WARNING, format=FORMAT)
    sparing = RepeatFilter()
    for handler in logging.root.handlers:
        handler.addFilter(sparing)
    # Libraries that write their own lines, such as the web server: what passes by the root's handler.
    for logger in list(logging.root.manager.loggerDict.values()):
        if isinstance(logger, logging.Logger) and not logger.propagate:
            logger.addFilter(sparing)
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        level = log_level()
    except InputError as error:
        logging.getLogger(__name__).error("%s", error)
        return
    for name in OURS:
        logging.getLogger(name).setLevel(level)
