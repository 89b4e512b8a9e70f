"""Puts fused operations in place of a transformers model's own modules, each only where it computes the same.

A module is recognized by its attributes, whatever its family, and by its output for the same input.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from core.worker.kernels import step_ops
from core.worker.kernels.fused_norm import FusedRmsNorm
from core.worker.model.merged_linear import MergedLinearSlice

log = logging.getLogger(__name__)
# Of the output's standard deviation: half precision's rounding over one operation stays below.
TOLERANCE = 0.01
NUM_SAMPLES = 3
# What norms add to their weights: Gemma's and Qwen3-Next's are stored less one.
NORM_OFFSETS = (0.0, 1.0)
# Kinds of RoPE whose frequencies do not change with the length of the text.
FIXED_ROPES = ("default", "linear", "llama3", "yarn")


class FusedModule(nn.Module):
    """Stands in for a module of a model. Whatever else the model's class reads of it, such as the configuration of a
    rotary embedding, that module still tells."""

    replaced: nn.Module | None = None

    def put_in_place_of(self, module: nn.Module) -> None:
        # Not as a part of this one: a model's weights are counted and moved once.
        object.__setattr__(self, "replaced", module)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if self.replaced is None:
                raise
            return getattr(self.replaced, name)


class FusedNorm(FusedModule):
    """RMSNorm in one kernel. offset: what is added to each weight."""

    def __init__(self, weight: nn.Parameter, eps: float, offset: float = 0.0) -> None:
        super().__init__()
        self.weight, self.eps, self.offset = weight, eps, offset

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return step_ops.rms_norm(x, self.weight, self.eps, self.offset)

    def before(self, inverse_permutation: torch.Tensor | None) -> FusedRmsNorm:
        """The norm as a part of a product whose matrix has `inverse_permutation`."""
        return FusedRmsNorm(self.weight, inverse_permutation, self.eps, self.offset)


class FusedMlp(FusedModule):
    """A SwiGLU MLP whose gate and up are one matrix: two products, and one kernel between them."""

    def __init__(self, gate_up: nn.Module, down: nn.Module) -> None:
        super().__init__()
        self.gate_up, self.down = gate_up, down

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.down(step_ops.swiglu(self.gate_up(x)))
        return out


class FusedRope(FusedModule):
    """RoPE's cosines and sines in one kernel, where they depend on the position alone."""

    def __init__(self, frequencies: torch.Tensor, scaling: float, merges_axes: bool = False) -> None:
        """merges_axes: whether positions may come by axis of a picture [3, rows, tokens], which are alike for text."""
        super().__init__()
        self._frequencies, self._scaling, self._merges_axes = frequencies.float(), scaling, merges_axes

    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self._merges_axes and position_ids.dim() == 3:
            position_ids = position_ids[0]
        return step_ops.rope_angles(position_ids, self._frequencies, self._scaling, x.dtype)


def fuse_modules(model: PreTrainedModel, device_of: Callable[[str], torch.device] | None = None) -> list[str]:
    """Replace modules of `model` by fused ones; the names of the kinds that were, sorted. device_of: where the tensors
    lie whose names begin so, of a model over several GPUs."""
    done = []
    for name, module in list(model.named_modules()):
        for fused in _fused(module):
            device = device_of(f"{name}.") if device_of else model.device
            sample = _sample_angles(model) if isinstance(fused, FusedRope) else _sample(module, model, device)
            if is_equal_within_rounding(module, fused, sample):
                owner, _, attribute = name.rpartition(".")
                fused.put_in_place_of(module)
                setattr(model.get_submodule(owner), attribute, fused)
                done.append(type(fused).__name__)
                break
    if _fuse_rope(model):
        done.append("apply_rope")
    return sorted(set(done))


def _fused(module: nn.Module) -> Sequence[FusedModule]:
    """What may compute the same as `module`: the likeliest first."""
    weight, eps = getattr(module, "weight", None), getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if type(module).__name__.endswith("RMSNorm") and isinstance(weight, nn.Parameter) and isinstance(eps, float):
        return [FusedNorm(weight, eps, offset) for offset in NORM_OFFSETS]
    frequencies, scaling = getattr(module, "inv_freq", None), getattr(module, "attention_scaling", None)
    if getattr(module, "rope_type", None) in FIXED_ROPES and isinstance(frequencies, torch.Tensor):
        if not isinstance(scaling, float | int):
            return []
        return [FusedRope(frequencies, float(scaling), merges_axes(module, frequencies))]
    gate, up, down = (getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj"))
    if isinstance(gate, MergedLinearSlice) and isinstance(up, MergedLinearSlice) and isinstance(down, nn.Module):
        return [FusedMlp(gate.merged, down)]
    return []


def merges_axes(rope: nn.Module, frequencies: torch.Tensor) -> bool:
    """Whether `rope` makes one angle of a token's places in a picture, as Qwen3.5's does."""
    positions = torch.zeros((3, 1, 1), dtype=torch.long, device=frequencies.device)
    try:
        cos, _ = rope(frequencies, positions)
    except (TypeError, ValueError, RuntimeError, AttributeError):
        return False
    return bool(cos.dim() == 3 and cos.shape[0] == 1)


def _sample(module: nn.Module, model: PreTrainedModel, device: torch.device) -> tuple[torch.Tensor, ...]:
    weight = getattr(module, "weight", None)
    size = weight.shape[-1] if isinstance(weight, torch.Tensor) else model.config.get_text_config().hidden_size
    generator = torch.Generator("cpu").manual_seed(0)
    sample = torch.randn((1, NUM_SAMPLES, size), generator=generator)
    return (sample.to(device, model.dtype),)


def _sample_angles(model: PreTrainedModel) -> tuple[torch.Tensor, ...]:
    """16 positions, from the first to the last that the model was trained for."""
    most = int(getattr(model.config.get_text_config(), "max_position_embeddings", 4096))
    positions = torch.linspace(0, most - 1, 16, device=model.device).long().unsqueeze(0)
    return torch.empty(0, dtype=model.dtype, device=model.device), positions


def is_equal_within_rounding(
    original: Callable[..., object], fused: Callable[..., object], sample: tuple[torch.Tensor, ...]
) -> bool:
    """Whether both give the same for `sample`, but for rounding. False where one cannot be run."""
    try:
        wanted, got = _outputs(original, sample), _outputs(fused, sample)
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        log.info("%s is not fused: %s", type(original).__name__, error)
        return False
    return len(wanted) == len(got) and all(
        one.shape == other.shape and bool((one - other).abs().max() <= TOLERANCE * one.std())
        for one, other in zip(wanted, got, strict=True)
    )


def _outputs(run: Callable[..., object], sample: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    result = run(*(tensor.clone() for tensor in sample))
    found = result if isinstance(result, tuple) else (result,)
    return [tensor.float() for tensor in found if isinstance(tensor, torch.Tensor)]


def _fuse_rope(model: PreTrainedModel) -> bool:
    """Replace `apply_rotary_pos_emb` in the model's module. That holds for the whole process, which runs one model."""
    source = sys.modules[type(model).__module__]
    original = getattr(source, "apply_rotary_pos_emb", None)
    if original is None:
        return False
    # Heads of any number and size: they are turned one by one.
    heads, kv_heads, dim = 4, 2, 64
    generator = torch.Generator("cpu").manual_seed(0)
    shapes = ((1, heads, NUM_SAMPLES, dim), (1, kv_heads, NUM_SAMPLES, dim), *[(1, NUM_SAMPLES, dim)] * 2)
    made = [torch.randn(shape, generator=generator).to(model.device, model.dtype) for shape in shapes]
    # Both halves of a head have the same angles.
    angles = [torch.cat((angle[..., : dim // 2],) * 2, -1) for angle in made[2:]]
    if not is_equal_within_rounding(original, step_ops.apply_rope, (*made[:2], *angles)):
        return False
    source.apply_rotary_pos_emb = step_ops.apply_rope  # type: ignore[attr-defined]
    return True
