"""How a model is quantized, in the words of its badges and of the table of branches."""

from __future__ import annotations

from core.checkpoint.checkpoint import Checkpoint
from ui.shared.i18n import tr


def quantization_words(checkpoint: Checkpoint) -> list[str]:
    quantization = checkpoint.quantization
    group = quantization.group_size
    words = [] if quantization.container == "GPTQ" else [quantization.container]
    words.append(tr("model.bits", bits=bits_of(checkpoint)))
    words.append(tr("model.no_groups") if group < 0 else tr("model.group", size=group))
    if quantization.is_permuted:
        words.append(tr("model.act_order"))
    if checkpoint.is_without_pictures:
        words.append(tr("model.without_pictures"))
    return words


def bits_of(checkpoint: Checkpoint) -> str:
    """The bits of most matrices, then those of others."""
    return " + ".join(map(str, (checkpoint.quantization.bits, *checkpoint.other_bits)))
