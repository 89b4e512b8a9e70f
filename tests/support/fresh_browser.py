"""Pages run for browsers that lag behind: one that has got nothing of a page yet, one that still shows the last run."""

from __future__ import annotations

from typing import Any

from streamlit.proto.WidgetStates_pb2 import WidgetStates
from streamlit.testing.v1 import AppTest

KINDS = ("text_input", "text_area", "number_input", "checkbox", "toggle", "selectbox", "multiselect", "pills",
         "segmented_control", "slider", "select_slider", "pagination")  # fmt: skip


def lose_run(tab: AppTest) -> AppTest:
    """Run the page for a browser to which nothing of the run before came: it has no fields yet, and sends no values."""
    return _run(tab, WidgetStates())


def seen(tab: AppTest) -> WidgetStates:
    """What a browser sends that shows the page as it is."""
    shown = [one for one in tab._tree.get_widget_states().widgets if one.WhichOneof("value") != "trigger_value"]
    return WidgetStates(widgets=shown)


def send_late(tab: AppTest, before: WidgetStates) -> AppTest:
    """Run the page for a browser that still shows what it showed `before`, as a step taken too early tells it."""
    return _run(tab, before)


def differently_shown(tab: AppTest) -> dict[str, tuple[Any, Any]]:
    """The keys of the fields that are not what the server takes them for in a browser that draws the page for the
    first time: each with what is shown and what the server has."""
    fields = [one for kind in KINDS for one in tab.get(kind)]
    assert fields
    both = {str(one.key): (_shown(one.proto), _held(one)) for one in fields}
    return {key: (shown, held) for key, (shown, held) in both.items() if shown != held}


def _run(tab: AppTest, states: WidgetStates) -> AppTest:
    tab = tab._run(states)
    assert not tab.exception, tab.exception
    return tab


def _held(field: Any) -> Any:
    """What the server has of a field, as a browser would send it."""
    state = field._widget_state
    kind = state.WhichOneof("value")
    if kind is None:
        return None
    value = getattr(state, kind)
    return list(value.data) if kind.endswith("_array_value") else value


def _shown(proto: Any) -> Any:
    """What a browser sends of a field that it draws for the first time."""
    is_set = proto.set_value
    match type(proto).__name__:
        case "Selectbox":
            first = proto.options[proto.default] if proto.HasField("default") and proto.options else None
            return (proto.raw_value if proto.HasField("raw_value") else None) if is_set else first
        case "MultiSelect":
            return list(proto.raw_values) if is_set else [proto.options[place] for place in proto.default]
        case "ButtonGroup":
            return list(proto.raw_values) if is_set else [proto.options[place].content for place in proto.default]
        case "Slider" if proto.options:
            return list(proto.raw_value) if is_set else [proto.options[int(place)] for place in proto.default]
        case "Slider":
            return list(proto.value if is_set else proto.default)
        case _:
            name = "value" if is_set else "default"
            # Where a kind of field can be without a value.
            is_empty = proto.DESCRIPTOR.fields_by_name[name].has_presence and not proto.HasField(name)
            return None if is_empty else getattr(proto, name)
