"""How fast a model is on one GPU and split by its layers over two, with weights of random numbers made on the GPUs.

`python -m benchmarks.split_speed FOLDER` measures 7B and 70B: the first token of a prompt of 512 tokens, and tokens a
second of one chat and of 4, 8 and 32; of several over two GPUs also in one part, where no two GPUs compute at once.
Beside them what each GPU's plan says, and what was taken. One GPU and two have a process each.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.deadline import Deadline, add_limit
from benchmarks.figures import Figures as Told
from benchmarks.figures import add_results
from benchmarks.measuring import Unable
from benchmarks.random_model import SHAPES, Quantization, make_random_model, with_layers
from core.checkpoint.checkpoint import Checkpoint, TensorInfo, read_checkpoint
from core.engine.protocol import Event, Finished, Generate, Load, TextChunk
from core.engine.sampling_params import Sampling
from core.memory.device_memory import DeviceMemory
from core.memory.fit import check_fit
from core.memory.load_plan import LoadPlan
from core.memory.sizes import MIB

PROMPT_TOKENS, NEW_TOKENS, FIRST_TOKENS = 512, 128, 5
CHATS = (1, 4, 8, 32)
# Of what one GPU would need, what each of two is said to have.
SHARE = 0.75
NEVER = 10**6
LINK_BYTES = (16 * 1024, 512 * 8192 * 2)
LINK_COPIES = 200


@dataclass(slots=True)
class Figures:
    """One model on one GPU or two."""

    model: str
    num_gpus: int
    num_layers: list[int] = field(default_factory=list)
    captured: bool = False
    load_s: float = 0.0
    first_token_s: float = 0.0
    # In two chunks, of which each GPU reads another one at a time.
    first_token_halves_s: float = 0.0
    # Tokens a second of the most chats' prompts, which come at once.
    reading: float = 0.0
    # Tokens a second by "chats" or "chats, one part".
    rates: dict[str, float] = field(default_factory=dict)
    # By GPU, in MiB: what the plan lets torch allocate and what was; CUDA's own share by the plan and taken.
    allocated: list[tuple[int, int]] = field(default_factory=list)
    context: list[tuple[int, int]] = field(default_factory=list)
    # Microseconds of a copy between both GPUs, by way and bytes.
    links: dict[str, float] = field(default_factory=dict)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the models' headers are written; they take little room")
    parser.add_argument("--models", nargs="*", default=["7B", "70B"], choices=list(SHAPES), metavar="SHAPE")
    parser.add_argument("--layers", type=int, help="fewer layers than the real models have")
    parser.add_argument("--gpus", nargs="*", type=int, default=[1, 2], metavar="N")
    parser.add_argument("--through-host", action="store_true", help="no direct copies between the GPUs")
    add_results(parser)
    add_limit(parser)
    parser.add_argument("--child", nargs=2, metavar=("SHAPE", "N"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    told, deadline = Told("Over two GPUs", options.results), Deadline.after(options.limit_s)
    if options.child:
        model, num_gpus = options.child[0], int(options.child[1])
        print(json.dumps(asdict(measure(options.folder, model, num_gpus, options.through_host, told, deadline))))
        return 0
    found: list[Figures] = []
    for model in options.models:
        folder = options.folder / f"{model}-{options.layers or 'all'}"
        if not (folder / "config.json").is_file():
            make_random_model(folder, with_layers(SHAPES[model], options.layers), Quantization(), hollow=True)
        for num_gpus in options.gpus:
            arguments = [str(folder), "--child", model, str(num_gpus), *["--through-host"] * options.through_host]
            arguments += ["--limit-s", str(deadline.left_s)]
            arguments += ["--results", str(options.results)] if options.results else []
            done = subprocess.run([sys.executable, "-m", "benchmarks.split_speed", *arguments], stdout=subprocess.PIPE)
            if done.returncode:
                told.fail(f"{model} on {num_gpus}", "load, s", f"ended with {done.returncode}")
                continue
            found.append(Figures(**json.loads(done.stdout.splitlines()[-1])))
            print(table(found), flush=True)
    return 0 if len(found) == len(options.models) * len(options.gpus) else 1


def measure(folder: Path, model: str, num_gpus: int, through_host: bool, told: Told, deadline: Deadline) -> Figures:
    """Load the model with everything measured in one process, the engine's own loop without its pipe. Each figure is
    told at once; those are missing that time was too short for."""
    import torch

    from core.worker import answering
    from core.worker import load as worker_load
    from core.worker.decode import cuda_graphs
    from core.worker.decode.split_pass import SplitPass
    from core.worker.model import loader

    found = Figures(model, num_gpus)
    row = f"{model} on {num_gpus}" + (", through the host" if through_host else "")
    checkpoint = read_checkpoint(folder)
    plans: list[LoadPlan] = []

    def plan(checkpoint: Checkpoint, command: Load, progress: Any) -> LoadPlan:
        plans.append(plan_over(num_gpus, checkpoint, command, progress))
        return plans[-1]

    reserve: Any = worker_load.reserve_remaining

    def note(memory_plans: Any, devices: Any, *more: Any) -> Any:
        for one, device in zip(memory_plans, devices, strict=True):
            free, total = torch.cuda.mem_get_info(device)
            own = total - free - torch.cuda.memory_reserved(device)
            found.allocated.append((one.allocated // MIB, torch.cuda.max_memory_reserved(device) // MIB))
            found.context.append(((one.context + one.graphs) // MIB, own // MIB))
        return reserve(memory_plans, devices, *more)

    patched: Any = worker_load
    patched.plan_load, patched.reserve_remaining = plan, note
    if through_host:
        patched.SplitPass = lambda device_map: SplitPass(device_map, through_host=True)
    replaced: Any = loader
    replaced.read_tensors = lambda checkpoint, device, on_bytes: random_tensors(checkpoint, plans[-1], on_bytes)
    every: Any = answering
    every.FLUSH_S = 0.0
    context_tokens = PROMPT_TOKENS + NEW_TOKENS + 16
    with torch.inference_mode():
        begin_s = time.perf_counter()
        engine = worker_load.load_engine(checkpoint, Load(folder, context_tokens, max(CHATS)), lambda *_: None)
        found.load_s, found.captured = time.perf_counter() - begin_s, engine.facts.captured
        found.num_layers = [memory.num_layers for memory in plans[-1].memory]
        chunk = engine.chunk_tokens
        found.first_token_s, found.first_token_halves_s = (first_token_s(engine, one) for one in (chunk, chunk // 2))
        told.add(row, "load, s", found.load_s)
        told.add(row, f"first of {PROMPT_TOKENS}, ms", 1000 * found.first_token_s)
        told.add(row, "in two chunks, ms", 1000 * found.first_token_halves_s)
        for place, (planned, reached) in enumerate(found.allocated):
            told.add(row, f"GPU {place}: MiB planned", planned)
            told.add(row, f"GPU {place}: MiB reached", reached)
        ways = {"": cuda_graphs.PIPELINED_CHATS} if num_gpus == 1 else {", two parts": 2, ", one part": NEVER}
        settings: Any = cuda_graphs
        for count in CHATS:
            for way, least in ways.items() if count > 1 else [("", NEVER)]:
                try:
                    deadline.require()
                except Unable as error:
                    told.fail(row, f"{count} chats{way}, tokens/s", error)
                    continue
                settings.PIPELINED_CHATS = least
                read_s, found.rates[f"{count}{way}"] = Run(engine, chunk).answer(count, NEW_TOKENS)
                found.reading = count * PROMPT_TOKENS / read_s
                told.add(row, f"{count} chats{way}, tokens/s", found.rates[f"{count}{way}"])
                told.add(row, f"first of {count} at once{way}, ms", 1000 * read_s)
        if num_gpus > 1:
            found.links = link_times(torch.device("cuda", 0), torch.device("cuda", 1))
            for way, took_us in found.links.items():
                told.add(row, f"a copy {way}, µs", took_us)
    return found


def first_token_s(engine: Any, chunk_tokens: int) -> float:
    """The median of a few, after one that is not counted."""
    times = [Run(engine, chunk_tokens).answer(1, 1)[0] for _ in range(FIRST_TOKENS + 1)]
    return statistics.median(times[1:])


def plan_over(num_gpus: int, checkpoint: Checkpoint, command: Load, progress: Any) -> LoadPlan:
    """A plan over that many GPUs: each of several is said to have less memory than the model needs."""
    from core.gpu.snapshot import read_snapshot
    from core.worker.memory_guard import measure_devices
    from core.worker.plan_load import find_devices, plan_gpu_load

    snapshot = read_snapshot()
    devices = find_devices(snapshot)[:num_gpus]
    memories = measure_devices(snapshot.gpus, devices)
    if num_gpus > 1:
        needed = check_fit(checkpoint, memories[:1], command.context_tokens, command.num_slots).needed_mib
        memories = [with_room(memory, int(SHARE * needed)) for memory in memories]
    return plan_gpu_load(checkpoint, memories, devices, command, progress)


def with_room(memory: DeviceMemory, room_mib: int) -> DeviceMemory:
    others_mib = memory.total_mib - memory.reserved_mib - room_mib
    return replace(memory, others_mib=max(memory.others_mib, others_mib), returning_mib=0)


def random_tensors(
    checkpoint: Checkpoint, plan: LoadPlan, on_bytes: Callable[[int], None]
) -> Iterator[tuple[str, Any]]:
    """Every tensor of the checkpoint as random numbers, made where it will lie; of scales and norms what keeps the
    values of every layer near one."""
    import torch

    from core.worker.model.device_map import DeviceMap

    places = DeviceMap.of_plan(plan)
    random_on = {device: torch.Generator(device).manual_seed(0) for device in places.devices}
    inputs = {name: matrix.in_features for name, matrix in checkpoint.matrices.items()}
    order = sorted(checkpoint.tensors.items(), key=lambda item: (item[1].file, item[1].begin))
    for name, info in order:
        device = places.of(name, "model.embed_tokens")
        yield name, random_tensor(name, info, device, random_on[device], inputs)
        on_bytes(info.num_bytes)


def random_tensor(name: str, info: TensorInfo, device: Any, generator: Any, inputs: dict[str, int]) -> Any:
    import torch

    owner, _, part = name.rpartition(".")
    shape, count = tuple(info.shape), inputs.get(owner, 0)
    if part == "qweight":
        return torch.randint(-(2**31), 2**31 - 1, shape, dtype=torch.int32, device=device, generator=generator)
    if part == "qzeros":
        return torch.full(shape, 0x77777777, dtype=torch.int32, device=device)
    if part == "scales":
        return torch.full(shape, 0.5 / (16 * count**0.5), dtype=torch.float16, device=device)
    if part == "g_idx":
        return torch.arange(shape[0], dtype=torch.int32, device=device) // Quantization().group_size
    if name.endswith("norm.weight"):
        return torch.ones(shape, dtype=torch.float16, device=device)
    return torch.rand(shape, dtype=torch.float16, device=device, generator=generator).sub_(0.5)


class Run:
    """Answers of as many chats as are asked for, written together."""

    def __init__(self, engine: Any, chunk_tokens: int) -> None:
        from core.worker.scheduler import Scheduler

        self._written: dict[int, int] = {}
        self._ended = 0
        # No token ends an answer.
        self._scheduler = Scheduler(engine.steps, engine.tokenizer, frozenset(), chunk_tokens, self._hear)

    def _hear(self, event: Event) -> None:
        if isinstance(event, TextChunk):
            self._written[event.request] = event.num_tokens
        elif isinstance(event, Finished):
            self._ended += 1

    def answer(self, num_chats: int, new_tokens: int) -> tuple[float, float]:
        """Seconds until the last chat's first token; tokens a second from then until the first chat ends."""
        asked_s = time.perf_counter()
        for chat in range(num_chats):
            prompt = tuple(random.choices(range(5, 500), k=PROMPT_TOKENS))
            self._scheduler.submit(Generate(chat, prompt, Sampling(temperature=0.0, max_new_tokens=new_tokens)))
        self._step_until(lambda: len(self._written) == num_chats or self._ended > 0)
        began_s, before = time.perf_counter(), sum(self._written.values())
        self._step_until(lambda: self._ended > 0)
        took_s, after = time.perf_counter() - began_s, sum(self._written.values())
        self._step_until(lambda: self._scheduler.is_idle)
        return began_s - asked_s, (after - before) / took_s if after > before else 0.0

    def _step_until(self, is_done: Callable[[], bool]) -> None:
        while not is_done():
            self._scheduler.step()


def link_times(source: Any, target: Any) -> dict[str, float]:
    """Microseconds a copy, by way and size, each enqueued behind the last one."""
    import torch

    from core.worker.decode.device_link import DeviceLink

    found = {}
    for way in ("direct", "through the host"):
        for num_bytes in LINK_BYTES:
            link = DeviceLink(source, target, through_host=way != "direct")
            packed = link.pack([torch.zeros(num_bytes, dtype=torch.uint8, device=source)])
            for is_timed in (False, True):
                begin_s = time.perf_counter()
                for _ in range(LINK_COPIES):
                    link.copy(packed)
                torch.cuda.synchronize(target)
                if is_timed:
                    found[f"{way}, {num_bytes} bytes"] = 1e6 * (time.perf_counter() - begin_s) / LINK_COPIES
    return found


def table(found: Sequence[Figures]) -> str:
    """Markdown: the speeds, then the memory."""
    lines = [
        f"| model | layers | first token of {PROMPT_TOKENS} / in two chunks | {' | '.join(map(chats, CHATS))} "
        f"| {max(CHATS)} prompts, tokens/s | load |",
        "|" + " --- |" * (len(CHATS) + 5),
    ]
    for one in found:
        where = " + ".join(map(str, one.num_layers)) if one.num_gpus > 1 else "one GPU"
        rates = [" / ".join(f"{rate:.0f}" for rate in rates_of(one, count)) for count in CHATS]
        plain = "" if one.captured else ", not captured"
        first = f"{1000 * one.first_token_s:.1f} / {1000 * one.first_token_halves_s:.1f} ms"
        columns = [one.model, f"{where}{plain}", first, *rates, f"{one.reading:.0f}", f"{one.load_s:.0f} s"]
        lines.append(f"| {' | '.join(columns)} |")
    lines.append("")
    for one in found:
        for place, (allocated, context) in enumerate(zip(one.allocated, one.context, strict=True)):
            name = f"{one.model} on {one.num_gpus}, GPU {place}"
            lines.append(f"- {name}: plan {allocated[0]} MiB of tensors, reached {allocated[1]}; plan {context[0]} MiB "
                         f"of CUDA's own, reached {context[1]}")  # fmt: skip
        lines += [f"- a copy {way}: {took_us:.1f} µs" for way, took_us in one.links.items()]
    return "\n".join(lines)


def rates_of(one: Figures, count: int) -> list[float]:
    """In two parts, then in one, where both were measured."""
    return [rate for key, rate in one.rates.items() if key.partition(",")[0] == str(count)]


def chats(count: int) -> str:
    return "1 chat" if count == 1 else f"{count} chats, two parts / one"


if __name__ == "__main__":
    sys.exit(main())
