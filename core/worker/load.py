"""From a LoadPlan to an engine that is ready to answer: weights, KV cache, captured steps, warm-up.

Progress goes to a callback, and whatever a person should read is raised as a DeckError.
"""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from core.checkpoint.checkpoint import Checkpoint
from core.checkpoint.notes import notes
from core.checkpoint.settled import settle
from core.common.errors import EngineError
from core.common.i18n import translate
from core.engine.protocol import Generate, Load, ModelFacts
from core.engine.request_options import RequestOptions
from core.engine.sampling_params import Sampling
from core.memory.adapter_room import adaptable_matrices
from core.memory.load_plan import LoadPlan
from core.tokenizer.read import read_tokenizer
from core.worker.adapter_reader import AdapterReader
from core.worker.decode.cpu_decode import make_fast_decode
from core.worker.decode.cpu_threads import reserve_one_core
from core.worker.decode.cuda_graphs import GraphSteps
from core.worker.decode.fused_modules import fuse_modules
from core.worker.decode.graph_cache import GraphCache
from core.worker.decode.layer_fusion import fuse_head, fuse_layers, fuse_prefill
from core.worker.decode.steps import EagerSteps, PendingTokens, Steps
from core.worker.end_tokens import find_end_tokens
from core.worker.memory_guard import allocated_bytes, memory_cap, reserve_remaining
from core.worker.model.adapters import add_adapters
from core.worker.model.device_map import DeviceMap
from core.worker.model.loader import load_model
from core.worker.model.model_runner import ModelRunner
from core.worker.plan_load import STAGE_BEGIN, Progress, plan_load
from core.worker.scheduler import Scheduler

log = logging.getLogger(__name__)
# Between them every branch of core/worker/decode/sampling.py, with the whole vocabulary sorted.
SAMPLING_VARIANTS = (
    Sampling(temperature=0.0, max_new_tokens=3),
    Sampling(temperature=1.0, top_p=1.0, repetition_penalty=1.1, max_new_tokens=3),
    Sampling(temperature=5.0, top_p=0.9999, max_new_tokens=3),
    Sampling(temperature=1.0, top_p=0.9, top_k=40, min_p=0.05, max_new_tokens=3),
    Sampling(temperature=1.0, presence_penalty=0.5, frequency_penalty=0.5, max_new_tokens=3),
    Sampling(temperature=1.0, dry_multiplier=0.8, typical_p=0.9, xtc_probability=0.5, max_new_tokens=3),
)


@dataclass(frozen=True, slots=True)
class LoadedEngine:
    """A model that is ready to answer."""

    steps: Steps
    tokenizer: Tokenizer
    end_tokens: frozenset[int]
    chunk_tokens: int
    facts: ModelFacts
    adapters: AdapterReader | None = None


def load_engine(checkpoint: Checkpoint, command: Load, progress: Progress) -> LoadedEngine:
    """Load `checkpoint` as `command` says. Raises DeckError with the reason where that cannot be done."""
    begin_s = time.perf_counter()
    tokenizer = read_tokenizer(checkpoint.folder)
    end_tokens = find_end_tokens(checkpoint, tokenizer)
    checkpoint = settle(checkpoint)
    plan = plan_load(checkpoint, command, progress)
    for key, params in notes(checkpoint, plan.context_tokens):
        log.info("%s: %s", checkpoint.name, translate("en", f"note.{key}", **params))
    if plan.device_kind == "cpu":
        reserve_one_core()
    device_map, memory_plans = DeviceMap.of_plan(plan), plan.memory
    cap = memory_cap(memory_plans, device_map.devices, plan.is_forced) if memory_plans else nullcontext()
    with torch.inference_mode(), cap:
        model = read_model(checkpoint, plan, device_map, progress)
        bank, room = None, plan.shape.adapters
        if room.count:
            bank = add_adapters(model, adaptable_matrices(checkpoint), room, plan.num_slots)
        loaded_bytes = allocated_bytes() if memory_plans else 0
        progress("prepare", STAGE_BEGIN["prepare"])
        runner = ModelRunner(model, plan.num_slots, plan.context_tokens, bank)
        check_numbers(runner, checkpoint.name)
        progress("warm_up", STAGE_BEGIN["warm_up"])
        steps = make_steps(runner, model, plan)
        warm_up(steps, plan.chunk_tokens, checkpoint.name)
        warm_up_sampling(steps, tokenizer, plan.chunk_tokens)
        memory = None
        if memory_plans:
            memory = reserve_remaining(memory_plans, device_map.devices, plan.is_forced, loaded_bytes)
    return LoadedEngine(
        steps=steps,
        tokenizer=tokenizer,
        end_tokens=end_tokens,
        chunk_tokens=plan.chunk_tokens,
        adapters=AdapterReader(bank, checkpoint) if bank is not None else None,
        facts=ModelFacts(
            name=checkpoint.name,
            architecture=checkpoint.architecture,
            device=device_name(device_map),
            kernel=plan.kernel.name,
            kernel_reason=plan.kernel_reason,
            context_tokens=plan.context_tokens,
            num_slots=plan.num_slots,
            load_s=time.perf_counter() - begin_s,
            weights_bytes=checkpoint.size_bytes,
            cache_bytes=runner.cache.num_bytes,
            captured=isinstance(steps, GraphSteps) and steps.is_recorded,
            notes=checkpoint.settled.notes if checkpoint.settled else (),
            memory=memory,
            adapters=room,
        ),
    )


def device_name(device_map: DeviceMap) -> str:
    if device_map.first.type == "cpu":
        return f"CPU ({torch.get_num_threads()})"
    return " + ".join(torch.cuda.get_device_name(device) for device in device_map.devices)


def read_model(checkpoint: Checkpoint, plan: LoadPlan, device_map: DeviceMap, progress: Progress) -> PreTrainedModel:
    """The model on its devices, with progress by bytes."""
    begin, end, total, done = STAGE_BEGIN["read"], STAGE_BEGIN["prepare"], checkpoint.size_bytes, 0
    progress("read", begin)

    def on_bytes(num_bytes: int) -> None:
        nonlocal done
        done += num_bytes
        progress("read", begin + (end - begin) * done / total)

    dtype = getattr(torch, plan.dtype)
    try:
        return load_model(
            checkpoint,
            plan.shape,
            plan.kernel,
            device_map,
            dtype,
            plan.chunk_tokens,
            on_bytes,
            plan.context_tokens,
        )
    except MemoryError as error:
        raise EngineError("out_of_memory", model=checkpoint.name, mib=checkpoint.size_bytes >> 20) from error


def make_steps(slots: ModelRunner, model: PreTrainedModel, plan: LoadPlan) -> Steps:
    """The fastest steps that the plan has room for."""
    if plan.device_kind == "cpu":
        # The fast pass calls no modules, which the adapters are beside.
        return EagerSteps(slots, make_fast_decode(model, slots) if slots.adapters is None else None)
    if len(plan.devices) > 1 or not plan.shape.is_capturable:
        return EagerSteps(slots)
    return fuse_and_capture(slots, model, plan.chunk_tokens, plan.is_captured)


def fuse_and_capture(slots: ModelRunner, model: PreTrainedModel, chunk_tokens: int, is_captured: bool = True) -> Steps:
    """Steps over fused operations, in CUDA graphs if `is_captured`. What cannot be captured runs kernel by kernel, and
    what is not to be had in that way plainly; a line in the log says why."""

    def fuse_steps(cache: GraphCache, run_decode: Callable[[], object], run_prefill: Callable[[], object]) -> None:
        num_layers, has_head = fuse_layers(model, cache, run_decode), fuse_head(model)
        num_reading = fuse_prefill(model, run_prefill)
        log.info("fused: %d layers, %d for prompts%s", num_layers, num_reading, ", the head" if has_head else "")

    attention_before = model.config._attn_implementation
    log.info("fused: %s", ", ".join(fuse_modules(model)))
    for is_recorded in (True, False) if is_captured else (False,):
        try:
            # With an adapter in use, so that the layers are compared with what it adds.
            with slots.adapters.tried() if slots.adapters else nullcontext():
                return GraphSteps(slots, chunk_tokens, fuse=fuse_steps, is_recorded=is_recorded)
        except (RuntimeError, TypeError, ValueError, EngineError) as error:
            how = "captured" if is_recorded else "run over our own attention"
            log.warning("the steps are not %s: %s: %s", how, type(error).__name__, error)
        slots.use_attention(attention_before)
        gc.collect()
        torch.cuda.empty_cache()
    return EagerSteps(slots)


def check_numbers(slots: ModelRunner, name: str) -> None:
    """Raise EngineError where one token's logits are not all finite: the weights are damaged."""
    token = torch.zeros((1, 1), dtype=torch.long, device=slots.device)
    if not torch.isfinite(slots.forward(token, token, 0, 1)).all():
        raise EngineError("not_finite", model=name)


def warm_up(steps: Steps, chunk_tokens: int, name: str) -> None:
    """Run the largest passes that a chat can need: a chunk, and a token of every slot, at the end of the context.

    Raises EngineError where what comes out is no number.
    """
    for num_slots in (1, steps.num_slots):
        for slot in range(num_slots):
            prefill_last_chunk(steps, slot, chunk_tokens, name)
        # One more token than the context holds: where nobody reads.
        require_finite(steps.decode(range(num_slots)), name)


def prefill_last_chunk(steps: Steps, slot: int, chunk_tokens: int, name: str) -> None:
    count = min(chunk_tokens, steps.context_tokens)
    steps.reset_slot(slot, SAMPLING_VARIANTS[0], 0, [0])
    require_finite(steps.prefill(slot, [0] * count, steps.context_tokens - count, is_last=True), name)


def require_finite(pending: PendingTokens | None, name: str) -> None:
    if pending is not None and None in pending.wait():
        raise EngineError("not_finite", model=name)


def warm_up_sampling(steps: Steps, tokenizer: Tokenizer, chunk_tokens: int) -> None:
    """Answer a few short requests in every way to draw, so that no code is loaded while a person waits."""
    scheduler = Scheduler(steps, tokenizer, frozenset(), chunk_tokens, lambda _: None)
    lengths = (1, 9, chunk_tokens - 1, chunk_tokens + 9, 1, 9)
    for request, (length, sampling) in enumerate(zip(lengths, SAMPLING_VARIANTS, strict=True)):
        prompt = (0,) * min(length, steps.context_tokens - 1)
        scheduler.submit(Generate(request, prompt, sampling, options=RequestOptions(logprobs=1)))
    while not scheduler.is_idle:
        scheduler.step()
