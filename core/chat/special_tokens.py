"""A checkpoint's special tokens as a chat template reads them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.checkpoint.headers import read_json

LLAMA = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
END = "<|endoftext|>"
GPT2 = {"bos_token": END, "eos_token": END, "unk_token": END}
# What tokenizer classes of transformers take where their files name nothing.
DEFAULTS: Mapping[str, Mapping[str, str]] = {
    "LlamaTokenizer": LLAMA,
    "CodeLlamaTokenizer": LLAMA,
    "GemmaTokenizer": {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>",
                       "mask_token": "<mask>"},
    "Qwen2Tokenizer": {"eos_token": END, "unk_token": END, "pad_token": END},
    "GPT2Tokenizer": GPT2,
    "GPTNeoXTokenizer": GPT2 | {"pad_token": "<|padding|>"},
    "CohereTokenizer": {"bos_token": "<BOS_TOKEN>", "eos_token": "<|END_OF_TURN_TOKEN|>", "unk_token": "<UNK>",
                        "sep_token": "<SEP>", "pad_token": "<PAD>", "cls_token": "<CLS>",
                        "mask_token": "<MASK_TOKEN>"},
}  # fmt: skip
# Groups and lists of further tokens.
NAMED_GROUPS = ("extra_special_tokens", "model_specific_special_tokens")
LISTED = "additional_special_tokens"


def read_special_tokens(folder: Path, config: Mapping[str, Any]) -> dict[str, str | list[str]]:
    """The texts of all special tokens by their names, such as "unk_token"; `config` is tokenizer_config.json.

    Raises CheckpointError for a file that cannot be read.
    """
    others = read_json(folder / "special_tokens_map.json") or {}
    kind = config.get("tokenizer_class")
    found: dict[str, Any] = dict(DEFAULTS.get(kind.removesuffix("Fast"), {})) if isinstance(kind, str) else {}
    for source in (config, others):
        for group in (*(source.get(name) for name in NAMED_GROUPS), source):
            for name, token in group.items() if isinstance(group, dict) else ():
                # What the settings say is not said again by the older file.
                if name.endswith("_token") and not (source is others and _text(config.get(name))):
                    found[name] = _text(token) if source is config else _text(token) or found.get(name, "")
    listed = config.get(LISTED) or others.get(LISTED)
    tokens = [_text(token) for token in listed] if isinstance(listed, list) else []
    return {name: token for name, token in found.items() if token} | ({LISTED: tokens} if tokens else {})


def _text(token: object) -> str:
    """Older tokenizers write a special token as an object with its text in `content`."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else ""
