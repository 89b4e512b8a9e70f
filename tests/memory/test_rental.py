"""Which cards are named for a model that does not fit: each is one that the verdict itself says yes to."""

from __future__ import annotations

import pytest

from core.gpu.known_gpus import lookup
from core.library import catalogue
from core.library.recommended import recommended_models, sized_checkpoint
from core.memory.device_memory import DeviceMemory
from core.memory.fit import check_fit
from core.memory.fit_report import FitReport
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
    offers = cards_that_fit(refused(name, gpu, 4096, num_chats), count)
    assert offers and [offer.memory_gb for offer in offers] == sorted(offer.memory_gb for offer in offers)
    checkpoint = catalogue.checkpoint(catalogue.find(name))
    for offer in offers:
        devices = [DeviceMemory.planned(lookup(offer.name))] * count
        held, alone = (check_fit(checkpoint, some, 4096, num_chats) for some in (devices, devices[:1]))
        assert held.fits and not held.is_slow, offer
        if count == 2:
            assert not alone.fits or alone.is_slow, offer


def test_a_card_is_named_where_the_model_is_quick_and_not_where_it_only_fits() -> None:
    """A little more context than is quick on 12 GB."""
    name = "JunHowie/Qwen3-14B-GPTQ-Int4"
    checkpoint = sized_checkpoint(next(model for model in recommended_models() if model.repo == name))
    small, large = (DeviceMemory.planned(lookup(card)) for card in ("RTX 3060 8GB", "RTX 3060 12GB"))
    quick = check_fit(checkpoint, [large], 4096).quick_context
    assert quick is not None
    for context_tokens in (quick, quick + 64):
        is_slow = check_fit(checkpoint, [large], context_tokens).is_slow
        names = [offer.name for offer in cards_that_fit(check_fit(checkpoint, [small], context_tokens))]
        assert is_slow is (context_tokens > quick)
        assert names and ("RTX 3060 12GB" in names) is not is_slow


def test_the_smallest_usual_cards_come_first() -> None:
    report = refused("TheBloke/Llama-2-13B-chat-GPTQ", "RTX 3060 8GB")
    assert cards_that_fit(report)[0].label == "RTX 3060 12GB"
    assert cards_that_fit(report, 2)[0].label == "2 × RTX 5060 (8 GB)"


def test_what_fits_on_no_card_names_none() -> None:
    report = refused("TheBloke/Llama-2-13B-chat-GPTQ", "RTX 4090", 4096, 64)
    assert [offer.name for offer in cards_that_fit(report)] == ["B300"]
    assert cards_that_fit(refused("TheBloke/Llama-2-70B-Chat-GPTQ", "GTX 1060 3GB", 4096, 64))


def test_the_usual_cards_are_known() -> None:
    assert all(lookup(name).name == name for name in USUAL)


def test_a_context_that_holds_no_answer_is_not_advised() -> None:
    checkpoint = catalogue.checkpoint(catalogue.find("TheBloke/Llama-2-7B-Chat-GPTQ"))
    found = [check_fit(checkpoint, [DeviceMemory.empty("a card", mib, (8, 6))], 4096) for mib in range(5000, 7000, 20)]
    advised = [params["context"] for report in found for name, params in report.remedies
               if name in ("shorter_context", "shorter_quick")]  # fmt: skip
    too_short = [report.max_context for report in found if 0 < report.max_context < 512]
    assert too_short and advised and min(advised) >= 512
