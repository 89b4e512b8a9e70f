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
from functools import partial

import torch
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from core.checkpoint.checkpoint import Checkpoint
from core.checkpoint.notes import notes
from core.checkpoint.settled import settle
from core.common.errors import EngineError
from core.common.i18n import translate
from core.engine.protocol import Load, ModelFacts
from core.memory.adapter_room import adaptable_matrices, adaptable_stacks
from core.memory.load_plan import LoadPlan
from core.memory.pages import pages_of
from core.memory.step_sizes import GPU_CHUNK_TOKENS, StepSizes, smaller_sizes
from core.tokenizer.read import read_tokenizer
from core.worker.adapter_reader import AdapterReader
from core.worker.decode.cpu_decode import make_fast_decode
from core.worker.decode.cpu_threads import reserve_one_core
from core.worker.decode.cuda_graphs import GraphSteps
from core.worker.decode.fused_modules import fuse_modules
from core.worker.decode.graph_cache import GraphCache
from core.worker.decode.layer_fusion import fuse_head, fuse_layers, fuse_prefill
from core.worker.decode.split_pass import SplitPass, SplitRecorder
from core.worker.decode.steps import EagerSteps, Steps
from core.worker.end_tokens import find_end_tokens
from core.worker.kernels.packed_experts import PackedExperts
from core.worker.memory_guard import allocated_bytes, memory_cap, reserve_remaining
from core.worker.model.adapters import add_adapters
from core.worker.model.device_map import DeviceMap, add_device_hooks, embedding_name
from core.worker.model.expert_adapters import add_expert_adapters
from core.worker.model.kv_cache import SlotCache
from core.worker.model.loader import load_model
from core.worker.model.model_runner import ModelRunner
from core.worker.model.packed_linear import pack_linears
from core.worker.plan_load import STAGE_BEGIN, Progress, plan_load
from core.worker.warm_up import warm_up, warm_up_sampling, warm_up_verifying

log = logging.getLogger(__name__)
# What CUDA's and cuBLAS's errors say of a GPU that has no room; and how those of our own launches end.
OUT_OF_MEMORY_SIGNS, LAUNCH_SIGN = ("out of memory", "ALLOC_FAILED"), ": CUDA's error 2"


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
        if plan.device_kind == "cpu":
            log.info("%d matrices in oneDNN's layout", pack_linears(model))
        banks, room = None, plan.shape.adapters
        if room.count:
            banks = add_adapters(model, adaptable_matrices(checkpoint), room, plan.num_slots, device_map)
        if banks is not None and room.reaches_experts:
            add_expert_adapters(model, adaptable_stacks(checkpoint), banks, device_map)
        loaded_bytes = allocated_bytes() if memory_plans else 0
        progress("prepare", STAGE_BEGIN["prepare"])
        runner = ModelRunner(model, plan.num_slots, plan.context_tokens, banks, plan.num_pages, plan.shape.cache_bits)
        spread_pages(runner.cache)
        check_numbers(runner, checkpoint.name)
        progress("warm_up", STAGE_BEGIN["warm_up"])
        steps = make_steps(runner, model, plan)
        # Plain passes hold more at once than those that larger ones are planned for.
        chunk_tokens = max(steps.pass_sizes, default=min(plan.sizes.chunk_tokens, GPU_CHUNK_TOKENS))
        warm_up(steps, chunk_tokens, checkpoint.name)
        warm_up_verifying(steps, checkpoint.name)
        warm_up_sampling(steps, tokenizer, chunk_tokens)
        memory = None
        if memory_plans:
            memory = reserve_remaining(memory_plans, device_map.devices, plan.is_forced, loaded_bytes)
    return LoadedEngine(
        steps=steps,
        tokenizer=tokenizer,
        end_tokens=end_tokens,
        chunk_tokens=chunk_tokens,
        adapters=AdapterReader(banks, checkpoint) if banks is not None else None,
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
            pool_tokens=plan.pool_tokens,
            cache_bits=plan.cache.bits,
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
            plan.sizes.chunk_tokens,
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
    if plan.num_pages is None:
        return EagerSteps(slots)
    return fuse_and_capture(slots, model, plan.sizes, plan.is_captured, DeviceMap.of_plan(plan))


def fuse_and_capture(
    slots: ModelRunner,
    model: PreTrainedModel,
    sizes: StepSizes,
    is_captured: bool = True,
    device_map: DeviceMap | None = None,
) -> Steps:
    """Steps over fused operations, in CUDA graphs if `is_captured`; smaller ones than `sizes` where graphs have no room
    for those. What cannot be captured runs kernel by kernel, and what is not to be had in that way plainly; a line in
    the log says why."""
    device_map = device_map or DeviceMap((slots.device,))
    device_of = partial(device_map.of, embedding=embedding_name(model))

    def fuse_steps(cache: GraphCache, run_decode: Callable[[], object], run_prefill: Callable[[], object]) -> None:
        num_layers, has_head = fuse_layers(model, cache, run_decode), fuse_head(model)
        add_device_hooks(model, device_map)
        num_reading = fuse_prefill(model, run_prefill)
        log.info("fused: %d layers, %d for prompts%s", num_layers, num_reading, ", the head" if has_head else "")

    attention_before = model.config._attn_implementation
    log.info("fused: %s", ", ".join(fuse_modules(model, device_of)))
    captured = [sizes, *smaller_sizes(sizes)] if is_captured else []
    lacked_room = bool(captured)
    for tried, is_recorded in (*((one, True) for one in captured), (sizes, False)):
        if is_recorded and not lacked_room:
            # Smaller ones would fail as well.
            continue
        if lacked_room and not is_recorded:
            tried = captured[-1]
        try:
            # With an adapter in use, so that the layers are compared with what it adds.
            with slots.adapters.tried() if slots.adapters else nullcontext():
                split = SplitPass(device_map) if device_map.is_split else None
                recorder = SplitRecorder(split) if split else None
                return GraphSteps(slots, tried, recorder, fuse_steps, is_recorded, split)
        except (RuntimeError, TypeError, ValueError, EngineError) as error:
            how = "captured" if is_recorded else "run over our own attention"
            # No name keeps the error: its frames hold the graphs that failed.
            what = f"the steps are not {how}, with {tried.chunk_tokens} tokens of prompts"
            log.warning("%s: %s: %s", what, type(error).__name__, str(error))
            lacked_room = is_out_of_memory(error)
        slots.use_attention(attention_before)
        for module in model.modules():
            if isinstance(module, PackedExperts):
                module.drop_room()
        gc.collect()
        torch.cuda.empty_cache()
    return EagerSteps(slots)


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether a GPU had no room: by torch's allocator, or told by CUDA, cuBLAS or a kernel's launch; also where another
    error followed from that."""
    while error is not None:
        text = str(error)
        if isinstance(error, torch.OutOfMemoryError) or text.endswith(LAUNCH_SIGN):
            return True
        if any(sign in text for sign in OUT_OF_MEMORY_SIGNS):
            return True
        error = error.__cause__ or error.__context__
    return False


def spread_pages(cache: SlotCache) -> None:
    """Give every slot of a load's checks pages for a whole context. Where there are too few they overlap, but for the
    first ones, in which what is compared lies."""
    if not cache.page_tokens:
        return
    needed = pages_of(cache.context_tokens)
    if cache.num_pages < cache.num_slots * needed:
        apart = cache.num_pages // cache.num_slots
        for slot in range(cache.num_slots):
            cache.set_pages(slot, [(slot * apart + place) % cache.num_pages for place in range(needed)])


def check_numbers(slots: ModelRunner, name: str) -> None:
    """Raise EngineError where one token's logits are not all finite: the weights are damaged."""
    token = torch.zeros((1, 1), dtype=torch.long, device=slots.device)
    if not torch.isfinite(slots.forward(token, token, 0, 1)).all():
        raise EngineError("not_finite", model=name)
