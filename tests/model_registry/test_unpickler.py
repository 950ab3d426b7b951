"""No file may execute code: every attack leaves its marker file unwritten."""

from __future__ import annotations

import io
import os
import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from gan_inversion.core.errors import CorruptFileError, GANInversionError, UnsafeFileError
from gan_inversion.model_registry import load_model, read_weights
from gan_inversion.model_registry.unpickler import Recorded, unpickle

from .foreign_files import nvidia_pickle, random_generator


class Attack:
    """Unpickles to `function(*arguments)`."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple:
        return self.call


def attacks(marker: Path) -> dict[str, object]:
    command = f"touch {marker}"
    source = f"open({str(marker)!r}, 'w').close()"
    return {
        "system": Attack(os.system, command),
        "builtins.eval": Attack(eval, source),
        "builtins.exec": Attack(exec, source),
        "builtins.getattr": Attack(getattr, OrderedDict, "fromkeys"),
        "builtins.open": Attack(open, str(marker), "w"),
    }


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "the_attack_ran"


@pytest.mark.parametrize("name", ["system", "builtins.eval", "builtins.exec", "builtins.getattr", "builtins.open"])
@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: {"G_ema": x}, lambda x: (x, x, x)])
def test_a_pickle_that_calls_a_function_is_refused_and_nothing_runs(tmp_path, marker, name, protocol, wrap):
    path = tmp_path / "network.pkl"
    path.write_bytes(pickle.dumps(wrap(attacks(marker)[name]), protocol))
    with pytest.raises(
        UnsafeFileError, match=rf"wants to load and run \S*{name.split('.')[-1]} .*Nothing was executed"
    ):
        load_model(path)
    assert not marker.exists()


@pytest.mark.parametrize("name", ["system", "builtins.eval"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_torch_file_that_calls_a_function_is_refused_and_nothing_runs(tmp_path, marker, name, zipped):
    path = tmp_path / "weights.pt"
    content = {"g_ema": {"input.input": torch.zeros(1)}, "opts": attacks(marker)[name]}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UnsafeFileError, match=rf"{name.split('.')[-1]}.*Nothing was executed"):
        load_model(path)
    assert not marker.exists()


def test_the_attacks_of_these_tests_do_run_in_plain_pickle(tmp_path, marker):
    pickle.loads(pickle.dumps(attacks(marker)["system"]))
    assert marker.exists()


def nested(marker: Path) -> Attack:
    stream = io.BytesIO()
    torch.save(attacks(marker)["system"], stream, _use_new_zipfile_serialization=False)
    return Attack(torch.storage._load_from_bytes, stream.getvalue())


def test_a_pickle_inside_a_storage_is_refused_and_does_not_run(tmp_path, marker):
    path = tmp_path / "network.pkl"
    path.write_bytes(pickle.dumps({"G_ema": nested(marker)}))
    with pytest.raises(UnsafeFileError, match=r"system .*Nothing was executed"):
        load_model(path)
    assert not marker.exists()


def test_a_pickle_inside_a_tensor_of_a_network_is_refused_and_does_not_run(tmp_path, marker):
    tensors = random_generator().state_dict()
    path = nvidia_pickle(tmp_path / "network.pkl", tensors, {"synthesis.b4.resolution": nested(marker)})
    with pytest.raises(UnsafeFileError, match=r"network.pkl .*system .*Nothing was executed"):
        load_model(path)
    assert not marker.exists()


def test_source_text_in_an_nvidia_pickle_is_not_executed(tmp_path, marker):
    generator = random_generator()
    source = f"open({str(marker)!r}, 'w').close()\nclass Generator: pass\n"
    loaded = load_model(nvidia_pickle(tmp_path / "network.pkl", generator.state_dict(), module_src=source))
    assert loaded.architecture == "stylegan2"
    assert not marker.exists()


def test_an_object_array_with_a_payload_is_refused_and_does_not_run(tmp_path, marker):
    path = tmp_path / "network.pkl"
    path.write_bytes(pickle.dumps({"w": np.array([attacks(marker)["system"]], dtype=object)}))
    with pytest.raises(UnsafeFileError, match="system"):
        read_weights(path)
    path.write_bytes(pickle.dumps({"w": np.array([{"harmless": 1}], dtype=object)}))
    with pytest.raises(UnsafeFileError, match=r"numpy array of type 'O8' \(only numbers are read\)"):
        read_weights(path)
    torch.save({"w": np.array([attacks(marker)["system"]], dtype=object)}, path)
    with pytest.raises(UnsafeFileError, match="system"):
        read_weights(path)
    assert not marker.exists()


@pytest.mark.parametrize(
    "name",
    [
        "torch.storage\n_load_from_bytes.__globals__",
        "torch\nload",
        "numpy\nload",
        "dnnlib.util\nopen_url",
        "torch.hub\nload",
    ],
)
def test_names_near_the_permitted_ones_are_refused(tmp_path, name):
    path = tmp_path / "network.pkl"
    path.write_bytes(b"c" + name.encode() + b"\n.")
    with pytest.raises(UnsafeFileError, match=name.replace("\n", ".")):
        read_weights(path)


@pytest.mark.parametrize("target", [b"ccollections\nOrderedDict\n", b"cdnnlib.util\nEasyDict\n", b"cnumpy\nndarray\n"])
def test_a_file_cannot_change_classes_of_this_process(tmp_path, target):
    path = tmp_path / "network.pkl"
    path.write_bytes(b"\x80\x02" + target + b"(N}X\x0b\x00\x00\x00__setstate_X\x01\x00\x00\x00xstb.")
    with pytest.raises((CorruptFileError, UnsafeFileError)):
        load_model(path)
    assert not hasattr(Recorded, "__setstate_") and not hasattr(OrderedDict, "__setstate_")


def test_calls_are_written_down_and_not_made():
    stream = pickle.dumps(Attack(torch.storage._load_from_bytes, b"not even a file"))
    record = unpickle(io.BytesIO(stream))
    assert isinstance(record, Recorded)
    assert (record.name, record.args) == ("torch.storage._load_from_bytes", (b"not even a file",))


def test_random_bytes_after_a_pickle_head_end_in_one_of_our_errors(tmp_path):
    random = np.random.RandomState(0)
    path = tmp_path / "network.pkl"
    for protocol in (2, 4):
        valid = pickle.dumps({"a": [np.arange(9.0), torch.ones(3)], "b": OrderedDict(x=1)}, protocol)
        for _ in range(150):
            damaged = bytearray(valid)
            for position in random.randint(2, len(valid), size=3):
                damaged[position] = random.randint(256)
            path.write_bytes(damaged)
            try:
                read_weights(path)
            except GANInversionError:
                continue
