"""From a Load command to an engine that is ready to answer: device, kernel, weights, cache, tokenizer, warm-up.

Knows no pipe: progress goes to a callback, and whatever a person should read is raised as a DeckError.
"""

from __future__ import annotations

import gc
import logging
import os
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from core.checkpoint.checkpoint import Checkpoint, read_checkpoint
from core.common.errors import EngineError
from core.engine.protocol import Generate, Load, ModelFacts, Stage
from core.engine.sampling_params import Sampling
from core.gpu.snapshot import GpuSnapshot, read_snapshot
from core.gpu.torch_support import build_error, has_code
from core.memory.device_memory import DeviceMemory
from core.memory.fit import checked_context, require_fit
from core.memory.kernels.registry import KERNELS, choose_kernel, has_compiler
from core.memory.kernels.spec import Device, KernelSpec
from core.memory.plan import GPU_CHUNK_TOKENS, MemoryPlan
from core.worker.decode.cpu_decode import make_fast_decode
from core.worker.decode.cpu_threads import reserve_one_core
from core.worker.decode.steps import EagerSteps, PendingTokens, Steps
from core.worker.gpu_check import known_torch, require_no_gpu
from core.worker.kernels import cpu_int4_prefill as written
from core.worker.memory_guard import find_cards, limited_to, settle
from core.worker.model.backends.registry import make_backend
from core.worker.model.device_map import DeviceMap
from core.worker.model.kernel_check import check_kernel
from core.worker.model.loader import load_model
from core.worker.model.model_runner import ModelRunner
from core.worker.scheduler import Scheduler
from core.worker.tokenizer import find_end_tokens, read_tokenizer

log = logging.getLogger(__name__)
# CUDA's default stream of the calling thread, which is also where ExLlamaV2 runs as core/worker/main.py builds it.
PER_THREAD_STREAM = 2
# On a CPU a piece stops the other chats for about as long with its matrix units as a smaller one without them.
CPU_CHUNK_TOKENS, SLOW_CPU_CHUNK_TOKENS = 256, 64
# Where each stage begins in the whole load; importing the libraries has been done by then.
STAGE_BEGIN: dict[Stage, float] = {
    "start": 0.0,
    "compile": 0.12,
    "read": 0.15,
    "prepare": 0.85,
    "warm_up": 0.9,
}
# Between them every branch of core/worker/decode/sampling.py, with the whole vocabulary sorted.
EVERY_WAY_TO_DRAW = (
    Sampling(temperature=0.0, max_new_tokens=3),
    Sampling(temperature=1.0, top_p=1.0, repetition_penalty=1.1, max_new_tokens=3),
    Sampling(temperature=5.0, top_p=0.9999, max_new_tokens=3),
    Sampling(temperature=1.0, top_p=0.9, top_k=40, min_p=0.05, max_new_tokens=3),
)

Progress = Callable[[Stage, float], None]


@dataclass(frozen=True, slots=True)
class OpenEngine:
    """A model that is ready to answer."""

    steps: Steps
    tokenizer: Tokenizer
    end_tokens: frozenset[int]
    chunk_tokens: int
    facts: ModelFacts


def open_engine(command: Load, progress: Progress) -> OpenEngine:
    """Load what `command` names. Raises DeckError with the reason where that cannot be done."""
    begin_s = time.perf_counter()
    checkpoint = read_checkpoint(command.folder)
    context_tokens = checked_context(checkpoint, command.context_tokens)
    tokenizer = read_tokenizer(checkpoint.folder)
    end_tokens = find_end_tokens(checkpoint, tokenizer)
    snapshot = read_snapshot()
    devices = [Device("cpu")] if command.on_cpu else find_devices(snapshot)
    if devices[0].kind == "cpu":
        reserve_one_core()
        ready = Ready(
            *choose_kernel(checkpoint, devices[0], command.kernel), DeviceMap((torch.device("cpu"),)), devices[0]
        )
    else:
        ready = ready_kernel(checkpoint, find_cards(snapshot.gpus, devices), devices, context_tokens, command, progress)
    kernel, places, plans = ready.kernel, ready.places, ready.plans
    chunk_tokens = chunk_tokens_of(ready.device)
    with torch.inference_mode(), limited_to(plans, places.devices, command.force) if plans else nullcontext():
        merged = ready.captured or ready.device.kind == "cpu"
        model = read_weights(checkpoint, ready, merged, progress)
        progress("prepare", STAGE_BEGIN["prepare"])
        slots = ModelRunner(model, command.num_slots, context_tokens)
        check_numbers(slots, checkpoint.name)
        progress("warm_up", STAGE_BEGIN["warm_up"])
        steps = capture_steps(slots, model, chunk_tokens) if ready.captured else make_eager(slots, model)
        warm_up(steps, chunk_tokens, checkpoint.name)
        rehearse(steps, tokenizer, chunk_tokens)
        memory = settle(plans, places.devices, command.force) if plans else None
    return OpenEngine(
        steps=steps,
        tokenizer=tokenizer,
        end_tokens=end_tokens,
        chunk_tokens=chunk_tokens,
        facts=ModelFacts(
            name=checkpoint.name,
            architecture=checkpoint.architecture,
            device=device_name(places),
            kernel=kernel.name,
            kernel_reason=ready.reason,
            context_tokens=context_tokens,
            num_slots=command.num_slots,
            load_s=time.perf_counter() - begin_s,
            weights_bytes=checkpoint.size_bytes,
            cache_bytes=slots.cache.num_bytes,
            captured=steps.runs_ahead,
            memory=memory,
        ),
    )


@dataclass(frozen=True, slots=True)
class Ready:
    """What a load goes by: the kernel and why it, where the model lies, the weakest of its devices, and on GPUs a plan
    for each and whether steps are captured."""

    kernel: KernelSpec
    reason: str
    places: DeviceMap
    device: Device
    plans: tuple[MemoryPlan, ...] = ()
    captured: bool = False


def find_devices(snapshot: GpuSnapshot) -> list[Device]:
    """The GPUs that CUDA shows; the CPU where there is none. Raises GpuUseError where torch can use none of them."""
    if not torch.cuda.is_available():
        require_no_gpu(snapshot)
        return [Device("cpu")]
    compiler, known = has_compiler(), known_torch()
    capabilities = [torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())]
    devices = [Device("cuda", one, compiler, has_code(known, one)) for one in capabilities]
    if not any(device.has_code for device in devices):
        names = [torch.cuda.get_device_name(index) for index in range(len(devices))]
        raise build_error(", ".join(names), max(capabilities), known)
    return devices


def ready_kernel(
    checkpoint: Checkpoint,
    cards: Sequence[DeviceMemory],
    devices: Sequence[Device],
    context_tokens: int,
    command: Load,
    progress: Progress,
) -> Ready:
    """The fastest kernel that fits, compiled and checked, on the card where the model fits, or on several.

    One that cannot be compiled here or computes something wrong is left out, unless it was asked for by name.
    """
    refused: list[str] = []
    able = [card for card, device in zip(cards, devices, strict=True) if device.has_code]
    while True:
        report = require_fit(
            checkpoint, able, context_tokens, command.num_slots, command.kernel, command.force, refused
        )
        chosen = [next(index for index, one in enumerate(cards) if one is card) for card in report.cards]
        places = DeviceMap(
            tuple(torch.device("cuda", index) for index in chosen), tuple(plan.num_layers for plan in report.plans)
        )
        device = min((devices[index] for index in chosen), key=lambda one: one.capability)
        kernel = next(kernel for kernel in KERNELS if kernel.name == report.kernel)
        try:
            progress("compile", STAGE_BEGIN["compile"])
            prepare_kernel(kernel, checkpoint, device, places)
        except EngineError as error:
            if command.kernel is not None:
                raise
            log.warning("%s is not used: %s", kernel.name, error)
            refused.append(kernel.name)
        else:
            fastest, reason = choose_kernel(checkpoint, device, command.kernel)
            if fastest.name != kernel.name:
                reason = "faster_refused" if fastest.name in refused else "leaner"
            return Ready(kernel, reason, places, device, report.plans, report.captured and has_c_compiler())


def prepare_kernel(kernel: KernelSpec, checkpoint: Checkpoint, device: Device, places: DeviceMap) -> None:
    """Compile a kernel where that is needed, and check it on every GPU. Raises EngineError where it is of no use."""
    dtype = choose_dtype(checkpoint, kernel, device)
    make_backend(kernel, dtype, places.first).compile()
    for place in reversed(places.devices):
        torch.cuda.set_device(place)
        use_capturable_stream(place)
        check_kernel(kernel, checkpoint.quantization, dtype, place)


def device_name(places: DeviceMap) -> str:
    if places.first.type == "cpu":
        return f"CPU ({torch.get_num_threads()})"
    return " + ".join(torch.cuda.get_device_name(device) for device in places.devices)


def read_weights(checkpoint: Checkpoint, ready: Ready, merged: bool, progress: Progress) -> PreTrainedModel:
    """The model on its devices, with progress by bytes."""
    begin, end, total, done = STAGE_BEGIN["read"], STAGE_BEGIN["prepare"], checkpoint.size_bytes, 0
    progress("read", begin)

    def on_bytes(num_bytes: int) -> None:
        nonlocal done
        done += num_bytes
        progress("read", begin + (end - begin) * done / total)

    dtype, rows = choose_dtype(checkpoint, ready.kernel, ready.device), chunk_tokens_of(ready.device)
    try:
        return load_model(checkpoint, ready.kernel, ready.places, dtype, rows, on_bytes, merged)
    except MemoryError as error:
        raise EngineError("out_of_memory", model=checkpoint.name, mib=checkpoint.size_bytes >> 20) from error


def chunk_tokens_of(device: Device) -> int:
    """How much of a prompt is read at once, between two steps of the answers that are being written."""
    if device.kind == "cuda":
        return GPU_CHUNK_TOKENS
    return CPU_CHUNK_TOKENS if written.is_supported() else SLOW_CPU_CHUNK_TOKENS


def choose_dtype(checkpoint: Checkpoint, kernel: KernelSpec, device: Device) -> torch.dtype:
    """What the kernel computes in, as near to what the model was made in as it can."""
    wanted = str(checkpoint.config.get("dtype") or checkpoint.config.get("torch_dtype"))
    return torch.bfloat16 if kernel.dtype(wanted, device) == "bfloat16" else torch.float16


def use_capturable_stream(device: torch.device | None = None) -> None:
    """Let this thread's work on a GPU run on a stream that can be captured: the usual default stream cannot."""
    torch.cuda.set_stream(torch.cuda.ExternalStream(PER_THREAD_STREAM, device))


def has_c_compiler() -> bool:
    """Whether Triton can build what it calls its kernels with."""
    return any(shutil.which(name) for name in (os.environ.get("CC", "cc"), "gcc", "clang"))


def capture_steps(slots: ModelRunner, model: PreTrainedModel, chunk_tokens: int) -> Steps:
    """Steps in CUDA graphs over fused operations; plain ones for a model that cannot be captured, with a line in the
    log that says why."""
    from triton.errors import TritonError  # type: ignore[import-not-found]

    from core.worker.decode.cuda_graphs import GraphSteps
    from core.worker.decode.fused_modules import fuse_modules
    from core.worker.decode.graph_cache import GraphCache
    from core.worker.decode.layer_fusion import fuse_head, fuse_layers, fuse_prefill

    def fuse_steps(cache: GraphCache, run_decode: Callable[[], object], run_prefill: Callable[[], object]) -> None:
        num_layers, has_head = fuse_layers(model, cache, run_decode), fuse_head(model)
        num_reading = fuse_prefill(model, run_prefill)
        log.info("fused: %d layers, %d for prompts%s", num_layers, num_reading, ", the head" if has_head else "")

    attention_before = model.config._attn_implementation
    log.info("fused: %s", ", ".join(fuse_modules(model)))
    try:
        return GraphSteps(slots, chunk_tokens, fuse=fuse_steps)
    except (RuntimeError, TypeError, TritonError, EngineError) as error:
        log.warning("the steps are not captured: %s: %s", type(error).__name__, error)
    slots.use_attention(attention_before)
    gc.collect()
    torch.cuda.empty_cache()
    return EagerSteps(slots)


def make_eager(slots: ModelRunner, model: PreTrainedModel) -> Steps:
    return EagerSteps(slots, make_fast_decode(model, slots) if slots.device.type == "cpu" else None)


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
            read_to_the_end(steps, slot, chunk_tokens, name)
        # One more token than the context holds: where nobody reads.
        check_drawn(steps.decode(range(num_slots)), name)


def read_to_the_end(steps: Steps, slot: int, chunk_tokens: int, name: str) -> None:
    count = min(chunk_tokens, steps.context_tokens)
    steps.reset_slot(slot, EVERY_WAY_TO_DRAW[0], 0, [0])
    check_drawn(steps.prefill(slot, [0] * count, steps.context_tokens - count, is_last=True), name)


def check_drawn(pending: PendingTokens | None, name: str) -> None:
    if pending is not None and None in pending.wait():
        raise EngineError("not_finite", model=name)


def rehearse(steps: Steps, tokenizer: Tokenizer, chunk_tokens: int) -> None:
    """Answer a few short requests in every way to draw, so that no code is loaded while a person waits."""
    scheduler = Scheduler(steps, tokenizer, frozenset(), chunk_tokens, lambda _: None)
    lengths = (1, 9, chunk_tokens - 1, chunk_tokens + 9)
    for request, (length, sampling) in enumerate(zip(lengths, EVERY_WAY_TO_DRAW, strict=True)):
        prompt = (0,) * min(length, steps.context_tokens - 1)
        scheduler.submit(Generate(request, prompt, sampling))
    while not scheduler.is_idle:
        scheduler.step()
