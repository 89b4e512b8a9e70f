"""A checkpoint's tensors one at a time, in floating point: quantized matrices are dequantized as they are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import safe_open

from core.checkpoint.checkpoint import FolderFiles
from core.checkpoint.headers import read_json
from core.checkpoint.tensor_names import name_tensors
from core.checkpoint.weight_files import find_weights
from core.common.errors import CheckpointError

WORD_BITS = 32


class LazyWeights(Mapping[str, torch.Tensor]):
    """The tensors of the checkpoint in `folder` by the names of transformers' class, read from disk at each look.

    A GPTQ matrix is there as NAME.weight, [out, in], in `dtype`. `tied` names tensors that stand for others where the
    files leave them out, as the head of a tied model. Raises CheckpointError for what is no number.
    """

    def __init__(self, folder: Path, dtype: torch.dtype, tied: Mapping[str, str] | None = None) -> None:
        self._folder, self._dtype = folder, dtype
        config = read_json(folder / "config.json") or {}
        weights = find_weights(FolderFiles(folder), lambda: "", lambda *_: True)
        self._tensors = name_tensors(config, weights.tensors)
        settings = config.get("quantization_config") or {}
        self._bits = settings.get("bits", 4)
        self._files = {file: safe_open(folder / file, "pt") for file in weights.files}
        quantized = [name.removesuffix(".qweight") for name in self._tensors if name.endswith(".qweight")]
        parts = (".qweight", ".qzeros", ".scales", ".g_idx")
        packed = {name + part for name in quantized for part in parts}
        plain = (name for name in self._tensors if name not in packed)
        self._names = {name: name for name in [*plain, *(f"{name}.weight" for name in quantized)]}
        self._names |= {name: other for name, other in (tied or {}).items() if name not in self._names}

    def __getitem__(self, name: str) -> torch.Tensor:
        name = self._names[name]
        module = name.removesuffix(".weight")
        value = self._read(name) if name in self._tensors else self._dequantized(module)
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise CheckpointError("quantize_nan", name=name, model=self._folder.name)
        return value.to(self._dtype) if value.is_floating_point() else value

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def _read(self, name: str) -> torch.Tensor:
        tensor = self._tensors[name]
        value: torch.Tensor = self._files[tensor.file].get_tensor(tensor.stored_name or name)
        return value

    def _dequantized(self, name: str) -> torch.Tensor:
        scales = self._read(f"{name}.scales").float()
        groups = self._read(f"{name}.g_idx").long()
        codes = unpack(self._read(f"{name}.qweight"), self._bits)
        # Version 1 of the format stores each zero point less one.
        zeros = (unpack(self._read(f"{name}.qzeros").T.contiguous(), self._bits).T + 1) & ((1 << self._bits) - 1)
        return ((codes - zeros[groups]).float() * scales[groups]).T.contiguous()


def unpack(words: torch.Tensor, bits: int) -> torch.Tensor:
    """int32 words [rows, columns] as their codes [rows * 32 / bits, columns], the lowest bits first; 4 or 8 bit."""
    shifts = torch.arange(0, WORD_BITS, bits, dtype=torch.int32)
    codes = (words[:, None, :] >> shifts[None, :, None]) & ((1 << bits) - 1)
    return codes.reshape(-1, words.shape[1])
