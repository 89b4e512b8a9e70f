"""How vLLM serves a checkpoint: over how many GPUs, with which options.

What vLLM takes beside the weights is estimated; vLLM itself measures at its start, and says then what fits.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from core.checkpoint.checkpoint import Checkpoint
from core.checkpoint.judgement import family_name, is_served_by_vllm, judge
from core.checkpoint.rope import extended_rope
from core.checkpoint.text_config import quantization_of
from core.common.errors import CheckpointError, InputError
from core.common.values import quoted_json
from core.memory.device_memory import DeviceMemory
from core.memory.fit import checked_context
from core.memory.kernels.spec import ALL_GROUP_SIZES, KernelSpec
from core.memory.model_shape import ModelShape, read_shape
from core.memory.plan import make_plan
from core.memory.sizes import MIB
from core.memory.step_sizes import StepSizes
from core.vllm.cpu import has_4_bit_kernel

# vLLM reads at most so many tokens of prompts in one step on large GPUs.
SIZES = StepSizes(8192)
# Its captured steps for up to 512 chats, and what its allocator leaves unused.
GRAPHS_MIB = 1536
# --gpu-memory-utilization: vLLM's own default, which leaves room for what it does not count.
MOST_UTILIZATION = 0.92
# vLLM 0.32: AutoGPTQConfig.TYPE_MAP; act-order over groups was taken out (gptq_utils.py).
BITS = frozenset((4, 8))
# It keeps a checkpoint's own tensors, in another order.
KERNEL = KernelSpec("vllm", "cuda", bits=BITS, group_sizes=ALL_GROUP_SIZES)
MARLIN_CAPABILITY = (8, 0)
CPU_CACHE_GIB = 4
RAY_PORT = 6379


@dataclass(frozen=True, slots=True)
class ScalePlan:
    """`needed_mib` of `budget_mib` on each GPU; both are 0 on a CPU. `utilization` is None on a CPU.

    `quantization`: vLLM's name for what reads GPTQ; None where vLLM is to find out from the configuration.
    """

    model: str
    path: str
    tensor_parallel: int
    pipeline_parallel: int
    context_tokens: int
    quantization: str | None
    utilization: float | None = None
    needed_mib: int = 0
    budget_mib: int = 0
    hosts: tuple[str, ...] = ()
    # The rope for a context beyond the usual one, as JSON; "" where the model's own serves it.
    rope: str = ""

    @property
    def is_cpu(self) -> bool:
        return self.utilization is None

    @property
    def fits(self) -> bool:
        return self.needed_mib <= self.budget_mib

    def serve_command(self, port: int) -> list[str]:
        """`vllm serve` for the first host."""
        options = {
            "served-model-name": self.model,
            "host": "127.0.0.1",
            "port": str(port),
            "max-model-len": str(self.context_tokens),
        }
        if self.quantization is not None:
            options["quantization"] = self.quantization
        if self.tensor_parallel > 1:
            options["tensor-parallel-size"] = str(self.tensor_parallel)
        if self.pipeline_parallel > 1:
            options["pipeline-parallel-size"] = str(self.pipeline_parallel)
        if self.utilization is not None:
            options["gpu-memory-utilization"] = f"{self.utilization:.2f}"
        if self.rope:
            options["hf-overrides"] = self.rope
        if len(self.hosts) > 1:
            options["distributed-executor-backend"] = "ray"
        arguments = [text for name, value in options.items() for text in (f"--{name}", value)]
        # Captured steps gain nothing on a CPU, where vLLM compiles for minutes first.
        # A repository that is not here, and its branch.
        path, _, revision = (self.path, "", "") if os.path.isabs(self.path) else self.path.partition(":")
        arguments += ["--revision", revision] if revision else []
        return ["vllm", "serve", path, *arguments, *(["--enforce-eager"] if self.is_cpu else [])]

    def ray_commands(self) -> list[tuple[str, list[str]]]:
        """What is to be run on which host before: the first is the head, which the others join."""
        if len(self.hosts) < 2:
            return []
        head, *others = self.hosts
        begin = ["ray", "start", "--head", f"--node-ip-address={head}", f"--port={RAY_PORT}"]
        join = ["ray", "start", f"--address={head}:{RAY_PORT}"]
        return [(head, begin), *((other, [*join, f"--node-ip-address={other}"]) for other in others)]

    def environment(self) -> dict[str, str]:
        """What vLLM is told beside its options: no word about its use to anybody, and nothing fetched for a model
        that is here."""
        quiet = {"VLLM_NO_USAGE_STATS": "1"} | ({"HF_HUB_OFFLINE": "1"} if os.path.isabs(self.path) else {})
        if self.is_cpu:
            return quiet | {"VLLM_CPU_KVCACHE_SPACE": str(CPU_CACHE_GIB)}
        return quiet | ({"VLLM_HOST_IP": self.hosts[0]} if len(self.hosts) > 1 else {})


def make_scale_plan(
    checkpoint: Checkpoint,
    devices: Sequence[DeviceMemory],
    hosts: Sequence[str] = (),
    tensor_parallel: int | None = None,
    pipeline_parallel: int | None = None,
    context_tokens: int = 0,
) -> ScalePlan:
    """The fewest of `devices`, those of one host, that hold the model with one whole context.

    `hosts` all have the same devices; without a device it is a CPU. Where the model fits on none, the plan for all of
    them, which says so. Raises InputError for what vLLM does not take, here on a CPU neither, and for a split that the
    model does not allow.
    """
    check_vllm_takes(checkpoint)
    if not devices:
        check_cpu_runs(checkpoint)
    context_tokens = checked_context(checkpoint, context_tokens)
    shape = read_known_shape(checkpoint)
    path = str(checkpoint.path) if checkpoint.path is not None else checkpoint.name
    splits = list(_splits(shape, checkpoint, len(devices), max(1, len(hosts)), tensor_parallel, pipeline_parallel))
    if not devices:
        (tensor, pipeline), method = splits[0], _method(checkpoint, takes_marlin=False)
        rope = rope_override(checkpoint, context_tokens)
        return ScalePlan(checkpoint.name, path, tensor, pipeline, context_tokens, method, hosts=tuple(hosts), rope=rope)
    plans = [
        _plan(checkpoint, shape, path, devices, tuple(hosts), tensor, pipeline, context_tokens)
        for tensor, pipeline in splits
    ]
    return next((plan for plan in plans if plan.fits), plans[-1])


def read_known_shape(checkpoint: Checkpoint) -> ModelShape:
    """The sizes that a plan needs. Raises InputError for a family whose sizes are not known here, because it does not
    run here, CheckpointError for files that contradict each other."""
    try:
        return read_shape(checkpoint)
    except CheckpointError as error:
        if judge(checkpoint.name, checkpoint.config, checkpoint.tensors) is None:
            raise
        family = family_name(checkpoint.config)
        raise InputError("scale_sizes", model=checkpoint.name, family=family) from error


def check_vllm_takes(checkpoint: Checkpoint) -> None:
    """Raise InputError for a family or a quantization that vLLM refuses, as far as that is known."""
    if is_served_by_vllm(checkpoint.config) is False:
        family = family_name(checkpoint.config) or checkpoint.architecture
        raise InputError("scale_family", model=checkpoint.name, family=family)
    found = checkpoint.quantization
    if _method(checkpoint, False) is None:
        return
    ordered = found.is_permuted and found.group_size > 0
    if found.bits not in BITS or not found.is_symmetric or ordered:
        raise InputError("scale_quantization", model=checkpoint.name, quantization=found.label)


def check_cpu_runs(checkpoint: Checkpoint) -> None:
    """Raise InputError where vLLM lacks the kernel for this machine's CPU: it would start, and end at the first
    question."""
    if checkpoint.quantization.bits == 4 and not has_4_bit_kernel():
        raise InputError("scale_cpu_kernel", model=checkpoint.name)


def _method(checkpoint: Checkpoint, takes_marlin: bool) -> str | None:
    settings = quantization_of(checkpoint.config)
    method = settings.get("quant_method") if isinstance(settings, dict) else None
    if checkpoint.quantization.container != "GPTQ" or quoted_json(method or "gptq").lower() != "gptq":
        return None
    return "gptq_marlin" if takes_marlin else "gptq"


def _splits(
    shape: ModelShape,
    checkpoint: Checkpoint,
    num_devices: int,
    num_hosts: int,
    tensor: int | None,
    pipeline: int | None,
) -> Iterator[tuple[int, int]]:
    """(tensor, pipeline) parallel sizes to try, fewest GPUs first; what a person asked for is the only one.

    As vLLM recommends: tensors over the GPUs of a host, layers over hosts; layers also where heads do not divide.
    """
    if tensor is not None and not can_split(shape, checkpoint, tensor):
        heads = min((mixer.num_heads for mixer in shape.attentions), default=1)
        raise InputError("scale_heads", model=checkpoint.name, value=tensor, heads=heads)
    if pipeline is not None and pipeline > shape.num_layers:
        raise InputError("scale_layers", model=checkpoint.name, value=pipeline, layers=shape.num_layers)
    if tensor is not None or pipeline is not None or not num_devices:
        found = (tensor or 1, pipeline or num_hosts)
        if num_devices and found[0] * found[1] > num_devices * num_hosts:
            raise InputError("scale_too_few", wanted=found[0] * found[1], there=num_devices * num_hosts)
        yield found
        return
    for count in range(1, num_devices + 1):
        if can_split(shape, checkpoint, count):
            yield count, num_hosts
        elif count == num_devices:
            yield 1, count * num_hosts


def can_split(shape: ModelShape, checkpoint: Checkpoint, count: int) -> bool:
    """Whether vLLM can split each matrix over `count` GPUs: by heads, and by whole groups of its rows."""
    group = max(1, checkpoint.quantization.group_size)
    for mixer in shape.attentions:
        by_kv_heads = mixer.num_kv_heads % count == 0 or count % mixer.num_kv_heads == 0
        if mixer.num_heads % count or not by_kv_heads:
            return False
    rows = (*(mixer.num_heads * mixer.head_dim for mixer in shape.attentions), shape.intermediate)
    return all(size % count == 0 and size // count % group == 0 for size in rows)


def _plan(
    checkpoint: Checkpoint,
    shape: ModelShape,
    path: str,
    devices: Sequence[DeviceMemory],
    hosts: tuple[str, ...],
    tensor: int,
    pipeline: int,
    context_tokens: int,
) -> ScalePlan:
    per_host = max(1, math.ceil(tensor * pipeline / max(1, len(hosts))))
    used = sorted(devices, key=lambda device: -device.available_mib)[:per_host]
    least = min(used, key=lambda device: device.available_mib / device.total_mib)
    whole = make_plan(shape, KERNEL, least.capability, context_tokens, 1, SIZES)
    cache = whole.kv_cache / pipeline / min([tensor, *(mixer.num_kv_heads for mixer in shape.attentions)])
    # vLLM also loads the part for pictures.
    weights = (whole.weights + checkpoint.left_out_bytes) / tensor / pipeline
    needed = (weights + cache + whole.activations / tensor + whole.workspace + whole.context) / MIB + GRAPHS_MIB
    utilization = min(MOST_UTILIZATION, math.floor(100 * least.available_mib / least.total_mib) / 100)
    return ScalePlan(
        checkpoint.name,
        path,
        tensor,
        pipeline,
        context_tokens,
        _method(checkpoint, least.capability >= MARLIN_CAPABILITY),
        utilization,
        math.ceil(needed),
        math.floor(utilization * min(device.total_mib for device in used)),
        hosts,
        rope_override(checkpoint, context_tokens),
    )


def rope_override(checkpoint: Checkpoint, context_tokens: int) -> str:
    """What `--hf-overrides` takes for a context beyond the usual one, where config.json has another rope; else ""."""
    rope = extended_rope(checkpoint.config, context_tokens)
    return "" if rope is None else json.dumps({"rope_parameters": rope})
