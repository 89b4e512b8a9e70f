"""The fast pass of a CPU gives the numbers of the model's own pass to the bit, for every family and layout that it
takes; a model that it does not take keeps its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from core.checkpoint.checkpoint import read_checkpoint
from core.engine.protocol import Load
from core.engine.sampling_params import Sampling
from core.memory.kernels.registry import choose_kernel, kernel_named
from core.memory.kernels.spec import Device
from core.memory.model_shape import read_shape
from core.worker.decode import cpu_decode
from core.worker.decode.cpu_decode import make_fast_decode
from core.worker.decode.cpu_threads import reserve_one_core
from core.worker.decode.steps import EagerSteps, Steps
from core.worker.load import LoadedEngine, load_engine
from core.worker.model import attention
from core.worker.model.device_map import DeviceMap
from core.worker.model.loader import load_model
from core.worker.model.model_runner import ModelRunner
from core.worker.model.packed_linear import PackedLinear
from tests.support.checkpoints import Recipe, make_checkpoint

CPU = torch.device("cpu")
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 384,
    "max_position_embeddings": 256,
}


@pytest.fixture(autouse=True)
def as_in_the_worker() -> Iterator[None]:
    """No gradients, and the worker's number of threads: with more, they wait for one another at every small matrix."""
    num_before = torch.get_num_threads()
    reserve_one_core()
    with torch.inference_mode():
        yield
    torch.set_num_threads(num_before)


def make_model(family: str, **settings: Any) -> PreTrainedModel:
    """A model with random weights and biases; norms at other weights than the ones that they begin with."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **(SIZES | settings))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation=attention.register())
    for parameter in model.parameters():
        parameter.copy_(torch.randn(parameter.shape) * (1 if parameter.dim() == 1 else 0.2))
    return model.eval()


def load(folder: Path, merged: bool) -> PreTrainedModel:
    checkpoint = read_checkpoint(folder)
    kernel, _ = choose_kernel(checkpoint, Device("cpu"))
    return load_model(
        checkpoint, read_shape(checkpoint, merged), kernel, DeviceMap((CPU,)), torch.bfloat16, 64, lambda _: None
    )


def ask(steps: Steps, prompts: list[list[int]], num_tokens: int) -> list[list[int]]:
    """The first tokens of the greedy answers to prompts that are read one after another and answered together."""
    answers = []
    for slot, prompt in enumerate(prompts):
        steps.reset_slot(slot, Sampling(temperature=0.0), 0, prompt)
        first = steps.prefill(slot, prompt, 0, is_last=True)
        assert first is not None
        answers.append(first.wait())
    for _ in range(num_tokens - 1):
        for answer, token in zip(answers, steps.decode(range(len(prompts))).wait(), strict=True):
            answer.append(token)
    return answers


# Which models --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "family_and_settings",
    [
        ("llama", {}),
        ("llama", {"attention_bias": True, "tie_word_embeddings": True}),
        ("llama", {"num_key_value_heads": 4}),
        ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}}),
        ("mistral", {"sliding_window": None}),
        ("qwen2", {}),
        ("qwen3", {}),
    ],
    ids=lambda pair: "-".join([pair[0], *pair[1]]),
)
def test_families_that_are_made_alike_are_taken(family_and_settings: tuple[str, dict]) -> None:
    family, settings = family_and_settings
    model = make_model(family, **settings)
    assert make_fast_decode(model, ModelRunner(model, 2, 64)) is not None


@pytest.mark.parametrize(
    "family_and_settings",
    [
        ("mistral", {"sliding_window": 8}),
        ("gemma", {}),
        ("phi3", {"pad_token_id": 0}),
        ("olmo2", {}),
        ("llama", {"hidden_act": "gelu"}),
    ],
    ids=lambda pair: "-".join([pair[0], *pair[1]]),
)
def test_a_model_that_is_made_in_another_way_keeps_its_own_pass(family_and_settings: tuple[str, dict]) -> None:
    family, settings = family_and_settings
    model = make_model(family, **settings)
    assert make_fast_decode(model, ModelRunner(model, 2, 64)) is None


@pytest.mark.parametrize(
    "recipe",
    [Recipe(), Recipe(act_order=True), Recipe(symmetric=False), Recipe(bits=8), Recipe(old_layout=True)],
    ids=["4 bit", "act-order", "asymmetric", "8 bit", "old layout"],
)
def test_matrices_side_by_side_and_lean_give_what_the_plain_model_gives(tmp_path: Path, recipe: Recipe) -> None:
    """Three chats of different lengths, each token to the bit."""
    make_checkpoint(tmp_path / "model", replace(recipe, hidden=128, intermediate=256))
    plain = ModelRunner(load(tmp_path / "model", merged=False), 3, 64)
    model = load(tmp_path / "model", merged=True)
    slots = ModelRunner(model, 3, 64)
    fast = make_fast_decode(model, slots)
    assert fast is not None
    lengths = (3, 11, 40)
    generator = torch.Generator().manual_seed(1)
    for slot, length in enumerate(lengths):
        tokens = torch.randint(384, (1, length), generator=generator)
        positions = torch.arange(length).unsqueeze(0)
        assert torch.equal(*(one.forward(tokens, positions, slot, length) for one in (plain, slots)))
    for step in range(4):
        tokens = torch.randint(384, (3,), generator=generator).tolist()
        got = fast.forward(range(3), tokens, [length + step for length in lengths])
        for slot, length in enumerate(lengths):
            place = torch.tensor([[length + step]])
            wanted = plain.forward(torch.tensor([[tokens[slot]]]), place, slot, length + step + 1)
            assert torch.equal(wanted[0], got[slot])


def test_steps_with_a_fast_pass_draw_what_plain_ones_draw(tmp_path: Path) -> None:
    """Also where a prompt is read again for its last token alone, and where a chat between two others has ended."""
    make_checkpoint(tmp_path / "model")
    model = load(tmp_path / "model", merged=True)
    slots = ModelRunner(model, 3, 64)
    drawn = []
    for steps in (EagerSteps(slots), EagerSteps(slots, make_fast_decode(model, slots))):
        answers = ask(steps, [[5, 300, 17], [42], [260, 9, 101, 7]], 6)
        again = steps.prefill(0, [17], 2, is_last=True)
        assert again is not None
        drawn.append([*answers, again.wait(), *(steps.decode([0, 2]).wait() for _ in range(3))])
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize("num_right", [7, 2, 0])
def test_tokens_that_are_verified_are_those_that_would_have_been_decoded(tmp_path: Path, num_right: int) -> None:
    """To the bit, and with what the draws count: whether all follow that were proposed, some, or none."""
    make_checkpoint(tmp_path / "model", replace(Recipe(), hidden=128, intermediate=256))
    model = load(tmp_path / "model", merged=True)
    slots, text = ModelRunner(model, 2, 64), list(range(20, 50))
    steps = EagerSteps(slots, make_fast_decode(model, slots))
    assert steps.max_verified == 8 and EagerSteps(slots).max_verified == 0

    def begin() -> list[int]:
        steps.reset_slot(1, Sampling(temperature=1.5, repetition_penalty=1.2), 3, text)
        pending = steps.prefill(1, text, 0, True)
        assert pending is not None
        return [token or 0 for token in pending.wait()]

    wanted = begin()
    for _ in range(11):
        wanted += [token or 0 for token in steps.decode([1]).wait()]
    kept = [tensor[1, :, : len(text) + 11].clone() for tensor in slots.cache.tensors]
    got = begin()
    proposed = [*wanted[1 : 1 + num_right], *[token + 1 for token in wanted[1 + num_right : 8]]]
    got += [token or 0 for token in steps.verify(1, [got[0], *proposed], len(text)).wait()]
    assert len(got) == num_right + 2
    while len(got) < len(wanted):
        got += [token or 0 for token in steps.decode([1]).wait()]
    assert got == wanted
    assert all(
        torch.equal(was, now[1, :, : len(text) + 11]) for was, now in zip(kept, slots.cache.tensors, strict=True)
    )


@pytest.mark.parametrize("is_packed", [True, False], ids=["in oneDNN's layout", "plain"])
@pytest.mark.parametrize("num_rows", [1, 2, 5, 8])
def test_a_head_gives_the_same_logits_for_a_row_whatever_rows_are_beside_it(num_rows: int, is_packed: bool) -> None:
    """As wide as a real one's inputs, so that the order of the sum would show, however many rows there are."""
    head: Any = torch.nn.Linear(576, 1000, bias=False, dtype=torch.bfloat16)
    if is_packed:
        if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            pytest.skip("oneDNN does not multiply bfloat16 on this CPU")
        head = PackedLinear(head)
    rows = torch.randn((num_rows, 576), generator=torch.Generator().manual_seed(2)).bfloat16()
    logits = cpu_decode._head(head, 576)(rows)
    assert torch.equal(logits, torch.cat([head(row.unsqueeze(0)) for row in rows]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", [(1, 576), (8, 576), (3, 4, 64)], ids=str)
def test_a_norm_is_the_models_own_to_the_bit(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """From values that are nearly nothing to large ones, where every rounding counts."""
    module = LlamaRMSNorm(shape[-1], eps=1e-5).to(dtype)
    module.weight.copy_(torch.randn(shape[-1]))
    norm = cpu_decode._norm(module)
    for exponent in range(-4, 5):
        rows = (torch.randn(shape, generator=torch.Generator().manual_seed(3)) * 10.0**exponent).to(dtype)
        before = rows.clone()
        assert torch.equal(norm(rows), module(rows))
        assert torch.equal(rows, before)


def test_a_context_of_one_token_is_enough(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "model")
    model = load(tmp_path / "model", merged=True)
    assert make_fast_decode(model, ModelRunner(model, 1, 1)) is not None


# The starter ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def starter(starter_folder: Path) -> LoadedEngine:
    return load_engine(
        read_checkpoint(starter_folder), Load(starter_folder, 512, num_slots=3), lambda stage, fraction: None
    )


def encode(engine: LoadedEngine, text: str) -> list[int]:
    return list(engine.tokenizer.encode(text, add_special_tokens=False).ids)


PROMPT = "<|im_start|>user\nTell me about the ocean and the stars.<|im_end|>\n<|im_start|>assistant\n"


def test_the_starters_greedy_answer_is_that_of_transformers_generate(
    starter: LoadedEngine, starter_folder: Path
) -> None:
    """200 tokens of transformers' own generate() and cache over the same quantized matrices and attention."""
    checkpoint, kernel = read_checkpoint(starter_folder), kernel_named("aten_int4")
    model: Any = load_model(
        checkpoint, read_shape(checkpoint), kernel, DeviceMap((CPU,)), torch.bfloat16, 64, lambda _: None
    )
    prompt = encode(starter, PROMPT)
    tokens = torch.tensor([prompt])
    wanted = model.generate(tokens, attention_mask=torch.ones_like(tokens), do_sample=False, eos_token_id=None,
                            pad_token_id=0, max_new_tokens=200)  # fmt: skip
    assert ask(starter.steps, [prompt], 200) == [wanted[0, len(prompt) :].tolist()]


def test_the_starters_answer_does_not_depend_on_what_runs_beside_it(starter: LoadedEngine) -> None:
    before, after = encode(starter, "The quick brown fox"), encode(starter, PROMPT.replace("ocean", "rain"))
    (alone,) = ask(starter.steps, [encode(starter, PROMPT)], 48)
    assert ask(starter.steps, [before, encode(starter, PROMPT), after], 48)[1] == alone


# Cores ---------------------------------------------------------------------------------------------------------------


def test_a_prompt_gives_the_same_numbers_on_one_core_and_on_two(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "model", Recipe(hidden=256, intermediate=512))
    slots = ModelRunner(load(tmp_path / "model", merged=True), 1, 128)
    tokens, positions = torch.randint(384, (1, 100)), torch.arange(100).unsqueeze(0)
    num_before, logits = torch.get_num_threads(), []
    for num_threads in (1, 2):
        torch.set_num_threads(num_threads)
        logits.append(slots.forward(tokens, positions, 0, 100).clone())
    torch.set_num_threads(num_before)
    assert torch.equal(*logits)
