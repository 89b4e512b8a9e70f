"""The routes that tell of models and count tokens; they ask no engine for an answer."""

from __future__ import annotations

from typing import Any

from core.api.dialects.anthropic import VERSION_HEADER, model_list
from core.api.errors import ApiError
from core.api.http_call import HttpCall
from core.api.intake import Intake
from core.api.json_text import to_json
from core.api.just_in_time import JustInTime
from core.api.model_tag import TAG
from core.api.prompt_size import check_size
from core.api.prompts import render_messages
from core.api.schema import DetokenizeRequest, TokenizeRequest
from core.api.served_model import (
    ServedModel,
    find_character,
    list_asleep,
    list_loadable,
    list_models,
    no_such_model,
    read_served_model,
)
from core.common.errors import DeckError
from core.common.paths import model_name
from core.engine.interface import Engine
from core.personas.listing import Listing
from core.personas.names import same_name
from core.standby.loader import ModelLoader

# Models as OpenAI lists them; a method of Models is called list.
Described = list[dict[str, Any]]


class Models:
    """Handlers; each of them raises DeckError."""

    def __init__(
        self,
        engine: Engine,
        characters: Listing,
        intake: Intake,
        just_in_time: JustInTime,
        loader: ModelLoader | None = None,
    ) -> None:
        self._engine, self._characters, self._intake = engine, characters, intake
        self._just_in_time, self._loader = just_in_time, loader

    async def list(self, call: HttpCall) -> None:
        """What can answer, and what is loaded for whoever names it; for Anthropic's clients as those list models."""
        found = await self._intake.run(self.find_all)
        is_anthropic = VERSION_HEADER in call.request.headers
        await call.json(model_list(found) if is_anthropic else {"object": "list", "data": found})

    def find_all(self) -> Described:
        """The list, for a thread."""
        asleep = self._engine.state.asleep
        try:
            if asleep is not None and self._loader is not None:
                # One whose folder is gone cannot come back.
                found = list_asleep(asleep, self._characters) if asleep.folder.is_dir() else []
            else:
                found = list_models(read_served_model(self._engine), self._characters)
        except DeckError as error:
            if error.key not in ("nothing_loaded", "api_loading"):
                raise
            found = []
        loadable = self._loader.loadable() if self._loader is not None else ()
        here = {one["id"] for one in found}
        return found + list_loadable(entry for entry in loadable if entry.name not in here)

    async def get(self, call: HttpCall) -> None:
        name = call.request.path_params["id"]
        await call.json(await self._intake.run(lambda: self.find(name)))

    def find(self, name: str) -> dict[str, Any]:
        """The one of this name, also with Ollama's tag, for a thread. Raises DeckError where there is none."""
        found = {same_name(one["id"]): one for one in reversed(self.find_all())}
        for wanted in (name, name.removesuffix(f":{TAG}")):
            if (one := found.get(same_name(wanted))) is not None:
                return one
        raise self._unknown(name)

    def _unknown(self, name: str) -> DeckError:
        """Why there is no model of this name."""
        state = self._engine.state
        if state.asleep is not None:
            return no_such_model(name, model_name(state.asleep.folder))
        try:
            return no_such_model(name, read_served_model(self._engine).name)
        except DeckError as error:
            return error

    async def tokenize(self, call: HttpCall) -> None:
        """As vLLM answers; `tokens` is null, and the count an upper estimate, for a model without tokenizer.json."""

        def count(request: TokenizeRequest) -> str:
            if (request.prompt is None) == (request.messages is None):
                raise ApiError("api_field", field="prompt", why="either prompt or messages is wanted")
            served = self._served(request.model)
            if request.prompt is None:
                text = render_messages(request.messages or [], served, request.chat_template_kwargs)
            else:
                check_size([request.prompt], served)
                text = request.prompt
            tokens = served.model.counter.encode(text)
            number = served.model.counter.count(text) if tokens is None else len(tokens)
            # Written here: on the event loop a long list would hold up everybody.
            return to_json({"count": number, "max_model_len": served.context_tokens, "tokens": tokens})

        with self._just_in_time.awake():
            counted = await self._intake.take(call, TokenizeRequest, count, self._prepare)
        await call.text(counted, "application/json")

    async def detokenize(self, call: HttpCall) -> None:
        def decode(request: DetokenizeRequest) -> str:
            served = self._served(request.model)
            text = served.model.counter.decode(request.tokens)
            if text is None:
                raise ApiError("api_no_tokenizer", name=served.name)
            return to_json({"prompt": text})

        with self._just_in_time.awake():
            decoded = await self._intake.take(call, DetokenizeRequest, decode, self._prepare)
        await call.text(decoded, "application/json")

    async def _prepare(self, request: TokenizeRequest | DetokenizeRequest) -> None:
        await self._just_in_time.ready(request.model)

    def _served(self, model: str | None) -> ServedModel:
        served, name = read_served_model(self._engine).named(model)
        find_character(name, served, self._characters)
        return served
