"""The password from the environment.

A process's first environment can be read in /proc as long as it lives, whatever is removed from it later, and
`docker inspect` shows a container's: a file is the better way. `./llamadeck run` replaces itself by the dashboard and
hands the variable's value over by a pipe, so only the command's own environment holds it.
"""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import MutableMapping
from dataclasses import dataclass

from core.access.password import MAX_CHARS
from core.common.errors import InputError

VARIABLE, FILE_VARIABLE = "LLAMADECK_PASSWORD", "LLAMADECK_PASSWORD_FILE"
PIPE = re.compile(r"/dev/fd/(\d+)")
# With a byte order mark before it and a line end after it.
MAX_BYTES = 3 + 4 * MAX_CHARS + 2


@dataclass(frozen=True, slots=True)
class GivenPassword:
    """A password, the variable that it came by, and the file that this names. Without a password `text` is ""."""

    text: str = ""
    variable: str = VARIABLE
    file: str = ""


def take_password(environment: MutableMapping[str, str] = os.environ) -> GivenPassword:
    """Remove the password from `environment` and return it. Raises InputError for a file that cannot be read."""
    text, file = environment.pop(VARIABLE, ""), environment.pop(FILE_VARIABLE, "")
    if not file:
        return GivenPassword(text)
    handed = PIPE.fullmatch(file)
    try:
        with os.fdopen(int(handed[1]), "rb") if handed else open(file, "rb") as stream:
            content = stream.read(MAX_BYTES)
        text = content.decode("utf-8", "surrogateescape") if handed else _read_text(content)
    except OSError as error:
        raise InputError("password_file", name=FILE_VARIABLE, path=file, reason=error.strerror or str(error)) from error
    except UnicodeDecodeError as error:
        raise InputError("password_file_coded", name=FILE_VARIABLE, path=file) from error
    text = text.removesuffix("\n").removesuffix("\r")
    return GivenPassword(text) if handed else GivenPassword(text, FILE_VARIABLE, file)


def _read_text(content: bytes) -> str:
    """What an editor wrote, without the mark that some put before it: nobody can type that, and no letter that is not
    UTF-8. Raises UnicodeDecodeError for such a one, but not for the last one of a text that was cut off."""
    return codecs.getincrementaldecoder("utf-8-sig")().decode(content, final=len(content) < MAX_BYTES)


def hand_over(given: GivenPassword, environment: MutableMapping[str, str]) -> None:
    """Hand the password to the process that replaces this one, so that its environment does not hold it."""
    if given.file:
        environment[FILE_VARIABLE] = given.file
        return
    reader, writer = os.pipe()
    os.write(writer, given.text.encode("utf-8", "surrogateescape"))
    os.close(writer)
    os.set_inheritable(reader, True)
    environment[FILE_VARIABLE] = f"/dev/fd/{reader}"
