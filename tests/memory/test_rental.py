"""Which cards are named for a model that does not fit: each is one that the verdict itself says yes to."""

from __future__ import annotations

import pytest

from core.gpu.known_gpus import lookup
from core.library import catalogue
from core.memory.device_memory import DeviceMemory
from core.memory.fit import FitReport, check_fit
from core.memory.rental import USUAL, cards_that_fit


def refused(name: str, gpu: str, context_tokens: int = 0, num_chats: int = 1) -> FitReport:
    checkpoint = catalogue.checkpoint(catalogue.find(name))
    report = check_fit(checkpoint, [DeviceMemory.planned(lookup(gpu))], context_tokens, num_chats)
    assert not report.fits
    return report


@pytest.mark.parametrize(
    ("name", "gpu", "num_chats"),
    [
        ("TheBloke/Llama-2-7B-Chat-GPTQ", "GTX 1060 3GB", 1),
        ("TheBloke/Llama-2-13B-chat-GPTQ", "RTX 3060 8GB", 1),
        ("TheBloke/Llama-2-13B-chat-GPTQ", "RTX 4090", 8),
        ("TheBloke/Llama-2-70B-Chat-GPTQ", "RTX 4090", 1),
    ],
)
@pytest.mark.parametrize("count", [1, 2])
def test_every_card_that_is_named_holds_the_model(name: str, gpu: str, num_chats: int, count: int) -> None:
    offers = cards_that_fit(refused(name, gpu, 4096, num_chats).load, count)
    assert offers and [offer.memory_gb for offer in offers] == sorted(offer.memory_gb for offer in offers)
    checkpoint = catalogue.checkpoint(catalogue.find(name))
    for offer in offers:
        devices = [DeviceMemory.planned(lookup(offer.name))] * count
        assert check_fit(checkpoint, devices, 4096, num_chats).fits, offer
        if count == 2:
            assert not check_fit(checkpoint, devices[:1], 4096, num_chats).fits, offer


def test_the_smallest_usual_cards_come_first() -> None:
    load = refused("TheBloke/Llama-2-13B-chat-GPTQ", "RTX 3060 8GB").load
    assert cards_that_fit(load)[0].label == "RTX 3060 12GB"
    assert cards_that_fit(load, 2)[0].label == "2 × RTX 5060 (8 GB)"


def test_what_fits_on_no_card_names_none() -> None:
    load = refused("TheBloke/Llama-2-13B-chat-GPTQ", "RTX 4090", 4096, 64).load
    assert [offer.name for offer in cards_that_fit(load)] == ["B300"]
    assert cards_that_fit(refused("TheBloke/Llama-2-70B-Chat-GPTQ", "GTX 1060 3GB", 4096, 64).load)


def test_the_usual_cards_are_known() -> None:
    assert all(lookup(name).name == name for name in USUAL)


def test_a_context_that_holds_no_answer_is_not_advised() -> None:
    checkpoint = catalogue.checkpoint(catalogue.find("TheBloke/Llama-2-7B-Chat-GPTQ"))
    found = [check_fit(checkpoint, [DeviceMemory.empty("a card", mib, (8, 6))], 4096) for mib in range(5000, 7000, 20)]
    advised = [dict(report.remedies)["shorter_context"]["context"] for report in found
               if "shorter_context" in dict(report.remedies)]  # fmt: skip
    too_short = [report.max_context for report in found if 0 < report.max_context < 512]
    assert too_short and advised and min(advised) >= 512
