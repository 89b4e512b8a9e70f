"""The baseline of the benchmark: transformers' own loader and generate() over gptqmodel, as their manuals say.

`python -m benchmarks.generate FOLDER NEW_TOKENS RUNS`, the prompt on standard input; prints one JSON object last.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from typing import Any

from core.checkpoint import read_checkpoint
from core.engine.kernels import choose_kernel
from core.engine.worker import ENVIRONMENT

# The names of our kernels in gptqmodel; one that it has none for on a CPU is its portable one.
BACKENDS = {
    "exllama_v2": "gptq_exllama_v2",
    "marlin": "gptq_marlin",
    "triton": "gptq_triton",
    "torch": "gptq_torch",
    "aten_int4": "gptq_torch_aten",
    "dense": "gptq_torch",
}


def main(folder: str, new_tokens: int, runs: int) -> None:
    os.environ.update(ENVIRONMENT)
    from pathlib import Path

    import torch
    from transformers import AutoModelForCausalLM, GPTQConfig

    from core.engine.opening import find_device
    from core.engine.vocabulary import read_tokenizer

    checkpoint = read_checkpoint(Path(folder))
    kernel, _ = choose_kernel(checkpoint, find_device())
    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    settings = GPTQConfig(bits=checkpoint.quantization.bits, backend=BACKENDS[kernel.name])
    model: Any = AutoModelForCausalLM.from_pretrained(folder, quantization_config=settings, device_map=device)
    tokens = torch.tensor([read_tokenizer(Path(folder)).encode(sys.stdin.read(), add_special_tokens=False).ids])
    tokens = tokens.to(device)

    def seconds(count: int) -> float:
        begin = time.perf_counter()
        model.generate(tokens, attention_mask=torch.ones_like(tokens), do_sample=False, pad_token_id=0,
                       max_new_tokens=count, min_new_tokens=count)  # fmt: skip
        return time.perf_counter() - begin

    seconds(4)
    first_s = statistics.median(seconds(1) for _ in range(3))
    rates = [(new_tokens - 1) / (seconds(new_tokens) - first_s) for _ in range(runs)]
    print(json.dumps({"generate_tokens_per_s": round(statistics.median(rates), 2),
                      "generate_first_token_ms": round(first_s * 1000, 1)}))  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
