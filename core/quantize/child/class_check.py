"""Whether a plain model's files hold exactly what its family's class has a place for: names alone do not tell.

A class has biases and norms as its configuration says. What has no place there is left out of the result without a
word, and of the perplexity before it too.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from core.checkpoint.checkpoint import Checkpoint, SettledTensors
from core.checkpoint.headers import TensorInfo
from core.checkpoint.quantization import MatrixFormat
from core.checkpoint.tied_head import has_own_head
from core.common.errors import CheckpointError, DeckError
from core.quantize.child.perplexity import FAULTS, plain_config
from core.quantize.source import read_plain
from core.worker.model.tensor_check import check_names

REASONS = ("missing_weight", "unexpected_weight", "weight_shape")
# Of no matrix: none is quantized.
NO_FORMAT = MatrixFormat(16, -1, is_permuted=False, is_symmetric=True, packing="gptq")
# Families whose releases have experts as [experts, in, out]. transformers and gptqmodel turn them where sides differ.
TURNED = ("qwen3_vl_moe",)
log = logging.getLogger(__name__)


def check_tensors(folder: Path, name: str) -> None:
    """Raise CheckpointError where the model in `folder`, which sentences call `name`, lacks a weight, has one without a
    place, or one of another shape. Where its class cannot be made, nothing is said: gptqmodel may know how."""
    plain = read_plain(folder)
    checkpoint = Checkpoint(name, plain.config, NO_FORMAT, plain.tensors, folder, settled=SettledTensors({}))
    try:
        config = plain_config(folder)
        if checkpoint.is_without_pictures:
            # Its text part's configuration does not tell whether the head is the embedding: the files do.
            config.tie_word_embeddings = not has_own_head(plain.tensors, ())
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        check_names(replace(checkpoint, tensors=dict(_as_loaded(checkpoint, model))), model)
    except (DeckError, *FAULTS) as error:
        if isinstance(error, CheckpointError) and error.key in REASONS:
            raise
        log.warning("the tensors of %s are not held against its class", folder, exc_info=error)


def _as_loaded(checkpoint: Checkpoint, model: Any) -> Iterator[tuple[str, TensorInfo]]:
    """The tensors as transformers loads them: without those that the class leaves aside, such as keys of Gemma 4's
    layers that have an earlier layer's, and with experts turned."""
    places, left = model.state_dict(), model._keys_to_ignore_on_load_unexpected or ()
    for name, tensor in checkpoint.tensors.items():
        if name in places and checkpoint.config.get("model_type") in TURNED and len(tensor.shape) == 3:
            count, *sides = tensor.shape
            turned = (count, *reversed(sides))
            yield name, replace(tensor, shape=turned) if places[name].shape == turned else tensor
        elif name in places or not any(re.search(pattern, name) for pattern in left):
            yield name, tensor
