"""What keys and values in 8 bit change: Kullback-Leibler divergence of the next token from 16 bit, in nats.

`python -m benchmarks.cache_error [FOLDER]` reads some texts with the starter, or with the checkpoint in FOLDER, on the
CPU in float32; so nothing else is rounded. Beside the integers that the engine keeps, the floating-point kind of 8 bit
(e4m3), with a scale of each head and token as they have.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from benchmarks.starter_divergence import TEXTS
from core.checkpoint.checkpoint import read_checkpoint
from core.memory.kernels.cpu import DENSE
from core.memory.model_shape import read_shape
from core.starter import build
from core.tokenizer.read import read_tokenizer
from core.worker.model.device_map import DeviceMap
from core.worker.model.kv_cache import KvShape, SlotCache
from core.worker.model.loader import load_model
from core.worker.model.model_runner import ModelRunner

MAX_TOKENS, CHUNK_TOKENS = 512, 64
# The bits of the cache that each kind begins with.
KINDS = {"16 bit": 16, "int8": 8, "e4m3": 16}


class Float8Cache(SlotCache):
    """Keys and values as e4m3, whose largest number is 448."""

    def _quantized(self, tensor: torch.Tensor, scales: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        own = new.abs().amax(-1, keepdim=True) / 448
        rounded = (new / own.clamp(min=1e-30)).to(torch.float8_e4m3fn).to(new.dtype) * own
        # In float32 `keys` and `values` hold what comes out.
        return self._written(tensor, rounded)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?")
    folder = parser.parse_args().folder or build.ensure_cached(lambda *_: None)
    checkpoint, tokenizer = read_checkpoint(folder), read_tokenizer(folder)
    places = DeviceMap((torch.device("cpu"),))
    with torch.inference_mode():
        model = load_model(checkpoint, read_shape(checkpoint), DENSE, places, torch.float32, 512, lambda _: None)
        runners = {name: ModelRunner(model, 1, MAX_TOKENS, cache_bits=bits) for name, bits in KINDS.items()}
        exact = runners["int8"].cache
        shapes = {index: KvShape(keys.shape[1], keys.shape[3], keys.device) for index, keys in exact.keys.items()}
        runners["e4m3"].cache = float_cache(shapes)
        for name, text in TEXTS.items():
            tokens = tokenizer.encode(text).ids[:MAX_TOKENS]
            logs = {kind: log_probabilities(runner, tokens) for kind, runner in runners.items()}
            for kind in ("int8", "e4m3"):
                divergence = (logs["16 bit"].exp() * (logs["16 bit"] - logs[kind])).sum(-1)
                same = (logs["16 bit"].argmax(-1) == logs[kind].argmax(-1)).float().mean()
                print(f"{name:8} {len(tokens):4} tokens  {kind}  divergence {divergence.mean():.6f}, "
                      f"at most {divergence.max():.5f}  same likeliest token {100 * same:.0f} %")  # fmt: skip


def float_cache(shapes: dict[int, KvShape]) -> SlotCache:
    """A cache whose tensors are float32 and which rounds what it is given."""
    cache = Float8Cache(1, MAX_TOKENS, torch.float32, shapes)
    cache.bits = 8
    cache.key_scales, cache.value_scales = cache.keys, cache.values
    return cache


def log_probabilities(runner: ModelRunner, tokens: list[int]) -> torch.Tensor:
    """[tokens, vocabulary], read in chunks as the engine reads them."""
    parts = []
    for begin in range(0, len(tokens), CHUNK_TOKENS):
        part = tokens[begin : begin + CHUNK_TOKENS]
        places = torch.arange(begin, begin + len(part)).unsqueeze(0)
        logits = runner.forward_all(torch.tensor([part]), places, 0, begin + len(part))
        parts.append(logits.float().log_softmax(-1))
    return torch.cat(parts)


if __name__ == "__main__":
    main()
