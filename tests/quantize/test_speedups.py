"""What replaces loops of gptqmodel gives what they give, to the bit."""

from __future__ import annotations

import pytest
import torch
from gptqmodel.nn_modules.qlinear import pack_block_ext
from gptqmodel.nn_modules.qlinear.torch import TorchLinear

from core.quantize.child import speedups

INPUTS, OUTPUTS = 1056, 96


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("order", ["in order", "act-order"])
def test_matrices_are_packed_as_gptqmodel_packs_them(bits: int, order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also codes beyond the highest, which rounding to half precision makes, and zero points of any size."""
    torch.manual_seed(bits)
    highest, num_groups = (1 << bits) - 1, INPUTS // 32
    groups = torch.arange(INPUTS, dtype=torch.int32) // 32
    if order == "act-order":
        groups = groups[torch.randperm(INPUTS)]
    scales = torch.rand(OUTPUTS, num_groups) * 0.01 + 1e-3
    zeros = torch.randint(0, highest + 1, (OUTPUTS, num_groups)).float()
    codes = torch.randint(-1, highest + 2, (OUTPUTS, INPUTS))
    linear = torch.nn.Linear(INPUTS, OUTPUTS, bias=False)
    own = groups.long()
    linear.weight.data = ((codes - zeros[:, own]) * scales[:, own]).half()
    found = []
    for is_ours in (False, True):
        monkeypatch.setenv("GPTQMODEL_DISABLE_PACK_EXT", str(int(not is_ours)))
        monkeypatch.setenv("GPTQMODEL_FORCE_PACK_EXT", str(int(is_ours)))
        monkeypatch.setattr(pack_block_ext, "pack_block_cpu", speedups.pack)
        module = TorchLinear(bits=bits, group_size=32, sym=False, desc_act=True, in_features=INPUTS,
                             out_features=OUTPUTS, bias=False, register_buffers=True)  # fmt: skip
        module.pack_block(linear=linear, scales=scales, zeros=zeros, g_idx=groups)
        found.append((module.qweight, module.qzeros, module.scales))
    for plain, ours in zip(*found, strict=True):
        assert ours.dtype == plain.dtype and torch.equal(ours, plain)
