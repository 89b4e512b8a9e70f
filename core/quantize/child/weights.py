"""A checkpoint's tensors one at a time, in floating point: quantized matrices are dequantized as they are asked for."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import safe_open

from core.checkpoint.checkpoint import FolderFiles
from core.checkpoint.experts import count_experts
from core.checkpoint.headers import read_json
from core.checkpoint.tensor_names import name_tensors
from core.checkpoint.weight_files import find_weights
from core.common.errors import CheckpointError
from core.quantize.source import is_turned

WORD_BITS = 32
# A one in each field of a word, by bits.
ONES = {4: 0x11111111, 8: 0x01010101}
PARTS = (".qweight", ".qzeros", ".scales", ".g_idx")
# What classes keep as one matrix, and what files may have in its place, one below the other.
FUSED = {
    "gate_up_proj": ("gate_proj", "up_proj"),
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
}


class LazyWeights(Mapping[str, torch.Tensor]):
    """The tensors of the checkpoint in `folder` by the names of transformers' class, read from disk at each look.

    A GPTQ matrix is there as NAME.weight in `dtype`, [out, in] or as the family has it. So is what the class has as one
    and the files do not: gate and up, and all experts of a layer as [experts, out, in], those of `turned_experts` as
    [experts, in, out]. `tied` names tensors that stand for others where files leave them out, as the head of a tied
    model. Raises CheckpointError for what is no number.
    """

    def __init__(
        self,
        folder: Path,
        dtype: torch.dtype,
        tied: Mapping[str, str] | None = None,
        device: str = "cpu",
        turned_experts: Collection[str] = (),
    ) -> None:
        self._folder, self._dtype, self._device = folder, dtype, device
        config = read_json(folder / "config.json") or {}
        weights = find_weights(FolderFiles(folder), lambda: "", lambda *_: True)
        self._tensors = name_tensors(config, weights.tensors)
        settings = config.get("quantization_config") or {}
        self._bits = settings.get("bits", 4)
        self._is_turned = is_turned(config)
        self._files = {file: safe_open(folder / file, "pt") for file in weights.files}
        self._quantized = {name.removesuffix(".qweight") for name in self._tensors if name.endswith(".qweight")}
        self._experts = count_experts(self._tensors)
        self._tied = tied or {}
        self._turned_experts = frozenset(turned_experts)

    def __getitem__(self, name: str) -> torch.Tensor:
        value = self._find(name)
        if value is None and name in self._tied:
            value = self._find(self._tied[name])
        if value is None:
            raise KeyError(name)
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise CheckpointError("quantize_nan", name=name, model=self._folder.name)
        return value.to(self._dtype) if value.is_floating_point() else value

    def __iter__(self) -> Iterator[str]:
        """The names of what the files hold, each matrix by itself."""
        packed = {name + part for name in self._quantized for part in PARTS}
        yield from (name for name in self._tensors if name not in packed)
        yield from (f"{name}.weight" for name in self._quantized)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _find(self, name: str) -> torch.Tensor | None:
        if name in self._tensors:
            return self._read(name)
        module, kind = _parted(name)
        if kind == "weight" and module in self._quantized:
            return self._dequantized(module)
        owner, _, own = module.rpartition(".")
        if owner in self._experts:
            found = [self._find(f"{owner}.{number}.{own}.{kind}") for number in range(self._experts[owner])]
            stacked = self._together(found, torch.stack)
            if stacked is not None and kind == "weight" and owner in self._turned_experts:
                return stacked.transpose(1, 2)
            return stacked
        parts = [self._find(f"{owner}.{part}.{kind}") for part in FUSED.get(own, ())]
        return self._together(parts, torch.cat)

    def _together(self, parts: list[torch.Tensor | None], join: object) -> torch.Tensor | None:
        """Many experts in float32 would take twice the memory of the layer."""
        whole = [part.to(self._dtype) for part in parts if part is not None]
        if not whole or len(whole) < len(parts):
            return None
        assert callable(join)
        joined: torch.Tensor = join(whole)
        return joined

    def _read(self, name: str) -> torch.Tensor:
        tensor = self._tensors[name]
        value: torch.Tensor = self._files[tensor.file].get_tensor(tensor.stored_name or name)
        # A GPU dequantizes a layer in a moment.
        return value.to(self._device)

    def _dequantized(self, name: str) -> torch.Tensor:
        scales = self._read(f"{name}.scales").float()
        groups = self._read(f"{name}.g_idx").long()
        codes = unpack(self._read(f"{name}.qweight"), self._bits)
        # Version 1 of the format takes one off each zero point; gptqmodel takes it off whole words, with the borrow.
        words = self._read(f"{name}.qzeros") + ONES[self._bits]
        # The last word of a row may have fewer outputs than it has places for.
        zeros = unpack(words.T.contiguous(), self._bits).T[:, : scales.shape[1]]
        weight = (codes - zeros[groups]).float() * scales[groups]
        return weight if self._is_turned else weight.T.contiguous()


def _parted(name: str) -> tuple[str, str]:
    """A matrix's name and which of its tensors `name` is. Classes call those of all experts "….down_proj" and
    "….down_proj_bias"."""
    for ending in (".weight", ".bias", "_bias"):
        if name.endswith(ending):
            return name.removesuffix(ending), ending[1:]
    return name, "weight"


def unpack(words: torch.Tensor, bits: int) -> torch.Tensor:
    """int32 words [rows, columns] as their codes [rows * 32 / bits, columns], the lowest bits first; 4 or 8 bit."""
    shifts = torch.arange(0, WORD_BITS, bits, dtype=torch.int32, device=words.device)
    codes = (words[:, None, :] >> shifts[None, :, None]) & ((1 << bits) - 1)
    return codes.reshape(-1, words.shape[1])
