"""What can be quantized, what the result will be, and what is refused before anything begins."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from core.checkpoint.checkpoint import FolderFiles
from core.checkpoint.headers import TensorInfo
from core.common.errors import CheckpointError, InputError
from core.memory.device_memory import DeviceMemory
from core.quantize.job_file import JobFile, read_job, write_job
from core.quantize.options import QuantizeOptions, check_group_size, check_name, result_name
from core.quantize.plan import default_device, plan_job, result_checkpoint, verdicts
from core.quantize.source import PlainModel, is_meta_format, plain_model, read_plain
from core.quantize.target import folder_target
from tests.support.checkpoints import WEIGHTS, make_checkpoint
from tests.support.plain_models import EXPERTS, change_json, make_plain

CARD = DeviceMemory.empty("card", 24_000, (8, 6))


@pytest.fixture
def copy(plain: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(plain, tmp_path / "copy"))


def test_a_model_of_transformers_is_read(plain: Path) -> None:
    found = read_plain(plain)
    assert (found.family, found.num_layers, found.hidden, len(found.matrices)) == ("llama", 2, 64, 14)
    assert found.matrices["model.layers.0.mlp.up_proj"] == (64, 128)
    assert "lm_head" in found.linears and "lm_head" not in found.matrices


def quantized(folder: Path) -> None:
    shutil.rmtree(folder)
    make_checkpoint(folder)


def quantized_in_another_way(folder: Path) -> None:
    change_json(folder / "config.json", quantization_config={"quant_method": "fp8"})


def codes_that_nothing_tells_of(folder: Path) -> None:
    quantized(folder)
    change_json(folder / "config.json", quantization_config=None)


def pickles(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")


def unknown_family(folder: Path) -> None:
    change_json(folder / "config.json", model_type="zebra", architectures=["ZebraForCausalLM"])


def bytes_for_weights(folder: Path) -> None:
    codes = {"model.layers.0.mlp.up_proj.weight": np.ones((128, 64), np.int8)}
    change_tensors(folder, lambda tensors: tensors.update(codes))


def no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def no_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()


def no_matrix_of_one_layer(folder: Path) -> None:
    change_tensors(folder, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))


def no_last_norm(folder: Path) -> None:
    change_tensors(folder, lambda tensors: tensors.pop("model.norm.weight"))


def no_head(folder: Path) -> None:
    change_tensors(folder, lambda tensors: tensors.pop("lm_head.weight"))


def head_of_rewards(folder: Path) -> None:
    change_tensors(folder, lambda tensors: tensors.update({"v_head.summary.weight": np.ones((1, 64), np.float16)}))


def one_layer_more(folder: Path) -> None:
    change_json(folder / "config.json", num_hidden_layers=1)


def change_tensors(folder: Path, change: Callable[[dict[str, np.ndarray]], object]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


@pytest.mark.parametrize(
    ("damage", "key"),
    [
        (quantized, "quantize_already"),
        (quantized_in_another_way, "quantize_already"),
        (codes_that_nothing_tells_of, "quantize_already"),
        (pickles, "quantize_pickled"),
        (unknown_family, "family_unknown_elsewhere"),
        (bytes_for_weights, "quantize_dtype"),
        (no_tokenizer, "tokenizer_missing"),
        (no_weights, "no_weights"),
        # Jobs of these died in the layer that lacks it, or left out what is too much.
        (no_matrix_of_one_layer, "missing_weight"),
        (no_last_norm, "missing_weight"),
        (no_head, "missing_weight"),
        (head_of_rewards, "unexpected_weight"),
        (one_layer_more, "config_layers"),
    ],
)
def test_what_cannot_be_quantized_is_refused(copy: Path, damage: Callable[[Path], None], key: str) -> None:
    damage(copy)
    with pytest.raises(CheckpointError) as raised:
        read_plain(copy)
    assert raised.value.key == key


def test_a_repository_that_contradicts_itself_is_not_said_to_be_downloaded_again(copy: Path) -> None:
    one_layer_more(copy)
    with pytest.raises(CheckpointError) as raised:
        plain_model(FolderFiles(copy))
    assert raised.value.key == "remote_config_layers"


def test_a_path_without_a_model_is_named_as_it_was_given(tmp_path: Path) -> None:
    """The sentences told what to do in models/, where nobody had looked."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    for name, key in (("nosuch", "no_folder"), ("file", "no_folder"), ("empty", "no_config")):
        with pytest.raises(InputError) as raised:
            folder_target(tmp_path / name)
        assert (raised.value.key, raised.value.params["folder"]) == (f"quantize_{key}", str(tmp_path / name))
        assert "under models" not in raised.value.sentence("en")


def test_groups_must_divide_every_matrix(plain: Path) -> None:
    with pytest.raises(CheckpointError) as raised:
        check_group_size(read_plain(plain), QuantizeOptions(group_size=128))
    assert raised.value.params["fitting"] == "32, 64, -1"
    check_group_size(read_plain(plain), QuantizeOptions(group_size=64))


@pytest.mark.parametrize("change", [{"bits": 3}, {"bits": 16}, {"group_size": 0}, {"group_size": 48}])
def test_bits_and_groups_that_no_kernel_takes_are_no_options(change: dict[str, int]) -> None:
    with pytest.raises(InputError):
        QuantizeOptions(**change)


def test_names_tell_how_a_model_was_made(models: Path) -> None:
    options = QuantizeOptions(adapters=(Path("a/pirate"),), is_act_order=True, is_symmetric=False)
    assert result_name("Tiny-1M", options) == "Tiny-1M-pirate-GPTQ-4bit-128g-actorder-asym"
    assert result_name("Tiny 1M/x", QuantizeOptions(8, -1)) == "Tiny_1M_x-GPTQ-8bit"
    assert len(result_name("长" * 300, QuantizeOptions()).encode()) <= 200
    (models / "there").mkdir()
    for name in ("there", "", ".hidden", "a/b", "x" * 300):
        with pytest.raises(InputError):
            check_name(name)


def test_a_job_is_written_down_and_read_again(tmp_path: Path) -> None:
    job = JobFile(
        "x", tmp_path, QuantizeOptions(8, 32, True, False, (tmp_path,), tmp_path, True), "a/b", True, "cuda:1"
    )
    write_job(tmp_path, job)
    assert read_job(tmp_path) == job
    change_json(tmp_path / "job.json", options={"bits": 5})
    with pytest.raises(CheckpointError):
        read_job(tmp_path)


def test_the_plan_grows_with_the_model_and_with_adapters(plain: Path, adapter: Path, copy: Path) -> None:
    model = read_plain(plain)
    alone = plan_job(model, QuantizeOptions(group_size=32), "cpu")
    assert alone.vram_bytes == 0 and alone.resumes and alone.result_bytes < model.size_bytes
    merged = plan_job(model, QuantizeOptions(group_size=32, adapters=(adapter,)), "cpu")
    assert merged.disk_bytes == alone.disk_bytes + model.size_bytes
    on_gpu = plan_job(model, QuantizeOptions(group_size=32), "cuda:0")
    assert on_gpu.vram_bytes > 0


def test_the_verdict_is_of_the_result(plain: Path) -> None:
    found = verdicts(read_plain(plain), QuantizeOptions(), [CARD])
    assert [(choice.bits, choice.group_size) for choice, _ in found] == [
        (8, 32), (8, 64), (8, -1), (4, 32), (4, 64), (4, -1),
    ]  # fmt: skip
    assert all(report.fits for _, report in found)
    result = result_checkpoint(read_plain(plain), QuantizeOptions(4, 32))
    result.require_runs()
    assert result.quantization_label == "4 bit, group 32"


def test_a_job_runs_where_there_is_most_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLAMADECK_CPU", raising=False)
    larger = DeviceMemory.empty("larger", 48_000, (8, 6))
    assert default_device([]) == "cpu"
    assert default_device([CARD, larger]) == "cuda:1"
    full = DeviceMemory("full", 80_000, (9, 0), others_mib=70_000, returning_mib=70_000)
    assert default_device([CARD, full]) == "cuda:0"
    monkeypatch.setenv("LLAMADECK_CPU", "1")
    assert default_device([CARD]) == "cpu"


def test_metas_format_is_known_by_its_files(plain: Path, tmp_path: Path) -> None:
    assert not is_meta_format(plain)
    assert not is_meta_format(tmp_path / "nothing")
    (tmp_path / "params.json").write_text("{}")
    (tmp_path / "consolidated.00.pth").write_bytes(b"")
    assert is_meta_format(tmp_path)


def test_experts_that_lie_in_one_tensor_are_counted_one_by_one() -> None:
    """gptqmodel takes them apart, and gate and up too."""
    stacked = {
        "model.layers.0.mlp.experts.gate_up_proj": TensorInfo("f", "BF16", (4, 64, 32), 0, 4 * 64 * 32 * 2),
        "model.layers.0.mlp.experts.down_proj": TensorInfo("f", "BF16", (4, 32, 32), 0, 4 * 32 * 32 * 2),
        "model.layers.0.mlp.gate.weight": TensorInfo("f", "BF16", (4, 32), 0, 4 * 32 * 2),
    }
    found = PlainModel("x", None, {"model_type": "qwen3_moe"}, stacked, ()).matrices
    assert len(found) == 12
    assert found["model.layers.0.mlp.experts.3.up_proj"] == (32, 32)


def test_experts_take_less_time_where_each_sees_what_its_router_sends_it(tmp_path: Path) -> None:
    model = read_plain(make_plain(tmp_path / "mixture", "qwen3_moe", **EXPERTS))
    routed, all_rows = (plan_job(model, QuantizeOptions(4, 32, sees_all=sees), "cuda:0") for sees in (False, True))
    assert routed.time_s < all_rows.time_s
    assert (routed.disk_bytes, routed.vram_bytes) == (all_rows.disk_bytes, all_rows.vram_bytes)
