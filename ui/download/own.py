"""Your own model: what to quantize, how, what that takes and what comes of it, and the button that begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import streamlit as st

from core.checkpoint.adapter_folders import find_adapter, list_adapters
from core.checkpoint.adapters import is_other_base
from core.checkpoint.experts import expert_matrix
from core.common.errors import CheckpointError, DeckError, InputError
from core.common.host_memory import available_bytes
from core.common.paths import adapters_dir, models_dir, typed_path, without_dots
from core.common.values import printable, quoted_text
from core.hub.source import read_source
from core.hub.tokens import token_for
from core.library.fingerprint import fingerprint
from core.quantize.calibration import MAX_FILE_BYTES, check_calibration
from core.quantize.folders import lack_of_room
from core.quantize.options import (
    BITS,
    DEFAULT_GROUP_SIZE,
    GROUP_SIZES,
    MergeStep,
    QuantizeOptions,
    check_group_size,
    check_name,
    merge_steps,
    result_name,
)
from core.quantize.plan import QuantizePlan, default_device, free_bytes, plan_job, result_checkpoint
from core.quantize.source import is_meta_format
from core.quantize.target import Target, folder_target, repo_target
from core.quantize.uploads import keep_upload, uploads_folder
from ui.download.jobs import duration
from ui.download.source import choose_source
from ui.load.disk import size_words
from ui.load.entries_cache import models
from ui.load.gauge import draw_choice
from ui.load.gpu_choice import devices_here
from ui.shared.errors import sentence, show_error
from ui.shared.fragment import redraw_alone
from ui.shared.i18n import text, tr
from ui.shared.identity import show_words
from ui.shared.markdown import escape
from ui.shared.pending import answer
from ui.shared.people import person
from ui.shared.resources import quantizing
from ui.shared.routing import OWN_TARGET_KEY, show_section

TYPED_KEY, ERROR_KEY = "own_typed", "own_error"
# No folder is called so: a name in models/ has no slash.
OTHER = "/"
EXAMPLE = "Qwen/Qwen2.5-7B-Instruct"
# How a folder is written that is not in models/; all else with a slash is a repository.
PATH_STARTS = ("/", "~", "./", "../")
NOT_QUANTIZED = ("not_quantized", "not_quantized_moe", "not_quantized_family")


@dataclass(frozen=True, slots=True)
class Choice:
    """Everything that the form says."""

    target: Target
    options: QuantizeOptions
    name: str
    device: str


def draw_own() -> None:
    st.markdown(tr("own.about"))
    found = plain_folders()
    chosen = _choose_target(found)
    target = find_target(chosen, found) if chosen else None
    if target is None:
        return
    size = size_words(target.model.size_bytes)
    meta = f" · {tr('own.meta')}" if target.is_meta else ""
    st.caption(f"{escape(target.model.architecture)} · {size}{meta}")
    options = draw_options(target)
    if options is not None:
        draw_plan(target, options)


def _choose_target(found: list[str]) -> str:
    """A folder in models/, or what somebody typed: a repository, or a path."""
    if found:
        labels = {name: name for name in found} | {OTHER: text("own.other")}
        show_words(OWN_TARGET_KEY, labels)
        chosen = st.selectbox(tr("own.target"), list(labels), key=OWN_TARGET_KEY, persist_state="session",
                              format_func=labels.__getitem__)  # fmt: skip
        if chosen != OTHER:
            return str(chosen)
    typed = st.text_input(tr("own.typed"), key=TYPED_KEY, placeholder=EXAMPLE, persist_state="session",
                          help=tr("own.typed_help", folder=str(models_dir())))  # fmt: skip
    return str(typed or "").strip()


def plain_folders() -> list[str]:
    """The names of the folders in models/ that hold a model before it is quantized."""
    try:
        entries = models()
    except DeckError:
        return []
    return [
        entry.name
        for entry in entries
        if entry.error is not None and (entry.error.key in NOT_QUANTIZED or is_meta_format(entry.folder))
    ]


def find_target(chosen: str, found: list[str]) -> Target | None:
    """The folder or the repository that was chosen or typed; None where it is still looked at, or cannot be."""
    try:
        folder = _folder(chosen.strip(), found)
        if folder is not None:
            key = ("quantize", str(folder), fingerprint(folder))
            looked_at: Target | None = answer(key, lambda _: folder_target(folder), tr("own.looking"))
            return looked_at
        here = choose_source()
        if here is None:
            return None
        source = read_source(chosen, *here)
        if "/" not in source.address.repo:
            raise InputError("quantize_target", name=quoted_text(chosen))
    except DeckError as error:
        show_error(error)
        return None
    remote: Target | None = answer(
        ("quantize", source), lambda _: repo_target(source, token_for(source.endpoint)), tr("own.looking")
    )
    return remote


def _folder(chosen: str, found: list[str]) -> Path | None:
    if chosen in found:
        return models_dir() / chosen
    if not chosen.startswith(PATH_STARTS):
        return None
    # A path on the server is a question for whoever runs it, not for everybody whom a provider knows.
    if person():
        raise InputError("quantize_path", folder=str(models_dir()))
    if (path := typed_path(chosen)) is None:
        raise InputError("quantize_target", name=quoted_text(chosen))
    return without_dots(path)


def draw_options(target: Target) -> QuantizeOptions | None:
    """The choices; None where what was chosen cannot be."""
    left, right = st.columns(2)
    with left:
        bits = st.segmented_control(tr("own.bits"), BITS, default=BITS[0], required=True, key="own_bits",
                                    persist_state="session", help=tr("own.bits_help"))  # fmt: skip
    with right:
        group = st.segmented_control(tr("own.group"), GROUP_SIZES, default=DEFAULT_GROUP_SIZE, required=True,
                                     key="own_group", persist_state="session", help=tr("own.group_help"),
                                     format_func=_group_label)  # fmt: skip
    left, right = st.columns(2)
    with left:
        act_order = st.toggle(tr("own.act_order"), key="own_act_order", persist_state="session",
                              help=tr("own.act_order_help"))  # fmt: skip
    with right:
        asymmetric = st.toggle(tr("own.asymmetric"), key="own_asymmetric", persist_state="session",
                               help=tr("own.asymmetric_help"))  # fmt: skip
    sees_all = any(expert_matrix(name) for name in target.model.matrices) and st.toggle(
        tr("own.all_experts"), key="own_all_experts", persist_state="session", help=tr("own.all_experts_help")
    )
    try:
        adapters = _choose_adapters(target)
        calibration = _choose_calibration()
        return QuantizeOptions(bits or BITS[0], group or DEFAULT_GROUP_SIZE, act_order, not asymmetric, adapters,
                               calibration, sees_all)  # fmt: skip
    except DeckError as error:
        show_error(error)
        return None


def _group_label(size: int) -> str:
    return str(size) if size > 0 else text("own.no_groups")


def _choose_adapters(target: Target) -> tuple[Path, ...]:
    """Raises InputError for one that has gone since."""
    names = [path.name for path in list_adapters(target.folder)]
    if not names:
        st.caption(tr("own.adapters_none", folder=str(adapters_dir())))
        return ()
    chosen = st.multiselect(tr("own.adapters"), names, key="own_adapters", persist_state="session",
                            placeholder=text("own.adapters_placeholder"), help=tr("own.adapters_help"))  # fmt: skip
    return tuple(find_adapter(name, target.folder) for name in chosen if name in names)


def _choose_calibration() -> Path | None:
    """A text file of the person's, kept by what is in it. Raises InputError for one that is none."""
    with st.expander(tr("own.calibration"), icon=":material/text_snippet:"):
        st.caption(tr("own.calibration_text"))
        upload = st.file_uploader(tr("own.calibration_file"), type=["txt", "jsonl"], key="own_calibration",
                                  max_upload_size=MAX_FILE_BYTES // 2**20)  # fmt: skip
    if upload is None:
        return None
    content = upload.getvalue()
    suffix = ".jsonl" if upload.name.endswith(".jsonl") else ".txt"
    try:
        path = keep_upload(content, suffix)
    except OSError as error:
        where = printable(str(uploads_folder()))
        raise DeckError("download_write", path=where, why=error.strerror or str(error)) from error
    return path


def draw_plan(target: Target, options: QuantizeOptions) -> None:
    """What it takes, the verdict on the result, and the button."""
    devices = devices_here()
    device = default_device(devices)
    if not _can_calibrate(target, options.calibration):
        return
    try:
        steps = merge_steps(target.model, options)
        if not target.is_meta:
            check_group_size(target.model, options)
        plan = plan_job(target.model, options, device, target.is_meta)
        name = _choose_name(result_name(target.title, options))
        result = replace(result_checkpoint(target.model, options), name=name)
        check_name(name)
    except DeckError as error:
        show_error(error)
        return
    for step in steps:
        if is_other_base(step.adapter, (target.title, target.repo.rpartition("/")[2])):
            st.warning(tr("own.other_base", adapter=step.adapter.name, base=step.adapter.base_name),
                       icon=":material/warning:")  # fmt: skip
    with st.container(border=True):
        st.markdown(f"**{escape(name)}**")
        redraw_alone(draw_choice, result, devices, f"own_{name}")
    with st.container(border=True):
        _draw_needs(plan, device, free_bytes(devices[int(device[5:])]) if device != "cpu" else 0)
        if lack := lack_of_room(name, plan.disk_bytes + target.fetched_bytes, target.source):
            st.warning(sentence(lack), icon=":material/hard_drive:")
        _draw_parts(name, steps, options)
        st.button(tr("own.begin"), key="own_begin", icon=":material/compress:", type="primary", width="stretch",
                  on_click=_begin, args=(Choice(target, options, name, device),))  # fmt: skip
        if refused := st.session_state.pop(ERROR_KEY, None):
            show_error(refused)


def _can_calibrate(target: Target, file: Path | None) -> bool:
    """Whether `target` can be calibrated on `file`; else why not is shown, or that it is looked at."""
    if file is None:
        return True
    folder = target.tokenizer_folder
    key = ("calibration", file, folder, fingerprint(folder) if folder is not None else "")

    def check(_: object) -> bool:
        check_calibration(file, folder)
        return True

    return bool(answer(key, check, tr("own.calibration_checking")))


def _choose_name(usual: str) -> str:
    typed = st.text_input(tr("own.name"), key="own_name", placeholder=usual, persist_state="session",
                          help=tr("own.name_help"))  # fmt: skip
    return str(typed or "").strip() or usual


def _draw_needs(plan: QuantizePlan, device: str, free_vram_bytes: int) -> None:
    words = [
        tr("own.needs_time", time=duration(plan.time_s)),
        tr("own.needs_disk", size=size_words(plan.disk_bytes)),
        tr("own.needs_ram", size=size_words(plan.ram_bytes)),
    ]
    if device != "cpu":
        words.append(tr("own.needs_vram", size=size_words(plan.vram_bytes)))
    st.markdown(" · ".join(words))
    free_ram_bytes = available_bytes()
    if plan.ram_bytes > free_ram_bytes:
        st.warning(tr("own.ram", free=size_words(free_ram_bytes)), icon=":material/memory:")
    if plan.vram_bytes > free_vram_bytes and device != "cpu":
        st.warning(tr("own.vram", free=size_words(free_vram_bytes)), icon=":material/memory:")
    st.caption(tr("own.resumes") if plan.resumes else tr("own.begins_anew"))


def _draw_parts(name: str, steps: Sequence[MergeStep], options: QuantizeOptions) -> None:
    """Where the result will lie, and what is made of it beside the model."""
    words = [tr("own.into", folder=printable(str(models_dir() / name)))]
    if steps:
        words.append(tr("own.merges", adapters=", ".join(step.adapter.name for step in steps)))
    words.append(tr("own.calibrated_set" if options.calibration is None else "own.calibrated"))
    st.caption(" ".join(words))


def _begin(choice: Choice) -> None:
    try:
        quantizing().add(choice.target, choice.options, choice.device, choice.name)
        show_section("jobs")
    except (DeckError, CheckpointError) as error:
        st.session_state[ERROR_KEY] = error
