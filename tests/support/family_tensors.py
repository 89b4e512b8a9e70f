"""The tensors of the families that run, by transformers' own classes.

`python -m tests.support.family_tensors` writes core/checkpoint/family_tensors.csv.

A class is built without memory, once as its configuration is by default and once with each switch of it turned. What
all of them have is needed, what one of them has is known. Where layers differ, what all attending layers have of their
mixer is needed in such a layer, and so of recurrent ones; likewise the MLP of dense ones and of those with experts.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterator
from functools import cache
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

from core.checkpoint.computed import COMPUTED
from core.checkpoint.families import families
from core.checkpoint.family_tensors import NUMBER, TABLE
from core.checkpoint.layers import LAYER
from core.checkpoint.text_config import OWN_NAMES
from core.checkpoint.tied_head import HEADS
from core.worker.model.tensor_check import tied_names

NUM_LAYERS = 4
# What adds or takes modules and is no switch, or two of them together.
OTHER_SHAPES: dict[str, list[dict[str, Any]]] = {
    "apertus": [{"hidden_act": "silu"}],
    "falcon": [{"new_decoder_architecture": True, "num_ln_in_parallel_attn": 1}, {"num_ln_in_parallel_attn": 2},
               {"new_decoder_architecture": True, "parallel_attn": False}],
    "bamba": [{"attn_layer_indices": list(range(NUM_LAYERS)), "attention_bias": True}],
    "granitemoehybrid": [{"layer_types": ["full_attention"] * NUM_LAYERS, "attention_bias": True},
                         {"num_local_experts": 0}],
    "gemma4_text": [{"hidden_size_per_layer_input": 0},
                    {"attention_k_eq_v": True, "layer_types": ["full_attention"] * NUM_LAYERS},
                    {"num_kv_shared_layers": 1, "layer_types": ["full_attention"] * NUM_LAYERS}],
    "internlm3": [{"bias": True, "qkv_bias": True}],
    "lfm2": [{"layer_types": ["conv"] * NUM_LAYERS, "conv_bias": True}],
    "lfm2_moe": [{"layer_types": ["conv"] * NUM_LAYERS, "conv_bias": True}],
    "opt": [{"word_embed_proj_dim": 32}],
}  # fmt: skip
# Numbers of mixtures and of recurrent models that change which layers have which parts, and values to build with.
OTHER_NUMBERS: dict[str, list[Any]] = {
    "decoder_sparse_step": [2],
    "first_k_dense_replace": [0, 1],
    "layer_types": [["full_attention"] * NUM_LAYERS, ["linear_attention"] * NUM_LAYERS, ["conv"] * NUM_LAYERS],
    "mlp_layer_types": [["dense", "sparse", "dense", "sparse"]],
    "mlp_only_layers": [[0, 2]],
    "moe_layer_interval": [2],
    "moe_layer_start_index": [0, 1],
    "moe_num_shared_experts": [0, 1],
    "n_shared_experts": [0, 1],
    "num_dense_layers": [0, 1],
    "num_shared_experts": [0, 1],
    "shared_intermediate_size": [0, 64],
}
# Layers of all kinds, of families that have those of one by default: each switch is turned with these as well.
ALL_KINDS: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1, 3]},
    "cohere2_moe": {"mlp_layer_types": ["dense", "sparse", "dense", "sparse"]},
    "dots1": {"first_k_dense_replace": 2},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"] * 2},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "llama4_text": {"interleave_moe_layer_step": 2},
    "mellum": {"mlp_layer_types": ["dense", "sparse", "dense", "sparse"]},
    "minimax_m3_vl_text": {"mlp_layer_types": ["dense", "sparse", "dense", "sparse"]},
    "qwen2_moe": {"mlp_only_layers": [0, 2]},
    "qwen3_moe": {"mlp_only_layers": [0, 2]},
    "qwen3_next": {"mlp_only_layers": [0, 2]},
}
# The halves of a layer: what looks at other tokens, and its MLP. Norms and the like are in every layer.
MIXER = re.compile(r"\*\.(?:self_attn|conv|linear_attn|mamba)\.")
MLP = re.compile(r"\*\.(?:mlp|feed_forward|block_sparse_moe|moe|shared_mlp)\.")
HALVES = {"attention": MIXER, "recurrent": MIXER, "dense": MLP, "sparse": MLP}
# What a class cannot be built without.
LEAST: dict[str, dict[str, Any]] = {
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1,
              "layer_types": ["full_attention"] * NUM_LAYERS},
    "hunyuan_v1_dense": {"head_dim": 64},
    "hunyuan_v1_moe": {"head_dim": 64},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "ministral": {"head_dim": 64},
    "nemotron": {"num_key_value_heads": 8},
}  # fmt: skip
HEAD = """\
# The tensors of each family that runs, by transformers' own classes. Read by core/checkpoint/family_tensors.py,
# written by tests/support/family_tensors.py; tests/checkpoint/test_family_tensors.py holds it against them.
#
# families  with these tensors
# layers    which layers of them; empty = all, and what is in no layer
# needed    what every model of the family has, in each of these layers
# known     what some have besides, as their configuration says; a "*" stands for a number
families,layers,needed,known"""


def checked_families() -> list[str]:
    """The families that run, by the names of their text parts."""
    kinds = ("", "experts", "recurrent")
    return [family.name for family in families().values() if family.runs and family.kind in kinds]


def tensors_of(family: str) -> tuple[frozenset[str], frozenset[str]]:
    """What every model of `family` has and what any of them has, with "*" for numbers."""
    models = [model for _, model in built_models(family)]
    names = [[name for name in model.state_dict() if not COMPUTED.search(name)] for model in models]
    tied = {name for model in models for name in tied_names(model)}
    any_has = frozenset(NUMBER.sub("*", name) for one in names for name in one)
    all_have = frozenset.intersection(*(_in_each_layer(one) for one in names))
    if families()[family].kind:
        all_have = frozenset(name for name in all_have if not (MIXER.search(name) or MLP.search(name)))
    return frozenset(name for name in all_have - tied if not name.endswith(HEADS)), any_has


def halves_of(family: str) -> dict[str, frozenset[str]]:
    """What each layer of `family` has that is of one of HALVES, beside what only some configurations ask for."""
    found: dict[str, list[frozenset[str]]] = defaultdict(list)
    for _, model in built_models(family):
        for names in layers_of(model):
            for half in halves_in(names):
                found[half].append(frozenset(name for name in names if HALVES[half].search(name)))
    # Layers of a kind that the class does not know have nothing there.
    whole = {half: [names for names in some if names] for half, some in found.items()}
    return {half: frozenset.intersection(*whole[half]) for half in HALVES if whole.get(half)}


def layers_of(model: PreTrainedModel) -> list[frozenset[str]]:
    """The tensors of each layer, with "*" for numbers."""
    found: dict[int, set[str]] = defaultdict(set)
    for name in model.state_dict():
        if (layer := LAYER.match(name)) is not None and not COMPUTED.search(name):
            found[int(layer[1])].add(NUMBER.sub("*", name))
    return [frozenset(found[number]) for number in range(NUM_LAYERS)]


def halves_in(names: Collection[str]) -> tuple[str, str]:
    """The two halves of a layer with the tensors `names`. One that attends and is recurrent counts as attending."""
    mixers = {match[0] for name in names if (match := MIXER.search(name))}
    is_recurrent = bool(mixers) and "*.self_attn." not in mixers
    has_experts = any(".experts." in name for name in names)
    return "recurrent" if is_recurrent else "attention", "sparse" if has_experts else "dense"


@cache
def built_models(family: str) -> list[tuple[dict[str, Any], PreTrainedModel]]:
    """The models of `family` that its class builds, each with what its configuration says."""
    every = [LEAST.get(family, {}) | more for more in _variants(family)]
    built = [(more, _build(family, more)) for more in every]
    return [(more, model) for more, model in built if model is not None]


def _variants(family: str) -> Iterator[dict[str, Any]]:
    default = CONFIG_MAPPING[family]()
    switches = {name: value for name, value in vars(default).items() if isinstance(value, bool)}
    for kinds in ({}, ALL_KINDS[family]) if family in ALL_KINDS else ({},):
        yield kinds
        yield from (kinds | {name: not value} for name, value in switches.items())
    yield from OTHER_SHAPES.get(family, [])
    if families()[family].kind:
        numbers = ((name, value) for name, values in OTHER_NUMBERS.items() for value in values)
        yield from ({name: value} for name, value in numbers if hasattr(default, name))


def _build(family: str, more: dict[str, Any]) -> PreTrainedModel | None:
    """A model without memory; None where its class refuses the configuration."""
    layers = OWN_NAMES.get(family, {}).get("num_hidden_layers", "num_hidden_layers")
    try:
        config = CONFIG_MAPPING[family].from_dict({layers: NUM_LAYERS, **more})
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config)
    except (AttributeError, KeyError, NotImplementedError, StrictDataclassError, TypeError, ValueError):
        return None


def _in_each_layer(names: list[str]) -> frozenset[str]:
    """The names without a number, and with "*" those that each layer has."""
    numbers: dict[str, set[str]] = defaultdict(set)
    for name in names:
        numbers[NUMBER.sub("*", name)].update(NUMBER.findall(name))
    num_layers = max(map(len, numbers.values()))
    return frozenset(name for name, found in numbers.items() if name.count("*") == 0 or
                     (name.count("*") == 1 and len(found) == num_layers))  # fmt: skip


def table() -> str:
    """The whole table as text: one line for all families that have the same tensors."""
    same: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for family in checked_families():
        needed, known = tensors_of(family)
        same["", " ".join(sorted(needed)), " ".join(sorted(known - needed))].append(family)
        if families()[family].kind:
            for half, names in halves_of(family).items():
                same[half, " ".join(sorted(names)), ""].append(family)
    lines = [f"{' '.join(names)},{layers},{needed},{known}" for (layers, needed, known), names in same.items()]
    return "\n".join([HEAD, *lines]) + "\n"


if __name__ == "__main__":
    logging.set_verbosity_error()
    TABLE.write_text(table(), "utf-8")
