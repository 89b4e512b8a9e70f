"""The order of codes that the engine's own kernels read, and what they are launched with."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from core.memory.fit import MAX_CHATS
from core.worker.kernels.decode_attention import (
    ATTEND_WARPS,
    HEAD_DIMS,
    MANY_ATTEND_WARPS,
    MAX_QUERIES,
    SPLITS,
    choose_attend_warps,
    choose_blocks,
    choose_pipeline_stages,
    plan_blocks,
)
from core.worker.kernels.decode_attention import shared_bytes as attention_bytes
from core.worker.kernels.nvrtc import compiled, read_source
from core.worker.kernels.packed_small_batch import MAX_SMALL_BATCH, empty_group_sums
from core.worker.kernels.packed_variants import (
    EPILOGUES,
    SHARED_BYTES_16,
    SINGLE_ROW_VARIANTS,
    VARIANTS,
    bytes_per_input,
    choose_variants,
    choose_warps,
    has_many_tiles,
    shared_bytes,
)
from core.worker.kernels.packing import (
    K_BLOCK,
    TILE,
    CodeFormat,
    find_permutation,
    invert_permutation,
    pack_codes,
    tile_scales,
    unpack,
)
from core.worker.kernels.shared_memory import SharedMemory
from core.worker.model.kernel_check import to_words
from tests.support.checkpoints import pack

INPUTS, OUTPUTS = 192, 48
BITS = (4, 8)
# What every card of compute capability 8.6 lets a block of threads have.
SHARED_BYTES_86 = 99 * 1024
SHARED_BYTES_90 = 227 * 1024
ROOM_86, ROOM_90 = SharedMemory(SHARED_BYTES_86, 100 * 1024), SharedMemory(SHARED_BYTES_90, 228 * 1024)


def codes_of(bits: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(0)
    return torch.randint(0, 2**bits, (INPUTS, OUTPUTS), generator=random, dtype=torch.uint8)


@pytest.mark.parametrize("bits", BITS)
def test_codes_come_out_of_words_as_they_went_in(bits: int) -> None:
    codes = codes_of(bits)
    words = to_words(codes.long(), bits)
    assert torch.equal(words, torch.from_numpy(pack(codes.long().numpy(), bits)))
    assert torch.equal(unpack(words, 0, bits), codes)
    assert torch.equal(unpack(words.t().contiguous(), 1, bits), codes.t())


def test_each_lane_finds_the_codes_of_its_products() -> None:
    """As m16n8k16 wants its first matrix: in register 0 outputs g, in 1 outputs g + 8, then both for later inputs; an
    input pair in each. The inputs of one lane lie beside each other, eight of each 32."""
    codes = codes_of(4)
    packed = pack_codes(codes, 4)
    assert packed.shape == (OUTPUTS // TILE, INPUTS // K_BLOCK, 1, 32, 4)
    for tile, block, piece, lane, word in [
        tuple(random.Random(seed).randrange(size) for size in packed.shape) for seed in range(200)
    ]:
        value = int(packed[tile, block, piece, lane, word]) & 0xFFFFFFFF
        first = block * K_BLOCK + word // 2 * 32 + lane % 4 * 8 + word % 2 * 4
        for register in range(4):
            pair = [value >> shift + 4 * register & 15 for shift in (0, 16)]
            output = tile * TILE + lane // 4 + register % 2 * 8
            begin = first + register // 2 * 2
            assert pair == codes[begin : begin + 2, output].tolist()


def test_each_lane_finds_its_codes_of_8_bit() -> None:
    """Two words are the four registers, and a piece of 512 bytes has 32 inputs."""
    codes = codes_of(8)
    packed = pack_codes(codes, 8)
    assert packed.shape == (OUTPUTS // TILE, INPUTS // K_BLOCK, 2, 32, 4)
    for tile, block, piece, lane, word in [
        tuple(random.Random(seed).randrange(size) for size in packed.shape) for seed in range(200)
    ]:
        value = int(packed[tile, block, piece, lane, word]) & 0xFFFFFFFF
        begin, output = block * K_BLOCK + piece * 32 + lane % 4 * 8 + word * 2, tile * TILE + lane // 4
        for side in (0, 1):
            pair = [value >> shift + 8 * side & 255 for shift in (0, 16)]
            assert pair == codes[begin : begin + 2, output + side * 8].tolist()


def test_scales_of_outputs_that_one_lane_has_lie_beside_each_other() -> None:
    scales = torch.arange(2 * OUTPUTS).view(2, OUTPUTS).half()
    tiled = tile_scales(scales, torch.float16)
    assert tiled.shape == (OUTPUTS // TILE, 2, 8, 2)
    assert tiled[1, 1, 3].tolist() == [OUTPUTS + TILE + 3, OUTPUTS + TILE + 11]


def test_inputs_are_sorted_by_group_and_the_order_inverted() -> None:
    groups = torch.tensor([1, 0, 2, 1, 0, 2], dtype=torch.int32)
    order = find_permutation(groups)
    assert order is not None and groups[order.long()].tolist() == [0, 0, 1, 1, 2, 2]
    x, put = torch.arange(6), torch.zeros(6, dtype=torch.long)
    put[invert_permutation(order).long()] = x
    assert torch.equal(put, x[order.long()])
    assert find_permutation(torch.tensor([0, 0, 1, 1])) is None and find_permutation(None) is None


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("group_size", [-1, 32, 64, 128])
@pytest.mark.parametrize("has_zeros", [False, True])
def test_what_a_block_wants_of_shared_memory_is_there(bits: int, group_size: int, has_zeros: bool) -> None:
    """Small cards have room for a variant for each number of rows; those of 9.0 for all."""
    format = CodeFormat(bits, group_size, has_zeros)
    room = {name: shared_bytes(variant, 8, format) for name, variant in VARIANTS.items()}
    for rows in (1, 9, 17):
        for epilogue in EPILOGUES:
            assert any(room[name] <= SHARED_BYTES_86 for name in choose_variants(rows, True, epilogue))
    assert all(room[name] <= SHARED_BYTES_86 for name in SINGLE_ROW_VARIANTS)
    assert max(room.values()) <= SHARED_BYTES_90
    assert all(shared_bytes(VARIANTS[name], 16, format) <= SHARED_BYTES_16 for name in SINGLE_ROW_VARIANTS)


def test_the_sums_that_a_variant_reads_have_room() -> None:
    """A kernel for 32 rows reads the sums of 32, however few there are; the next rows of many come 32 further on."""
    assert MAX_CHATS <= MAX_SMALL_BATCH
    for rows in range(2, MAX_SMALL_BATCH + 1):
        room = empty_group_sums(torch.empty(rows, 256), 64).shape[1]
        for begin in range(0, rows, 32):
            names = choose_variants(min(32, rows - begin), True, "none")
            assert begin + 8 * max(VARIANTS[name].row_tiles for name in names) <= room
    for bits, expected in ((4, [64, 32, 64, 128]), (8, [64, 32, 64, 64])):
        assert [CodeFormat(bits, size, False).inputs_per_group for size in (-1, 32, 64, 128)] == expected


def test_every_number_of_rows_has_a_variant_that_takes_it() -> None:
    for rows in range(1, 33):
        for epilogue in EPILOGUES:
            for is_wide in (True, False):
                for variant in map(VARIANTS.__getitem__, choose_variants(rows, is_wide, epilogue)):
                    assert variant.row_tiles * 8 >= rows and not variant.normed
                    assert epilogue != "swiglu" or variant.tiles % 2 == 0


@pytest.mark.parametrize(
    ("outputs", "inputs", "one", "more"),
    [
        pytest.param(4096, 11008, (16, "narrow"), "deep", id="down of 7B"),
        pytest.param(12288, 4096, (8, "wide"), "wide", id="query, key and value of 7B"),
        pytest.param(6144, 4096, (16, "wide"), "deep", id="query, key and value of Llama-3 8B"),
        pytest.param(5120, 5120, (16, "wide"), "deep", id="out of 13B"),
        pytest.param(8192, 28672, (16, "wide"), "deep", id="down of 70B"),
        pytest.param(10240, 8192, (16, "wide"), "wide", id="query, key and value of 70B"),
    ],
)
def test_two_tiles_share_their_inputs_where_that_was_fastest(
    outputs: int, inputs: int, one: tuple[int, str], more: str
) -> None:
    """One row of 13B went through two rounds of single tiles of which the second was a fifth full: 381 tokens a second
    where two tiles at once make 417."""
    tiles = outputs // TILE
    names = {rows: choose_variants(rows, has_many_tiles(tiles, rows, 132), "none") for rows in (1, 2, 8)}
    assert (choose_warps(tiles, inputs, 1, 132), *names[1]) == one
    assert names[2] == names[8] == (more,)
    assert choose_warps(tiles, inputs, 2, 132) == 8


@pytest.mark.parametrize(
    ("outputs", "epilogue", "wanted"),
    [
        pytest.param(4096, "residual", "rows32", id="too few for more tiles at once"),
        pytest.param(12288, "none", "rows32_3", id="two turns rather than three"),
        pytest.param(57344, "swiglu", "rows32_4", id="enough for all"),
    ],
)
def test_as_many_tiles_share_the_rows_as_leave_work_for_all(outputs: int, epilogue: str, wanted: str) -> None:
    names = choose_variants(32, True, epilogue)
    assert min(names, key=lambda name: bytes_per_input(VARIANTS[name], outputs // TILE, 132, 4)) == wanted


@pytest.mark.parametrize(
    ("group", "dim", "on_large", "on_small"),
    [
        (1, 128, 1, 1),
        (8, 128, 8, 8),
        (7, 128, 7, 7),
        (3, 64, 3, 3),
        (71, 64, 1, 1),
        (12, 128, 6, 6),
        (6, 256, 6, 2),
        (8, 256, 8, 2),
        (3, 256, 3, 1),
    ],
)
def test_queries_of_one_key_are_shared_out_evenly(group: int, dim: int, on_large: int, on_small: int) -> None:
    """An H200's block has shared memory for all queries of a large head, an RTX 4090's has not."""
    assert plan_blocks(group, dim, SPLITS, ROOM_90)[0] == on_large
    assert plan_blocks(group, dim, SPLITS, ROOM_86)[0] == on_small


@pytest.mark.parametrize("dim", HEAD_DIMS)
@pytest.mark.parametrize("blocks", SPLITS)
@pytest.mark.parametrize("bits", [16, 8])
def test_what_attention_wants_of_shared_memory_is_there(dim: int, blocks: int, bits: int) -> None:
    """Columns are on their way once at least, of 8 bit twice. Where two blocks have room on a multiprocessor, both
    do."""
    fewest = 16 // bits
    for room in (ROOM_86, ROOM_90):
        for group in range(1, MAX_QUERIES + 1):
            queries, ((_, stages),) = plan_blocks(group, dim, (blocks,), room, bits)
            bytes_of = [attention_bytes(dim, queries, blocks, n, bits) for n in (fewest, stages)]
            assert stages >= fewest and bytes_of[1] <= room.block_bytes
            assert bytes_of[0] > room.half_bytes or 2 * (bytes_of[1] + 1024) <= room.multiprocessor_bytes
    assert dim > 128 or all(choose_pipeline_stages(dim, one, blocks, ROOM_90, bits) > fewest for one in (1, 8))


def test_a_cache_of_8_bit_has_more_warps_where_queries_share_a_key_and_there_is_room() -> None:
    few, many = ATTEND_WARPS, MANY_ATTEND_WARPS
    assert [choose_attend_warps(group, 128, SPLITS, ROOM_90, bits) for group in (1, 4, 8) for bits in (16, 8)] == [
        few, few, few, many, few, many,
    ]  # fmt: skip
    assert choose_attend_warps(8, 256, SPLITS, ROOM_86, 8) == few
    for dim in HEAD_DIMS:
        for group in range(2, MAX_QUERIES + 1):
            warps = choose_attend_warps(group, dim, SPLITS, ROOM_90, 8)
            queries, stages = plan_blocks(group, dim, SPLITS, ROOM_90, 8, warps=warps)
            assert queries == plan_blocks(group, dim, SPLITS, ROOM_90, 8)[0]
            assert all(n >= 2 for _, n in stages)
            assert all(attention_bytes(dim, queries, *one, 8, warps) <= ROOM_90.block_bytes for one in stages)


def test_a_head_for_which_no_block_has_room_is_refused() -> None:
    with pytest.raises(ValueError, match="256"):
        plan_blocks(4, 256, SPLITS, SharedMemory(64 * 1024, 64 * 1024))


def test_few_rows_share_their_columns_among_blocks_and_many_do_not() -> None:
    most_blocks = {8: 198, 4: 198, 2: 264, 1: 264}
    chosen = [choose_blocks(8 * rows, most_blocks) for rows in (1, 3, 4, 6, 7, 16, 17, 64)]
    assert chosen == [8, 8, 4, 4, 2, 2, 1, 1]


def test_the_kernels_sources_are_there() -> None:
    sources = {
        "matrices.cu": ["dequantize", "pack"],
        "rows.cu": ["rmsnorm_and_sum"],
        "attention.cu": ["attend"],
    }
    for name, kernels in sources.items():
        source = read_source(name)
        assert all(f" {kernel}(" in source for kernel in kernels)
        assert source.startswith("// What the kernels")


class Library:
    """NVRTC's version, and nothing that compiles."""

    def nvrtcVersion(self, major: object, minor: object) -> int:
        return 0


def test_what_was_compiled_is_taken_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second start of a model finds its kernels; without the library, as on a machine that has none."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("core.worker.kernels.nvrtc.library", Library)
    monkeypatch.setattr("core.worker.kernels.nvrtc._compile", lambda source, options: b"code of " + source.encode())
    assert compiled("a", {"X": 1}, (9, 0)) == b"code of a"
    monkeypatch.setattr("core.worker.kernels.nvrtc._compile", lambda source, options: b"other")
    assert compiled("a", {"X": 1}, (9, 0)) == b"code of a"
    assert compiled("a", {"X": 2}, (9, 0)) == b"other"
    assert compiled("a", {"X": 1}, (8, 6)) == b"other"


@pytest.mark.parametrize("damage", [lambda kept: b"", lambda kept: kept[:-1], lambda kept: b"x" + kept[1:]])
def test_what_is_damaged_in_the_cache_is_compiled_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[bytes], bytes]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("core.worker.kernels.nvrtc.library", Library)
    monkeypatch.setattr("core.worker.kernels.nvrtc._compile", lambda source, options: b"code")
    assert compiled("a", {}, (9, 0)) == b"code"
    (file,) = tmp_path.rglob("*.cubin")
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    assert compiled("a", {}, (9, 0)) == b"code"
    assert file.read_bytes() == whole


def test_a_cache_that_cannot_be_written_stops_no_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr("core.worker.kernels.nvrtc.library", Library)
    monkeypatch.setattr("core.worker.kernels.nvrtc._compile", lambda source, options: b"code")
    assert compiled("a", {}, (9, 0)) == b"code"
