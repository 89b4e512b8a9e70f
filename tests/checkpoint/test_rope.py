"""How long a context can be, and which rope serves it."""

from __future__ import annotations

from typing import Any

import pytest

from core.checkpoint.rope import ContextLimits, extended_rope, read_limits, yarn_factor

QWEN3: dict[str, Any] = {"model_type": "qwen3", "max_position_embeddings": 40960}
PHI3: dict[str, Any] = {"model_type": "phi3", "max_position_embeddings": 131072}
LONGROPE: dict[str, Any] = {"short_factor": [1.0], "long_factor": [2.0]}


@pytest.mark.parametrize(
    ("config", "limits"),
    [
        ({"model_type": "llama", "max_position_embeddings": 8192}, ContextLimits(8192, 8192)),
        (QWEN3, ContextLimits(40960, 131072, "yarn")),
        ({"model_type": "qwen2", "max_position_embeddings": 32768}, ContextLimits(32768, 131072, "yarn")),
        # Made for long texts from the start, or with a rope of its own already.
        ({"model_type": "qwen3", "max_position_embeddings": 262144}, ContextLimits(262144, 262144)),
        ({**QWEN3, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, ContextLimits(40960, 40960)),
        ({**QWEN3, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
         ContextLimits(40960, 131072, "yarn")),
        ({**PHI3, "original_max_position_embeddings": 4096, "rope_scaling": {"type": "longrope", **LONGROPE}},
         ContextLimits(4096, 131072, "longrope")),
        ({**PHI3, "original_max_position_embeddings": 4096, "rope_scaling": {"type": "su", **LONGROPE}},
         ContextLimits(4096, 131072, "longrope")),
        ({**PHI3, "rope_parameters": {"rope_type": "longrope", "original_max_position_embeddings": 8192, **LONGROPE}},
         ContextLimits(8192, 131072, "longrope")),
        ({"max_position_embeddings": 2048, "rope_scaling": {"type": "dynamic", "factor": 2.5}},
         ContextLimits(2048, 5120, "dynamic")),
        ({"max_position_embeddings": 2048, "rope_scaling": {"type": "dynamic", "factor": 1e99}},
         ContextLimits(2048, 2048)),
        ({"max_position_embeddings": 2048, "rope_scaling": {"type": ["dynamic"], "factor": True}},
         ContextLimits(2048, 2048)),
        ({"max_position_embeddings": 2048, "rope_scaling": 7}, ContextLimits(2048, 2048)),
    ],
)  # fmt: skip
def test_a_model_s_contexts_follow_from_its_rope(config: dict[str, Any], limits: ContextLimits) -> None:
    assert read_limits(config) == limits


def test_yarn_has_the_smallest_factor_that_serves_the_context_and_none_where_the_model_does_without() -> None:
    factors = {tokens: yarn_factor(QWEN3, tokens) for tokens in (4096, 40960, 40961, 65536, 65537, 131072)}
    assert factors == {4096: None, 40960: None, 40961: 2.0, 65536: 2.0, 65537: 4.0, 131072: 4.0}
    assert extended_rope(QWEN3, 100_000) == {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 32768,
    }
    theta = extended_rope({**QWEN3, "rope_theta": 5.0}, 50_000)
    assert theta is not None and (theta["rope_theta"], theta["factor"]) == (5.0, 2.0)
    assert extended_rope(PHI3, 100_000) is None
