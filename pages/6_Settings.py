"""Settings: language, access, what this installation is."""

from ui.routing import require_router
from ui.settings import draw_settings

require_router()
draw_settings()
