"""How lists call the user's personas, and in which order."""

from __future__ import annotations

from core.personas.fields import visible
from core.personas.names import same_name
from core.personas.user import Personas, UserPersona
from ui.shared.i18n import text
from ui.shared.markdown import shortened

NAME_CHARS = 60


def persona_keys(personas: Personas) -> list[str]:
    """The default first, then by name."""
    return sorted(personas.by_key, key=lambda key: (key != personas.default, same_name(personas.by_key[key].name), key))


def persona_names(personas: Personas) -> dict[str, str]:
    """What each is called in a choice, by its key."""
    return {key: persona_label(personas.by_key[key]) for key in persona_keys(personas)}


def persona_label(persona: UserPersona) -> str:
    return shortened(visible(persona.name), NAME_CHARS) or text("characters.persona_nameless")
