"""Tiny models before they are quantized, made by transformers, and adapters of them, made by PEFT itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from core.memory.sizes import HALF_BYTES
from tests.support.checkpoints import WEIGHTS, make_tokenizer

VOCABULARY, CONTEXT_TOKENS = 384, 64
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": CONTEXT_TOKENS,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}


def make_plain(folder: Path, family: str = "llama", **sizes: Any) -> Path:
    """A model of `family` in float16 with a tokenizer in `folder`, as transformers saves it."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **(SIZES | sizes))
    AutoModelForCausalLM.from_config(config).half().save_pretrained(folder)
    make_tokenizer(folder, VOCABULARY)
    return folder


def make_plain_with_pictures(folder: Path, family: str, text: dict[str, Any], vision: dict[str, Any]) -> Path:
    """As make_plain, of a family whose text is one part of the model; `text` has the sizes of that part."""
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    torch.manual_seed(0)
    config = AutoConfig.for_model(family, text_config=SIZES | text, vision_config=vision, image_token_id=VOCABULARY - 5,
                                  tie_word_embeddings=False)  # fmt: skip
    AutoModelForImageTextToText.from_config(config).half().save_pretrained(folder)
    make_tokenizer(folder, VOCABULARY)
    return folder


def make_headers(folder: Path, model: Any) -> Path:
    """What transformers' `model` without memory would be as a checkpoint. Of its weights only the header is written:
    the numbers take nothing of a disk."""
    from core.worker.model.tensor_check import tied_names

    make_tokenizer(folder, VOCABULARY)
    (folder / "config.json").write_text(model.config.to_json_string(use_diff=False), "utf-8")
    header: dict[str, Any] = {}
    end = 0
    for name, tensor in model.state_dict().items():
        if name not in tied_names(model):
            begin, end = end, end + HALF_BYTES * tensor.numel()
            header[name] = {"dtype": "F16", "shape": list(tensor.shape), "data_offsets": [begin, end]}
    written = json.dumps(header).encode()
    with (folder / WEIGHTS).open("wb") as file:
        file.write(len(written).to_bytes(8, "little") + written)
        file.truncate(8 + len(written) + end)
    return folder


def make_adapter(
    base: Path, folder: Path, change: Callable[[Any], object] = bool, saves_ends: bool | str = "auto", **settings: Any
) -> Path:
    """A LoRA adapter of the model in `base`, whose two matrices are random and not zero.

    change: what the training does to the model itself; saves_ends: PEFT's save_embedding_layers.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    change(model)
    defaults = {"r": 8, "lora_alpha": 16, "target_modules": "all-linear", "init_lora_weights": False}
    get_peft_model(model, LoraConfig(**(defaults | settings))).save_pretrained(folder, save_embedding_layers=saves_ends)
    return folder


def change_json(path: Path, **changes: Any) -> None:
    """Change some values of a JSON file; None takes one out."""
    value = json.loads(path.read_text("utf-8")) | changes
    path.write_text(json.dumps({name: one for name, one in value.items() if one is not None}), "utf-8")
