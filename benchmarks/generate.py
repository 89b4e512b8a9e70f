"""The baseline of the benchmark: transformers' own loader and generate() over gptqmodel, as their manuals say.

`python -m benchmarks.generate FOLDER`; speaks as benchmarks/peer_side.py says.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.peer_side import Answerer, serve
from core.checkpoint.checkpoint import read_checkpoint
from core.gpu.snapshot import read_snapshot
from core.memory.kernels.registry import able_kernels
from core.memory.model_shape import matrix_shapes
from core.worker.main import ENVIRONMENT

# The names of our kernels in gptqmodel; one that it has none for on a CPU is its portable one, and in place of the
# engine's own it takes its fastest.
BACKENDS = {
    "triton": "gptq_triton",
    "torch": "gptq_torch",
    "aten_int4": "gptq_torch_aten",
    "dense": "gptq_torch",
}


def start(folder: str) -> Answerer:
    os.environ.update(ENVIRONMENT)
    import torch
    from transformers import AutoModelForCausalLM, GPTQConfig

    from core.worker.plan_load import find_devices

    checkpoint = read_checkpoint(Path(folder))
    able = able_kernels(matrix_shapes(checkpoint), find_devices(read_snapshot())[:1])
    kernel = next(one for one in able if one.name in BACKENDS)
    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    settings = GPTQConfig(bits=checkpoint.quantization.bits, backend=BACKENDS[kernel.name])
    model: Any = AutoModelForCausalLM.from_pretrained(folder, quantization_config=settings, device_map=device)

    def answer(prompts: list[list[int]], new_tokens: int) -> dict[str, Any]:
        tokens = torch.tensor(prompts, device=device)
        times: list[float] = []

        def look(input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
            if device != "cpu":
                torch.cuda.synchronize()
            times.append(time.perf_counter())
            return torch.zeros(len(prompts), dtype=torch.bool, device=device)

        begin_s = time.perf_counter()
        output = model.generate(tokens, attention_mask=torch.ones_like(tokens), do_sample=False, pad_token_id=0,
                                max_new_tokens=new_tokens, min_new_tokens=new_tokens,
                                stopping_criteria=[look])  # fmt: skip
        drawn = (output.shape[1] - tokens.shape[1]) * len(prompts)
        return {"first_token_s": times[0] - begin_s, "decode_s": times[-1] - times[0], "num_tokens": drawn}

    answer([[5] * 8], 4)
    return answer


if __name__ == "__main__":
    serve(lambda: start(sys.argv[1]))
