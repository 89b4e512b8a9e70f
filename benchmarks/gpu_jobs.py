"""What a session on a GPU measures, in the order of what is wanted most: benchmarks/gpu_tables.py runs it."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path

from benchmarks.adapter_speed import CELLS
from benchmarks.llama_cpp_gpu import GGUFS, make_gguf_command
from benchmarks.speed_table import CASES, MODELS, TODAYS_MODELS, Case, make_command, vllm_cache_gib

# Of each model on disk.
MODEL_GIB = {
    "Qwen3-30B-A3B": 16,
    "Qwen3.5-27B, as published": 28,
    "Qwen3.5-27B, all in 4 bit": 18,
    "Qwen3.5-35B-A3B, as published": 22,
    "Mixtral-8x7B": 24,
    "7B": 4,
    "13B": 7,
    "70B": 35,
    "Llama-3.1-8B": 6,
    "7B Q4_0": 4,
    "13B Q4_0": 7,
    "70B Q4_0": 37,
}
# GPU tests, in parts that one call has time for.
TESTS = {
    "tests: steps, states, adapters, attention": ("steps", "states", "adapters", "head_attention", "quantize"),
    "tests: experts, kernels of steps, pool": ("moe", "expert_adapters", "step_kernels", "narrow_products", "pool"),
}
# They fill the card.
LOAD_TESTS = "tests: load"
MORE_TESTS = {
    "tests: attention, draws, experts": ("attention", "attention_kinds", "device_map", "draws", "experts"),
    "tests: kernels, prompts, recurrent, sampling": (
        "kernels",
        "prefill",
        "prompt_attention",
        "large_passes",
        "recurrent_kernels",
        "sampling",
    ),
}
# Of the smallest card that this is for.
CARD_GIB = 139
# Beside a model: what a table's chats, graphs and workspaces take of the card, of an H200's for 128 chats of a 7B.
CHATS_GIB, MANY_CHATS_GIB, VLLM_GIB = 18, 60, 7
TESTS_GIB = 16
OURS_S, VLLM_S = 75.0, 200.0
LLAMA_CPP_S = {"7B": 50.0, "13B": 70.0, "70B": 210.0}


@dataclass(frozen=True, slots=True)
class Job:
    """A process of its own. `seconds` is about what it takes; it begins only where so much is left. `models`: those of
    benchmarks/speed_table.py that lie in the folder before it begins."""

    name: str
    arguments: tuple[str, ...]
    seconds: float
    models: tuple[str, ...] = ()
    num_cards: int = 1
    has_limit: bool = True
    # Of the card's memory while it runs; one that says nothing has the card for itself.
    card_gib: int = CARD_GIB


@dataclass(frozen=True, slots=True)
class Places:
    """Where models lie, where figures and outcomes of tests are appended to, and where vLLM's packages and llama.cpp's
    tools are."""

    folder: Path
    results: Path
    outcomes: Path
    vllm: Path | None = None
    vllm_python: str = sys.executable
    llama_cpp: Path | None = None


def all_jobs(places: Places) -> list[Job]:
    """Ours first, since they are the question; vLLM takes minutes to start, and has a card while ours have another."""
    by_name = {job.name: job for job in every_job(places)}
    first = [*TESTS, "ours: 7B", *(f"ours: {name}" for name in TODAYS_MODELS)]
    first += [f"vllm: {TODAYS_MODELS[0]}", "adapters: ours", "forms", "lookup", f"vllm: {TODAYS_MODELS[1]}"]
    first += ["ours: 7B, 8-bit cache", "ours: Llama-3.1-8B", f"vllm: {TODAYS_MODELS[2]}"]
    first += [
        "tests: two GPUs",
        "exchange",
        "split",
        f"vllm: {TODAYS_MODELS[3]}",
        "quantize 7B",
        f"vllm: {TODAYS_MODELS[4]}",
    ]
    first += ["vllm: 7B", "vllm: Llama-3.1-8B", "adapters: vllm", "ours: 13B", "ours: 70B"]
    return [by_name[name] for name in dict.fromkeys([*first, *by_name]) if name in by_name]


def every_job(places: Places) -> Iterator[Job]:
    yield from (tests_job(name, parts, places, 150.0) for name, parts in TESTS.items())
    yield from (table_job(name, "ours", places) for name, case in CASES.items() if case.num_gpus == 1)
    yield adapter_job("ours", places)
    yield from single_jobs(places)
    yield from split_jobs(places)
    yield from kernel_jobs(places)
    yield from (tests_job(name, parts, places, 150.0) for name, parts in MORE_TESTS.items())
    yield tests_job("tests: one GPU that plays two", ("split",), places, 60.0)
    yield tests_job(LOAD_TESTS, ("load",), places, 60.0, card_gib=CARD_GIB)
    yield from ladder_jobs(places)
    if places.vllm is not None:
        yield from (table_job(name, "vllm", places) for name in CASES)
        yield adapter_job("vllm", places)
        yield scale_job(1, 250.0, places)
        yield scale_job(2, 180.0, places)
    if places.llama_cpp is not None:
        yield from (llama_cpp_job(name, shape, places) for name, shape in GGUFS.items())


def tests_job(
    name: str, parts: Sequence[str], places: Places, seconds: float, num_cards: int = 1, card_gib: int = TESTS_GIB
) -> Job:
    files = [f"tests/{'quantize' if part == 'quantize' else 'worker'}/test_gpu_{part}.py" for part in parts]
    arguments = ["-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", "-p", "tests.support.outcomes",
                 "--outcomes", str(places.outcomes), *files]  # fmt: skip
    return Job(name, tuple(arguments), seconds, num_cards=num_cards, has_limit=False, card_gib=card_gib)


def table_job(name: str, engine: str, places: Places) -> Job:
    case = CASES[name]
    arguments = ["-m", "benchmarks.speed_table", str(places.folder), "--cases", name, "--engines", engine]
    arguments += ["--keep-models", "--results", str(places.results)]
    seconds = OURS_S if engine == "ours" else VLLM_S
    if engine == "vllm":
        arguments += vllm_arguments(places)
    # Of 128k tokens, and of 35 GB.
    seconds += 60.0 * ("Llama-3.1" in name) + 30.0 * ("70B" in name)
    gib = MODEL_GIB[case.model]
    if engine == "vllm":
        gib += vllm_cache_gib(case) + VLLM_GIB
    else:
        gib += MANY_CHATS_GIB if case.num_chats > 32 or case.context_tokens > 8192 else CHATS_GIB
    return Job(f"{engine}: {name}", tuple(arguments), seconds, (case.model,), case.num_gpus, card_gib=gib)


def vllm_arguments(places: Places) -> list[str]:
    return ["--vllm", str(places.vllm), "--vllm-python", places.vllm_python]


def llama_cpp_job(model: str, shape: str, places: Places) -> Job:
    arguments = ["-m", "benchmarks.llama_cpp_gpu", str(places.folder), "--bin", str(places.llama_cpp), "--cases", shape]
    arguments += ["--keep-models", "--results", str(places.results)]
    return Job(f"llama.cpp: {shape}", tuple(arguments), LLAMA_CPP_S[shape], (model,))


def scale_job(num_gpus: int, seconds: float, places: Places) -> Job:
    arguments = ["-m", "benchmarks.scale_on_gpu", str(places.folder), "--gpus", str(num_gpus)]
    arguments += [*vllm_arguments(places), "--results", str(places.results)]
    return Job(f"scale: {num_gpus} GPU{'s' * (num_gpus > 1)}", tuple(arguments), seconds, ("7B",), num_cards=num_gpus)


def adapter_job(engine: str, places: Places) -> Job:
    arguments = ["-m", "benchmarks.adapter_speed", str(places.folder), "--engines", engine]
    arguments += ["--results", str(places.results), *(vllm_arguments(places) if engine == "vllm" else [])]
    vllm_gib = vllm_cache_gib(Case("7B", CELLS)) + VLLM_GIB
    seconds, gib = (90.0, CHATS_GIB) if engine == "ours" else (330.0, vllm_gib)
    return Job(f"adapters: {engine}", tuple(arguments), seconds, ("7B",), card_gib=MODEL_GIB["7B"] + gib)


def single_jobs(places: Places) -> Iterator[Job]:
    """Of our engine alone."""
    folder, results = str(places.folder), ["--results", str(places.results)]
    gib = MODEL_GIB["7B"] + CHATS_GIB
    yield Job("forms", ("-m", "benchmarks.form_speed", folder, *results), 80.0, ("7B",), card_gib=gib)
    yield Job("lookup", ("-m", "benchmarks.lookup_speed", "--make", folder, *results), 50.0, ("7B",), card_gib=gib)
    # In a folder of its own: it is taken away at the end.
    work = str(places.folder / "quantize")
    yield Job("quantize 7B", ("-m", "benchmarks.quantize_plan", work, "--models", "7B", *results), 500.0)


def split_jobs(places: Places) -> Iterator[Job]:
    results = ["--results", str(places.results)]
    yield tests_job("tests: two GPUs", ("split",), places, 60.0, num_cards=2)
    yield Job("exchange", ("-m", "benchmarks.two_card_exchange", *results), 60.0, num_cards=2)
    arguments = ("-m", "benchmarks.split_speed", str(places.folder / "hollow"), *results)
    yield Job("split", arguments, 170.0, num_cards=2)


def kernel_jobs(places: Places) -> Iterator[Job]:
    """Of kernels alone, without a model."""
    results = ("--results", str(places.results))
    for name, seconds in (("attention_speed", 40.0), ("mixer_speed", 30.0), ("expert_speed", 60.0)):
        yield Job(name, ("-m", f"benchmarks.{name}", *results), seconds, has_limit=False)
    yield Job("row_products", ("-m", "benchmarks.row_products", *results), 80.0)
    yield Job("product_parts", ("-m", "benchmarks.product_parts", *results), 180.0)
    yield Job("kernel_variants", ("-m", "benchmarks.kernel_variants", *results), 120.0)


def ladder_jobs(places: Places) -> Iterator[Job]:
    """Of the memory that is planned: adapters, today's models, caches of 8 bit, shared ones, passes of other sizes,
    many chats."""
    folder, results = str(places.folder / "ladder"), ["--results", str(places.results)]
    common = ["-m", "benchmarks.memory_ladder", folder, "--kernels", "llamadeck", "--captured", "--draw", "0", *results]
    crowded, shared = [*common, "--together"], [*common, "--crowded"]
    common = [*shared, "--together"]
    today = ["Qwen3-30B-A3B", "Mixtral-8x7B", "Qwen3.5-27B as published", "Qwen3.5-35B-A3B"]
    yield Job("ladder: adapters", (*common, "--models"), 150.0)
    yield Job("ladder: today's models", (*common, "--adapted", "--models", *today), 150.0)
    eight = ["--adapted", "--cache-bits", "8", "--models", "7B", "Llama-3.2-3B", "Qwen3-0.6B"]
    yield Job("ladder: 8-bit cache", (*common, *eight), 120.0)
    yield Job("ladder: pages, prefixes and adapters", (*shared, "--models", "--adapted"), 120.0)
    sized = ["--adapted", "--models", "7B", "Llama-3.2-3B", "Qwen3-14B"]
    lean = ["--chunk-tokens", "256", "--verified-tokens", "0"]
    yield Job("ladder: lean steps", (*common, *sized, *lean), 100.0)
    plain = [argument for argument in common if argument != "--captured"]
    yield Job("ladder: lean steps, kernel by kernel", (*plain, *sized, *lean), 100.0)
    yield Job("ladder: many chats", (*crowded, "--models", "--adapted"), 100.0)
    large = ["--chunk-tokens", "2048"]
    yield Job("ladder: large passes", (*common, *sized, *large), 100.0)
    yield Job("ladder: large passes, experts", (*common, "--adapted", "--models", *today, *large), 150.0)


def make_arguments(model: str, folder: Path) -> list[str]:
    """What makes `model` in its folder."""
    if model in GGUFS:
        return make_gguf_command(model, folder)
    return make_command(MODELS[model], folder / model)


@dataclass(frozen=True, slots=True)
class Running:
    """A job at work, and how many seconds it still takes, about."""

    job: Job
    left_s: float


def choose(
    pending: Sequence[Job], num_free: int, running: Sequence[Running], ready: AbstractSet[str], left_s: float
) -> Job | None:
    """The next job that can begin with `num_free` cards, the models that are `ready` and `left_s` seconds.

    A job of more cards than are free waits for them; what comes behind it begins before only where it ends as early.
    """
    most_s = left_s
    for job in pending:
        if job.seconds > left_s or not ready >= set(job.models):
            continue
        if job.num_cards > num_free:
            most_s = min(most_s, max((one.left_s for one in running), default=0.0))
        elif job.seconds <= most_s:
            return job
    return None
