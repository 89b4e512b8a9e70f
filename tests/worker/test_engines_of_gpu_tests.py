"""What the GPU tests open engines with: what a load changes in the process can be put back. No GPU is needed here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from core.common.paths import ROOT
from tests.support.checkpoints import make_checkpoint

FIRST_LOAD = """
import sys
from pathlib import Path
from core.checkpoint.checkpoint import read_checkpoint
from tests.support.gpu_engines import Engines

name = "transformers.models.llama.modeling_llama"
assert name not in sys.modules
engines = Engines()
engines.note_rotations(read_checkpoint(Path(sys.argv[1])))
source = sys.modules[name]
rotation = source.apply_rotary_pos_emb
source.apply_rotary_pos_emb = None
engines.restore_rotations()
assert source.apply_rotary_pos_emb is rotation
"""


def test_the_first_load_of_a_process_leaves_no_rotation_of_its_own(tmp_path: Path) -> None:
    """A file of GPU tests that ran alone imported the model's module only inside the load. So nobody knew what had been
    in place of the engine's rotation, and the reference on the CPU failed: `rotate_heads: torch.float32`."""
    make_checkpoint(tmp_path / "model")
    command = [sys.executable, "-c", FIRST_LOAD, str(tmp_path / "model")]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
