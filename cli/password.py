"""The command `password`: sets or removes the access password; takes none as an argument, for all users see those."""

from __future__ import annotations

import getpass
import sys
from argparse import ArgumentParser, Namespace

from core.access.access import Access
from core.access.password import MAX_CHARS, check_new
from core.common.errors import InputError
from core.common.terminal import Terminal


def add_arguments(parser: ArgumentParser, terminal: Terminal) -> None:
    parser.add_argument("--remove", action="store_true", help=terminal.text("help_password_remove"))


def run(arguments: Namespace, terminal: Terminal) -> int:
    """A running dashboard notices; everybody who is signed in has to sign in again."""
    access = Access(environment={})
    password = "" if arguments.remove else ask_twice(terminal) if sys.stdin.isatty() else read_line()
    if not arguments.remove:
        # A damaged file shuts everybody out: it stays until there is a password to put in its place.
        check_new(password)
    if (aside := access.set_damaged_aside()) is not None:
        terminal.say("password_aside", file=str(aside))
    if arguments.remove:
        access.remove_password()
    else:
        access.set_password(password)
    terminal.say("password_removed" if arguments.remove else "password_set")
    return 0


def ask_twice(terminal: Terminal) -> str:
    """Without an echo. Arguments of commands are seen by every user of the machine, so there is none for it."""
    password = getpass.getpass(terminal.text("password_new"))
    check_new(password)
    if getpass.getpass(terminal.text("password_again")) != password:
        raise InputError("password_differs")
    return password


def read_line() -> str:
    """The first line of a pipe or a file, without its end."""
    return sys.stdin.readline(4 * MAX_CHARS).rstrip("\r\n")
