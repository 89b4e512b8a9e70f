"""An engine for servers of the API that stays in one state."""

from __future__ import annotations

from core.common.errors import EngineError
from core.engine.answer import Answer
from core.engine.protocol import EngineState
from core.engine.sampling_params import Sampling


class StillEngine:
    """It answers nobody, and remembers for whom it was asked."""

    def __init__(self, state: EngineState) -> None:
        self.state = state
        self.clients: list[str] = []
        self.running_answers: list[Answer] = []
        self.server_counter = None

    def generate(
        self,
        prompt: str | tuple[int, ...],
        sampling: Sampling,
        continues: bool = False,
        client: str = "",
        thought: object = None,
        options: object = None,
    ) -> Answer:
        self.clients.append(client)
        return self.answer()

    def answer(self) -> Answer:
        """What the next prompt gets."""
        raise EngineError("nothing_loaded")
