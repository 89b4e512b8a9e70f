"""Clients that want tools called and schemas kept, of a model that was taught neither: prints {name: what was found}.

Started with the server's address, the model's name and how many answers of a schema each client asks for, in an
environment that has the clients. Of each: the arguments of a call that has to be made, and how many answers were valid.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, Literal

import guidance
import instructor
import litellm
import openai
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel, ConfigDict, Field

URL, MODEL, COUNT = sys.argv[1], sys.argv[2], int(sys.argv[3])
# Settings of the clients' own that are for other places than ours.
KEY: Any = "none is needed"
SIDE_BY_SIDE = 4
QUESTION = [{"role": "user", "content": "Tell me of your pet in Bern."}]
WORD = Annotated[str, Field(max_length=12)]


class Closed(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Home(Closed):
    city: WORD


class Pet(Closed):
    name: WORD
    age: Annotated[int, Field(ge=0, le=120)]
    kind: Literal["cat", "dog"]
    is_tame: bool
    toys: Annotated[list[WORD], Field(max_length=2)]
    home: Home


class Weather(Closed):
    """The weather in a city."""

    city: WORD
    unit: Literal["C", "F"]


TOOL = {"type": "function", "function": {"name": "get_weather", "description": "The weather in a city.",
        "parameters": Weather.model_json_schema()}}  # fmt: skip
# Words may be of escapes of seven tokens a character, and an indent of blanks one by one: an answer that ends at a
# limit is no whole one.
SAMPLING = {"temperature": 1.0, "max_tokens": 1200}


def get_weather(city: WORD, unit: Literal["C", "F"]) -> str:
    """The weather in a city."""
    return "dry"


class LiteLlm:
    def __init__(self) -> None:
        self._common: dict[str, Any] = {
            "model": f"openai/{MODEL}", "api_base": f"{URL}/v1", "api_key": KEY, "messages": QUESTION, "num_retries": 0
        }  # fmt: skip

    def call(self) -> Any:
        done = litellm.completion(**self._common, **SAMPLING, tools=[TOOL], tool_choice="required")
        (call,) = done.choices[0].message.tool_calls
        return json.loads(call.function.arguments)

    def pet(self) -> Pet:
        done = litellm.completion(**self._common, **SAMPLING, response_format=Pet)
        return Pet.model_validate_json(done.choices[0].message.content)


class LlamaIndex:
    def __init__(self) -> None:
        self._model = OpenAILike(
            model=MODEL, api_base=f"{URL}/v1", api_key=KEY, is_chat_model=True, is_function_calling_model=True,
            max_retries=0, timeout=600, **SAMPLING
        )  # fmt: skip

    def call(self) -> Any:
        tool = FunctionTool.from_defaults(fn=get_weather, fn_schema=Weather)
        done = self._model.chat_with_tools([tool], QUESTION[0]["content"], tool_required=True)
        (call,) = self._model.get_tool_calls_from_response(done)
        return call.tool_kwargs

    def pet(self) -> Pet:
        found = self._model.as_structured_llm(Pet).chat([ChatMessage(**QUESTION[0])]).raw
        return Pet.model_validate(found.model_dump())


class Instructor:
    def __init__(self) -> None:
        client = openai.OpenAI(base_url=f"{URL}/v1", api_key=KEY, max_retries=0)
        self._tools = instructor.from_openai(client, mode=instructor.Mode.TOOLS)
        self._schema = instructor.from_openai(client, mode=instructor.Mode.JSON_SCHEMA)

    def call(self) -> Any:
        found = self._tools.chat.completions.create(
            model=MODEL, messages=QUESTION, response_model=Weather, max_retries=0, **SAMPLING
        )
        return found.model_dump()

    def pet(self) -> Pet:
        return self._schema.chat.completions.create(
            model=MODEL, messages=QUESTION, response_model=Pet, max_retries=0, **SAMPLING
        )


class Guidance:
    """Has no tools of its own without an answer that may do without; it has a choice instead."""

    def __init__(self) -> None:
        self._model = guidance.models.OpenAI(MODEL, base_url=f"{URL}/v1", api_key=KEY, echo=False)

    def _asked(self, what: Any) -> Any:
        with guidance.user():
            model = self._model + QUESTION[0]["content"]
        with guidance.assistant():
            model += what
        return model["found"]

    def call(self) -> Any:
        return json.loads(self._asked(guidance.json(name="found", schema=Weather)))

    def pet(self) -> Pet:
        return Pet.model_validate_json(self._asked(guidance.json(name="found", schema=Pet)))


CLIENTS: dict[str, Callable[[], Any]] = {
    "litellm": LiteLlm, "llama-index": LlamaIndex, "instructor": Instructor, "guidance": Guidance
}  # fmt: skip


def tried(what: Callable[[], Any]) -> Any:
    try:
        return what()
    except Exception as error:  # What a client makes of an answer of ours is what the test wants to know.
        return f"{type(error).__name__}: {error}"


def found_by(make: Callable[[], Any]) -> dict[str, Any]:
    client = make()
    with ThreadPoolExecutor(SIDE_BY_SIDE) as threads:
        pets = list(threads.map(lambda _: tried(client.pet), range(COUNT)))
    wrong = [pet for pet in pets if not isinstance(pet, Pet)]
    return {"call": tried(client.call), "valid": len(pets) - len(wrong), "wrong": wrong[:1]}


if __name__ == "__main__":
    print(json.dumps({name: tried(lambda make=make: found_by(make)) for name, make in CLIENTS.items()}))
