"""Names that users give to files, and the folders they must stay in."""

from __future__ import annotations

import os
from pathlib import Path

from ..core.errors import InvalidInputError


def inside(folder: str | Path, name: str, what: str, *, follow_links: bool = True) -> Path:
    """The absolute path of `name` in a folder; it need not exist.

    Args:
        folder: where it must lie.
        name: relative, as the user gave it; may hold subfolders.
        what: of the folder, for messages, such as "output folder".
        follow_links: refuse links that lead out of the folder, as ComfyUI does for pictures. False looks at the name
            alone: users link models from other disks.

    Raises:
        InvalidInputError: the name leads out of the folder, or can be no file name.
    """
    if not isinstance(name, str):
        raise InvalidInputError(f"{name!r} is no file name: expected text, a name inside the {what} {folder}.")
    absolute = os.path.realpath if follow_links else os.path.abspath
    try:
        # Some systems find a null byte or a half of a surrogate pair only when the file is looked up.
        os.fsencode(name)
        root, path = Path(absolute(folder)), Path(absolute(os.path.join(folder, name)))
        valid = "\0" not in name
    except (ValueError, OSError):
        valid = False
    if not valid:
        raise InvalidInputError(f"{name!r} cannot be a file name: choose a plain name inside the {what} {folder}.")
    if root not in path.parents:
        raise InvalidInputError(f"{name!r} leads outside the {what} {root}: choose a plain name inside it.")
    return path


def is_file(path: Path) -> bool:
    """Whether there is such a file; False too for names that no file can have."""
    return os.path.isfile(path)
