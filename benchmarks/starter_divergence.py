"""How far the starter is from what it was quantized from: Kullback-Leibler divergence of the next token, in nats.

Over texts that the quantizer has not seen. `python -m benchmarks.starter_divergence FOLDER` keeps the source in FOLDER.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from core.checkpoint.checkpoint import read_checkpoint
from core.memory.kernels.cpu import DENSE
from core.memory.model_shape import read_shape
from core.starter import build, quantize, source
from core.worker.model.device_map import DeviceMap
from core.worker.model.loader import load_model

TEXTS = {
    "English": """The old lighthouse keeper climbed the narrow stairs each evening, counting them under his breath as
his father had done. From the gallery he could see the fishing boats returning, small dark shapes against silver water,
and beyond them the long grey line of the coast. He lit the lamp, wiped the glass with a soft cloth, and sat down to
write in his log: wind from the west, light rain, three ships.

Photosynthesis is the process by which plants, algae and some bacteria turn light into chemical energy. Carbon dioxide
and water are combined, with the help of chlorophyll, into sugar, and oxygen is released.

Question: If a train leaves at nine and travels for two and a half hours at eighty kilometres an hour, how far has it
gone? Answer: Two and a half hours at eighty kilometres an hour are two hundred kilometres.""",
    "Chinese": """春天来了，公园里的花都开了。老人们坐在长椅上聊天，孩子们在草地上放风筝。
小明和他的妹妹一起去湖边喂鸭子，他们带了一些面包。天气很好，阳光温暖，微风轻轻地吹着。""",
    "chat": """<|im_start|>user
Explain in three sentences why the sky is blue.<|im_end|>
<|im_start|>assistant
Sunlight is made of all colours. Air scatters blue light more than red light. So blue light reaches our eyes from every
direction.<|im_end|>
""",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    plain = read_source(parser.parse_args().folder)
    tokenizer = AutoTokenizer.from_pretrained(plain)
    wanted = LlamaForCausalLM.from_pretrained(plain, dtype=torch.float32)
    checkpoint = read_checkpoint(build.ensure_cached(lambda *_: None))
    places = DeviceMap((torch.device("cpu"),))
    got = load_model(checkpoint, read_shape(checkpoint), DENSE, places, torch.float32, 512, lambda _: None)
    for name, text in TEXTS.items():
        tokens = tokenizer(text, return_tensors="pt").input_ids
        divergence, same = compare(wanted, got, tokens)
        print(
            f"{name:8} {tokens.shape[1]:4} tokens  divergence {divergence:.4f}  same likeliest token {100 * same:.0f} %"
        )


def read_source(folder: Path) -> Path:
    """The starter's source as a plain checkpoint inside `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    plain = folder / "plain"
    if not plain.exists():
        gguf = source.fetch(folder, lambda _: None)
        plain.mkdir()
        quantize.read(gguf, plain, lambda *_: None)
    return plain


@torch.inference_mode()
def compare(wanted: Any, got: Any, tokens: torch.Tensor) -> tuple[float, float]:
    """The mean divergence from `wanted` over all tokens, and how often both find the same token the likeliest."""
    logs, others = (model(tokens).logits[0].float().log_softmax(-1) for model in (wanted, got))
    divergence = (logs.exp() * (logs - others)).sum(-1).mean()
    return float(divergence), float((logs.argmax(-1) == others.argmax(-1)).float().mean())


if __name__ == "__main__":
    main()
