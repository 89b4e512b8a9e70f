"""Families whose classes write out their attention, brought to the attention that all others call.

transformers' code of GPT-J, CodeGen, Falcon, BLOOM and MPT multiplies out all scores in memory; Falcon's also keeps
shared heads once for every query, and BLOOM's and MPT's cannot tell rows of different lengths. What is before and after
the attention stays theirs.
"""

from __future__ import annotations

import math
from types import MethodType
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.bloom import modeling_bloom as bloom
from transformers.models.codegen import modeling_codegen as codegen
from transformers.models.falcon import modeling_falcon as falcon
from transformers.models.gptj import modeling_gptj as gptj
from transformers.models.mpt import modeling_mpt as mpt

from core.worker.model import attention

# Their classes look their attention up in tables of their own, which know this one.
BUILT_AS = "eager"
FAMILIES = frozenset(("bloom", "codegen", "falcon", "gptj", "mpt"))


def replace_own_attention(model: PreTrainedModel) -> None:
    """Let the attention of `model` go through core/worker/model/attention.py, where its family has one of its own."""
    if model.config.model_type not in FAMILIES:
        return
    for module in model.modules():
        match module:
            case gptj.GPTJAttention() | codegen.CodeGenAttention():
                _bind(model, module, "_attn", _attend_heads)
            case falcon.FalconAttention():
                _bind(model, module, "forward", _attend_falcon)
                module.slopes = _falcon_slopes(module)
            case falcon.FalconModel():
                # Its bias for distance is added in the attention, row by row.
                module.use_alibi = False
            case bloom.BloomAttention():
                _bind(model, module, "forward", _attend_bloom)
                module.slopes = bloom._get_alibi_slopes(module.num_heads, torch.device("cpu"))
            case bloom.BloomModel():
                _bind(model, module, "forward", _run_bloom)
            case mpt.MptAttention():
                _bind(model, module, "forward", _attend_mpt)
                # Of two columns the first lies one before the last.
                module.slopes = -mpt.build_mpt_alibi_tensor(module.n_heads, 2)[:, 0, 0]
            case mpt.MptModel():
                _bind(model, module, "forward", _run_mpt)
    model.config._attn_implementation = attention.register()


def _bind(model: PreTrainedModel, module: Any, name: str, function: Any) -> None:
    # Not every class has it, and it tells which attention the model uses now.
    module.config = model.config
    setattr(module, name, MethodType(function, module))


def _attend(module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **more: Any) -> torch.Tensor:
    """[rows, heads, tokens, size] -> [rows, tokens, heads, size], by the attention that the model uses now."""
    function = ALL_ATTENTION_FUNCTIONS[module.config._attn_implementation]
    output: torch.Tensor = function(module, query.to(value.dtype), key, value, **more)[0]
    return output


def _with_heads_joined(output: torch.Tensor) -> torch.Tensor:
    return output.reshape(*output.shape[:2], -1)


def _attend_heads(
    self: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: torch.Tensor | None = None
) -> tuple[torch.Tensor, None]:
    """In place of GPT-J's and CodeGen's `_attn`."""
    return _attend(self, query, key, value, mask=attention_mask).transpose(1, 2), None


def _attend_falcon(
    self: Any,
    hidden_states: torch.Tensor,
    alibi: None,
    attention_mask: torch.Tensor | None,
    position_ids: torch.Tensor | None = None,
    layer_past: Any = None,
    position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """In place of Falcon's `forward`: keys and values stay as few as they are."""
    fused = self.query_key_value(hidden_states)
    rows, tokens, size = fused.shape[0], fused.shape[1], self.head_dim
    if self.new_decoder_architecture or not self.multi_query:
        # By key head: its queries, the key, the value.
        heads = fused.view(rows, tokens, self.num_kv_heads, -1, size)
        query, key, value = heads[:, :, :, :-2].flatten(2, 3), heads[:, :, :, -2], heads[:, :, :, -1]
    else:
        heads = fused.view(rows, tokens, self.num_heads + 2, size)
        query, key, value = heads[:, :, :-2], heads[:, :, -2:-1], heads[:, :, -1:]
    query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
    more: dict[str, Any] = {}
    if self.slopes is not None:
        more = {"slopes": self.slopes, "positions": layer_past.columns_on(key.device)}
    elif position_embeddings is not None:
        query, key = falcon.apply_rotary_pos_emb(query, key, *position_embeddings)
    key, value = layer_past.update(key, value, self.layer_idx)
    return self.dense(_with_heads_joined(_attend(self, query, key, value, mask=attention_mask, **more))), None


def _falcon_slopes(module: Any) -> torch.Tensor | None:
    """What Falcon adds to a score for each token of distance, which it divides by the root of the size as the score."""
    if not module.config.alibi:
        return None
    alibi = falcon.build_alibi_tensor(torch.ones((1, 2), dtype=torch.long), module.num_heads, torch.float32)
    return alibi[:, 0, 1] / math.sqrt(module.head_dim)


def _attend_bloom(
    self: Any,
    hidden_states: torch.Tensor,
    residual: torch.Tensor,
    alibi: None,
    attention_mask: torch.Tensor | None,
    layer_past: Any = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """In place of BLOOM's `forward`."""
    query, key, value = self._reshape(self.query_key_value(hidden_states))
    positions = layer_past.columns_on(key.device)
    key, value = layer_past.update(key, value, self.layer_idx)
    output = _attend(self, query, key, value, mask=attention_mask, slopes=self.slopes, positions=positions)
    return self.dense(_with_heads_joined(output)) + residual, None


def _run_bloom(
    self: Any, input_ids: torch.Tensor, past_key_values: Any, attention_mask: torch.Tensor | None, **_: Any
) -> BaseModelOutputWithPastAndCrossAttentions:
    """In place of the `forward` of BLOOM's model, which makes a bias that all rows share."""
    hidden = self.word_embeddings_layernorm(self.word_embeddings(input_ids))
    for block in self.h:
        hidden = block(hidden, layer_past=past_key_values, attention_mask=attention_mask, alibi=None)[0]
    return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=self.ln_f(hidden))


def _attend_mpt(
    self: Any,
    hidden_states: torch.Tensor,
    position_bias: None,
    past_key_values: Any = None,
    attention_mask: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """In place of MPT's `forward`."""
    fused = self.Wqkv(hidden_states)
    if self.clip_qkv:
        fused = fused.clamp(min=-self.clip_qkv, max=self.clip_qkv)
    shape = (*fused.shape[:2], self.n_heads, self.head_dim)
    query, key, value = (one.reshape(shape).transpose(1, 2) for one in fused.chunk(3, dim=2))
    positions = past_key_values.columns_on(key.device)
    key, value = past_key_values.update(key, value, self.layer_idx)
    more = {"scaling": self.softmax_scale, "slopes": self.slopes, "positions": positions}
    return self.out_proj(_with_heads_joined(_attend(self, query, key, value, mask=attention_mask, **more))), None


def _run_mpt(
    self: Any, input_ids: torch.Tensor, past_key_values: Any, attention_mask: torch.Tensor | None, **_: Any
) -> BaseModelOutputWithPastAndCrossAttentions:
    """In place of the `forward` of MPT's model, which makes a mask and a bias that all rows share."""
    hidden = self.wte(input_ids)
    for block in self.blocks:
        hidden = block(hidden, layer_past=past_key_values, attention_mask=attention_mask, position_bias=None)[0]
    return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=self.norm_f(hidden))
