"""vLLM beside us in the speed tables: `python -m benchmarks.vllm_peer FOLDER CONTEXT [ADAPTER ...]`; it speaks as
benchmarks/peer.py says. With folders of LoRA adapters the chats use them in turns.

By vLLM's own offline class, in float16 and without a cache of prefixes. How long a batch takes to its first token is
measured by a run of one token, so that a figure needs no clock inside of vLLM.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.peer import Answerer, serve
from core.checkpoint.adapters import CONFIG

MAX_CHATS = 32
# Of the card's memory; what our own engine held has been given back.
SHARE = 0.85


def start(folder: str, context_tokens: int, adapters: Sequence[str] = ()) -> Answerer:
    from vllm import LLM, SamplingParams  # type: ignore[import-not-found]

    requests: list[Any] = []
    if adapters:
        from vllm.lora.request import LoRARequest  # type: ignore[import-not-found]

        requests = [LoRARequest(Path(path).name, number, path) for number, path in enumerate(adapters, 1)]

    # Of a model with pictures the text part alone, as here.
    config = json.loads((Path(folder) / "config.json").read_text("utf-8"))
    more: dict[str, Any] = {"language_model_only": True} if "vision_config" in config else {}
    if adapters:
        ranks = [json.loads((Path(path) / CONFIG).read_text("utf-8"))["r"] for path in adapters]
        more |= {"enable_lora": True, "max_loras": len(adapters), "max_lora_rank": max(ranks)}
    model = LLM(model=folder, skip_tokenizer_init=True, max_model_len=context_tokens, max_num_seqs=MAX_CHATS,
                gpu_memory_utilization=SHARE, dtype="float16", enable_prefix_caching=False, **more)  # fmt: skip

    def run(prompts: list[list[int]], new_tokens: int) -> tuple[float, int]:
        asked = SamplingParams(temperature=0.0, max_tokens=new_tokens, ignore_eos=True, detokenize=False)
        begin_s = time.perf_counter()
        used = {"lora_request": [requests[chat % len(requests)] for chat in range(len(prompts))]} if requests else {}
        answers = model.generate([{"prompt_token_ids": one} for one in prompts], asked, use_tqdm=False, **used)
        return time.perf_counter() - begin_s, sum(len(one.outputs[0].token_ids) for one in answers)

    def answer(prompts: list[list[int]], new_tokens: int) -> dict[str, Any]:
        first_token_s, drawn = run(prompts, 1)
        decode_s = 0.0
        if new_tokens > 1:
            whole_s, drawn = run(prompts, new_tokens)
            decode_s = whole_s - first_token_s
        return {"first_token_s": first_token_s, "decode_s": decode_s, "num_tokens": drawn}

    for count in (1, MAX_CHATS):
        answer([[5] * 64] * count, 4)
    return answer


if __name__ == "__main__":
    serve(lambda: start(sys.argv[1], int(sys.argv[2]), sys.argv[3:]))
