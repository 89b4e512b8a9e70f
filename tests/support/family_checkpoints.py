"""Makes tiny GPTQ checkpoints of any family that transformers has, and the model that they stand for."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.numpy import save_file
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from core.checkpoint.experts import ROUTER
from core.worker.model.experts import has_experts
from tests.support.checkpoints import WEIGHTS, Recipe, make_matrix, make_tokenizer

QUANTIZATION = {"bits": 4, "group_size": 32, "desc_act": False, "sym": True, "quant_method": "gptq"}
VOCABULARY = 384
ExpertLayout = Literal["by name", "halves", "one"]


def make_family_checkpoint(
    folder: Path,
    config: dict[str, Any],
    rename: Callable[[str], str] = lambda name: name,
    written: dict[str, Any] | None = None,
    recipe_of: Callable[[str], Recipe | None] = lambda name: Recipe(),
    routers: Recipe | None = None,
    is_quantized: Callable[[str], bool] = lambda name: True,
    layout: ExpertLayout = "by name",
) -> PreTrainedModel:
    """Write a checkpoint of `config` with random weights. Returns transformers' own model with the same weights.

    rename: what the files call a tensor. written: the config.json, where it is not transformers' own. recipe_of: how
    an expert's matrix is quantized, None for one in 16 bit; each is by itself, as files have them. routers: how those
    are quantized, None for 16 bit. is_quantized: whether a matrix is, by its name. layout: whether files have experts'
    gate and up by their names, as the "halves" of the tensor for both, as gptqmodel writes them, or as "one" matrix.
    """
    torch.manual_seed(0)
    made = CONFIG_MAPPING[config["model_type"]].from_dict(dict(config))
    has_pictures = hasattr(made, "vision_config")
    model = (AutoModelForImageTextToText if has_pictures else AutoModelForCausalLM).from_config(made).float().eval()
    random = np.random.default_rng(0)
    tensors: dict[str, np.ndarray] = {}
    matrices = {name: module for name, module in _matrices(model, has_pictures) if is_quantized(name)}
    stacks = {name: module for name, module in model.named_modules() if has_experts(module)}
    stacked = {f"{name}.{one}" for name, module in stacks.items() for one in module._parameters}
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.normal_(0, 0.1).copy_(buffer.half().float())
        for name, parameter in model.named_parameters():
            owner, _, kind = name.rpartition(".")
            if owner not in matrices and "norm" not in owner and "ln_" not in owner:
                parameter.normal_(0, 0.3 if kind == "weight" else 0.1)
            parameter.copy_(parameter.half().float())
        for name, module in matrices.items():
            is_turned = isinstance(module, Conv1D)
            rows, columns = module.weight.shape if is_turned else module.weight.shape[::-1]
            parts, dense = make_matrix(random, Recipe(), rows, columns)
            module.weight.copy_(torch.from_numpy(dense.T.copy() if is_turned else dense))
            tensors |= {rename(f"{name}.{part}"): value for part, value in parts.items()}
        for name, module in stacks.items():
            for number, (projection, weight, bias) in expert_parts(module, layout):
                owner = f"{name}.{number}.{projection}"
                recipe = recipe_of(owner)
                if recipe is None:
                    parts = {"weight": weight.half().numpy().copy()}
                else:
                    parts, dense = make_matrix(random, recipe, *weight.shape[::-1])
                    weight.copy_(torch.from_numpy(dense))
                tensors |= {rename(f"{owner}.{part}"): value for part, value in parts.items()}
                tensors |= {rename(f"{owner}.bias"): bias.half().numpy()} if bias is not None else {}
        for name, module in model.named_modules():
            if routers is not None and ROUTER.search(name):
                parts, dense = make_matrix(random, routers, *module.weight.shape[::-1])
                module.weight.copy_(torch.from_numpy(dense))
                tensors |= {rename(f"{name}.{part}"): value for part, value in parts.items()}
                stacked.add(f"{name}.weight")
    plain = {
        name: value
        for name, value in model.state_dict().items()
        if name.removesuffix(".weight") not in matrices and name not in stacked
    }
    if made.tie_word_embeddings:
        plain.pop("lm_head.weight", None)
    tensors |= {rename(name): value.half().numpy() for name, value in plain.items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    found = json.loads(made.to_json_string(use_diff=False)) if written is None else written
    settings = QUANTIZATION | ({"meta": {"quantizer": ["gptqmodel:7.6.0"]}} if layout == "halves" else {})
    (folder / "config.json").write_text(json.dumps({**found, "quantization_config": settings, "dtype": "float16"}))
    make_tokenizer(folder, VOCABULARY)
    return model


def _matrices(model: PreTrainedModel, has_pictures: bool) -> Any:
    """The matrices of the text's layers by name."""
    for name, module in model.named_modules():
        is_text = not has_pictures or "language_model" in name or "text_model" in name
        is_wide = not isinstance(module, torch.nn.Linear) or module.out_features % 8 == 0
        if isinstance(module, (torch.nn.Linear, Conv1D)) and is_text and is_wide and not name.endswith("lm_head"):
            yield name, module


def expert_parts(
    module: Any, layout: ExpertLayout = "by name"
) -> Iterator[tuple[int, tuple[str, torch.Tensor, torch.Tensor | None]]]:
    """Each matrix of transformers' `module` of experts: number, then name, weight [out, in] and bias, as views."""
    for number in range(module.num_experts):
        weight, down = module.gate_up_proj[number], module.down_proj[number]
        biases: list[torch.Tensor | None] = [None, None, None]
        if module.is_transposed:
            weight, down = weight.T, down.T
        if module.has_bias:
            bias = module.gate_up_proj_bias[number]
            two = bias.chunk(2) if layout == "halves" else (bias[::2], bias[1::2])
            biases = [*two, module.down_proj_bias[number]]
        if layout == "one":
            yield number, ("gate_up_proj", weight, module.gate_up_proj_bias[number] if module.has_bias else None)
            yield number, ("down_proj", down, biases[-1])
            continue
        is_plain = module.is_concatenated or layout == "halves"
        gate, up = weight.chunk(2) if is_plain else (weight[::2], weight[1::2])
        for part in zip(("gate_proj", "up_proj", "down_proj"), (gate, up, down), biases, strict=True):
            yield number, part
