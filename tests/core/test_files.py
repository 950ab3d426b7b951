"""Whatever happens while a file is written, the old one stays whole and no temporary one is left."""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from gan_inversion.core.directions import save_direction
from gan_inversion.core.editing import Direction
from gan_inversion.core.errors import InvalidInputError
from gan_inversion.core.files import check_destination, replacing
from gan_inversion.core.generator import Generator, GeneratorConfig
from gan_inversion.core.imaging import save_image
from gan_inversion.core.inversion import Inversion
from gan_inversion.core.training.common import load_checkpoint, save_checkpoint
from gan_inversion.model_registry import save_model


def generator() -> Generator:
    return Generator(GeneratorConfig(8, (4, 4), 4, 4, 1))


def write_inversion(path: Path) -> None:
    small = generator()
    Inversion(torch.zeros(1, 3, 8, 8), torch.zeros(1, small.num_ws, 4), small).save(path)


WRITERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "model": ("safetensors.torch.save_file", lambda path: save_model(generator(), path)),
    "inversion": ("safetensors.torch.save_file", write_inversion),
    "direction": ("safetensors.torch.save_file", lambda path: save_direction(path, Direction("a", torch.ones(1, 4)))),
    "checkpoint": ("torch.save", lambda path: save_checkpoint(path, {"step": 1})),
}


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("kind", WRITERS)
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, kind, error):
    function, write = WRITERS[kind]
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"old")

    def fail(content, name, **_):
        Path(name).write_bytes(b"half a file")
        raise error

    monkeypatch.setattr(function, fail)
    with pytest.raises(type(error)):
        write(path)
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["a.safetensors"]


def test_a_full_disk_leaves_the_old_picture(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    save_image(torch.zeros(1, 3, 4, 4), path)
    before = path.read_bytes()

    def fail(self, name, **_):
        Path(name).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="No space left"):
        save_image(torch.ones(1, 3, 4, 4), path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["a.png"]


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX permissions")
@pytest.mark.parametrize("kind", WRITERS)
def test_files_have_the_permissions_of_any_new_file(tmp_path, kind):
    plain, path = tmp_path / "plain", tmp_path / "deeper" / "a.safetensors"
    plain.touch()
    WRITERS[kind][1](path)
    WRITERS[kind][1](path)
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)
    assert os.listdir(path.parent) == ["a.safetensors"]


def test_checkpoints_come_back(tmp_path):
    save_checkpoint(tmp_path / "state.pt", {"step": 3, "w": torch.ones(2)})
    state = load_checkpoint(tmp_path / "state.pt")
    assert state["step"] == 3 and torch.equal(state["w"], torch.ones(2))


@pytest.mark.parametrize("kind", WRITERS)
def test_places_that_cannot_be_files_are_refused(tmp_path, kind):
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "folder.safetensors").mkdir()
    for name, message in {
        "folder.safetensors": "is a folder: expected the name of a file",
        "file/a.safetensors": "lies below .*file, which is no folder",
        "file/deeper/a.safetensors": "lies below .*file, which is no folder",
        "a" * 300 + ".safetensors": "cannot be a file name",
    }.items():
        with pytest.raises(InvalidInputError, match=message):
            WRITERS[kind][1](tmp_path / name)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder.safetensors"]


def test_names_of_any_length_and_relative_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a" * 255, "ü" * 120, "plain"):
        with replacing(name) as temporary:
            temporary.write_text("x")
        assert Path(name).read_text() == "x"
    assert check_destination("new/folder/a") == Path("new/folder/a") and not Path("new").exists()
