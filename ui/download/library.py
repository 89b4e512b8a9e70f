"""The part "Library" of the page Download: what is on disk; verify, delete, bring in a folder."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from core.checkpoint.judgement import short_reason
from core.common.background import Task
from core.common.errors import CheckpointError, DeckError, InputError
from core.common.paths import COMMIT_CHARS, models_dir
from core.common.urls import host_name
from core.common.values import printable
from core.library.hf_cache import cached_snapshots
from core.library.maintenance import Verification, delete, delete_refusal, import_folder, verify
from core.library.scan import FolderFacts, LibraryEntry, disk_usage, facts, locate
from core.memory.fit import FitReport
from ui.download.disk import draw_disk, size_words
from ui.load.entries import quantization_words
from ui.load.entries_cache import Fingerprint, fingerprint, models
from ui.load.gauge import verdict
from ui.load.gpu_choice import Devices, choose_devices, names_of
from ui.shared.errors import sentence, show_error
from ui.shared.fragment import redraw_every
from ui.shared.i18n import tr
from ui.shared.markdown import escape
from ui.shared.people import person
from ui.shared.resources import engine, tasks
from ui.shared.routing import LOAD_PAGE, go_to

POLL_S = 0.5
CHATS = 1
IMPORT = ("import",)
EXAMPLE = "/data/models/TheBloke_Llama-2-7B-Chat-GPTQ"
PATH_KEY, ERROR_KEY = "library_path", "library_error"


def draw_library() -> None:
    try:
        draw_disk(disk_usage())
        entries = models()
    except DeckError as error:
        show_error(error)
        return
    try:
        cached_snapshots()
    except DeckError as error:
        show_error(error)
    if refused := st.session_state.pop(ERROR_KEY, None):
        show_error(refused)
    devices = choose_devices() if entries else ()
    for entry in entries:
        _draw_entry(entry, devices)
    if not entries:
        st.info(tr("library.none"), icon=":material/folder_open:")
    # A path on the server is a question for whoever runs it, not for everybody whom a provider knows.
    if not person():
        _draw_import()


def _draw_entry(entry: LibraryEntry, devices: Devices) -> None:
    seen = fingerprint(entry.folder)
    with st.container(border=True, key=f"library_entry_{entry.name}"):
        with st.container(gap="xsmall"):
            st.markdown(f"**{escape(entry.name)}**")
            if entry.checkpoint is not None:
                st.markdown(" ".join([*_quantization_badges(entry), *_verdict_badge(entry, devices)]))
            try:
                st.caption(" · ".join(_origin_words(entry, facts(entry.folder))))
            except DeckError as error:
                show_error(error)
        if entry.error is not None:
            show_error(entry.error)
        _draw_verification(entry.name, seen)
        _draw_buttons(entry, seen)


def _quantization_badges(entry: LibraryEntry) -> list[str]:
    assert entry.checkpoint is not None
    return [f":gray-badge[{word}]" for word in quantization_words(entry.checkpoint)]


def _verdict_badge(entry: LibraryEntry, devices: Devices) -> list[str]:
    """Whether it fits the card, for one chat with the default context; nothing where there is no card."""
    if not devices or entry.checkpoint is None:
        return []
    report = verdict(entry.checkpoint, devices, 0, CHATS)
    if isinstance(report, CheckpointError):
        return [f":red-badge[{tr(f'refusal.{short_reason(report)}')}]"]
    fits = isinstance(report, FitReport) and report.fits
    words = tr("library.fits" if fits else "library.fits_not", card=names_of(devices))
    return [f":{'green' if fits else 'red'}-badge[{words}]"]


def _origin_words(entry: LibraryEntry, found: FolderFacts) -> list[str]:
    """The size on disk, where that is if not in models/, and where the model came from."""
    words = [size_words(found.size_bytes)]
    if entry.is_cached:
        words.append(tr("library.cached"))
    if found.is_link:
        words.append(tr("library.linked", path=str(entry.folder.resolve())))
    if found.record is None:
        words.append(tr("library.by_hand"))
    else:
        source, commit = found.record.source, found.record.commit[:COMMIT_CHARS]
        words.append(tr("library.from", name=source.name, host=host_name(source.endpoint), commit=commit))
    return words


def _draw_buttons(entry: LibraryEntry, seen: Fingerprint) -> None:
    name = entry.name
    with st.container(horizontal=True):
        if entry.checkpoint is not None:
            st.button(tr("library.load"), key=f"library_load_{name}", icon=":material/deployed_code:",
                      on_click=go_to, args=(LOAD_PAGE,))  # fmt: skip
        st.button(tr("library.verify"), key=f"library_verify_{name}", icon=":material/fact_check:",
                  on_click=_verify, args=(name,))  # fmt: skip
        with st.popover(tr("library.delete"), icon=":material/delete:", key=f"library_ask_{name}"):
            if is_loaded(name):
                st.markdown(tr("library.delete_loaded", name=name))
                return
            if (refusal := delete_refusal(entry.folder)) is not None:
                st.markdown(sentence(refusal))
                return
            st.markdown(tr("library.delete_question", folder=printable(str(entry.folder))))
            st.button(tr("library.delete_yes"), key=f"library_delete_{name}", type="primary",
                      on_click=_delete, args=(name, seen))  # fmt: skip


def is_loaded(name: str) -> bool:
    state = engine().state
    return state.server is None and state.model == name and state.phase in ("loading", "ready")


def _verify(name: str) -> None:
    """What is found holds for the files as they are now: of others nothing is known."""
    key = ("verify", name, fingerprint(locate(name)))
    tasks().forget(key)
    tasks().get(key, lambda report: verify(name, report))


def _delete(name: str, seen: Fingerprint) -> None:
    """The page may be old: whether the model is loaded, and is still the one that was shown, is asked again."""
    if is_loaded(name):
        return
    try:
        if fingerprint(locate(name)) not in ((), seen):
            raise InputError("library_other", name=name)
        delete(name)
        tasks().forget(("verify", name, seen))
    except DeckError as error:
        st.session_state[ERROR_KEY] = error


def _draw_verification(name: str, seen: Fingerprint) -> None:
    task = tasks().known(("verify", name, seen))
    if task is None:
        return
    if not task.is_done:
        redraw_every(POLL_S, _watch, task, "library.verifying")
    elif task.error is not None:
        show_error(task.error)
    else:
        _draw_result(task.result)


def _draw_result(found: Verification) -> None:
    if found.is_right:
        words = "library.verified" if found.has_record else "library.verified_structure"
        st.success(tr(words, size=size_words(found.checked_bytes)), icon=":material/verified:")
    for problem in found.problems:
        st.error(sentence(problem), icon=":material/error:")


def _watch(task: Task, words: str) -> None:
    if task.is_done:
        st.rerun()
    done, total = task.progress
    sizes = tr("jobs.bytes", done=size_words(done), total=size_words(total))
    st.progress(min(1.0, done / total) if total else 0.0, text=f"{tr(words)} · {sizes}" if total else tr(words))


def _draw_import() -> None:
    """Copy a folder from elsewhere, or link it, which takes no room."""
    task = tasks().known(IMPORT)
    if task is not None and not task.is_done:
        redraw_every(POLL_S, _watch, task, "library.importing")
        return
    with st.expander(tr("library.bring_in"), expanded=task is not None, icon=":material/drive_folder_upload:"):
        st.markdown(tr("library.bring_in_text", folder=str(models_dir().resolve())))
        with st.form(key="library_import_form", border=False):
            st.text_input(tr("library.path"), key=PATH_KEY, placeholder=EXAMPLE)
            with st.container(horizontal=True):
                st.form_submit_button(tr("library.copy"), key="library_copy", on_click=_bring_in, args=(False,))
                st.form_submit_button(tr("library.link"), key="library_link", on_click=_bring_in, args=(True,))
        if task is not None and task.error is not None:
            show_error(task.error)
        elif task is not None:
            st.success(tr("library.brought_in", name=task.result), icon=":material/check_circle:")


def _bring_in(link: bool) -> None:
    path = str(st.session_state.get(PATH_KEY) or "").strip()
    tasks().forget(IMPORT)
    if path:
        tasks().get(IMPORT, lambda report: import_folder(Path(path), report, link)).wait(0.25)
