"""Layers with a state of fixed size in place of a KV cache: our own modules, with the weights of transformers' ones.

transformers' modules keep a state for a whole batch. These read and write the rows of each slot. They round to the
model's dtype where transformers' modules do, so that in half precision too both give the same.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.nn.functional import silu, softplus
from transformers import PreTrainedModel
from transformers.activations import ACT2FN

from core.checkpoint.recurrent import GatedDeltaNet, Mamba2, Recurrent, ShortConv
from core.worker.kernels.delta_rule import causal_conv, delta_chunk, delta_step, unit_length
from core.worker.model.layer_state import RecurrentState, StateRows

# Weights that an exponential follows: in half precision a state would fade up to 1 % faster or slower. The matrices
# among them are small; a GPU has faster kernels for those in half precision, and a CPU computes in bfloat16.
MAMBA_LAYERS = ("BambaMixer", "FalconH1Mixer", "GraniteMoeHybridMambaLayer")
FLOAT_WEIGHTS = ("A_log", "dt_bias")
FLOAT_MATRICES_ON_CPU = (".in_proj_a", ".in_proj_b", ".in_proj_ba")


class RecurrentLayer(nn.Module):
    """A mixer whose `forward(hidden_states [rows, tokens, hidden], cache)` moves the states of the cache's rows on."""

    def __init__(self, mixer: Recurrent, layer_idx: int, conv: nn.Module) -> None:
        super().__init__()
        self.mixer, self.layer_idx = mixer, layer_idx
        self._conv = (conv,)  # In a tuple, since families call their convolution by different names.

    def allocate_state(self, num_slots: int) -> RecurrentState:
        """The layer's states for `num_slots` slots, on its device."""
        weight = self.conv_weight
        return RecurrentState.allocate(self.mixer, num_slots, weight.dtype, weight.device)

    @property
    def conv_weight(self) -> torch.Tensor:
        """[channels, width]"""
        weight: torch.Tensor = self._conv[0].weight
        return weight.squeeze(1)

    @property
    def conv_bias(self) -> torch.Tensor | None:
        """[channels]"""
        bias: torch.Tensor | None = self._conv[0].bias
        return bias

    def _convolve(self, inputs: torch.Tensor, state: RecurrentState, rows: StateRows) -> torch.Tensor:
        """inputs [rows, tokens, channels] -> the same; writes the rows' last inputs."""
        output, last = causal_conv(inputs, rows.read(state.conv), self.conv_weight, self.conv_bias, rows.count)
        state.conv[rows.rows] = last.to(state.conv.dtype)
        return output.to(inputs.dtype)


class GatedDeltaNetLayer(RecurrentLayer):
    """Gated DeltaNet (arXiv 2412.06464) as Qwen3.5 and Qwen3-Next have it, with the names of their weights."""

    def __init__(self, original: Any) -> None:
        mixer = GatedDeltaNet(
            num_key_heads=original.num_k_heads,
            num_value_heads=original.num_v_heads,
            key_dim=original.head_k_dim,
            value_dim=original.head_v_dim,
            conv_width=original.conv_kernel_size,
        )
        super().__init__(mixer, original.layer_idx, original.conv1d)
        self.delta_net = mixer
        for name, module in original.named_children():
            setattr(self, name, module)
        self.A_log, self.dt_bias = original.A_log, original.dt_bias
        self.activation = ACT2FN[original.activation]
        # Qwen3-Next has the inputs by key head: its query, its key, the values and gates of the heads that share it.
        self.is_by_key_head = hasattr(original, "in_proj_qkvz")

    @property
    def input_names(self) -> tuple[str, ...]:
        """The matrices that multiply the layer's input, in the order in which they are called."""
        if self.is_by_key_head:
            return "in_proj_qkvz", "in_proj_ba"
        return "in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a"

    def forward(
        self, hidden_states: torch.Tensor, cache_params: Any = None, past_key_values: Any = None, **_: Any
    ) -> torch.Tensor:
        # Decoder layers call it by the first name, and everything else by the second.
        cache_params = past_key_values if cache_params is None else cache_params
        if (run_delta_rule := getattr(cache_params, "run_delta_rule", None)) is not None:
            # The cache of captured steps has kernels for it.
            return self.out_proj(run_delta_rule(self, hidden_states))
        mixer, state = self.delta_net, cache_params.state(self.layer_idx)
        rows = cache_params.state_rows_on(hidden_states.device)
        mixed, gate, b, a = self.project(hidden_states)
        mixed = self.activation(self._convolve(mixed, state, rows)).float()
        keys = mixer.num_key_heads * mixer.key_dim
        query, key, value = mixed.split((keys, keys, mixer.num_value_heads * mixer.value_dim), -1)
        query, key = (unit_length(one.unflatten(-1, (mixer.num_key_heads, mixer.key_dim))) for one in (query, key))
        query = query * mixer.key_dim**-0.5
        value = value.unflatten(-1, (mixer.num_value_heads, mixer.value_dim))
        beta = b.sigmoid().float()
        decay = -self.A_log.float().exp() * softplus(a.float() + self.dt_bias.float())
        if hidden_states.shape[1] == 1:
            query, key, value, decay, beta = (one.squeeze(1) for one in (query, key, value, decay, beta))
            output, after = delta_step(query, key, value, decay, beta, rows.read(state.state))
        else:
            output, after = delta_chunk(query, key, value, decay, beta, rows.read(state.state))
        state.state[rows.rows] = after
        return self.out_proj(self._norm(output.reshape(gate.shape), gate).flatten(-2))

    def project(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """What the convolution runs over [rows, tokens, channels], the output's gates [rows, tokens, value heads, value
        dim], b and a [rows, tokens, value heads]."""
        mixer = self.delta_net
        if not self.is_by_key_head:
            # The first of them works out the second, where both are one matrix.
            mixed, gate = self.in_proj_qkv(hidden), self.in_proj_z(hidden)
            gate = gate.unflatten(-1, (mixer.num_value_heads, mixer.value_dim))
            return mixed, gate, _multiply(self.in_proj_b, hidden), _multiply(self.in_proj_a, hidden)
        share = mixer.num_value_heads // mixer.num_key_heads
        values = share * mixer.value_dim
        by_head = self.in_proj_qkvz(hidden).unflatten(-1, (mixer.num_key_heads, -1))
        query, key, value, gate = by_head.split((mixer.key_dim, mixer.key_dim, values, values), -1)
        b, a = _multiply(self.in_proj_ba, hidden).unflatten(-1, (mixer.num_key_heads, -1)).split((share, share), -1)
        mixed = torch.cat([one.flatten(-2) for one in (query, key, value)], -1)
        gate = gate.reshape(*hidden.shape[:2], mixer.num_value_heads, mixer.value_dim)
        return mixed, gate, b.flatten(-2), a.flatten(-2)

    def _norm(self, output: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        """RMSNorm of each head's output, float32, then its gate; in the gate's dtype."""
        output = output.to(gate.dtype).float()
        normed = torch.rms_norm(output, output.shape[-1:], None, self.norm.variance_epsilon)
        weighted = self.norm.weight * normed.to(gate.dtype)
        return (weighted * silu(gate.float())).to(gate.dtype)


class Mamba2Layer(RecurrentLayer):
    """Mamba 2 (arXiv 2405.21060) as Bamba, Falcon-H1 and Granite have it, with the names of their weights."""

    def __init__(self, original: Any) -> None:
        mixer = Mamba2(
            num_groups=original.n_groups,
            num_heads=original.num_heads,
            state_dim=original.ssm_state_size,
            head_dim=original.head_dim,
            conv_width=original.conv_kernel_size,
        )
        super().__init__(mixer, original.layer_idx, original.conv1d)
        self.mamba = mixer
        for name, module in original.named_children():
            setattr(self, name, module)
        self.A_log, self.dt_bias, self.D = original.A_log, original.dt_bias, original.D
        self.activation = ACT2FN[original.activation]
        self.time_step_limit = original.time_step_limit or (0.0, math.inf)
        # Falcon-H1 scales the input and the parts of what comes of it, and may leave out the norm.
        self.in_multiplier = getattr(original, "ssm_in_multiplier", 1.0)
        self.has_norm = getattr(original, "mamba_rms_norm", True)
        self.register_buffer("mup_vector", getattr(original, "mup_vector", None), persistent=False)

    def forward(self, hidden_states: torch.Tensor, cache_params: Any, **_: Any) -> torch.Tensor:
        mixer, state = self.mamba, cache_params.state(self.layer_idx)
        rows, dtype = cache_params.state_rows_on(hidden_states.device), hidden_states.dtype
        projected = self.in_proj(hidden_states * self.in_multiplier)
        if self.mup_vector is not None:
            projected = projected * self.mup_vector.to(dtype)
        inner, written = mixer.num_heads * mixer.head_dim, mixer.num_groups * mixer.state_dim
        gate, mixed, step = projected.split((inner, mixer.channels, mixer.num_heads), -1)
        mixed = self.activation(self._convolve(mixed, state, rows)).float()
        inputs, key, query = mixed.split((inner, written, written), -1)
        inputs = inputs.unflatten(-1, (mixer.num_heads, mixer.head_dim))
        key, query = (one.unflatten(-1, (mixer.num_groups, mixer.state_dim)) for one in (key, query))
        step = softplus(step.float() + self.dt_bias.float()).clamp(*self.time_step_limit)
        decay, value = -self.A_log.float().exp() * step, inputs * step.unsqueeze(-1)
        if hidden_states.shape[1] == 1:
            query, key, value, decay = (one.squeeze(1) for one in (query, key, value, decay))
            output, after = delta_step(query, key, value, decay, None, rows.read(state.state))
        else:
            if rows.count is not None:
                # Tokens that are not there neither fade the state nor add to it.
                is_there = (torch.arange(value.shape[1], device=value.device) < rows.count).view(1, -1, 1)
                decay, value = decay * is_there, value * is_there.unsqueeze(-1)
            output, after = delta_chunk(query, key, value, decay, None, rows.read(state.state))
        state.state[rows.rows] = after
        output = output.view(inputs.shape) + inputs * self.D.float().unsqueeze(-1)
        output = output.flatten(-2).to(dtype)
        return self.out_proj((self.norm(output, gate) if self.has_norm else output * silu(gate)).to(dtype))


class ShortConvLayer(RecurrentLayer):
    """LFM2's convolution between two gates."""

    def __init__(self, original: Any) -> None:
        mixer = ShortConv(original.conv.weight.shape[0], original.conv_kernel_size)
        super().__init__(mixer, original.layer_idx, original.conv)
        for name, module in original.named_children():
            setattr(self, name, module)

    def forward(self, hidden_states: torch.Tensor, past_key_values: Any, **_: Any) -> torch.Tensor:
        state = past_key_values.state(self.layer_idx)
        rows = past_key_values.state_rows_on(hidden_states.device)
        gate_in, gate_out, inputs = self.in_proj(hidden_states).chunk(3, -1)
        return self.out_proj(gate_out * self._convolve(gate_in * inputs, state, rows))


def kept_dtype(name: str, dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """What the weight `name` of a model that computes in `dtype` on `device` is kept in."""
    owner, _, own = name.rpartition(".")
    is_small = device.type == "cpu" and dtype == torch.bfloat16 and owner.endswith(FLOAT_MATRICES_ON_CPU)
    return torch.float32 if own in FLOAT_WEIGHTS or is_small else dtype


def _multiply(matrix: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """x [..., in] -> [..., out], in the dtype of the matrix where it is plain."""
    output: torch.Tensor = matrix(x.to(matrix.weight.dtype) if isinstance(matrix, nn.Linear) else x)
    return output


def replace_recurrent_layers(model: PreTrainedModel) -> None:
    """Put our layers in the place of those of `model` that have a state."""
    for name, module in list(model.named_modules()):
        kind = type(module).__name__
        if kind.endswith("GatedDeltaNet"):
            model.set_submodule(name, GatedDeltaNetLayer(module))
        elif kind in MAMBA_LAYERS:
            model.set_submodule(name, Mamba2Layer(module))
        elif kind.endswith("ShortConv"):
            model.set_submodule(name, ShortConvLayer(module))
