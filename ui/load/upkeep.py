"""What can be done with the folders of models on Load model: verify one, delete one, bring one in; the disk."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from core.common.background import Task
from core.common.errors import DeckError, InputError
from core.common.paths import COMMIT_CHARS, models_dir
from core.common.urls import host_name
from core.library.fingerprint import Fingerprint, fingerprint
from core.library.hf_cache import cached_snapshots
from core.library.maintenance import Verification, import_folder, verify
from core.library.scan import FolderFacts, LibraryEntry, disk_usage, facts, locate
from ui.load.adapters import delete_question, draw_unused
from ui.load.disk import draw_disk, size_words
from ui.load.entries_cache import adapters_of_none
from ui.shared.deleting import delete_model, model_refusal
from ui.shared.errors import sentence, show_error
from ui.shared.fragment import redraw_every
from ui.shared.i18n import tr
from ui.shared.people import person
from ui.shared.resources import engine, tasks
from ui.shared.starter import is_starter

POLL_S = 0.5
IMPORT = ("import",)
EXAMPLE = "/data/models/TheBloke_Llama-2-7B-Chat-GPTQ"
PATH_KEY, ERROR_KEY = "library_path", "library_error"


def draw_folders(entries: list[LibraryEntry]) -> None:
    """Below the models: the disk that they are on, the adapters of none, and the way in for a folder from elsewhere."""
    try:
        draw_disk(disk_usage())
        draw_unused(adapters_of_none(entries))
        cached_snapshots()
    except DeckError as error:
        show_error(error)
    # A path on the server is a question for whoever runs it, not for everybody whom a provider knows.
    if not person():
        _draw_import()


def draw_upkeep(entry: LibraryEntry) -> None:
    """Where the files of a model came from and what can be done with them."""
    seen = fingerprint(entry.folder)
    try:
        st.caption(" · ".join(origin_words(entry, facts(entry.folder))))
    except DeckError as error:
        show_error(error)
    if refused := st.session_state.pop(f"{ERROR_KEY}_{entry.name}", None):
        show_error(refused)
    _draw_verification(entry.name, seen)
    _draw_buttons(entry, seen)


def is_looked_at(entry: LibraryEntry) -> bool:
    """Whether something was asked of the files, so that its answer is to be seen."""
    asked = tasks().known(("verify", entry.name, fingerprint(entry.folder)))
    return asked is not None or f"{ERROR_KEY}_{entry.name}" in st.session_state


def origin_words(entry: LibraryEntry, found: FolderFacts) -> list[str]:
    """The size on disk, where that is if not in models/, and where the model came from."""
    words = [size_words(found.size_bytes)]
    if found.is_link:
        words.append(tr("library.linked", path=str(entry.folder.resolve())))
    if is_starter(entry.name):
        words.append(tr("library.made_here"))
    elif found.record is None:
        words.append(tr("library.by_hand"))
    else:
        source, commit = found.record.source, found.record.commit[:COMMIT_CHARS]
        words.append(tr("library.from", name=source.name, host=host_name(source.endpoint), commit=commit))
    return words


def _draw_buttons(entry: LibraryEntry, seen: Fingerprint) -> None:
    name = entry.name
    with st.container(horizontal=True):
        st.button(tr("library.verify"), key=f"library_verify_{name}", icon=":material/fact_check:",
                  on_click=_verify, args=(name,))  # fmt: skip
        with st.popover(tr("library.delete"), icon=":material/delete:", key=f"library_ask_{name}"):
            if is_loaded(name):
                st.markdown(tr("library.delete_loaded", name=name))
                return
            if (refusal := model_refusal(entry.folder)) is not None:
                st.markdown(sentence(refusal))
                return
            st.markdown(delete_question(entry.folder))
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
        delete_model(name)
        tasks().forget(("verify", name, seen))
    except DeckError as error:
        st.session_state[f"{ERROR_KEY}_{name}"] = error


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
