"""How vLLM is to serve a model: over how many GPUs, with which options, and the command that prints it."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from cli.main import main
from core.checkpoint.checkpoint import Checkpoint, read_checkpoint
from core.common.errors import InputError
from core.library import catalogue
from core.memory.device_memory import DeviceMemory
from core.memory.model_shape import read_shape
from core.vllm.plan import can_split, check_vllm_takes, make_scale_plan
from core.vllm.server import LOG_HEAD
from tests.support.checkpoints import Recipe, make_checkpoint
from tests.support.dashboard import free_port
from tests.support.packed import make_packed

pytestmark = pytest.mark.usefixtures("cpu")
AVX2 = "flags\t\t: fpu sse2 avx avx2 fma"
CPUS = {
    "with AVX-512": (f"{AVX2} avx512f avx512dq avx512cd avx512bw avx512vl", True),
    "a Xeon Phi's, which torch does not count": (f"{AVX2} avx512f avx512pf avx512er avx512cd", False),
    "with AVX2": (AVX2, False),
    "of ARM, where vLLM has other kernels": ("Features\t: fp asimd bf16", True),
}
RTX_4090 = DeviceMemory("RTX 4090", 24_564, (8, 9), reserved_mib=510)
A40 = DeviceMemory("A40", 46_068, (8, 6), reserved_mib=700)


def llama(size: str, branch: str | None = None) -> Checkpoint:
    return catalogue.checkpoint(catalogue.find(f"TheBloke/Llama-2-{size}-Chat-GPTQ", branch))


def option(command: Sequence[str], name: str) -> str | None:
    return command[command.index(name) + 1] if name in command else None


@pytest.fixture
def cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the kernel tells of a CPU that vLLM runs 4 bit on, whatever this machine has."""
    path = tmp_path / "cpuinfo"
    path.write_text(f"processor\t: 0\nmodel name\t: some\n{CPUS['with AVX-512'][0]}\n\n")
    monkeypatch.setattr("core.vllm.cpu.CPUINFO", path)
    return path


def test_a_model_that_fits_one_card_takes_one() -> None:
    plan = make_scale_plan(llama("13B"), [RTX_4090] * 4)
    assert plan.fits and (plan.tensor_parallel, plan.pipeline_parallel) == (1, 1)
    command = plan.serve_command(8000)
    assert command[:2] == ["vllm", "serve"] and "--tensor-parallel-size" not in command
    assert option(command, "--quantization") == "gptq_marlin" and option(command, "--max-model-len") == "4096"
    assert option(command, "--host") == "127.0.0.1" and "--enforce-eager" not in command


def test_a_larger_one_takes_as_many_as_it_needs_and_that_divide_its_heads() -> None:
    plan = make_scale_plan(llama("70B"), [RTX_4090] * 8)
    assert plan.fits and plan.tensor_parallel == 2
    assert plan.needed_mib < plan.budget_mib <= 24_564 * 0.92
    assert option(plan.serve_command(8000), "--tensor-parallel-size") == "2"


def test_where_it_fits_nowhere_the_plan_says_so() -> None:
    plan = make_scale_plan(llama("70B"), [RTX_4090])
    assert not plan.fits and plan.needed_mib > plan.budget_mib


def test_where_heads_do_not_divide_layers_are_split() -> None:
    plan = make_scale_plan(llama("70B"), [replace(RTX_4090, total_mib=20_000)] * 3)
    assert (plan.tensor_parallel, plan.pipeline_parallel) == (1, 3) and plan.fits


def test_what_others_hold_of_a_card_is_left_to_them() -> None:
    busy = replace(A40, others_mib=10_000)
    plan = make_scale_plan(llama("7B"), [busy])
    assert plan.utilization == 0.76
    assert plan.utilization * busy.total_mib <= busy.available_mib


def test_several_hosts_are_brought_together_by_ray_as_vllm_documents() -> None:
    plan = make_scale_plan(llama("70B"), [RTX_4090] * 2, ["10.0.0.1", "10.0.0.2"], 2)
    assert (plan.tensor_parallel, plan.pipeline_parallel) == (2, 2)
    (head, begin), (other, join) = plan.ray_commands()
    assert (head, begin[:3]) == ("10.0.0.1", ["ray", "start", "--head"])
    assert other == "10.0.0.2" and "--address=10.0.0.1:6379" in join
    assert option(plan.serve_command(8000), "--distributed-executor-backend") == "ray"
    assert plan.environment()["VLLM_HOST_IP"] == "10.0.0.1"


def test_without_a_gpu_vllm_runs_on_the_cpu(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "tiny")
    plan = make_scale_plan(read_checkpoint(tmp_path / "tiny"), [])
    command = plan.serve_command(8000)
    assert plan.is_cpu and "--gpu-memory-utilization" not in command and "--enforce-eager" in command
    assert command[2] == str(tmp_path / "tiny") and plan.environment()["HF_HUB_OFFLINE"] == "1"


@pytest.mark.parametrize(("said", "is_taken"), CPUS.values(), ids=CPUS)
@pytest.mark.parametrize("bits", [4, 8])
def test_4_bit_on_a_cpu_without_avx_512_is_refused_before_vllm_starts(
    tmp_path: Path, cpu: Path, said: str, is_taken: bool, bits: int
) -> None:
    """vLLM lacks the kernel there: its server started, said that it was ready, and ended at the first question."""
    cpu.write_text(f"processor\t: 0\n{said}\n")
    make_checkpoint(tmp_path / "tiny", Recipe(bits=bits))
    checkpoint = read_checkpoint(tmp_path / "tiny")
    assert make_scale_plan(checkpoint, [A40]).fits
    if is_taken or bits == 8:
        assert make_scale_plan(checkpoint, []).is_cpu
        return
    with pytest.raises(InputError) as caught:
        make_scale_plan(checkpoint, [])
    assert (caught.value.key, caught.value.params) == ("scale_cpu_kernel", {"model": "tiny"})


def test_a_machine_that_tells_nothing_of_its_cpu_is_left_to_vllm(tmp_path: Path, cpu: Path) -> None:
    cpu.unlink()
    make_checkpoint(tmp_path / "tiny")
    assert make_scale_plan(read_checkpoint(tmp_path / "tiny"), []).is_cpu


@pytest.mark.parametrize("packing", ["awq", "compressed"])
def test_so_is_4_bit_that_is_packed_otherwise(tmp_path: Path, cpu: Path, packing: str) -> None:
    cpu.write_text(AVX2)
    make_packed(tmp_path / "tiny", packing, Recipe(symmetric=False))
    with pytest.raises(InputError) as caught:
        make_scale_plan(read_checkpoint(tmp_path / "tiny"), [])
    assert caught.value.key == "scale_cpu_kernel"


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_command_says_that_the_cpu_lacks_the_kernel_and_installs_nothing(
    tmp_path: Path, cpu: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], language: str
) -> None:
    def nobody(*_: object, **__: object) -> None:
        raise AssertionError("vLLM would be installed")

    cpu.write_text(AVX2)
    monkeypatch.setenv("LLAMADECK_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("LC_ALL", {"en": "C.UTF-8", "zh": "zh_CN.UTF-8"}[language])
    monkeypatch.setattr("cli.scale._devices", lambda *_: [])
    monkeypatch.setattr("cli.scale.ensure_venv", nobody)
    make_checkpoint(tmp_path / "models" / "tiny")
    assert main(["scale", "tiny", "--start", "--port", str(free_port())]) == 2
    said = capsys.readouterr().err
    assert "AVX-512" in said and "tiny" in said and "Traceback" not in said


@pytest.mark.parametrize("change", [{"bits": 3}, {"bits": 2}, {"is_symmetric": False}, {"is_permuted": True}])
def test_what_vllm_refuses_is_refused_before_it_starts(change: dict[str, object]) -> None:
    checkpoint = llama("7B")
    checkpoint = replace(checkpoint, quantization=replace(checkpoint.quantization, **change))  # type: ignore[arg-type]
    with pytest.raises(InputError) as caught:
        make_scale_plan(checkpoint, [A40])
    assert caught.value.key == "scale_quantization"


@pytest.mark.parametrize("packing", ["awq", "compressed", "auto_round"])
def test_vllm_finds_out_itself_what_is_not_plain_gptq(tmp_path: Path, packing: str) -> None:
    """Told gptq_marlin it refuses such files."""
    make_packed(tmp_path / "tiny", packing, Recipe(symmetric=False))
    assert "--quantization" not in make_scale_plan(read_checkpoint(tmp_path / "tiny"), []).serve_command(8000)


@pytest.mark.parametrize(
    ("family", "key"),
    [
        ("bert", "scale_family"),
        ("baichuan", "scale_family"),
        ("xlstm", "scale_family"),
        ("ctrl", "scale_sizes"),
        ("qwen3_moe", None),
        ("a_family_of_tomorrow", None),
    ],
)
def test_a_family_that_vllm_does_not_serve_is_refused_before_it_starts(family: str, key: str | None) -> None:
    """What runs there and not here has a plan, as far as its sizes are known."""
    checkpoint = llama("7B")
    config = checkpoint.config | {"model_type": family}
    if family == "ctrl":
        config.pop("num_attention_heads")
    checkpoint = replace(checkpoint, config=config)
    if key is None:
        assert make_scale_plan(checkpoint, [A40]).fits
        return
    with pytest.raises(InputError) as caught:
        make_scale_plan(checkpoint, [A40])
    assert (caught.value.key, caught.value.params["family"]) == (key, family)


def test_a_context_beyond_the_usual_one_gives_vllm_the_rope_that_serves_it(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "model", Recipe(num_layers=1))
    found = read_checkpoint(tmp_path / "model")
    config = {**found.config, "model_type": "qwen2", "max_position_embeddings": 32768, "rope_theta": 1e6}
    qwen = replace(found, config=config)
    command = make_scale_plan(qwen, [RTX_4090], context_tokens=100_000).serve_command(8000)
    rope = json.loads(option(command, "--hf-overrides") or "{}")["rope_parameters"]
    assert (rope["rope_type"], rope["factor"], rope["rope_theta"]) == ("yarn", 4.0, 1e6)
    assert option(command, "--max-model-len") == "100000"
    assert option(make_scale_plan(qwen, [RTX_4090], context_tokens=32768).serve_command(1), "--hf-overrides") is None


def test_a_part_for_pictures_counts_where_vllm_loads_it(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "model", Recipe(num_layers=1))
    found = read_checkpoint(tmp_path / "model")
    plain, whole = (make_scale_plan(one, [RTX_4090]) for one in (found, replace(found, left_out_bytes=300 * 2**20)))
    assert whole.needed_mib == plain.needed_mib + 300


def test_act_order_without_groups_changes_nothing() -> None:
    checkpoint = llama("7B")
    plain = replace(checkpoint.quantization, is_permuted=True, group_size=-1)
    check_vllm_takes(replace(checkpoint, quantization=plain))


@pytest.mark.parametrize(
    ("tensor", "pipeline", "key"),
    [(3, None, "scale_heads"), (64, None, "scale_heads"), (None, 33, "scale_layers"), (2, 3, "scale_too_few")],
)
def test_a_split_that_cannot_be_is_a_sentence(tensor: int | None, pipeline: int | None, key: str) -> None:
    with pytest.raises(InputError) as caught:
        make_scale_plan(llama("7B"), [A40] * 4, (), tensor, pipeline)
    assert caught.value.key == key


def test_a_matrix_is_split_only_at_whole_groups() -> None:
    """Llama-2 7B: 11008 rows in groups of 128 are 86 groups, which four GPUs cannot share."""
    checkpoint = llama("7B")
    grouped = replace(checkpoint, quantization=replace(checkpoint.quantization, group_size=128))
    shape = read_shape(grouped)
    assert can_split(shape, grouped, 2) and not can_split(shape, grouped, 4)


def test_a_branch_goes_to_vllm_as_its_revision() -> None:
    command = make_scale_plan(llama("13B", "gptq-8bit-128g-actorder_False"), [A40]).serve_command(8000)
    assert command[2] == "TheBloke/Llama-2-13B-chat-GPTQ"
    assert option(command, "--revision") == "gptq-8bit-128g-actorder_False"


def test_the_command_prints_what_is_to_be_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LLAMADECK_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    make_checkpoint(tmp_path / "models" / "tiny")
    make_checkpoint(tmp_path / "models" / "three", Recipe(bits=3))
    assert main(["scale", "tiny", "--gpu", "A40", "--port", "8123", "--context", "128"]) == 0
    printed = capsys.readouterr().out
    assert f"vllm serve {tmp_path / 'models' / 'tiny'} " in printed and "--port 8123 --max-model-len 128" in printed
    assert main(["scale", "TheBloke/Llama-2-70B-chat-GPTQ", "--gpu", "RTX 3060 12GB", "--tensor-parallel", "1"]) == 3
    assert main(["scale", "three", "--gpu", "A40"]) == 2
    assert main(["scale", "tiny", "--gpu", "A40", "--start"]) == 2
    assert main(["scale", "tiny", "--port", "0"]) == 2
    assert main(["scale", "tiny", "--gpu", "A40", "--tensor-parallel", "many"]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_line_of_vllms_log_is_told_without_its_head() -> None:
    line = "(EngineCore pid=10235) INFO 11-26 06:28:56 [kernel.py:467] Loading weights took 2.5 s"
    assert LOG_HEAD.sub("", line) == "Loading weights took 2.5 s"
    assert os.path.isabs(LOG_HEAD.sub("", "/usr"))
