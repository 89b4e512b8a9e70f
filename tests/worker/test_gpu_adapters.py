"""On a GPU: LoRA adapters in captured steps, in the kernels' own epilogue. Run with `pytest -m gpu` on a GPU host."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from core.engine.protocol import Load
from core.engine.request_options import AdapterUse
from core.engine.sampling_params import Sampling
from core.memory.adapter_room import AdapterRoom
from core.worker.decode.fused_decoder_layer import FusedDecoderLayer
from core.worker.kernels.packed_prefill import MIN_STEP_ROWS
from core.worker.load import LoadedEngine
from tests.support.adapters import write_adapter
from tests.support.checkpoints import Recipe, make_checkpoint
from tests.support.gpu_engines import Engines
from tests.support.reference import reference_logits

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
GREEDY, CONTEXT_TOKENS, NUM_CHATS, RANK = Sampling(temperature=0.0), 256, 72, 16
# Of the logits' spread.
TOLERANCE = 0.03
SIZES: dict[str, Any] = {"hidden": 512, "intermediate": 1024, "num_heads": 8, "num_kv_heads": 2, "group_size": 128,
                         "context_tokens": CONTEXT_TOKENS}  # fmt: skip
RECIPES = {
    "in order": Recipe(**SIZES),
    "act-order, each its own": Recipe(act_order=True, **SIZES),
    # Its products of one row have 48 KiB of shared memory, and what their blocks tell each other beside it.
    "group 64": Recipe(**SIZES | {"group_size": 64}),
    "8 bit, act-order": Recipe(bits=8, act_order=True, one_order=True, **SIZES),
}


def prompt(slot: int) -> list[int]:
    return [3 + (slot + 2) * place % 370 for place in range(20 + slot)]


def next_logits(engine: LoadedEngine, slots: list[int]) -> tuple[list[int], torch.Tensor]:
    """The tokens that follow the prompts of `slots`, and the logits after them [slots, vocabulary]."""
    steps: Any = engine.steps
    first = []
    for slot in slots:
        steps.reset_slot(slot, GREEDY, 1, prompt(slot))
        first += steps.prefill(slot, prompt(slot), 0, True).wait()
    steps.decode(slots).wait()
    step = next(one for one in steps._decode_graphs if one.num_rows >= len(slots))
    return first, step.logits[: len(slots)].float().cpu()


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES.keys())
def test_captured_steps_compute_each_chats_own_adapter(tmp_path: Path, recipe: Recipe, engines: Engines) -> None:
    """Three adapters and none, in many chats at once; and beside other adapters, and of few chats alone, to the last
    bit."""
    folder = tmp_path / "model"
    dense = make_checkpoint(folder, recipe)
    uses = []
    for number in range(3):
        write_adapter(tmp_path / str(number), folder, RANK, ending="", spread=0.1, seed=number)
        uses.append(AdapterUse(str(number), tmp_path / str(number)))
    load = Load(folder, CONTEXT_TOKENS, NUM_CHATS, "llamadeck", adapters=AdapterRoom(3, RANK))
    engine = engines.open(folder, load)
    reader = engine.adapters
    assert reader is not None
    layers = [one for one in engine.steps._model._model.modules() if isinstance(one, FusedDecoderLayer)]  # type: ignore[attr-defined]
    assert len(layers) == recipe.num_layers and reader._banks.banks[0].kernels is not None
    read = [reader.read(use) for use in uses]
    places = [reader.hold(one, [other.version for other in read]) for one in read]
    chosen = [None if slot % 4 == 3 else slot % 4 for slot in range(NUM_CHATS)]
    for slot, number in enumerate(chosen):
        reader.set_slot(slot, None if number is None else places[number])
    first, together = next_logits(engine, list(range(NUM_CHATS)))
    for slot in range(1, NUM_CHATS):
        reader.set_slot(slot, places[slot % 3])
    assert torch.equal(next_logits(engine, list(range(NUM_CHATS)))[1][0], together[0])
    for slot, number in enumerate(chosen):
        reader.set_slot(slot, None if number is None else places[number])
    few = next_logits(engine, list(range(MIN_STEP_ROWS - 1)))[1]
    for slot in (0, 3, 15):
        assert torch.equal(next_logits(engine, [slot])[1][0], few[slot])
    engines.restore_rotations()
    for slot, number in list(enumerate(chosen))[-8:]:
        added = {} if number is None else read[number].weights
        merged = {
            name: matrix + (added[name][1].float() @ added[name][0].float()).numpy() if name in added else matrix
            for name, matrix in dense.items()
        }
        wanted = reference_logits(folder, merged, torch.tensor([[*prompt(slot), first[slot]]]))[0]
        assert (together[slot] - wanted).abs().max() < TOLERANCE * wanted.std(), slot
