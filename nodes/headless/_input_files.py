"""Files of the input folder, as ComfyUI's loading nodes name them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from ...core.errors import InvalidInputError
from .. import _comfy
from .._paths import inside, is_file


def input_files(wanted: Callable[[Path], bool]) -> list[str]:
    """Names of the files of the input folder for which `wanted(path)` holds, sorted."""
    folder = Path(_comfy.input_directory())
    if not folder.is_dir():
        return []
    return sorted(path.name for path in folder.iterdir() if wanted(path) and path.is_file())


def input_file(name: str) -> Path:
    """File of an input; a name may carry ComfyUI's suffix " [input]", " [output]" or " [temp]".

    Raises InvalidInputError for a name that leads out of its folder.
    """
    folders = {"input": _comfy.input_directory, "output": _comfy.output_directory, "temp": _comfy.temp_directory}
    match = re.fullmatch(r"(.*) \[(input|output|temp)\]", name) if isinstance(name, str) else None
    plain, kind = (match[1], match[2]) if match else (name, "input")
    try:
        return inside(folders[kind](), plain, f"{kind} folder")
    except InvalidInputError as error:
        raise InvalidInputError(f"{error} --input-dir names another folder.") from None


def check_input_file(name: str, what: str) -> bool | str:
    """True where the file is there, else what to do; `what` it should be, in words."""
    try:
        path = input_file(name)
    except InvalidInputError as error:
        return str(error)
    return (
        True
        if is_file(path)
        else f"{path} does not exist, expected {what} in that folder (--input-dir names another one)."
    )
