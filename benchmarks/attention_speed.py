"""How fast attention reads the KV cache on the first GPU: by slot, in pages in no order, and in pages of 8 bit.

`python -m benchmarks.attention_speed` takes a new token of one chat after 512 to 128k columns, and a chunk of a prompt
of a layer of Llama-3.1 8B, and prints a Markdown table, each row as soon as it is known. Layers follow each other until
no cache holds what they read.
"""

from __future__ import annotations

import argparse

import torch

from benchmarks.copy_speed import gpu_speed
from benchmarks.expert_speed import time_of
from benchmarks.figures import Figures, add_results
from benchmarks.mixer_speed import layers_of
from core.memory.pages import PAGE_TOKENS, pages_of
from core.worker.kernels.cache_attention import attend_prefill
from core.worker.kernels.decode_attention import DecodeKernels
from core.worker.kernels.kv_pages import KvPages
from core.worker.model.integer_kv import quantize
from core.worker.plan_load import use_capturable_stream

KINDS = ("by slot", "pages", "pages, 8 bit")
LENGTHS, CHUNK_TOKENS = (512, 4096, 32768, 131072), 512
NO_WINDOW = 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--heads", type=int, nargs=2, default=(32, 8), help="query heads and KV heads")
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--lengths", type=int, nargs="*", default=LENGTHS)
    parser.add_argument("--chats", type=int, default=1)
    add_results(parser)
    options = parser.parse_args()
    figures = Figures("Attention of one layer of Llama-3.1-8B", options.results)
    device, copied = torch.device("cuda", 0), gpu_speed()
    use_capturable_stream(device)
    print(f"heads {options.heads} of {options.dim}, {options.chats} chats; {copied / 1e12:.2f} TB/s\n")
    print("| columns | cache | a token µs | GB/s | a chunk of 512 µs |\n|---:|---|---:|---:|---:|", flush=True)
    with torch.inference_mode():
        for length in options.lengths:
            for kind in KINDS:
                bench = Bench(kind, tuple(options.heads), options.dim, options.chats, length, device)
                token_s, chunk_s = bench.token_s(), bench.chunk_s()
                speed = bench.num_bytes / token_s / 1e9
                row = f"{length} columns, {kind}"
                for column, value in (
                    ("a token µs", token_s * 1e6),
                    ("GB/s", speed),
                    ("a chunk of 512 µs", chunk_s * 1e6),
                ):
                    figures.add(row, column, value)
                print(f"| {length} | {kind} | {token_s * 1e6:.1f} | {speed:.0f} | {chunk_s * 1e6:.0f} |", flush=True)


class Bench:
    """One kind of cache with some layers, whose slots are full but for the new token."""

    def __init__(
        self, kind: str, heads: tuple[int, int], dim: int, num_slots: int, length: int, device: torch.device
    ) -> None:
        self._heads, self._dim, self._slots, self._length, self._device = heads, dim, num_slots, length, device
        bits = 8 if kind == "pages, 8 bit" else 16
        self.num_bytes = 2 * num_slots * heads[1] * length * (dim * bits // 8 + (2 if bits == 8 else 0))
        make = self._by_slot if kind == "by slot" else self._paged
        self._layers = [make(bits) for _ in range(layers_of(self.num_bytes))]
        self._kernels = DecodeKernels(torch.float16, heads, dim, num_slots, device, bits=bits)

    def token_s(self) -> float:
        """A new token of every slot, in the last column."""
        heads = self._heads[0] + 2 * self._heads[1]
        qkv, slots = self._random(self._slots, heads * self._dim), torch.arange(self._slots, device=self._device)
        angles = self._random(self._slots, 1, self._dim), self._random(self._slots, 1, self._dim)
        columns = torch.full((self._slots, 1), self._length - 1, device=self._device)

        def run() -> None:
            for layer in self._layers:
                self._kernels.attend(qkv, angles, layer, slots, columns, self._dim**-0.5, NO_WINDOW)

        return time_of(run) / len(self._layers)

    def chunk_s(self) -> float:
        """The last chunk of the first slot."""
        query = self._random(1, CHUNK_TOKENS, self._heads[0], self._dim).transpose(1, 2)
        chunks = torch.tensor([[0, self._length - CHUNK_TOKENS, CHUNK_TOKENS, 0]], device=self._device)

        def run() -> None:
            for layer in self._layers:
                attend_prefill(query, layer, chunks, self._dim**-0.5, NO_WINDOW)

        return time_of(run) / len(self._layers)

    def _paged(self, bits: int) -> KvPages:
        each = pages_of(self._length)
        shape = (self._slots * each + 1, self._heads[1], PAGE_TOKENS, self._dim)
        order = torch.randperm(self._slots * each, device=self._device).view(self._slots, each)
        table = torch.cat((order, order[:1])).int()
        keys, values = self._random(*shape), self._random(*shape)
        if bits == 16:
            return KvPages(keys, values, table, self._length)
        (keys, key_scales), (values, value_scales) = quantize(keys), quantize(values)
        return KvPages(keys, values, table, self._length, key_scales.squeeze(-1), value_scales.squeeze(-1))

    def _by_slot(self, bits: int) -> KvPages:
        """Keys and values [slots, kv heads, columns, dim], as pages whose heads lie a slot's columns apart."""
        each, num_heads = pages_of(self._length), self._heads[1]
        shape = (self._slots, num_heads, each * PAGE_TOKENS, self._dim)
        first = torch.arange(self._slots + 1, device=self._device) % self._slots * num_heads * each
        table = (first[:, None] + torch.arange(each, device=self._device)).int()
        page = PAGE_TOKENS * self._dim

        def view(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.as_strided((1, num_heads, PAGE_TOKENS, self._dim), (page, each * page, self._dim, 1))

        keys, values = self._random(*shape), self._random(*shape)
        return KvPages(view(keys), view(values), table, self._length)

    def _random(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, device=self._device, dtype=torch.float16)


if __name__ == "__main__":
    main()
