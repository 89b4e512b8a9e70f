"""Checks that a checkpoint computes what transformers' class does, in pieces and with several chats at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from core.checkpoint.attention import FullAttention
from core.checkpoint.checkpoint import read_checkpoint
from core.memory.device_memory import DeviceMemory
from core.memory.fit import check_fit
from core.memory.kernels.registry import kernel_named
from core.memory.model_shape import read_shape
from core.worker.model.device_map import DeviceMap
from core.worker.model.loader import load_model
from core.worker.model.model_runner import ModelRunner
from tests.support.family_checkpoints import VOCABULARY

CARD = DeviceMemory("RTX 4090", 24_564, (8, 9), reserved_mib=510)
CONTEXT = 128
LONG, SHORT, PIECE, NUM_DECODED = 90, 7, 40, 6
# Of the logits' spread; in float32 the order of sums alone differs.
TOLERANCE = 0.002
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "vocab_size": VOCABULARY,
}


def load(folder: Path, context_tokens: int = CONTEXT, num_slots: int = 3) -> ModelRunner:
    checkpoint = read_checkpoint(folder)
    checkpoint.require_runs()
    model = load_model(
        checkpoint,
        read_shape(checkpoint, merged=True),
        kernel_named("dense"),
        DeviceMap((torch.device("cpu"),)),
        torch.float32,
        64,
        lambda _: None,
        context_tokens,
    )
    return ModelRunner(model, num_slots, context_tokens)


def reference(model: PreTrainedModel, tokens: list[int]) -> torch.Tensor:
    """[tokens, vocabulary] logits of transformers' own pass over a whole text, without a cache."""
    logits: torch.Tensor = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]
    return logits


def prefill(runner: ModelRunner, slot: int, tokens: list[int]) -> torch.Tensor:
    for begin in range(0, len(tokens), PIECE):
        piece = tokens[begin : begin + PIECE]
        positions = torch.arange(begin, begin + len(piece)).unsqueeze(0)
        logits = runner.forward(torch.tensor([piece]), positions, slot, begin + len(piece))
    return logits[0]


def check_two_chats(runner: ModelRunner, model: PreTrainedModel, tolerance: float = TOLERANCE) -> None:
    """A long prompt in pieces in slot 0 and a short one in slot 2; then tokens of both at once, slot 1 being empty."""
    generator = torch.Generator().manual_seed(1)
    chats = {
        slot: torch.randint(VOCABULARY - 10, (count + NUM_DECODED,), generator=generator).tolist()
        for slot, count in ((0, LONG), (2, SHORT))
    }
    wanted = {slot: reference(model, tokens) for slot, tokens in chats.items()}
    for slot, count in ((0, LONG), (2, SHORT)):
        assert_close(prefill(runner, slot, chats[slot][:count]), wanted[slot][count - 1], tolerance)
    unread = runner.cache.unread_column
    for step in range(NUM_DECODED):
        at = {0: LONG + step, 2: SHORT + step}
        tokens = [[chats[slot][at[slot]] if slot in at else 0] for slot in range(3)]
        positions = [[at.get(slot, 0)] for slot in range(3)]
        targets = [[at.get(slot, unread)] for slot in range(3)]
        logits = runner.forward(
            torch.tensor(tokens), torch.tensor(positions), 0, LONG + step + 1, torch.tensor(targets)
        )
        for slot, position in at.items():
            assert_close(logits[slot], wanted[slot][position], tolerance)


def assert_close(got: torch.Tensor, wanted: torch.Tensor, tolerance: float = TOLERANCE) -> None:
    assert (got - wanted).abs().max() < tolerance * wanted.std()
    assert wanted.std() > 0.05


def check_family(folder: Path, model: PreTrainedModel, tolerance: float = TOLERANCE) -> None:
    checkpoint = read_checkpoint(folder)
    report = check_fit(checkpoint, [CARD])
    # Captured steps add no bias to scores, set no bound to them, have no convolutions as states and hold experts of one
    # kind.
    is_plain = any(key in ("plain_steps", "plain_states", "plain_experts") for key, _ in report.notes)
    assert report.fits and report.load.is_captured == (report.load.kernel.is_capturable and not is_plain)
    with torch.inference_mode():
        runner = load(folder)
        attending = {index: one.mixer for index, one in enumerate(checkpoint.layers)
                     if isinstance(one.mixer, FullAttention)}  # fmt: skip
        assert {
            index: (one.num_kv_heads, one.head_dim) for index, one in attending.items() if not one.shares_cache
        } == {index: (keys.shape[1], keys.shape[3]) for index, keys in runner.cache.keys.items()}
        recurrent = {index: layer.recurrent for index, layer in enumerate(checkpoint.layers) if layer.recurrent}
        assert {index: (one.channels, one.conv_width - 1) for index, one in recurrent.items()} == {
            index: state.conv.shape[1:] for index, state in runner.cache.states.items()
        }
        assert {index: one.state_shape for index, one in recurrent.items() if one.state_shape} == {
            index: state.state.shape[1:] for index, state in runner.cache.states.items() if state.state is not None
        }
        assert {*attending, *recurrent} == set(range(len(checkpoint.layers)))
        check_two_chats(runner, model, tolerance)
