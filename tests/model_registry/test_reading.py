"""What a file is, is decided by its content; everything that is no weight file gets one clear error."""

from __future__ import annotations

import argparse
import json
import pickle
import time
import zipfile
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from gan_inversion.core.errors import CorruptFileError, ModelNotFoundError, UnsafeFileError, UnsupportedModelError
from gan_inversion.model_registry import PickledNetwork, load_model, read_weights
from gan_inversion.model_registry.reading import _TENSORFLOW_NETWORK

from ..parity.generator_parity import borrowed_class
from .foreign_files import nvidia_pickle, random_generator

LFS_POINTER = (
    "version https://git-lfs.github.com/spec/v1\n"
    "oid sha256:f1161d9b6e4a6b3c4b0ea4cf49d2b2d8d9ac0fb4d1c1b1d0dbd5ac9e5e4c0a11\nsize 381462551\n"
)


def write(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_missing_file(tmp_path):
    with pytest.raises(
        ModelNotFoundError, match=r"nothing.pt does not exist: expected a weight file\. Check the path\."
    ):
        read_weights(tmp_path / "nothing.pt")


def test_folder(tmp_path):
    with pytest.raises(ModelNotFoundError, match="is a folder: expected a weight file"):
        read_weights(tmp_path)


@pytest.mark.parametrize("content", [b"", b"  \n\n"])
def test_empty_file(tmp_path, content):
    with pytest.raises(CorruptFileError, match=r"empty.pt is empty .*Download it again"):
        load_model(write(tmp_path / "empty.pt", content))


@pytest.mark.parametrize(
    "start", ["<!DOCTYPE html>\n<html>", "\ufeff<html>", "\n\n  <HTML>", '<?xml version="1.0"?><html>']
)
def test_web_page_saved_as_weights(tmp_path, start):
    page = f"{start}<head><title>Google Drive - Virus scan warning</title></head><body>" + "x" * 9000
    with pytest.raises(
        CorruptFileError,
        match=r"page.pt is a web page titled 'Google Drive - Virus scan warning', not a weight file.*browser",
    ):
        load_model(write(tmp_path / "page.pt", page))


def test_git_lfs_pointer(tmp_path):
    with pytest.raises(
        CorruptFileError,
        match=r"model.safetensors is a Git LFS pointer of \d+ bytes, not the weights "
        r"\(sha256 f1161d9b\w+, 381,462,551 bytes\).*download the real file",
    ):
        load_model(write(tmp_path / "model.safetensors", LFS_POINTER))


@pytest.mark.parametrize(
    "content", [b"\x89PNG\r\n\x1a\n" + bytes(99), b'{"error": "Repository not found"}', b"hello.", bytes(40)]
)
def test_unknown_content(tmp_path, content):
    with pytest.raises(
        CorruptFileError, match=r"a.pt begins with b.* no weight format known here\. Expected a safetensors"
    ):
        load_model(write(tmp_path / "a.pt", content))


def torch_bytes(tmp_path: Path, zipped: bool) -> bytes:
    torch.save({"g_ema": {"w": torch.randn(300)}}, tmp_path / "whole.pt", _use_new_zipfile_serialization=zipped)
    return (tmp_path / "whole.pt").read_bytes()


@pytest.mark.parametrize("part", [0.3, 0.9])
def test_truncated_torch_file(tmp_path, part):
    whole = torch_bytes(tmp_path, zipped=True)
    with pytest.raises(
        CorruptFileError, match=r"cut.pt is truncated: a PyTorch \(zip\) file of [\d,]+ bytes.*Download it again"
    ):
        load_model(write(tmp_path / "cut.pt", whole[: int(len(whole) * part)]))


@pytest.mark.parametrize("part", [0.1, 0.5, 0.99])
def test_truncated_legacy_torch_file(tmp_path, part):
    whole = torch_bytes(tmp_path, zipped=False)
    with pytest.raises(
        CorruptFileError, match=r"cut.pt \([\d,]+ bytes\) cannot be read to its end.*truncated or damaged"
    ):
        load_model(write(tmp_path / "cut.pt", whole[: int(len(whole) * part)]))


@pytest.mark.parametrize("part", [0.05, 0.5, 0.999])
def test_truncated_nvidia_pickle(tmp_path, part):
    whole = nvidia_pickle(tmp_path / "whole.pkl", random_generator().state_dict()).read_bytes()
    with pytest.raises(
        CorruptFileError, match=r"cut.pkl \([\d,]+ bytes\) cannot be read to its end.*truncated or damaged"
    ):
        load_model(write(tmp_path / "cut.pkl", whole[: int(len(whole) * part)]))


@pytest.mark.parametrize("kept", [60, 1000])
def test_truncated_safetensors(tmp_path, kept):
    save_file({"w": torch.randn(4000), "v": torch.zeros(4)}, tmp_path / "whole.safetensors")
    whole = (tmp_path / "whole.safetensors").read_bytes()
    with pytest.raises(
        CorruptFileError, match=rf"truncated: {kept:,} bytes, but its header announces .*[\d,]+\. Download"
    ):
        load_model(write(tmp_path / "cut.safetensors", whole[:kept]))


def test_damaged_safetensors_header(tmp_path):
    header = json.dumps({"w": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}).encode()
    content = len(header).to_bytes(8, "little") + header + bytes(8)
    with pytest.raises(CorruptFileError, match=r"damaged safetensors header.*Download it again"):
        read_weights(write(tmp_path / "a.safetensors", content))


def test_other_zip_archives(tmp_path):
    np.savez(tmp_path / "array.npz", w=np.zeros(3))
    with pytest.raises(
        UnsupportedModelError, match=r"zip archive with w.npy, not a PyTorch weight file.*unpack it first"
    ):
        read_weights(tmp_path / "array.npz")
    with zipfile.ZipFile(tmp_path / "script.pt", "w") as archive:
        for name in ("m/data.pkl", "m/constants.pkl", "m/code/__torch__.py"):
            archive.writestr(name, b"")
    with pytest.raises(UnsupportedModelError, match=r"TorchScript program.*Save the network's state_dict\(\) instead"):
        read_weights(tmp_path / "script.pt")


def test_a_whole_module_saved_by_torch_is_refused_with_its_class(tmp_path):
    torch.save(random_generator(), tmp_path / "module.pt")
    with pytest.raises(UnsafeFileError, match=r"module.pt wants to load and run \S+Generator .*Expected tensors"):
        load_model(tmp_path / "module.pt")


@pytest.mark.parametrize("zipped", [True, False])
def test_option_objects_and_numpy_values_in_torch_files_are_plain_data(tmp_path, zipped):
    options = argparse.Namespace(stylegan_size=1024, encoder_type="Encoder4Editing", path=PurePosixPath("a/b"))
    content = {
        "opts": options,
        "average": np.arange(6, dtype=">f4").reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "step": np.float64(0.5),
        "count": np.int32(7),
        "w": torch.ones(2),
    }
    content["opts"].path = Path("a/b")
    torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    found = read_weights(tmp_path / "a.pt").content
    assert found["opts"] == {"stylegan_size": 1024, "encoder_type": "Encoder4Editing", "path": "a/b"}
    assert torch.equal(found["average"], torch.arange(6.0).view(2, 3))
    assert torch.equal(found["fortran"], torch.arange(6, dtype=torch.float64).view(2, 3))
    assert (found["step"], found["count"]) == (0.5, 7)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_arrays_and_tensors_in_a_pickle(tmp_path, protocol):
    tensor = torch.randn(3, 4)
    content = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.float32(0.5),
        "c": [True, None],
        "t": tensor.t(),
    }
    found = read_weights(write(tmp_path / "a.pkl", pickle.dumps(content, protocol))).content
    assert torch.equal(found["a"], torch.arange(6.0).view(2, 3))
    assert found["b"] == 0.5 and found["c"] == [True, None]
    assert torch.equal(found["t"], tensor.t())


def shared_lists(levels: int) -> list:
    """Each list holds the one below it twice: a small file, 2 ** levels lists when written out."""
    nested: list = [1.0]
    for _ in range(levels):
        nested = [nested, nested]
    return nested


@pytest.mark.parametrize("kind", ["pickle", "torch", "torch-legacy"])
@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: {"opts": x}, lambda x: {"w": argparse.Namespace(a=x)}])
def test_shared_nested_lists_end_quickly(tmp_path, kind, wrap):
    content, path = wrap(shared_lists(60)), tmp_path / "a.pt"
    if kind == "pickle":
        write(path, pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "torch")
    started = time.process_time()
    with pytest.raises(CorruptFileError, match=r"a\.pt was not read\. It repeats nested lists .* more than 2,000,000"):
        load_model(path)
    assert time.process_time() - started < 1


def test_sharing_as_such_is_fine(tmp_path):
    found = read_weights(write(tmp_path / "a.pkl", pickle.dumps({"a": shared_lists(12), "b": shared_lists(3)}))).content
    assert found == {"a": shared_lists(12), "b": shared_lists(3)}
    loop: list = []
    loop.append(loop)
    with pytest.raises(CorruptFileError, match="cannot be read to its end: RecursionError"):
        read_weights(write(tmp_path / "b.pkl", pickle.dumps(loop)))


def test_shared_options_of_a_network_end_quickly(tmp_path):
    options = {"z_dim": shared_lists(60)}
    path = nvidia_pickle(
        tmp_path / "a.pkl", random_generator().state_dict(), {"synthesis.x": shared_lists(60)}, options
    )
    started = time.process_time()
    network = read_weights(path).content["G_ema"]
    for part in ("init_kwargs", "attributes"):
        with pytest.raises(CorruptFileError, match=r"a\.pkl was not read\. It repeats nested lists"):
            getattr(network, part)
    assert time.process_time() - started < 1


@pytest.mark.parametrize("framework", ["torch", "tensorflow"])
def test_shared_modules_of_a_network_end_quickly(tmp_path, framework):
    name = {"torch": "torch_utils.persistence._reconstruct_persistent_obj", "tensorflow": _TENSORFLOW_NETWORK}[
        framework
    ]
    with borrowed_class(name) as network_class:
        part = None
        for _ in range(60):
            children = {} if part is None else {"a": part, "b": part}
            part = network_class.__new__(network_class)
            part.__dict__.update(version=4, components=children, _modules=children)
            if framework == "torch":
                meta = {"class_name": "Generator", "state": {"_modules": children}}
                part = type("Module", (), {"__reduce__": lambda self, meta=meta: (network_class, (meta,))})()
        path = write(tmp_path / "a.pkl", pickle.dumps({"G_ema": part}))
    started = time.process_time()
    network = read_weights(path).content["G_ema"]
    with pytest.raises(CorruptFileError, match=r"a\.pkl was not read\. It holds a network of more than 100,000 parts"):
        _ = network.tensors
    assert time.process_time() - started < 3


def test_every_network_of_an_nvidia_pickle_can_be_read(tmp_path):
    generator = random_generator()
    attributes = {"synthesis.b4.conv1.conv_clamp": 256, "synthesis.b4.conv1.act_gain": np.sqrt(2)}
    path = nvidia_pickle(
        tmp_path / "a.pkl", generator.state_dict(), attributes, {"z_dim": 12, "mapping_kwargs": {"a": 1}}
    )
    raw = read_weights(path)
    assert raw.container == "pickle"
    network = raw.content["G_ema"]
    assert isinstance(network, PickledNetwork) and network.class_name == "Generator"
    assert network.init_kwargs == {"z_dim": 12, "mapping_kwargs": {"a": 1}}
    assert network.attributes["synthesis.b4.conv1.conv_clamp"] == 256
    assert network.attributes["synthesis.b4.conv1.act_gain"] == pytest.approx(2**0.5)
    assert network.tensors.keys() == generator.state_dict().keys()
    assert all(torch.equal(network.tensors[name], value) for name, value in generator.state_dict().items())
    assert raw.content["D"].class_name == "Discriminator"
    assert torch.equal(raw.content["D"].tensors["fc0.weight"], generator.mapping.fc0.weight)
    assert raw.content["training_set_kwargs"] == {"max_size": 3}


def test_the_extension_does_not_matter(tmp_path):
    save_file({"w": torch.ones(2)}, tmp_path / "a.safetensors")
    torch.save({"w": torch.ones(2)}, tmp_path / "a.pt")
    for name, container in (("a.safetensors", "safetensors"), ("a.pt", "torch")):
        raw = read_weights((tmp_path / name).rename(tmp_path / "renamed.pkl"))
        assert raw.container == container and torch.equal(raw.content["w"], torch.ones(2))
