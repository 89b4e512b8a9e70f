"""Streamlit on serve.py, as a process that Ctrl-C and SIGTERM end with exit code 0."""

from __future__ import annotations

import signal
import sys

from core.bootstrap.machine_faults import explain_faults


def end(number: int, frame: object) -> None:
    """The server raises the signal again once it has shut down; Streamlit alone would then say "Aborted!"."""
    sys.exit(0)


def main() -> int:
    from streamlit.web import cli

    from ui.server.slow_clients import limit_slow_clients

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    limit_slow_clients()
    cli.main(["run", "serve.py", *sys.argv[1:]])
    return 0


if __name__ == "__main__":
    sys.exit(explain_faults(main))
