"""The layers of a model that keep a state of fixed size in place of keys and values, as its configuration says."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from core.checkpoint.numbers import read_number
from core.common.errors import CheckpointError

# The largest head of a Gated DeltaNet layer in captured steps.
MAX_DELTA_DIM = 256


@dataclass(frozen=True, slots=True)
class GatedDeltaNet:
    """A matrix [key_dim, value_dim] as the state of each value head (arXiv 2412.06464).

    A causal convolution over `conv_width` tokens precedes it. Several value heads may share a key head.
    """

    num_key_heads: int
    num_value_heads: int
    key_dim: int
    value_dim: int
    conv_width: int

    @property
    def is_capturable(self) -> bool:
        """Whether the engine's kernels for captured steps take it: they hold a head's state in registers."""
        heads = (self.key_dim, self.value_dim)
        return max(heads) <= MAX_DELTA_DIM and not any(one % 4 for one in heads) and 2 <= self.conv_width <= 8

    @property
    def channels(self) -> int:
        """What the convolution runs over: queries, keys and values side by side."""
        return 2 * self.num_key_heads * self.key_dim + self.num_value_heads * self.value_dim

    @property
    def state_shape(self) -> tuple[int, ...]:
        return self.num_value_heads, self.key_dim, self.value_dim


@dataclass(frozen=True, slots=True)
class Mamba2:
    """A matrix [state_dim, head_dim] as the state of each head, which fades and takes in a product with each token
    (arXiv 2405.21060).

    A causal convolution over `conv_width` tokens precedes it. The heads of a group share what they write and read with.
    """

    num_groups: int
    num_heads: int
    state_dim: int
    head_dim: int
    conv_width: int
    is_capturable = True

    @property
    def channels(self) -> int:
        """What the convolution runs over: the heads' inputs, and what each group writes and reads with."""
        return self.num_heads * self.head_dim + 2 * self.num_groups * self.state_dim

    @property
    def state_shape(self) -> tuple[int, ...]:
        return self.num_heads, self.state_dim, self.head_dim


@dataclass(frozen=True, slots=True)
class ShortConv:
    """A causal convolution over the last `conv_width` tokens, between two gates."""

    channels: int
    conv_width: int
    is_capturable = True

    @property
    def state_shape(self) -> tuple[int, ...]:
        """There is none beside the convolution's inputs."""
        return ()


Recurrent = GatedDeltaNet | Mamba2 | ShortConv
# What families with Mamba 2 call its layers: "mamba" of before, "linear_attention" of transformers 5, "hybrid" where a
# layer attends as well.
MAMBA_FAMILIES = {
    "bamba": ("linear_attention",),
    "falcon_h1": ("hybrid",),
    "granitemoehybrid": ("linear_attention", "mamba"),
}


def read_recurrent(model: str, text: Mapping[str, Any], kinds: Collection[object]) -> dict[object, Recurrent]:
    """The recurrent layers of `model` by those of their `kinds` that it has. text: what text_config() gives.

    Raises CheckpointError "config_number" for a number that is missing or none.
    """
    found: dict[object, Recurrent] = {}
    family = text.get("model_type")
    if isinstance(family, str) and family in MAMBA_FAMILIES:
        return {kind: _mamba(model, text) for kind in MAMBA_FAMILIES[family] if kind in kinds}
    if "linear_attention" in kinds:
        found["linear_attention"] = _delta_net(model, text)
    if "conv" in kinds:
        found["conv"] = ShortConv(read_number(model, text, "hidden_size"), read_number(model, text, "conv_L_cache", 3))
    return found


def _delta_net(model: str, text: Mapping[str, Any]) -> GatedDeltaNet:
    """Defaults are those of Qwen3-Next's and Qwen3.5's classes."""
    value_heads = read_number(model, text, "linear_num_value_heads", 32)
    key_heads = read_number(model, text, "linear_num_key_heads", 16)
    if value_heads % key_heads:
        raise CheckpointError("config_number", folder=model, name="linear_num_value_heads", value=str(value_heads))
    return GatedDeltaNet(
        num_key_heads=key_heads,
        num_value_heads=value_heads,
        key_dim=read_number(model, text, "linear_key_head_dim", 128),
        value_dim=read_number(model, text, "linear_value_head_dim", 128),
        conv_width=read_number(model, text, "linear_conv_kernel_dim", 4),
    )


def _mamba(model: str, text: Mapping[str, Any]) -> Mamba2:
    """Defaults are those of Bamba's, Falcon-H1's and Granite's classes. A head's size may be told as "auto"."""
    heads = read_number(model, text, "mamba_n_heads", 128)
    # Falcon-H1 has a size of its own unless that is told to be none.
    inner = text.get("mamba_d_ssm", 1024 if text.get("model_type") == "falcon_h1" else None)
    if inner is None:
        inner = read_number(model, text, "mamba_expand", 2) * read_number(model, text, "hidden_size")
    inner = read_number(model, {"mamba_d_ssm": inner}, "mamba_d_ssm")
    groups = read_number(model, text, "mamba_n_groups", 1)
    if inner % heads or heads % groups:
        raise CheckpointError("config_number", folder=model, name="mamba_n_heads", value=str(heads))
    state_dim, width = read_number(model, text, "mamba_d_state", 256), read_number(model, text, "mamba_d_conv", 4)
    return Mamba2(groups, heads, state_dim, inner // heads, width)
