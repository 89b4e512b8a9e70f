"""The LoRA adapter that answers in a chat."""

from __future__ import annotations

from pathlib import Path

from core.chat.records import ChatInfo
from core.engine.protocol import EngineState
from core.engine.request_options import AdapterUse
from core.library.adapters import fitting_adapters as adapters_of_folder


def adapters_here(state: EngineState) -> list[Path]:
    """The adapters that can be chosen now; none where the model was loaded without room for any."""
    if state.facts is None or not state.facts.adapters.count:
        return []
    return fitting_adapters(state)


def fitting_adapters(state: EngineState) -> list[Path]:
    """The adapters on disk that the loaded model can have, with room for them or not."""
    if state.facts is None or state.folder is None:
        return []
    return adapters_of_folder(state.folder)


def adapter_of(info: ChatInfo, state: EngineState) -> AdapterUse | None:
    """The chat's adapter, where it is there. A chat keeps its choice while a model without room is loaded."""
    wanted = info.settings.get("adapter")
    folder = next((one for one in adapters_here(state) if one.name == wanted), None)
    return AdapterUse(folder.name, folder) if folder is not None else None
