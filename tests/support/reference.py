"""A checkpoint's logits by transformers' own float32 model over the matrices written out: what kernels are held to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file
from transformers import AutoConfig, AutoModelForCausalLM


def reference_logits(folder: Path, dense: dict[str, np.ndarray], tokens: torch.Tensor) -> torch.Tensor:
    """Logits [rows, vocabulary] after the last of `tokens` [rows, length]; `dense` holds [out, in] by module name."""
    config = AutoConfig.from_pretrained(folder)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    stored = load_file(next(folder.glob("*.safetensors")))
    state = {f"{name}.weight": torch.from_numpy(matrix) for name, matrix in dense.items()}
    for name in model.state_dict():
        if name not in state and name in stored:
            state[name] = torch.from_numpy(stored[name].astype(np.float32))
    model.load_state_dict(state)
    with torch.inference_mode():
        logits: torch.Tensor = model(tokens).logits[:, -1]
    return logits
