"""The ASGI app: the dashboard on its port, and what happens when the process starts and ends."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

import streamlit as st
from starlette.middleware import Middleware
from streamlit.runtime import get_instance

from core.access.exposure import is_loopback_only, is_network, note_listening
from core.access.gate import Gate
from core.access.keys import Key
from core.access.public import cors_origins, public_urls
from core.api.routes import make_routes
from core.api.strays import Strays
from core.chat.model_prompt import read_model_prompt
from core.chat.template import warm_renderer
from core.common.errors import DeckError
from core.common.logs import set_up_logs
from core.common.paths import ROOT
from core.common.sandbox import close_all
from core.library.adapters import room_to_load
from core.library.last_model import LastModel, is_loaded_at_start, last_load, last_model
from core.library.scan import find
from core.remote.selection import read_selection
from core.server.uvicorn_tuning import tune_server
from core.standby.loader import ModelLoader
from ui.server.early_steps import take_steps_once
from ui.server.presence import presence_route
from ui.server.sessions import end_sessions_in_time
from ui.server.single_sign_on import sign_on
from ui.server.typed_tokens import typed_tokens_route
from ui.server.websocket_check import websocket_check_routes
from ui.shared.resources import (
    access,
    api_keys,
    characters,
    chat_file,
    downloads,
    engine,
    idle_watch,
    monitor,
    quantizing,
    recorder,
)
from ui.shared.routing import PATHS, use_router

log = logging.getLogger(__name__)
NUM_WAITING = 32


@asynccontextmanager
async def lifespan(_: st.App) -> AsyncIterator[None]:
    """LLAMADECK_LOAD names a model to load at start, LLAMADECK_LOAD_ANYWAY does so whatever the verdict is.

    Else what was chosen before on another server is connected, or the model that was used last is loaded where that is
    wanted. Pages show how it goes. At the end answers are written down and the engine ends.
    """
    end_sessions_in_time(get_instance())
    take_steps_once()
    if name := os.environ.get("LLAMADECK_LOAD"):
        load_at_start(last_load(name) or LastModel(name, 0, 1), "LLAMADECK_LOAD_ANYWAY" in os.environ)
    elif is_loaded_at_start() and read_selection() is None and (last := last_model()):
        load_at_start(last)
    engine().local.warm_worker.start()
    engine().follow_selection()
    monitor()
    idle_watch().start()
    # They wait for files, templates and locks more than they compute: by default there are 4 more than cores.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(NUM_WAITING, "asyncio"))
    tuning = asyncio.create_task(tune_server(ending.set))
    await asyncio.to_thread(warm_renderer)
    log.info("started")
    yield
    log.info("ending")
    tuning.cancel()
    await asyncio.to_thread(end)


def load_at_start(wanted: LastModel, force: bool = False) -> None:
    try:
        found = find(wanted.name)
        engine().load(found.folder, wanted.context_tokens, wanted.num_chats, force=force,
                      adapters=room_to_load(found), cache=wanted.cache)  # fmt: skip
    except DeckError as error:
        log.error("%s", error)


def end() -> None:
    """Write down what is being answered and fetched, then let go of the history and the engine."""
    idle_watch().close()
    downloads().close()
    quantizing().close()
    try:
        recorder().close()
        chat_file().close()
    except DeckError as error:
        log.error("%s", error)
    engine().close()
    close_all()


def needs_key() -> bool:
    """Whether an API request must bring a key: not from this machine alone, unless pages ask who people are."""
    return not is_loopback_only() or provider is not None or gate_access.has_password


def is_welcome(key: Key) -> bool:
    """Whether whoever made a key may still come in; somebody taken off the list keeps no way in by it."""
    return not key.owner or (provider is not None and provider.is_on_list(key.address))


def count_typed(text: str) -> int:
    """The tokens of a text for the model that answers; 0 without one. Raises DeckError."""
    model = read_model_prompt(engine().state, engine().server_counter)
    return model.counter.count(text) if model is not None else 0


set_up_logs()
use_router()
# What the server really listens on, whoever started it and how: without an address that is every network.
note_listening(st.get_option("server.address"))
ending = asyncio.Event()
gate_access, provider = access(), sign_on()
loader = ModelLoader(engine())
if is_network() and not provider and not gate_access.has_password:
    log.error("%s", DeckError("exposed", host=st.get_option("server.address") or "0.0.0.0"))
app = st.App(
    "Home.py",
    lifespan=lifespan,
    routes=[
        *make_routes(
            engine(),
            characters(),
            api_keys(),
            needs_key,
            is_welcome,
            ending=ending,
            loader=loader,
            unload_s=lambda: idle_watch().left_s("unload"),
        ),
        typed_tokens_route(count_typed),
        presence_route(idle_watch().note),
        *websocket_check_routes(),
    ],
    middleware=[
        Middleware(
            Gate,
            access=gate_access,
            sign_on=provider,
            logo=(ROOT / "ui" / "logo.svg").read_text("utf-8"),
            public_urls=public_urls(),
            cors_origins=cors_origins(),
        ),
        Middleware(Strays, pages=PATHS),
    ],
)
