"""The paths of the API, and those by which clients look for other servers. The API asks for keys itself.

A program that looks for another kind of server has to read in JSON that this is none: it would take the dashboard's
page for an answer.
"""

from __future__ import annotations

OWN_PREFIX = "/v1/"
OWN_PATHS = frozenset({"/v1", "/metrics", "/health", "/ready", "/openapi.json"})
# The API's own without /v1, which many clients leave out.
SHORT_PREFIX = "/models/"
SHORT_PATHS = frozenset({"/models", "/chat/completions", "/completions", "/tokenize", "/detokenize",
                         "/messages", "/messages/count_tokens", "/responses"})  # fmt: skip
# Ollama, KoboldAI, LM Studio; Stable Diffusion; gateways; Triton, Gemini; OpenAI's other kinds; whoever looks around.
OTHERS_PREFIXES = (
    "/api/",
    "/sdapi/",
    "/openai/",
    "/oai/",
    "/engines/",
    "/v1beta/",
    "/v1alpha/",
    "/v2/",
    "/v3/",
    "/audio/",
    "/images/",
    "/slots/",
    "/model/",
    "/.well-known/",
)
# llama.cpp; vLLM; Text Generation Inference; SGLang; what stands before one of the prefixes above.
OTHERS_PATHS = frozenset(
    {
        *("/props", "/slots", "/completion", "/infill", "/embedding", "/apply-template", "/lora-adapters"),
        *("/version", "/ping", "/load", "/pooling", "/classify", "/score", "/invocations", "/server_info"),
        *("/embeddings", "/rerank", "/reranking", "/moderations", "/mcp", "/sse"),
        *("/info", "/generate", "/generate_stream", "/chat_tokenize"),
        *("/get_model_info", "/model_info", "/get_server_info", "/health_generate"),
        *("/health/liveliness", "/health/liveness", "/health/readiness", "/health/live", "/health/ready"),
        *(prefix.rstrip("/") for prefix in OTHERS_PREFIXES),
    }
)


def is_api(path: str) -> bool:
    """Whether a path is the API's. One that goes up again (/v1/../) is none of it."""
    if path in OWN_PATHS | SHORT_PATHS | OTHERS_PATHS:
        return True
    goes_up = {".", ".."} & set(path.replace("\\", "/").split("/"))
    return path.startswith((OWN_PREFIX, SHORT_PREFIX, *OTHERS_PREFIXES)) and not goes_up
