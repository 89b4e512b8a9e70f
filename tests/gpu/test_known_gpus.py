"""The table of usual GPUs and how a name that somebody wrote is found in it."""

from __future__ import annotations

import pytest

from core.common.errors import InputError
from core.gpu.known_gpus import also_meant, known_gpus, lookup, split_count


def test_every_card_is_found_by_its_own_name() -> None:
    assert [gpu.name for gpu in known_gpus() if lookup(gpu.name) != gpu] == []


def test_every_card_is_found_by_nvmls_names_for_it() -> None:
    names = {name for gpu in known_gpus() for name in gpu.nvml_names}
    assert {name for name in names if name not in lookup(name).nvml_names} == set()


def test_nvmls_name_of_a_card_in_two_sizes_means_the_smaller() -> None:
    assert lookup("NVIDIA GeForce RTX 4060 Ti").name == "RTX 4060 Ti 8GB"
    assert lookup("NVIDIA L40").total_mib == 46068


@pytest.mark.parametrize(
    ("text", "total_mib"),
    [
        ("A40", 46068),
        ("nvidia a40", 46068),
        ("A40 ECC off", 49140),
        ("a40 (no ECC)", 49140),
        ("A40 ECC on", 46068),
        ("rtx3060", 8192),
        ("RTX 3060 12GB", 12288),
        ("3060-12g", 12288),
        ("4090", 24564),
        ("NVIDIA GeForce RTX 4090", 24564),
        ("RTX 4090 ECC on", 23028),
        ("RTX4090 48G", 49140),
        ("4090d", 24564),
        ("laptop 4090", 16376),
        ("RTX 4090 mobile", 16376),
        ("3090ti", 24564),
        ("rtx-3080-ti", 12288),
        ("2080 Ti 22GB", 22528),
        ("ＲＴＸ　３０９０", 24576),
        ("A100", 40960),
        ("a100-80g", 81920),
        ("A100-SXM4-80GB", 81920),
        ("NVIDIA A100-PCIE-40GB", 40960),
        ("V100-32GB", 32768),
        ("t4", 15360),
        ("L40S 48GB", 46068),
        ("L40S 46 GiB", 46068),
        ("A6000", 46068),
        ("RTX 6000 Ada", 46068),
        ("H100 94GB", 95830),
        ("H200", 143771),
        ("B200 192GB", 183359),
        ("pro 6000", 97887),
        ("H20-NVLink", 97871),
        ("vGPU-32GB", 32760),
        ("vGPU-48GB", 49140),
    ],
)
def test_a_card_is_found_as_people_write_it(text: str, total_mib: int) -> None:
    assert lookup(text).total_mib == total_mib


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("RTX 4000", "Quadro RTX 4000"),
        ("RTX A4000", "RTX A4000"),
        ("RTX 4000 Ada Generation", "RTX 4000 Ada"),
        ("RTX PRO 4000", "RTX PRO 4000 Blackwell"),
        ("L4", "L4"),
        ("L40", "L40"),
        ("A10", "A10"),
        ("A10G", "A10G"),
        ("A100", "A100 40GB"),
        ("A2", "A2"),
        ("H100 SXM5", "H100 SXM"),
        ("NVIDIA H100 80GB HBM3", "H100 SXM"),
        ("H100 80GB", "H100 PCIe"),
        ("4070 Ti", "RTX 4070 Ti"),
        ("4070 ti super", "RTX 4070 Ti SUPER"),
    ],
)
def test_cards_with_like_names_are_kept_apart(text: str, name: str) -> None:
    assert lookup(text).name == name


@pytest.mark.parametrize(
    ("text", "others"),
    [
        ("RTX 3060", ["RTX 3060 12GB"]),
        ("3080", ["RTX 3080 12GB", "RTX 3080 20GB"]),
        ("A100", ["A100 80GB PCIe", "A100 80GB SXM"]),
        ("A100 80GB", ["A100 80GB SXM"]),
        ("NVIDIA GeForce RTX 4060 Ti", ["RTX 4060 Ti 16GB"]),
        ("H100", ["H100 SXM", "H100 NVL"]),
        ("RTX 4090", ["RTX 4090 48GB"]),
        # With ECC on or off it is one card.
        ("A40", []),
        ("RTX 3090 Ti", []),
        ("RTX 3060 12GB", []),
    ],
)
def test_what_else_a_name_may_mean_is_told(text: str, others: list[str]) -> None:
    assert [gpu.name for gpu in also_meant(text)] == others


@pytest.mark.parametrize(
    ("text", "near"),
    [
        ("RTX 4095", "RTX 4090"),
        ("RTX 4090 80GB", "RTX 4090, RTX 4090 48GB"),
        ("显卡 4090", "RTX 4090"),
        ("A100 24GB", "A100 40GB"),
        ("h1000", "H100"),
        ("", "A40"),
        ("RTX", "A40"),
        ("{name} %s", "A40"),
        ("x" * 100_000, "A40"),
    ],
)
def test_an_unknown_card_is_said_with_names_to_try(text: str, near: str) -> None:
    with pytest.raises(InputError) as raised:
        lookup(text)
    assert raised.value.key == "unknown_gpu"
    assert near in str(raised.value.params["near"])
    assert len(str(raised.value.params["name"])) <= 60


def test_the_figures_of_every_card_are_possible() -> None:
    for gpu in known_gpus():
        assert 0.9 <= gpu.total_mib / (gpu.memory_gb * 1024) <= 1, gpu
        assert 100 <= gpu.bandwidth_gb_s <= 8000, gpu
        assert (6, 0) <= gpu.compute_capability <= (12, 0), gpu
        assert gpu.total_from in ("seen", "once", "computed"), gpu


def test_ecc_takes_a_sixteenth_of_the_memory() -> None:
    """Both settings of a GPU were seen for six GPUs, and all agree; the rest are computed by that rule."""
    totals = {(gpu.nvml_names, gpu.memory_gb, gpu.ecc): gpu.total_mib for gpu in known_gpus()}
    pairs = [(totals[names, size, False], total_mib) for (names, size, ecc), total_mib in totals.items() if ecc is True]
    assert len(pairs) > 20
    assert [off * 15 // 16 for off, _ in pairs] == [on for _, on in pairs]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("2x A40", (2, "A40")),
        (" 4 × RTX 4090", (4, "RTX 4090")),
        ("2X4090", (2, "4090")),
        ("8*H100", (8, "H100")),
        ("4090", (1, "4090")),
        ("9x A40", (1, "9x A40")),
        ("2x", (1, "2x")),
        ("", (1, "")),
    ],
)
def test_several_cards_of_one_kind_are_a_number_and_a_name(text: str, found: tuple[int, str]) -> None:
    assert split_count(text) == found
