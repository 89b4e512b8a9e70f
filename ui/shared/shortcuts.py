"""The keys that do something in the chat, as Streamlit's buttons take them; the settings list them."""

from __future__ import annotations

NEW_CHAT, SAVE, LEAVE = "Ctrl+Shift+O", "Ctrl+Enter", "Esc"
# What is sent, and what begins a new line, is Streamlit's.
SHORTCUTS = {"send": "Enter", "line": "Shift+Enter", "new": NEW_CHAT, "stop": LEAVE, "save": SAVE, "leave": LEAVE}
