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
from ui.resources import monitor, runner
from ui.routing import use_router

log = logging.getLogger(__name__)


@asynccontextmanager
async def lifespan(_: st.App) -> AsyncIterator[None]:
    """LLAMADECK_LOAD names a model to load at start; pages show how it goes. At the end the engine ends."""
    if name := os.environ.get("LLAMADECK_LOAD"):
        try:
            runner().load(find(name).folder)
        except DeckError as error:
            log.error("%s", error)
    monitor()
    yield
    await asyncio.to_thread(runner().unload)


logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
use_router()
app = st.App("Home.py", lifespan=lifespan)
