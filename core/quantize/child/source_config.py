"""config.json of a plain model as its family's class takes it: gptqmodel reads it by itself, as transformers does."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from core.checkpoint.checkpoint import FolderFiles
from core.checkpoint.headers import read_json
from core.checkpoint.text_config import named_config
from core.checkpoint.tied_head import EMBEDDINGS
from core.checkpoint.weight_files import find_weights
from core.common.values import is_whole
from core.worker.model.model_config import is_text_part, settle_head_dim, with_plain_floats

# Configurations that transformers reads settled, by their folder.
settled_folders: dict[Path, dict[str, Any]] = {}


def source_config(folder: Path) -> dict[str, Any]:
    """What config.json in `folder` says, where its class would refuse it or take it for another model: the text part
    of a model with pictures under the name of the whole, a null for the size of a head, another number of tokens than
    the embedding has, a padding token beyond those."""
    found = read_json(folder / "config.json") or {}
    found = named_config(found) if is_text_part(found) else found
    text = found.get("text_config")
    text = text if isinstance(text, dict) else found
    settle_head_dim(text)
    for name, tensor in find_weights(FolderFiles(folder), lambda: "", lambda *_: True).tensors.items():
        if name.endswith(EMBEDDINGS) and len(tensor.shape) == 2:
            text["vocab_size"] = tensor.shape[0]
    for part in (found, text):
        pad, count = part.get("pad_token_id"), text.get("vocab_size")
        if is_whole(pad) and is_whole(count) and not 0 <= pad < count:
            part["pad_token_id"] = None
    return found


def install(folder: Path, config: dict[str, Any]) -> None:
    """Let transformers, and with it gptqmodel, in this process find `config` in `folder`."""
    settled_folders[folder] = with_plain_floats(config)
    if PreTrainedConfig.get_config_dict.__module__ == __name__:
        return
    plain = PreTrainedConfig.__dict__["get_config_dict"].__func__

    def get_config_dict(kind: type, name: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        found, left = plain(kind, name, **kwargs)
        return deepcopy(settled_folders.get(Path(name), found)), left

    PreTrainedConfig.get_config_dict = classmethod(get_config_dict)
