"""ExLlamaV2's kernel, compiled by gptqmodel. Its matrices share one scratch space, as large as the largest needs."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from gptqmodel.nn_modules.qlinear.exllamav2 import ExllamaV2Linear
from gptqmodel.utils.exllamav2 import ScratchSpace, exllamav2_gptq_runtime_available, exllamav2_gptq_runtime_error
from torch import nn

from core.common.errors import EngineError
from core.memory.kernels.exllama_v2 import scratch_bytes
from core.memory.model_shape import MatrixShape
from core.worker.model.backends.gptqmodel import GptqmodelBackend
from core.worker.model.matrix_tensors import MatrixTensors


class ExllamaV2Backend(GptqmodelBackend):
    linear_class = ExllamaV2Linear
    _scratch: ScratchSpace | None = None

    def compile(self) -> None:
        if not exllamav2_gptq_runtime_available():
            why = exllamav2_gptq_runtime_error().splitlines()[0][:200]
            raise EngineError("kernel_compile", kernel=self.spec.name, why=why)

    def reserve(self, matrices: Collection[MatrixShape], max_rows: int) -> None:
        num_bytes = max(scratch_bytes(matrix, max_rows) for matrix in matrices)
        self._scratch = ScratchSpace(scratch_bytes=num_bytes, dev=self.device)

    def make(self, members: Sequence[MatrixTensors]) -> nn.Module:
        module = self.build(members[0])
        module.post_init(self._scratch)
        # The kernel keeps a bare pointer into it.
        module.kernel_scratch = self._scratch
        return module
