"""Stands in for ComfyUI where it is not running: the same names and shapes as the few parts of it that nodes use.

The module itself plays `io` and `ui` of `comfy_api`, and carries the functions of `folder_paths`, `comfy.utils` and
`comfy.model_management` that `nodes/_comfy.py` passes on. Shapes follow ComfyUI 0.3.64 to 0.33.
"""

from __future__ import annotations

import os
import re
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar

import torch


class UploadType(str, Enum):
    """Kinds of upload buttons."""

    image = "image_upload"


class NumberDisplay(str, Enum):
    """How a number is drawn."""

    number = "number"
    slider = "slider"


class Hidden(str, Enum):
    """Values a node may ask for besides its inputs."""

    unique_id = "UNIQUE_ID"
    prompt = "PROMPT"
    extra_pnginfo = "EXTRA_PNGINFO"


class HiddenHolder:
    """Hidden values of one run; what was not given is None."""

    def __init__(self, values: Mapping[Any, Any] | None = None) -> None:
        for key, value in (values or {}).items():
            setattr(self, Hidden(key).name, value)

    def __getattr__(self, name: str) -> Any:
        return None

    @classmethod
    def from_dict(cls, values: Mapping[Any, Any] | None) -> HiddenHolder:
        """Keys are members of `Hidden` or their values."""
        return cls(values)


class Input:
    """An input socket, with or without a widget; further keyword arguments become attributes."""

    io_type: ClassVar[str] = "*"

    def __init__(
        self,
        id: str,
        display_name: str | None = None,
        optional: bool = False,
        tooltip: str | None = None,
        lazy: bool | None = None,
        **options: Any,
    ) -> None:
        self.id, self.display_name, self.optional, self.tooltip, self.lazy = id, display_name, optional, tooltip, lazy
        unknown = options.keys() - self.option_names
        if unknown:
            raise TypeError(f"{type(self).__qualname__} {id!r} has no option {', '.join(sorted(unknown))}")
        for name in self.option_names:
            setattr(self, name, options.get(name))

    option_names: ClassVar[tuple[str, ...]] = ("extra_dict",)

    def get_io_type(self) -> str:
        """Type name."""
        return self.io_type


class Output:
    """An output socket."""

    io_type: ClassVar[str] = "*"

    def __init__(
        self,
        id: str | None = None,
        display_name: str | None = None,
        tooltip: str | None = None,
        is_output_list: bool = False,
    ) -> None:
        self.id, self.display_name, self.tooltip, self.is_output_list = id, display_name, tooltip, is_output_list

    def get_io_type(self) -> str:
        """Type name."""
        return self.io_type


class _Type:
    """A socket type: its name and its two socket classes."""

    io_type: ClassVar[str]
    Input: type[Input]
    Output: type[Output]


def _type(name: str, *options: str) -> type[_Type]:
    common = ("extra_dict", "default", "socketless", "force_input", "advanced") if options else ("extra_dict",)
    sockets = {
        "Input": type("Input", (Input,), {"io_type": name, "option_names": (*common, *options)}),
        "Output": type("Output", (Output,), {"io_type": name}),
    }
    return type(name, (_Type,), {"io_type": name, **sockets})


Boolean = _type("BOOLEAN", "label_on", "label_off")
Int = _type("INT", "min", "max", "step", "control_after_generate", "display_mode")
Float = _type("FLOAT", "min", "max", "step", "round", "display_mode")
String = _type("STRING", "multiline", "placeholder")
Combo = _type("COMBO", "options", "control_after_generate", "upload", "image_folder")
Image = _type("IMAGE")
Mask = _type("MASK")
AnyType = _type("*")


def Custom(io_type: str) -> type[_Type]:
    """A socket type of one's own."""
    return _type(io_type)


@dataclass
class Schema:
    """What a node is: names, sockets, flags."""

    node_id: str
    display_name: str | None = None
    category: str = "sd"
    inputs: Sequence[Input] = ()
    outputs: Sequence[Output] = ()
    hidden: Sequence[Hidden] = ()
    description: str = ""
    search_aliases: list[str] = field(default_factory=list)
    is_input_list: bool = False
    is_output_node: bool = False
    is_deprecated: bool = False
    is_experimental: bool = False
    not_idempotent: bool = False


class NodeOutput:
    """What a node returns: the values of its outputs, and what its face shows."""

    def __init__(self, *args: Any, ui: Any = None, expand: Any = None, block_execution: str | None = None) -> None:
        self.args, self.ui, self.expand, self.block_execution = args, ui, expand, block_execution

    @property
    def result(self) -> tuple[Any, ...]:
        """Output values in slot order."""
        return self.args

    def __getitem__(self, index: int) -> Any:
        return self.args[index]


class ComfyNode:
    """Base of all nodes: classmethods only. `validate_inputs` and `fingerprint_inputs` exist where a node has them."""

    hidden: HiddenHolder = HiddenHolder()
    define_schema: Callable[..., Schema]
    execute: Callable[..., NodeOutput]

    @classmethod
    def PREPARE_CLASS_CLONE(cls, hidden_inputs: Mapping[Any, Any] | None) -> type[ComfyNode]:
        """A copy of the class that carries one run's hidden values."""
        return type(cls.__name__, (cls,), {"hidden": HiddenHolder.from_dict(hidden_inputs)})


class ComfyExtension(ABC):
    """A node pack."""

    @abstractmethod
    async def get_node_list(self) -> list[type[ComfyNode]]:
        """The pack's nodes."""


class PreviewText:
    """Text on a node's face."""

    def __init__(self, value: str, **_: Any) -> None:
        self.value = value

    def as_dict(self) -> dict[str, Any]:
        """The form the front end reads."""
        return {"text": (self.value,)}


class PreviewImage:
    """Pictures on a node's face, written to the temporary folder."""

    def __init__(self, image: torch.Tensor, animated: bool = False, cls: Any = None, **_: Any) -> None:
        from PIL import Image as Picture

        folder = Path(get_temp_directory())
        folder.mkdir(parents=True, exist_ok=True)
        self.values = []
        for pixels in image.detach().float().cpu().clamp(0, 1).mul(255).round().byte().numpy():
            with tempfile.NamedTemporaryFile(dir=folder, prefix="preview_", suffix=".png", delete=False) as file:
                Picture.fromarray(pixels).save(file, "PNG")
            self.values.append({"filename": Path(file.name).name, "subfolder": "", "type": "temp"})

    def as_dict(self) -> dict[str, Any]:
        """The form the front end reads."""
        return {"images": self.values}


_folders: dict[str, Path] = {}
_CLOCK = {"year": "%Y", "month": "%m", "day": "%d", "hour": "%H", "minute": "%M", "second": "%S"}


@contextmanager
def folders(**places: str | Path | None) -> Iterator[None]:
    """Sets the folders "input", "output" and "temp" for a while; None leaves one as it is."""
    before = dict(_folders)
    _folders.update({name: Path(place) for name, place in places.items() if place is not None})
    try:
        yield
    finally:
        _folders.clear()
        _folders.update(before)


def get_input_directory() -> str:
    """Where pictures to load lie; the current folder unless set."""
    return str(_folders.get("input") or Path.cwd())


def get_output_directory() -> str:
    """Where results go; ./output unless set."""
    return str(_folders.get("output") or Path.cwd() / "output")


def get_temp_directory() -> str:
    """Where previews go; a folder in the output folder unless set."""
    return str(_folders.get("temp") or Path(get_output_directory()) / "temp")


def get_save_image_path(
    filename_prefix: str, output_dir: str, image_width: int = 0, image_height: int = 0
) -> tuple[str, str, int, str, str]:
    """(folder, file name, number, subfolder, prefix) of the next file with this prefix; makes the folder.

    %year% %month% %day% %hour% %minute% %second% are those of the clock, %width% and %height% the picture's.
    """
    stem = filename_prefix.replace("%width%", str(image_width)).replace("%height%", str(image_height))
    now = time.localtime()
    for name, code in _CLOCK.items():
        stem = stem.replace(f"%{name}%", time.strftime(code, now))
    target = Path(output_dir) / os.path.normpath(stem)
    target.parent.mkdir(parents=True, exist_ok=True)
    pattern = re.compile(re.escape(target.name) + r"_(\d+)_?\.\w+", re.IGNORECASE)
    taken = [int(match[1]) for path in target.parent.iterdir() if (match := pattern.fullmatch(path.name))]
    subfolder = Path(os.path.relpath(target.parent, output_dir)).as_posix()
    return str(target.parent), target.name, max(taken, default=0) + 1, "" if subfolder == "." else subfolder, stem


class ProgressBar:
    """Counts, tells whoever listens, and stops at an interrupt as ComfyUI's does."""

    listener: ClassVar[Callable[[ProgressBar], None] | None] = None  # called after every update

    def __init__(self, total: int) -> None:
        self.total, self.current = total, 0

    def update_absolute(self, value: int, total: int | None = None, preview: Any = None) -> None:
        """Steps done, of how many, and a picture to show."""
        throw_exception_if_processing_interrupted()
        self.current, self.total = value, self.total if total is None else total
        if ProgressBar.listener is not None:
            ProgressBar.listener(self)


class InterruptProcessingException(BaseException):
    """The user asked to stop."""


_interrupted = threading.Event()


def interrupt_current_processing(value: bool = True) -> None:
    """Asks the running node to stop."""
    _interrupted.set() if value else _interrupted.clear()


def throw_exception_if_processing_interrupted() -> None:
    """Raises once if someone asked to stop."""
    if _interrupted.is_set():
        _interrupted.clear()
        raise InterruptProcessingException


def get_torch_device() -> torch.device:
    """Where networks run."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def intermediate_device() -> torch.device:
    """Where values between nodes lie."""
    return torch.device("cpu")
