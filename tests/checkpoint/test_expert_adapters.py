"""Adapters of single experts, as PEFT writes them of transformers' mixtures: one by one, and all of a layer in one."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from core.checkpoint.adapters import WEIGHTS, match_base, read_adapter, with_class_names
from core.checkpoint.low_rank import StackedLowRank, stacked_parameters
from core.checkpoint.weight_files import ADAPTER_CONFIG
from core.common.errors import CheckpointError
from core.quantize.child.merge import merge
from core.quantize.options import QuantizeOptions, merge_steps
from core.quantize.source import read_plain
from tests.support.adapters import write_one_by_one, write_swapped
from tests.support.plain_models import EXPERTS, change_json, make_adapter, make_plain

BOTH = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
PARAMETERS: dict[str, dict[str, Any]] = {
    "all": {"target_parameters": BOTH, "target_modules": ["q_proj"]},
    "down alone": {"target_parameters": ["experts.down_proj"], "target_modules": []},
    "gate and up alone": {"target_parameters": BOTH[:1], "target_modules": []},
    # Those of the classes before: PEFT makes one parameter of gate and up, of twice the rank.
    "by the names of single experts": {"target_modules": ["gate_proj", "up_proj", "down_proj"]},
    "ranks and alphas by pattern": {
        "target_parameters": BOTH,
        "target_modules": [],
        "rank_pattern": {"mlp.experts.down_proj": 2},
        "alpha_pattern": {r"layers\.1\.mlp\.experts\.gate_up_proj": 5},
    },
    "rsLoRA": {"target_parameters": BOTH, "target_modules": [], "use_rslora": True, "r": 3},
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_plain(tmp_path_factory.mktemp("plain") / "Moe-1M", "qwen3_moe", **EXPERTS)


def peft_deltas(base: Path, folder: Path) -> dict[str, torch.Tensor]:
    """What PEFT adds, by transformers' names."""
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    merged = PeftModel.from_pretrained(model, folder).merge_and_unload().state_dict()
    return {name: merged[name] - value for name, value in before.items() if not torch.equal(merged[name], value)}


@pytest.mark.parametrize("settings", PARAMETERS.values(), ids=PARAMETERS.keys())
def test_what_is_added_to_all_experts_is_found_for_each(plain: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    folder = make_adapter(plain, tmp_path / "adapter", **({"r": 4} | settings))
    tensors, model, wanted = load_file(folder / WEIGHTS), read_plain(plain), peft_deltas(plain, folder)
    adapter = read_adapter(folder)
    found = match_base(adapter, "base", model.linears)
    assert adapter.stacks and any(".experts.3." in name for name in found)
    for name, matrix in found.items():
        a, b = matrix.own_parts(tensors[matrix.a_name].float(), tensors[matrix.b_name].float())
        assert (a.shape, b.shape) == ((matrix.rank, matrix.in_features), (matrix.out_features, matrix.rank))
        stack, _, rest = name.partition(".experts.")
        if not rest:
            delta = wanted.pop(f"{name}.weight")
        else:
            number, projection = rest.split(".")
            of_all = f"{stack}.experts.{'down_proj' if projection == 'down_proj' else 'gate_up_proj'}"
            delta = wanted[of_all][int(number)]
            delta = delta if projection == "down_proj" else delta.chunk(2)[projection == "up_proj"]
        torch.testing.assert_close(matrix.scale * (b @ a), delta, rtol=1e-3, atol=1e-4)
    # Nothing but what was found is changed.
    numbers = {name.partition(".experts.")[0] for name in found if ".experts." in name}
    assert {name.partition(".experts.")[0] for name in wanted} == numbers


@pytest.mark.parametrize("version", ["0.18.1", "0.19.0", None])
def test_an_adapter_of_an_older_peft_adds_the_same(plain: Path, tmp_path: Path, version: str | None) -> None:
    """It was said to be of another model."""
    new = make_adapter(plain, tmp_path / "new", r=4, **PARAMETERS["gate and up alone"])
    old, model = write_swapped(new, tmp_path / "old", version), read_plain(plain)
    found = [match_base(read_adapter(folder), "base", model.linears) for folder in (new, old)]
    files = [load_file(folder / WEIGHTS) for folder in (new, old)]
    assert found[0].keys() == found[1].keys()
    for name in found[0]:
        parts = [
            one[name].own_parts(tensors[one[name].a_name], tensors[one[name].b_name])
            for one, tensors in zip(found, files, strict=True)
        ]
        assert torch.equal(parts[0][0], parts[1][0]) and torch.equal(parts[0][1], parts[1][1])


def test_a_newer_peft_is_taken_at_its_word(plain: Path, tmp_path: Path) -> None:
    new = make_adapter(plain, tmp_path / "new", r=4, **PARAMETERS["gate and up alone"])
    adapter = read_adapter(write_swapped(new, tmp_path / "odd", "0.19.1"))
    with pytest.raises(CheckpointError) as raised:
        match_base(adapter, "base", read_plain(plain).linears)
    assert raised.value.key == "adapter_base_experts"


def test_square_matrices_of_an_older_peft_are_refused(plain: Path, tmp_path: Path) -> None:
    """They were read one way, and an OLMoE with such an adapter computed something else than it was trained for."""
    stack = StackedLowRank("model.layers.0.mlp.experts.gate_up_proj", 2, 1.0, 8, 8, "a", "b", 3, may_be_swapped=True)
    adapter = read_adapter(make_adapter(plain, tmp_path / "a", r=4, **PARAMETERS["all"]))
    adapter = dataclasses.replace(adapter, matrices={}, stacks={stack.name: stack})
    names = [f"{stack.stack}.{number}.{part}_proj" for number in range(3) for part in ("gate", "up")]
    sizes = dict.fromkeys(names, (8, 4))
    with pytest.raises(CheckpointError) as raised:
        match_base(adapter, "base", sizes)
    assert raised.value.key == "adapter_experts_layout"
    told = dataclasses.replace(adapter, stacks={stack.name: dataclasses.replace(stack, may_be_swapped=False)})
    assert match_base(told, "base", sizes).keys() == set(names)


def test_experts_of_an_adapter_are_merged(plain: Path, tmp_path: Path) -> None:
    """Files have each expert by itself; both ways of an adapter."""
    stacked = make_adapter(plain, tmp_path / "stacked", **PARAMETERS["all"])
    single = write_one_by_one(stacked, tmp_path / "single")
    models = [
        merge(plain, QuantizeOptions(adapters=(folder,)), tmp_path / f"merged-{folder.name}", lambda _: None)
        for folder in (stacked, single)
    ]
    first, second = (load_file(folder / "model.safetensors") for folder in models)
    deltas = peft_deltas(plain, stacked)
    before = load_file(plain / "model.safetensors")
    name = "model.layers.1.mlp.experts.2.up_proj.weight"
    wanted = before[name].float() + deltas["model.layers.1.mlp.experts.gate_up_proj"][2].chunk(2)[1]
    torch.testing.assert_close(first[name].float(), wanted, rtol=2e-3, atol=2e-3)
    assert all(torch.equal(first[one], second[one]) for one in first)


def test_nothing_is_merged_into_experts_that_lie_in_one_tensor(plain: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(plain, tmp_path / "base"))
    tensors = load_file(base / "model.safetensors")
    stack = "model.layers.0.mlp.experts"
    gates, ups, downs = (
        torch.stack([tensors.pop(f"{stack}.{number}.{one}.weight") for number in range(4)])
        for one in ("gate_proj", "up_proj", "down_proj")
    )
    tensors |= {f"{stack}.gate_up_proj": torch.cat([gates, ups], dim=1), f"{stack}.down_proj": downs}
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    model = read_plain(base)
    folder = make_adapter(plain, tmp_path / "a", **PARAMETERS["all"])
    with pytest.raises(CheckpointError) as raised:
        merge_steps(model, QuantizeOptions(adapters=(folder,)))
    assert raised.value.key == "adapter_stacked_base"
    other = make_adapter(plain, tmp_path / "other", target_modules=["q_proj"])
    assert merge_steps(model, QuantizeOptions(adapters=(other,)))


def test_turns_of_gate_and_up_are_told_apart(plain: Path, tmp_path: Path) -> None:
    """In gpt-oss's tensor outputs of gate and up take turns; of files that cut it in the middle, they do not."""
    adapter = read_adapter(make_adapter(plain, tmp_path / "a", **PARAMETERS["gate and up alone"]))
    linears = read_plain(plain).linears
    by_turns, halves = (match_base(adapter, "base", linears, turns) for turns in (True, False))
    b = torch.arange(128).unsqueeze(1).expand(128, 8 * 4)
    name = "model.layers.0.mlp.experts.1.up_proj"
    assert by_turns[name].own_parts(b, b)[1][:, 0].tolist() == list(range(1, 128, 2))
    assert halves[name].own_parts(b, b)[1][:, 0].tolist() == list(range(64, 128))
    as_one = {f"model.layers.{layer}.mlp.experts.{number}.gate_up_proj": (64, 128)
              for layer in range(2) for number in range(4)}  # fmt: skip
    assert match_base(adapter, "base", as_one, True).keys() == as_one.keys()


def test_the_names_that_releases_have_for_experts_are_understood(plain: Path, tmp_path: Path) -> None:
    """Mixtral's: block_sparse_moe, w1, w2 and w3."""
    folder = write_one_by_one(make_adapter(plain, tmp_path / "a", **PARAMETERS["all"]), tmp_path / "single")
    tensors = {
        name.replace(".mlp.", ".block_sparse_moe.")
        .replace("gate_proj", "w1").replace("up_proj", "w3").replace("down_proj", "w2"): value
        for name, value in load_file(folder / WEIGHTS).items()
    }  # fmt: skip
    save_file(tensors, folder / WEIGHTS)
    linears = read_plain(plain).linears
    named = with_class_names(read_adapter(folder), {"model_type": "mixtral"})
    found = match_base(named, "base", linears)
    assert "model.layers.0.mlp.experts.3.down_proj" in found and len(found) == 2 * (1 + 4 * 3)
    with pytest.raises(CheckpointError):
        match_base(read_adapter(folder), "base", linears)


def key_of(folder: Path, linears: dict[str, tuple[int, int]]) -> str:
    with pytest.raises(CheckpointError) as raised:
        match_base(read_adapter(folder), "base", linears)
    assert str(raised.value).endswith(".")
    return raised.value.key


def test_a_base_with_other_experts_is_noticed(plain: Path, tmp_path: Path) -> None:
    folder = make_adapter(plain, tmp_path / "a", **PARAMETERS["all"])
    linears = dict(read_plain(plain).linears)
    fewer = {name: sizes for name, sizes in linears.items() if ".experts.3." not in name}
    assert key_of(folder, fewer) == "adapter_base_experts"
    wider = {name: (64, 96) if name.endswith("up_proj") else sizes for name, sizes in linears.items()}
    assert key_of(folder, wider) == "adapter_base_experts"
    wider |= {name: (64, 96) for name in linears if name.endswith("gate_proj")}
    gate_up = make_adapter(plain, tmp_path / "gate-up", **PARAMETERS["gate and up alone"])
    with pytest.raises(CheckpointError) as raised:
        match_base(read_adapter(gate_up), "base", wider)
    assert "of 4 experts of 64 x 128, that of the model of 4 experts of 64 x 192" in str(raised.value)
    none = {name: sizes for name, sizes in linears.items() if ".experts." not in name}
    assert key_of(folder, none) == "adapter_base_matrix"


def test_a_matrix_that_an_adapter_changes_by_itself_and_with_all_others_is_named(plain: Path, tmp_path: Path) -> None:
    """It was said to be of another model, which "does not have" the matrix."""
    stacked = make_adapter(plain, tmp_path / "stacked", **PARAMETERS["down alone"])
    single = load_file(write_one_by_one(stacked, tmp_path / "single") / WEIGHTS)
    twice = {name: value for name, value in single.items() if ".0.mlp.experts.2.down_proj." in name}
    assert len(twice) == 2
    save_file(load_file(stacked / WEIGHTS) | twice, stacked / WEIGHTS)
    with pytest.raises(CheckpointError) as raised:
        match_base(read_adapter(stacked), "base", read_plain(plain).linears)
    assert raised.value.key == "adapter_twice"
    assert "two pairs of matrices for model.layers.0.mlp.experts.2.down_proj of base" in str(raised.value)


@pytest.mark.parametrize("has_axis", [False, True], ids=["experts after one another", "an axis of experts"])
@pytest.mark.parametrize("called", ["experts.down_proj", "experts"])
def test_another_programs_layout_of_all_experts_is_named(
    plain: Path, tmp_path: Path, has_axis: bool, called: str
) -> None:
    """The advice was to copy it anew, which changes nothing."""
    folder = make_adapter(plain, tmp_path / "a", **PARAMETERS["down alone"])
    change_json(folder / ADAPTER_CONFIG, target_parameters=None)
    tensors = {}
    for name, value in load_file(folder / WEIGHTS).items():
        if has_axis:
            value = value.unflatten(0, (4, -1)) if "lora_A" in name else value.unflatten(1, (-1, 4)).permute(2, 0, 1)
        tensors[name.replace(".experts.", f".{called}.")] = value.contiguous()
    save_file(tensors, folder / WEIGHTS)
    wanted = "adapter_parameter" if called == "experts" else "adapter_foreign_experts"
    assert key_of(folder, read_plain(plain).linears) == wanted


def test_parameters_that_nobody_tells_apart_are_refused(plain: Path, tmp_path: Path) -> None:
    """Its tensors say how many parameters were wrapped, and not which."""
    folder = make_adapter(plain, tmp_path / "a", **PARAMETERS["down alone"])
    for targets in (None, ["experts.bias"], BOTH, [3, {}]):
        change_json(folder / ADAPTER_CONFIG, target_parameters=targets)
        assert key_of(folder, {}) == "adapter_parameter"
    change_json(
        folder / ADAPTER_CONFIG, target_parameters=["model.layers.0.mlp.experts.down_proj", "1.mlp.experts.down_proj"]
    )
    assert {one.name for one in read_adapter(folder).stacks.values()} == {
        f"model.layers.{layer}.mlp.experts.down_proj" for layer in range(2)
    }


def test_the_inner_wrapper_is_the_first_parameter() -> None:
    """Whatever the configuration's order is."""
    modules = ["a.experts", "a.experts.base_layer", "a.gate", "q_proj"]
    for targets in (["down_proj", "gate_up_proj"], ["a.experts.gate_up_proj", "experts.down_proj"]):
        assert stacked_parameters(targets, modules) == {
            "a.experts.base_layer": "a.experts.gate_up_proj",
            "a.experts": "a.experts.down_proj",
        }
    assert stacked_parameters(["down_proj"], ["a.experts.base_layer"]) == {"a.experts.base_layer": None}


def test_a_rank_that_all_experts_rows_are_no_multiple_of_is_refused(plain: Path, tmp_path: Path) -> None:
    folder = make_adapter(plain, tmp_path / "a", **PARAMETERS["down alone"])
    for rank in (5, 0, True, "5"):
        change_json(folder / ADAPTER_CONFIG, r=rank)
        with pytest.raises(CheckpointError) as raised:
            read_adapter(folder)
        assert raised.value.key == "adapter_rank_experts" and "have 32 ranks for all experts" in str(raised.value)
    change_json(folder / ADAPTER_CONFIG, r=16)
    (stack, _) = read_adapter(folder).stacks.values()
    assert dataclasses.astuple(stack)[1] == 16 and stack.num_experts == 2
