"""GPTQ by gptqmodel, layer by layer: the weights stay on disk, and finished layers go there."""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from core.checkpoint.layers import read_number
from core.checkpoint.text_config import text_config
from core.checkpoint.weight_files import SUFFIX
from core.quantize.child import adaptations, resume_store, source_config, speedups
from core.quantize.child.tokens import calibration_rows
from core.quantize.child.writing import write_checkpoint
from core.quantize.families import NOT_OFFLOADED
from core.quantize.job_file import JobFile
from core.quantize.resuming import can_resume, is_linked

# What of gptqmodel's settings goes into the checkpoint; the rest of "meta" tells of this machine.
SETTINGS = ("bits", "group_size", "desc_act", "sym", "lm_head", "quant_method", "checkpoint_format", "pack_dtype")
META = ("quantizer", "damp_percent", "true_sequential", "mse", "act_group_aware")
# Matrices of experts that are calibrated together where all see all rows: more would take more memory.
EXPERT_MATRICES = 16
BATCH_ROWS = {"cpu": 1, "cuda": 8}


def quantize(source: Path, job: JobFile, work: Path, out: Path, report: Callable[..., None]) -> dict[str, Any]:
    """Quantize the checkpoint in `source`, of a known family, into `out`; returns the facts for its card.

    Raises CheckpointError.
    """
    config = source_config.source_config(source)
    source_config.install(source, config)
    speedups.install(torch.device(job.device))
    resume_store.install()
    adaptations.install(config["model_type"])
    rows = calibration_rows(source, job.options.calibration, job.device)
    progress = Progress(report, read_number(source.name, text_config(config), "num_hidden_layers"))
    model = _quantized(source, job, config, rows, work, progress)
    packed = work / "packed"
    shutil.rmtree(packed, ignore_errors=True)
    model.save(str(packed))
    written = json.loads((packed / "quantize_config.json").read_text("utf-8"))
    settings = {name: written[name] for name in SETTINGS}
    settings["meta"] = {name: written["meta"][name] for name in META if name in written["meta"]}
    write_checkpoint(source, packed, config, settings, plain_dtype(config), out)
    return {
        "layers": progress.num_layers,
        "quantizer": settings["meta"]["quantizer"][0],
        "rows": len(rows),
        "tokens": sum(map(len, rows)),
    }


def _quantized(
    source: Path, job: JobFile, config: dict[str, Any], rows: list[list[int]], work: Path, progress: Progress
) -> Any:
    """gptqmodel's model after its loop over the layers, which goes on where an earlier process ended."""
    from gptqmodel.looper.checkpoint_store import CheckpointConfig
    from gptqmodel.looper.checkpoint_store import CheckpointError as ResumeError

    resume, weights = work / "resume", (path.name for path in source.iterdir() if path.name.endswith(SUFFIX))
    keeps = can_resume(str(config.get("model_type"))) and not is_linked(source, weights)
    batch_rows = BATCH_ROWS[job.device.partition(":")[0]]
    data = [
        {"input_ids": torch.tensor([row]), "attention_mask": torch.ones(1, len(row), dtype=torch.long)} for row in rows
    ]
    while True:
        model = _open(source, job, config, work)
        model.layer_callback = model.subset_callback = progress
        begun = keeps and resume.exists()
        try:
            model.quantize(data, batch_size=batch_rows, checkpoint=CheckpointConfig(path=resume) if keeps else None)
            return model
        except ResumeError:
            # What an earlier process left is of another GPU or another release of torch: it begins anew.
            if not begun:
                raise
            shutil.rmtree(resume)


def _open(source: Path, job: JobFile, config: dict[str, Any], work: Path) -> Any:
    from gptqmodel import GPTQModel, QuantizeConfig
    from gptqmodel.quantization.config import ExpertsRoutingBypass, MoEConfig

    options = job.options
    settings = QuantizeConfig(
        bits=options.bits,
        group_size=options.group_size,
        desc_act=options.is_act_order,
        # Orders the groups by how active they are, where there are any and act-order does not.
        act_group_aware=not options.is_act_order and options.group_size > 0,
        sym=options.is_symmetric,
        offload_to_disk=config.get("model_type") not in NOT_OFFLOADED,
        offload_to_disk_path=str(work / "offload"),
        # Activations of all rows would take gigabytes of a small card.
        calibration_data_device="cpu",
        wait_for_submodule_finalizers=True,
        moe=MoEConfig(routing=ExpertsRoutingBypass(batch_size=EXPERT_MATRICES)) if options.sees_all else None,
        device=job.device,
    )
    # Half precision is slower on a CPU, and rounds what layers hand on.
    dtype = torch.float32 if job.device == "cpu" else plain_dtype(config)
    model = GPTQModel.load(str(source), settings, dtype=dtype)
    adaptations.complete(model.model)
    return model


class Progress:
    """Is told by gptqmodel of layers and of the groups of matrices in them, and tells how much is done."""

    def __init__(self, report: Callable[..., None], num_layers: int) -> None:
        self._report = report
        self.num_layers = num_layers

    def subset_event(self, *, stage: str, layer_idx: int, subset_index: int, subset_total: int, **_: object) -> None:
        if stage == "forward_start" and subset_index == 0:
            # Cycles may hold activations of all rows, and Python may not look for them before the end.
            gc.collect()
        self._tell(layer_idx, (subset_index + 0.5) / max(1, subset_total))

    def layer_complete(self, layer_idx: int, submodule_finalized: bool) -> None:
        self._tell(layer_idx, 1.0)

    def _tell(self, layer: int, part: float) -> None:
        self._report(min(1.0, (layer + part) / self.num_layers), layer=layer + 1, layers=self.num_layers)


def plain_dtype(config: dict[str, Any]) -> torch.dtype:
    """The type in which a checkpoint keeps what is not quantized: its own, float16 for float32."""
    own = config.get("dtype") or config.get("torch_dtype")
    return torch.bfloat16 if own == "bfloat16" else torch.float16


def peak_vram_bytes(device: str) -> int:
    """The most that torch's allocator held on the GPU; 0 on a CPU."""
    return 0 if device == "cpu" else torch.cuda.max_memory_reserved(device)
