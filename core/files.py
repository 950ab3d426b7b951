"""Files appear under their name only when complete: an interrupt or a full disk leaves the old file as it was."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import InvalidInputError

_LONGEST_NAME = 255  # bytes, of the usual file systems


def check_destination(path: str | Path) -> Path:
    """The path of a file that is about to be written, as a `Path`. Nothing is created.

    Raises:
        InvalidInputError: it is a folder, lies below something that is no folder, or has a name no disk takes.
    """
    path = Path(path)
    if "\0" in str(path) or len(os.fsencode(path.name)) > _LONGEST_NAME:
        raise InvalidInputError(
            f"{path.name[:60]!r}... cannot be a file name: expected at most {_LONGEST_NAME} bytes and no null character."
        )
    if not path.name or path.is_dir():
        raise InvalidInputError(f"{path} is a folder: expected the name of a file to write. Add a file name.")
    nearest = next((parent for parent in path.parents if os.path.lexists(parent)), None)
    if nearest is not None and not nearest.is_dir():
        raise InvalidInputError(f"{path} lies below {nearest}, which is no folder: choose another place.")
    return path


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Gives an empty temporary file in the folder of `path`, which becomes `path` when the block ends without an error.

    After any error, an interrupt included, the temporary file is gone and an older `path` is untouched. The finished
    file has the permissions that the user's umask gives to new files. Missing folders are made.

    Raises:
        InvalidInputError: `path` cannot be a file (see `check_destination`).
    """
    path = check_destination(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{secrets.token_hex(8)}.part")  # short and unique: two writers never meet
    try:
        # Made here, because only `open` applies the umask without changing it for every other thread.
        handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        mode = os.fstat(handle).st_mode & 0o777
        os.close(handle)
        yield temporary
        os.chmod(temporary, mode)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
