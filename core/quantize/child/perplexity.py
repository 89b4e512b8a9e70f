"""The perplexity of a checkpoint on held-out texts, layer by layer: a layer's weights are in memory while it computes.

Perplexity is exp(mean negative log-likelihood of each token but a window's first).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from core.common.errors import CheckpointError
from core.common.values import printable
from core.quantize.calibration import HELD_OUT, row_tokens
from core.quantize.child.source_config import source_config
from core.quantize.child.weights import LazyWeights
from core.tokenizer.read import read_tokenizer
from core.worker.model.model_config import plain_text_config, with_plain_floats

MAX_WINDOWS = 8
# Rows of logits at once: a vocabulary of 150,000 makes 300 MB of them in float32.
LOGIT_ROWS = 512
# What a family's class raises where it is not as it is taken to be here.
FAULTS = (AssertionError, AttributeError, ImportError, LookupError, RuntimeError, TypeError, ValueError)
MAX_FAULT_CHARS = 200
log = logging.getLogger(__name__)


def measure_if_possible(folder: Path, device: str, report: Callable[..., None]) -> tuple[dict[str, float], str]:
    """What measure() finds, or nothing and why the model's class failed. Raises CheckpointError as that does."""
    try:
        return measure(folder, device, report), ""
    except torch.OutOfMemoryError:
        # Quantizing takes more than this did.
        raise
    except FAULTS as error:
        log.exception("the perplexity of %s was not measured", folder)
        return {}, f"{type(error).__name__}: {printable(str(error))[:MAX_FAULT_CHARS]}"


def measure(folder: Path, device: str, report: Callable[..., None]) -> dict[str, float]:
    """The perplexity of the checkpoint in `folder` for each held-out text, by its language. Raises CheckpointError."""
    from accelerate import init_empty_weights
    from accelerate.hooks import attach_align_device_hook, remove_hook_from_submodules

    config = plain_config(folder)
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    turned = {name for name, module in model.named_modules() if getattr(module, "is_transposed", False)}
    weights = LazyWeights(folder, dtype, tied_names(model), device, turned)
    tokenizer, length = read_tokenizer(folder), row_tokens(config.to_dict())
    windows = {
        language: cut(tokenizer.encode(path.read_text("utf-8")).ids, length) for language, path in HELD_OUT.items()
    }
    # Texts with windows of one length go through a layer together: reading its weights takes the longest.
    batches = [
        {language: found for language, found in windows.items() if found.shape[1] == size}
        for size in sorted({found.shape[1] for found in windows.values()})
    ]
    attach_align_device_hook(model, torch.device(device), offload=True, weights_map=weights, offload_buffers=False)
    try:
        for buffer_owner in model.modules():
            for name, buffer in buffer_owner.named_buffers(recurse=False):
                setattr(buffer_owner, name, buffer.to(device))
        found: dict[str, float] = {}
        for number, batch in enumerate(batches):
            handles = _watch_layers(model, report, number / len(batches), 1 / len(batches))
            found |= perplexities(model, config, {name: tokens.to(device) for name, tokens in batch.items()})
            for handle in handles:
                handle.remove()
    finally:
        remove_hook_from_submodules(model)
    return found


def plain_config(folder: Path) -> Any:
    """The configuration of the text's part without its quantization, so that transformers makes plain layers."""
    found = with_plain_floats(source_config(folder))
    config = CONFIG_MAPPING[found["model_type"]].from_dict(found)
    text = config.get_text_config()
    for one in (config, text):
        if hasattr(one, "quantization_config"):
            del one.quantization_config
    return plain_text_config(text)


def tied_names(model: Any) -> dict[str, str]:
    """The head's tensor and the embedding's, where a file may have the second alone."""
    names = {id(module): name for name, module in model.named_modules()}
    head, embedding = (names[id(one)] for one in (model.get_output_embeddings(), model.get_input_embeddings()))
    return {f"{head}.weight": f"{embedding}.weight"}


def cut(ids: list[int], length: int) -> torch.Tensor:
    """Tokens as windows, [windows, tokens]: as many whole ones as there are, at least one."""
    length = min(length, len(ids))
    count = min(MAX_WINDOWS, len(ids) // length)
    return torch.tensor(ids[: count * length]).reshape(count, length)


@torch.inference_mode()
def perplexities(model: Any, config: Any, texts: dict[str, torch.Tensor]) -> dict[str, float]:
    """exp of the mean negative log-likelihood of each text's tokens, [windows, tokens], all windows of one length.

    Raises CheckpointError for what is no number.
    """
    tokens = torch.cat(list(texts.values()))
    hidden = model.get_decoder()(input_ids=tokens, use_cache=False).last_hidden_state[:, :-1]
    head, found, begin = model.get_output_embeddings(), {}, 0
    for name, own in texts.items():
        found[name] = _perplexity(head, config, hidden[begin : begin + len(own)], own[:, 1:])
        begin += len(own)
    return found


def _perplexity(head: Any, config: Any, hidden: torch.Tensor, targets: torch.Tensor) -> float:
    hidden, targets, total = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1), 0.0
    for begin in range(0, len(targets), LOGIT_ROWS):
        logits = scaled(head(hidden[begin : begin + LOGIT_ROWS]).float(), config)
        losses = torch.nn.functional.cross_entropy(logits, targets[begin : begin + LOGIT_ROWS], reduction="sum")
        total += losses.item()
    if not math.isfinite(total):
        raise CheckpointError("quantize_no_numbers")
    # A model of random weights can be beyond what a float holds.
    return math.exp(min(total / len(targets), 700.0))


def scaled(logits: torch.Tensor, config: Any) -> torch.Tensor:
    """The logits as the model's own class would give them: Cohere and Granite scale them, Gemma 2 bounds them."""
    if scale := getattr(config, "logit_scale", None):
        logits = logits * scale
    if divisor := getattr(config, "logits_scaling", None):
        logits = logits / divisor
    if bound := getattr(config, "final_logit_softcapping", None):
        logits = torch.tanh(logits / bound) * bound
    return logits


def _watch_layers(model: Any, report: Callable[..., None], begin: float, share: float) -> list[Any]:
    lists: list[Any] = [one for one in model.get_decoder().children() if isinstance(one, torch.nn.ModuleList)]
    layers: Any = max(lists, key=len, default=[])
    count = len(layers)

    def tell(number: int) -> Callable[..., None]:
        return lambda *_: report(begin + share * (number + 1) / count)

    return [layer.register_forward_hook(tell(number)) for number, layer in enumerate(layers)]
