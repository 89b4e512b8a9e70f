"""How many tokens a model knows: the rows of its embedding, which configurations do not always say."""

from __future__ import annotations

from core.checkpoint.checkpoint import Checkpoint
from core.checkpoint.numbers import read_number
from core.checkpoint.text_config import text_config
from core.checkpoint.tied_head import EMBEDDINGS


def num_tokens(checkpoint: Checkpoint) -> int:
    """The embedding's rows. Files have more than `vocab_size` where they were padded, and fewer where tokens were only
    announced. Raises CheckpointError "config_number" where neither tells."""
    for name, tensor in checkpoint.tensors.items():
        if name.endswith(EMBEDDINGS) and len(tensor.shape) == 2 and tensor.shape[0] > 0:
            return tensor.shape[0]
    return read_number(checkpoint.name, text_config(checkpoint.config), "vocab_size")
