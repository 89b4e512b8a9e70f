"""The ASGI app: the dashboard on its port, and what happens when the process starts and ends."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import streamlit as st

from core.errors import DeckError
from core.library import find
from ui.resources import chat_store, downloads, monitor, recorder, runner
from ui.routing import use_router

log = logging.getLogger(__name__)


@asynccontextmanager
async def lifespan(_: st.App) -> AsyncIterator[None]:
    """LLAMADECK_LOAD names a model to load at start, LLAMADECK_LOAD_ANYWAY does so whatever the verdict is.

    Else what was chosen before on another server is connected. Pages show how it goes. At the end answers are written
    down and the engine ends.
    """
    if name := os.environ.get("LLAMADECK_LOAD"):
        try:
            runner().load(find(name).folder, force="LLAMADECK_LOAD_ANYWAY" in os.environ)
        except DeckError as error:
            log.error("%s", error)
    runner().follow_choice()
    monitor()
    yield
    await asyncio.to_thread(end)


def end() -> None:
    """Write down what is being answered and fetched, then let go of the history and the engine."""
    downloads().close()
    try:
        recorder().close()
        chat_store().close()
    except DeckError as error:
        log.error("%s", error)
    runner().close()


logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
use_router()
app = st.App("Home.py", lifespan=lifespan)
