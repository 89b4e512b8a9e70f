"""From a request for a text that goes on to what the engine is asked."""

from __future__ import annotations

from dataclasses import replace

from core.api.errors import ApiError
from core.api.generation_request import GenerationRequest
from core.api.prompt_size import check_length, check_size
from core.api.request_settings import read_options, read_sampling
from core.api.schema import CompletionRequest
from core.api.served_model import ServedModel
from core.chat.chat_formats import added_tokens
from core.chat.infill import InfillFormat, find_infill_format
from core.engine.sampling_params import MAX_STOP_STRINGS

# As OpenAI has it, where a completion does not say how long it may be.
COMPLETION_TOKENS = 16
# Log-probabilities of prompts' tokens that one request may ask for: each is an object of 200 bytes until it is sent.
MAX_TOLD = 2**18


def read_completion_request(request: CompletionRequest, served: ServedModel) -> list[GenerationRequest]:
    """One for each prompt, which goes on as it is. Raises DeckError."""
    check_size([prompt for prompt in request.prompt if isinstance(prompt, str)], served)
    is_prompt_alone = request.max_tokens == 0
    longest = COMPLETION_TOKENS if request.max_tokens is None else request.max_tokens
    # The engine writes one token at least; where none is wanted it is not sent.
    sampling = read_sampling(request, served, longest or 1)
    num_written, num_kept = _best_of(request)
    is_scored = bool(request.echo) and request.logprobs is not None
    logprobs = request.logprobs if num_kept is None else request.logprobs or 0
    options = replace(
        read_options(request, served, logprobs), prompt_logprobs=is_scored, is_prompt_alone=is_prompt_alone
    )
    infill = _infill_of(served) if request.suffix else None
    if infill is not None:
        stop = tuple(dict.fromkeys((*sampling.stop, *infill.ends)))[:MAX_STOP_STRINGS]
        sampling, options = replace(sampling, stop=stop), replace(options, shown=infill.ends)
    generations, num_tokens = [], 0
    for given in request.prompt:
        prompt: str | tuple[int, ...] = given
        if infill is not None:
            if not isinstance(prompt, str):
                raise ApiError("api_field", field="suffix", why="it counts beside a prompt that is a text alone")
            prompt = infill.prompt(prompt, request.suffix or "")
        if isinstance(prompt, str) and not prompt.startswith(served.model.counter.opening):
            prompt = served.model.counter.opening + prompt
        num_tokens += check_length(prompt, served, 0 if is_prompt_alone else 1) * num_written
        echo = _echo(given, served) if request.echo else ""
        generations.append(
            GenerationRequest(
                prompt,
                sampling,
                num_written,
                continues=True,
                echo=echo,
                options=options,
                num_kept=num_kept,
                tells_logprobs=request.logprobs is not None,
                is_prompt_alone=is_prompt_alone,
            )
        )
    each = 1 + (options.logprobs or 0)
    if is_scored and num_tokens * each > MAX_TOLD:
        raise ApiError("api_echo", tokens=num_tokens, each=each, numbers=num_tokens * each, limit=MAX_TOLD)
    return generations


def _infill_of(served: ServedModel) -> InfillFormat:
    """How a text between two others is asked for. Raises ApiError where the model was not taught that."""
    folder = served.model.folder
    found = find_infill_format(added_tokens(folder)) if folder is not None else None
    if found is None:
        raise ApiError("api_no_infill", name=served.name)
    return found


def _best_of(request: CompletionRequest) -> tuple[int, int | None]:
    """How many answers are written, and how many of them are sent; None: all. Raises ApiError."""
    num_sent = request.n or 1
    num_written = num_sent if request.best_of is None else request.best_of
    if num_written < num_sent:
        raise ApiError("api_field", field="best_of", why="it has to be at least n")
    if num_written > num_sent and request.stream:
        raise ApiError("api_field", field="best_of", why="which answers are the best is not known while they stream")
    return num_written, num_sent if num_written > num_sent else None


def _echo(prompt: str | tuple[int, ...], served: ServedModel) -> str:
    if isinstance(prompt, str):
        return prompt
    text = served.model.counter.decode(prompt)
    if text is None:
        raise ApiError("api_no_tokenizer", name=served.name)
    return text
