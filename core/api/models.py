"""The routes that tell of models and count tokens; they ask no engine for an answer."""

from __future__ import annotations

import asyncio
from typing import Any

from core.api.asking import render_messages
from core.api.call import Call
from core.api.errors import ApiError
from core.api.model import Engine, Loaded, find_character, list_models, read_loaded
from core.api.schema import DetokenizeRequest, TokenizeRequest, read_body
from core.errors import DeckError
from core.model_files import printable
from core.personas.listing import Listing
from core.personas.names import same_name


class Models:
    """Handlers; each of them raises DeckError."""

    def __init__(self, engine: Engine, characters: Listing) -> None:
        self._engine, self._characters = engine, characters

    async def list(self, call: Call) -> None:
        """Nothing is listed while nothing can answer."""

        def find() -> list[dict[str, Any]]:
            return list_models(read_loaded(self._engine), self._characters)

        try:
            found = await asyncio.to_thread(find)
        except DeckError as error:
            if error.key not in ("nothing_loaded", "api_loading"):
                raise
            found = []
        await call.json({"object": "list", "data": found})

    async def get(self, call: Call) -> None:
        wanted = same_name(call.request.path_params["id"])

        def find() -> dict[str, Any]:
            loaded = read_loaded(self._engine)
            for one in list_models(loaded, self._characters):
                if same_name(one["id"]) == wanted:
                    return one
            raise ApiError("api_model", name=printable(call.request.path_params["id"]), loaded=loaded.name)

        await call.json(await asyncio.to_thread(find))

    async def tokenize(self, call: Call) -> None:
        """As vLLM answers; `tokens` is null, and the count an upper estimate, for a model without tokenizer.json."""
        request = read_body(TokenizeRequest, await call.body())
        if (request.prompt is None) == (request.messages is None):
            raise ApiError("api_field", field="prompt", why="either prompt or messages is wanted")

        def count() -> dict[str, Any]:
            loaded = self._loaded(request.model)
            text = request.prompt if request.messages is None else render_messages(request.messages, loaded)
            tokens = loaded.counter.encode(text or "")
            number = loaded.counter.count(text or "") if tokens is None else len(tokens)
            return {"count": number, "max_model_len": loaded.context_tokens, "tokens": tokens}

        await call.json(await asyncio.to_thread(count))

    async def detokenize(self, call: Call) -> None:
        request = read_body(DetokenizeRequest, await call.body())

        def decode() -> dict[str, Any]:
            loaded = self._loaded(request.model)
            text = loaded.counter.decode(request.tokens)
            if text is None:
                raise ApiError("api_no_tokenizer", name=loaded.name)
            return {"prompt": text}

        await call.json(await asyncio.to_thread(decode))

    def _loaded(self, model: str | None) -> Loaded:
        loaded = read_loaded(self._engine)
        find_character(model, loaded, self._characters)
        return loaded
