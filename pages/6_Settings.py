"""Settings: language, access, what this installation is."""

from ui.settings.page import draw_settings
from ui.shared.routing import require_router

require_router()
draw_settings()
