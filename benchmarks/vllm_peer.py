"""vLLM beside us in the speed tables: `python -m benchmarks.vllm_peer FOLDER CONTEXT [--chats N] [--gpus N]
[--cache-bits 8] [--cache-gib N] [--adapters FOLDER ...]`; it speaks as benchmarks/peer_side.py says. With folders of
LoRA adapters the chats use them in turns.

By vLLM's own offline class, in float16 and without a cache of prefixes. How long a batch takes to its first token is
measured by a run of one token, so that a figure needs no clock inside of vLLM.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.peer_side import Answerer, serve

# Of the card's memory; what our own engine held has been given back.
SHARE = 0.85
WARM_TOKENS, WARM_NEW_TOKENS = 64, 4


def start(
    folder: str,
    context_tokens: int,
    num_chats: int = 32,
    num_gpus: int = 1,
    cache_bits: int = 16,
    cache_gib: int = 0,
    adapters: Sequence[str] = (),
) -> Answerer:
    from vllm import LLM, SamplingParams  # type: ignore[import-not-found]

    requests: list[Any] = []
    if adapters:
        from vllm.lora.request import LoRARequest  # type: ignore[import-not-found]

        requests = [LoRARequest(Path(path).name, number, path) for number, path in enumerate(adapters, 1)]

    # Of a model with pictures the text part alone, as here.
    config = json.loads((Path(folder) / "config.json").read_text("utf-8"))
    more: dict[str, Any] = {"language_model_only": True} if "vision_config" in config else {}
    if adapters:
        configs = [json.loads((Path(path) / "adapter_config.json").read_text("utf-8")) for path in adapters]
        more |= {"enable_lora": True, "max_loras": len(adapters), "max_lora_rank": max(one["r"] for one in configs)}
    if find_spec("flashinfer") is None:
        # vLLM believes that an H200 has it, and fails at the first prompt.
        more["additional_config"] = {"gdn_prefill_backend": "triton"}
    if num_gpus > 1:
        more["tensor_parallel_size"] = num_gpus
    if cache_bits == 8:
        more["kv_cache_dtype"] = "fp8"
    # A cache of a size that is told leaves the rest of the card to others; the share is not looked at then.
    more |= {"gpu_memory_utilization": 0.05, "kv_cache_memory_bytes": cache_gib * 2**30} if cache_gib else {}
    more.setdefault("gpu_memory_utilization", SHARE)
    model = LLM(model=folder, skip_tokenizer_init=True, max_model_len=context_tokens, max_num_seqs=num_chats,
                dtype="float16", enable_prefix_caching=False, **more)  # fmt: skip

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

    for count in sorted({1, num_chats}):
        answer([[5] * WARM_TOKENS] * count, WARM_NEW_TOKENS)
    return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("context", type=int)
    parser.add_argument("--chats", type=int, default=32)
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("--cache-bits", type=int, choices=(16, 8), default=16)
    parser.add_argument("--cache-gib", type=int, default=0, metavar="N", help="instead of a share of the card")
    parser.add_argument("--adapters", nargs="*", default=[], metavar="FOLDER")
    asked = parser.parse_args()
    cache = asked.cache_bits, asked.cache_gib
    serve(lambda: start(asked.folder, asked.context, asked.chats, asked.gpus, *cache, asked.adapters))


if __name__ == "__main__":
    main()
