"""The layers of a model as its configuration describes them: each one's attention and MLP."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from core.checkpoint.attention import FullAttention, read_attention
from core.checkpoint.expert_counts import CHOSEN, COUNTS
from core.checkpoint.experts import (
    NUM_SHARED,
    SHARED_EXPERT,
    SHARED_SIZES,
    SIZES,
    count_experts,
    first_name,
    first_value,
)
from core.checkpoint.headers import TensorInfo
from core.checkpoint.numbers import read_number
from core.checkpoint.recurrent import Recurrent, read_recurrent
from core.checkpoint.text_config import named_config, text_config
from core.common.errors import CheckpointError

# A layer's number in the name of a tensor of the language model itself. Of more digits it is none, and Python reads no
# number of thousands.
LAYER = re.compile(r"(?:(?:model|decoder|transformer|gpt_neox|language_model)\.)*(?:layers|h|blocks)\.([0-9]{1,9})\.")
# Families whose class chooses two experts, whatever the configuration says.
CHOOSES_TWO = frozenset(("phimoe",))


@dataclass(frozen=True, slots=True)
class DenseMlp:
    intermediate: int


@dataclass(frozen=True, slots=True)
class Experts:
    """MLPs of which each token goes through a few, as a router chooses; `shared_intermediate` is the size of one that
    every token goes through beside them, 0 for none."""

    num_experts: int
    experts_per_token: int
    intermediate: int
    shared_intermediate: int = 0


Mlp = DenseMlp | Experts
Mixer = FullAttention | Recurrent


@dataclass(frozen=True, slots=True)
class LayerShape:
    """The mixer is what looks at other tokens. `beside`: a recurrent one that runs beside an attention."""

    mixer: Mixer
    mlp: Mlp
    beside: Recurrent | None = None

    @property
    def recurrent(self) -> Recurrent | None:
        return self.mixer if isinstance(self.mixer, Recurrent) else self.beside


def read_layers(model: str, config: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> tuple[LayerShape, ...]:
    """The layers of `model`, first to last.

    Older configurations leave out `intermediate_size` (4 * hidden). Raises CheckpointError "config_number" for a number
    that is missing or none, "config_layers" where the tensors are those of another number of layers.
    """
    text, count = text_config(config), count_layers(model, config, tensors)
    hidden = read_number(model, text, "hidden_size")
    kinds = text.get("layer_types")
    if not isinstance(kinds, list) or len(kinds) != count:
        kinds = [None] * count
    mlps = read_mlps(model, config, tensors, count, 4 * hidden)
    recurrent = read_recurrent(model, text, kinds)
    is_widened, layers = text.get("use_double_wide_mlp") is True, []
    for kind, attention, mlp in zip(kinds, read_attention(model, text, kinds), mlps, strict=True):
        # A kind may be anything that JSON has, such as a list.
        state = recurrent.get(str(kind))
        is_hybrid = kind == "hybrid" and state is not None
        own_mlp = _widened(mlp, attention) if is_widened else mlp
        layers.append(LayerShape(attention, own_mlp, state) if is_hybrid else LayerShape(state or attention, own_mlp))
    return tuple(layers)


def count_layers(model: str, config: Mapping[str, Any], tensors: Collection[str]) -> int:
    """How many layers `model` has. Raises as read_layers() does."""
    count = read_number(model, text_config(config), "num_hidden_layers")
    numbers = {int(match[1]) for name in tensors if (match := LAYER.match(name))}
    # Names of other families have no number that is known here; a layer still has a tensor.
    if (numbers and max(numbers) + 1 != count) or count > len(tensors):
        raise CheckpointError("config_layers", folder=model, value=count, found=max(numbers, default=-1) + 1)
    return count


def _widened(mlp: Mlp, attention: FullAttention) -> Mlp:
    """Layers of Gemma 4 that read an earlier layer's keys may have MLPs twice as wide."""
    is_wide = isinstance(mlp, DenseMlp) and attention.shares_cache
    return DenseMlp(2 * mlp.intermediate) if is_wide else mlp


def read_mlps(
    model: str, config: Mapping[str, Any], tensors: Mapping[str, TensorInfo], num_layers: int, usual_size: int
) -> list[Mlp]:
    """The MLPs of all layers. Which of them have experts, the tensors tell: families have rules of their own for it.

    Raises CheckpointError "config_number", "config_untold".
    """
    text, with_experts, has_shared = text_config(config), set(), False
    for name in tensors:
        if ".experts." in name and (match := LAYER.match(name)) is not None:
            with_experts.add(int(match[1]))
        has_shared = has_shared or SHARED_EXPERT.search(name) is not None
    if not with_experts:
        return [DenseMlp(read_number(model, text, "intermediate_size", usual_size))] * num_layers
    experts = _read_experts(model, text, has_shared, max(count_experts(tensors).values(), default=None))
    if experts.experts_per_token > experts.num_experts:
        # No router chooses more experts than there are.
        raise _too_many_chosen(model, config, experts.experts_per_token)
    if len(with_experts) == num_layers:
        return [experts] * num_layers
    dense = DenseMlp(read_number(model, {SIZES[1]: first_value(text, SIZES[1:])}, SIZES[1], usual_size))
    return [experts if index in with_experts else dense for index in range(num_layers)]


def _read_experts(model: str, text: Mapping[str, Any], has_shared: bool, num_found: int | None) -> Experts:
    num_experts = _first_number(model, text, COUNTS, num_found)
    size = _first_number(model, text, SIZES)
    shared = 0
    if has_shared:
        shared = _first_number(model, text, SHARED_SIZES, size * _first_number(model, text, NUM_SHARED, 1))
    chosen = _first_number(model, text, CHOSEN, num_experts)
    if text.get("model_type") in CHOOSES_TWO:
        chosen = min(num_experts, chosen)
    return Experts(num_experts, chosen, size, shared)


def _too_many_chosen(model: str, config: Mapping[str, Any], chosen: int) -> CheckpointError:
    """Where config.json is silent, its class's number is too large for so few experts."""
    name = first_name(named_config(config), CHOSEN)
    if name is None:
        return CheckpointError("config_untold", folder=model, name=first_name(text_config(config), CHOSEN) or CHOSEN[0])
    return CheckpointError("config_number", folder=model, name=name, value=str(chosen))


def _first_number(model: str, text: Mapping[str, Any], names: Sequence[str], default: int | None = None) -> int:
    """Raises CheckpointError "config_number", by the name that the configuration has for it."""
    name = first_name(text, names) or names[0]
    return read_number(model, {name: first_value(text, names)}, name, default)


def contradiction(model: str, name: str, value: int, tensor: str, found: TensorInfo) -> CheckpointError:
    """The error for a `tensor` whose shape is not what `name` in the configuration makes it."""
    return CheckpointError(
        "config_tensors", folder=model, name=name, value=value, tensor=tensor, shape=str(list(found.shape))
    )
