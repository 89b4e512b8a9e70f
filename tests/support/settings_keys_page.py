"""The part of the settings with the API's keys as a page of its own, for tests."""

from ui.settings.api_keys import draw_keys

draw_keys()
