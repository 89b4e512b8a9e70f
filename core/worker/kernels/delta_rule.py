"""The gated delta rule and the short convolution before it, by torch: on any device, in float32.

A value head's state S [key dim, value dim] fades by exp(decay) with each token. It is then corrected to give the
token's value for its key: S += key * beta * (value - keyᵀ S)ᵀ. The output is queryᵀ S (arXiv 2412.06464).

Without `beta` nothing is corrected: S += key * valueᵀ, as in Mamba 2 (arXiv 2405.21060).
"""

from __future__ import annotations

import torch
from torch.linalg import solve_triangular

from core.memory.layer_state import DELTA_TOKENS


def causal_conv(
    inputs: torch.Tensor,
    before: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    count: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Each channel's sum over a window that ends at each token, in float32; and the last inputs, for what follows.

    inputs [rows, tokens, channels]; before: the inputs before them [rows, channels, width - 1]; weight [channels,
    width] -> [rows, tokens, channels], [rows, channels, width - 1]. count [1]: how many of the tokens there are.
    """
    num_tokens, width = inputs.shape[1], weight.shape[1]
    longer = torch.cat((before.transpose(1, 2), inputs), 1)
    taps = weight.float()
    total = longer[:, :num_tokens].float() * taps[:, 0]
    for place in range(1, width):
        total.addcmul_(longer[:, place : place + num_tokens].float(), taps[:, place])
    last = longer[:, num_tokens:]
    if count is not None:
        last = longer.index_select(1, count + torch.arange(width - 1, device=count.device))
    return (total if bias is None else total + bias.float()), last.transpose(1, 2)


def unit_length(x: torch.Tensor) -> torch.Tensor:
    """Vectors [..., dim] brought to length 1, as the release's kernels do: the square's sum plus 1e-6."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6)


def delta_step(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    decay: torch.Tensor,
    beta: torch.Tensor | None,
    state: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One token of each row. query, key [rows, key heads, key dim]; value [rows, value heads, value dim]; decay (the
    logarithm), beta [rows, value heads]; state [rows, value heads, key dim, value dim], which is changed -> output as
    value, the state.
    """
    share = value.shape[1] // key.shape[1]
    query, key = (one.repeat_interleave(share, 1).unsqueeze(2) for one in (query, key))
    state.mul_(decay.exp()[..., None, None])
    correction = value.unsqueeze(2)
    if beta is not None:
        correction = (correction - key @ state) * beta[..., None, None]
    # The states of many chats are large, and so would be what is added to them.
    state.flatten(0, 1).baddbmm_(key.transpose(2, 3).flatten(0, 1), correction.flatten(0, 1))
    return (query @ state).squeeze(2), state


def delta_chunk(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    decay: torch.Tensor,
    beta: torch.Tensor | None,
    state: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Many tokens of each row. query, key [rows, tokens, key heads, key dim]; value [rows, tokens, value heads, value
    dim]; decay (the logarithm), beta [rows, tokens, value heads]; state as in `delta_step` -> output as value, new
    state.

    Blocks of DELTA_TOKENS follow one another; a block is products of matrices.
    """
    num_rows, num_tokens, key_heads, _ = key.shape
    share = value.shape[2] // key_heads
    query, key = (one.transpose(1, 2).unsqueeze(2) for one in (query, key))
    value = value.transpose(1, 2).unflatten(1, (key_heads, share))
    decay = decay.transpose(1, 2).unflatten(1, (key_heads, share))
    beta = None if beta is None else beta.transpose(1, 2).unflatten(1, (key_heads, share))
    state, outputs = state.unflatten(1, (key_heads, share)), []
    for begin in range(0, num_tokens, DELTA_TOKENS):
        block = slice(begin, begin + DELTA_TOKENS)
        rate = None if beta is None else beta[..., block]
        output, state = _delta_block(
            query[..., block, :], key[..., block, :], value[..., block, :], decay[..., block], rate, state
        )
        outputs.append(output)
    return torch.cat(outputs, 3).flatten(1, 2).transpose(1, 2), state.flatten(1, 2)


def _delta_block(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    decay: torch.Tensor,
    beta: torch.Tensor | None,
    state: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """A block of tokens, all tensors [rows, key heads, value heads of each, tokens, ...].

    Each token's correction depends on those before it: a triangular system of equations has them all at once (the WY
    representation of arXiv 2406.06484, with the decay between two tokens as a factor).
    """
    total = decay.cumsum(-1)
    causal = torch.ones(total.shape[-1:] * 2, dtype=torch.bool, device=total.device).tril()
    # What is left at one token of what another wrote; the mask comes first, for exp() of later ones may overflow.
    between = (total.unsqueeze(-1) - total.unsqueeze(-2)).masked_fill(~causal, -torch.inf).exp()
    since_begin = total.exp().unsqueeze(-1)
    corrections = value
    if beta is not None:
        unknown = value - since_begin * (key @ state)
        factors = beta.unsqueeze(-1) * (key @ key.transpose(-1, -2)) * between
        corrections = solve_triangular(factors, beta.unsqueeze(-1) * unknown, upper=False, unitriangular=True)
    output = since_begin * (query @ state) + ((query @ key.transpose(-1, -2)) * between) @ corrections
    until_end = (total[..., -1:] - total).exp().unsqueeze(-1)
    return output, state * since_begin[..., -1:, :] + (key * until_end).transpose(-1, -2) @ corrections
