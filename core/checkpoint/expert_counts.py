"""How many experts a layer has and how many of them a token goes through: what configurations call it, and what a class
has where its config.json is silent.

tests/checkpoint/test_expert_counts.py holds the table against transformers' classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_routed_experts")
CHOSEN = ("num_experts_per_tok", "num_experts_per_token", "experts_per_token", "moe_k", "moe_topk", "top_k_experts")
# Family, experts of a layer, those of a token, each by the name that its class has. "-": there is none.
_USUAL = """
aria_text          moe_num_experts   8   moe_topk            2
beam               num_experts       256 num_experts_per_tok 8
cohere2_moe        num_experts       8   num_experts_per_tok 2
dots1              n_routed_experts  -   num_experts_per_tok -
ernie4_5_moe       moe_num_experts   64  moe_k               6
exaone_moe         num_experts       64  num_experts_per_tok 8
flex_olmo          num_experts       7   num_experts_per_tok 5
glm4_moe           n_routed_experts  128 num_experts_per_tok 8
gpt_oss            num_local_experts 128 num_experts_per_tok 4
granitemoe         num_local_experts 8   num_experts_per_tok 2
granitemoehybrid   num_local_experts 8   num_experts_per_tok 2
granitemoeshared   num_local_experts 8   num_experts_per_tok 2
hunyuan_v1_moe     num_experts       1   moe_topk            1
hy_v3              num_experts       192 num_experts_per_tok 8
jetmoe             num_local_experts 8   num_experts_per_tok 2
kolibri1           num_experts       384 num_experts_per_tok 6
laguna             num_experts       256 num_experts_per_tok 8
lfm2_moe           num_experts       32  num_experts_per_tok 4
llama4_text        num_local_experts 16  num_experts_per_tok 1
mellum             num_experts       64  num_experts_per_tok 8
minimax_m2         num_local_experts 256 num_experts_per_tok 8
minimax_m3_vl_text num_local_experts 128 num_experts_per_tok 4
mixtral            num_local_experts 8   num_experts_per_tok 2
olmoe              num_experts       64  num_experts_per_tok 8
phimoe             num_local_experts 16  num_experts_per_tok 2
qwen2_moe          num_experts       60  num_experts_per_tok 4
qwen3_5_moe_text   num_experts       256 num_experts_per_tok 8
qwen3_moe          num_experts       128 num_experts_per_tok 8
qwen3_next         num_experts       512 num_experts_per_tok 10
qwen3_vl_moe_text  num_experts       60  num_experts_per_tok 4
solar_open         n_routed_experts  128 num_experts_per_tok 8
"""


def _read_usual() -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for family, *pairs in (line.split() for line in _USUAL.split("\n") if line):
        named = zip(pairs[::2], pairs[1::2], strict=True)
        found[family] = {name: int(number) for name, number in named if number != "-"}
    return found


USUAL = _read_usual()


def untold_counts(family: str, text: Mapping[str, Any]) -> dict[str, int]:
    """What the class of `family` has for those of its numbers that `text` does not tell by any name."""
    kinds = (names for names in (COUNTS, CHOSEN) if not any(text.get(name) is not None for name in names))
    usual = USUAL.get(family, {})
    return {name: usual[name] for names in kinds for name in names if name in usual}
