"""How much is said on stderr: $LLAMADECK_LOG is debug, info, warning (as without it) or error; knows no message."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping

from core.errors import InputError

VARIABLE = "LLAMADECK_LOG"
LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
# Only this program's own words become more: what libraries say at their lower levels may quote addresses and headers.
OURS = ("core", "ui", "serve", "llamadeck", "__main__")
# At every load these tell of parts that this build of torch lacks and that nobody asked for.
CHATTY = ("torchao", "torch.utils._pytree")
FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def level_in(environment: Mapping[str, str] = os.environ) -> int:
    """The level that is wished for. Raises InputError for a word that is none."""
    word = environment.get(VARIABLE, "").strip().lower() or "warning"
    if word not in LEVELS:
        raise InputError("bad_log_level", level=word, levels=", ".join(LEVELS))
    return LEVELS[word]


def set_up_logs() -> None:
    """Once at the start of a process; a wrong word is said in the log and counts as none."""
    logging.basicConfig(level=logging.WARNING, format=FORMAT)
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        level = level_in()
    except InputError as error:
        logging.getLogger(__name__).error("%s", error)
        return
    for name in OURS:
        logging.getLogger(name).setLevel(level)
