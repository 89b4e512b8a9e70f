"""What a person is told of a model that runs, beside its verdict."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from core.checkpoint.checkpoint import Checkpoint, read_checkpoint
from core.checkpoint.notes import notes
from core.common.i18n import translate
from core.memory.device_memory import DeviceMemory
from core.memory.fit import check_fit
from tests.support.checkpoints import Recipe, make_checkpoint

CARD = DeviceMemory("RTX 4090", 24_564, (8, 9), reserved_mib=510)

LONGROPE: dict[str, Any] = {"type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}


@pytest.fixture
def llama(tmp_path: Path) -> Checkpoint:
    make_checkpoint(tmp_path / "model", Recipe(num_layers=1))
    return read_checkpoint(tmp_path / "model")


def test_a_plain_model_has_no_notes(llama: Checkpoint) -> None:
    assert notes(llama, 256) == () == check_fit(llama, [CARD]).notes


def test_scales_of_a_small_cache_are_said_to_be_left_out(llama: Checkpoint) -> None:
    settings = {"quant_method": "compressed-tensors", "kv_cache_scheme": {"num_bits": 8, "type": "float"}}
    changed = replace(llama, config={**llama.config, "quantization_config": settings})
    assert notes(changed, 256) == (("cache_in_half", {}),)


@pytest.mark.parametrize(
    ("rope", "context_tokens", "key"),
    [
        ({"type": "dynamic", "factor": 4.0}, 256, None),
        ({"type": "dynamic", "factor": 4.0}, 257, "rope_dynamic"),
        ({**LONGROPE, "original_max_position_embeddings": 64}, 65, "rope_longrope"),
        ({**LONGROPE, "original_max_position_embeddings": 64}, 64, None),
    ],
)
def test_a_rope_for_long_texts_is_told_where_the_context_asks_for_it(
    llama: Checkpoint, rope: dict[str, Any], context_tokens: int, key: str | None
) -> None:
    changed = replace(llama, config={**llama.config, "rope_scaling": rope})
    found = check_fit(changed, [CARD], context_tokens).notes
    assert [name for name, _ in found] == ([key] if key else [])
    for name, params in found:
        for language in ("en", "zh"):
            assert str(params["usual"]) in translate(language, f"note.{name}", **params)


def test_the_text_part_of_a_model_with_pictures_says_that_it_is_one(llama: Checkpoint) -> None:
    config = {"model_type": "llava", "vision_config": {}, "text_config": llama.config}
    whole = replace(llama, config=config, has_picture_part=True)
    assert check_fit(whole, [CARD]).notes == (("without_pictures", {}),)


def test_files_without_a_part_for_pictures_are_not_said_to_have_one(llama: Checkpoint) -> None:
    config = {"model_type": "llava", "vision_config": {}, "text_config": llama.config}
    assert check_fit(replace(llama, config=config), [CARD]).notes == (("text_alone", {}),)
