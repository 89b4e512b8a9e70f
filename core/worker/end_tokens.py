"""Which of a tokenizer's tokens end an answer."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from core.checkpoint.checkpoint import Checkpoint, read_json
from core.checkpoint.tokenizer_files import SPECIAL_TOKENS, TOKENIZER_CONFIG
from core.common.errors import CheckpointError
from core.common.values import is_whole

log = logging.getLogger(__name__)

# Tokens that may end a chat model's turn, beside those that its files name; only if the vocabulary has them.
TURN_ENDS = (
    "</s>",
    "<|im_end|>",
    "<|eot_id|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
)


def find_end_tokens(checkpoint: Checkpoint, tokenizer: Tokenizer) -> frozenset[int]:
    """The ids of the tokens that end an answer: those that the files name, and those of TURN_ENDS."""
    ends: set[int] = set()
    text = checkpoint.config.get("text_config")
    for source in (checkpoint.config, text if isinstance(text, dict) else {}, read_generation(checkpoint.folder)):
        named = source.get("eos_token_id")
        ends.update(one for one in (named if isinstance(named, list) else [named]) if is_whole(one) and one >= 0)
    special = {token.content: number for number, token in tokenizer.get_added_tokens_decoder().items()}
    words: list[object] = list(TURN_ENDS)
    for file in (TOKENIZER_CONFIG, SPECIAL_TOKENS):
        named = (read_json(checkpoint.folder / file) or {}).get("eos_token")
        words.append(named.get("content") if isinstance(named, dict) else named)
    return frozenset(ends | {special[word] for word in words if isinstance(word, str) and word in special})


def read_generation(folder: Path) -> dict[str, Any]:
    """generation_config.json, which only recommends: one that cannot be read is left out, and the log says so."""
    try:
        return read_json(folder / "generation_config.json") or {}
    except CheckpointError as error:
        log.warning("what the model recommends for itself is left out: %s", error)
        return {}
