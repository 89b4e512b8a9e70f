"""Ollama's API: its chat and generate, and what it tells of models."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from core.api.completions import Completions
from core.api.dialects.dialect import Body
from core.api.dialects.ollama import OllamaExchange
from core.api.dialects.ollama_request import NothingAsked, name_of
from core.api.http_call import HttpCall
from core.api.intake import Intake
from core.api.just_in_time import JustInTime
from core.api.models import Models
from core.api.schema import ChatRequest
from core.api.served_model import read_served_model
from core.api.strict import Strict
from core.checkpoint.checkpoint import Checkpoint
from core.common.errors import DeckError
from core.common.paths import model_name
from core.engine.interface import Engine
from core.library.scan import read_entry
from core.standby.loader import ModelLoader

# Clients refuse one that is too old for what they want to use.
VERSION = "0.12.6"
# When a model is unloaded that stays.
NEVER = "9999-12-31T23:59:59Z"


# The fields that a completion must know of for a model to call tools.
TOOLS = "tools"


class NamedModel(Strict):
    model: str
    system: str | None = None


class Ollama:
    """Handlers; each of them raises DeckError or ClientGone."""

    def __init__(
        self,
        engine: Engine,
        completions: Completions,
        models: Models,
        intake: Intake,
        just_in_time: JustInTime,
        loader: ModelLoader | None,
        unload_s: Callable[[], float | None],
    ) -> None:
        """`unload_s`: in how many seconds the model is unloaded if nobody asks; None for never."""
        self._engine, self._completions, self._models, self._unload_s = engine, completions, models, unload_s
        self._intake, self._just_in_time, self._loader = intake, just_in_time, loader

    async def version(self, call: HttpCall) -> None:
        await call.json({"version": VERSION})

    async def chat(self, call: HttpCall) -> None:
        await self._answer(call, OllamaExchange("chat"))

    async def generate(self, call: HttpCall) -> None:
        await self._answer(call, OllamaExchange("generate"))

    async def _answer(self, call: HttpCall, exchange: OllamaExchange) -> None:
        try:
            await self._completions.either(call, exchange)
        except NothingAsked:
            # Others may use a model that one client is done with: it stays, and one that sleeps is not woken for that.
            if not exchange.lets_go:
                await self._just_in_time.ready(exchange.model)
                await self._intake.run(lambda: read_served_model(self._engine))
            await call.json(exchange.loaded())

    async def tags(self, call: HttpCall) -> None:
        """What can be asked, as /v1/models lists it."""

        def find() -> list[Body]:
            known = self._loadable()
            return [self._described(one, known) for one in self._models.find_all()]

        await call.json({"models": await self._intake.run(find)})

    async def running(self, call: HttpCall) -> None:
        def find() -> list[Body]:
            facts = self._engine.state.facts
            if facts is None:
                return []
            taken = facts.weights_bytes + facts.cache_bytes
            created_s, left_s = read_served_model(self._engine).made_s, self._unload_s()
            about = self._described({"id": facts.name, "created": created_s}, {})
            on_gpu = taken if facts.memory is not None else 0
            expires_at = NEVER if left_s is None else _moment(int(time.time() + left_s))
            return [about | {"size": taken, "size_vram": on_gpu, "expires_at": expires_at,
                             "context_length": facts.context_tokens}]  # fmt: skip

        await call.json({"models": await self._intake.run(find)})

    async def show(self, call: HttpCall) -> None:
        shown = await self._intake.take(call, NamedModel, self._show, translate=_named)
        await call.json(shown)

    def _show(self, request: NamedModel) -> Body:
        return self._shown(self._models.find(request.model))

    def _shown(self, one: Body) -> Body:
        checkpoint, template = self._checkpoint(one, self._loadable()), ""
        details, capabilities = _details(checkpoint, one), ["completion"]
        about: dict[str, Any] = {"general.basename": one["id"]}
        if one["id"] == self._engine.state.model or "parent" in one:
            model = read_served_model(self._engine).model
            template = model.template.source or ""
            if TOOLS in ChatRequest.model_fields:
                capabilities.append("tools")
            if model.template.switches or model.template.thought_format is not None:
                capabilities.append("thinking")
        family = details["family"]
        if checkpoint is not None:
            about |= {"general.architecture": family, "general.parameter_count": num_parameters(checkpoint)}
        if (context := one.get("max_model_len") or (checkpoint.max_context_tokens if checkpoint else None)) is not None:
            about[f"{family or 'model'}.context_length"] = context
        return {"modelfile": f"FROM {one['id']}", "parameters": "", "template": template, "details": details,
                "model_info": about, "capabilities": capabilities, "modified_at": _moment(one["created"])}  # fmt: skip

    def _described(self, one: Body, known: Mapping[str, Checkpoint | None]) -> Body:
        checkpoint = self._checkpoint(one, known)
        return {
            "name": one["id"],
            "model": one["id"],
            "modified_at": _moment(one["created"]),
            "size": checkpoint.size_bytes if checkpoint else 0,
            # Its clients tell models apart by it; ours are told apart by their names.
            "digest": hashlib.sha256(one["id"].encode("utf-8", "replace")).hexdigest(),
            "details": _details(checkpoint, one),
        }

    def _loadable(self) -> dict[str, Checkpoint | None]:
        """By name, what else could be loaded. Reads the headers of the whole library."""
        found = self._loader.loadable() if self._loader is not None else ()
        return {entry.name: entry.checkpoint for entry in found}

    def _checkpoint(self, one: Body, known: Mapping[str, Checkpoint | None]) -> Checkpoint | None:
        """The files of a model of this machine, the loaded one or one of `known`; None for a character, and for a model
        elsewhere."""
        state = self._engine.state
        folder = state.asleep.folder if state.asleep is not None else state.folder
        if folder is not None and one["id"] == model_name(folder):
            return read_entry(folder).checkpoint
        return None if "parent" in one else known.get(one["id"])


def _named(body: Body) -> Body:
    return {"model": name_of(body)}


def _details(checkpoint: Checkpoint | None, one: Body) -> Body:
    family = str(checkpoint.config.get("model_type") or "") if checkpoint else ""
    return {
        "parent_model": one.get("parent", ""),
        "format": "safetensors" if checkpoint else "",
        "family": family,
        "families": [family] if family else [],
        "parameter_size": f"{num_parameters(checkpoint) / 1e9:.1f}B" if checkpoint else "",
        "quantization_level": checkpoint.quantization_label if checkpoint else "",
    }


def num_parameters(checkpoint: Checkpoint) -> int:
    """The weights of the model: a quantized matrix counts as what it stands for."""
    try:
        matrices = checkpoint.matrices
    except DeckError:
        return 0
    packed = {name for matrix in matrices.values() for name in matrix.tensors.values()}
    plain = sum(math.prod(tensor.shape) for name, tensor in checkpoint.tensors.items() if name not in packed)
    return plain + sum(matrix.in_features * matrix.out_features for matrix in matrices.values())


def _moment(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")
