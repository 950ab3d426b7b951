"""Face parsers: the published layout, wrapped and bare, our own files, and what is refused."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from gan_inversion.core.errors import UnsafeFileError, UnsupportedModelError
from gan_inversion.core.parsing import LAPA_CLASSES, FaceParserConfig, parse
from gan_inversion.model_registry import convert, load_model, save_model
from gan_inversion.model_registry.catalogue import find

from ..core.test_parsing import SLIM, images, random_parser

FILE = FaceParserConfig(**{**vars(SLIM), "size": FaceParserConfig.size})  # a bare file cannot tell its size


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("wrapping", ["bare", "legacy", "state_dict", "module", "both", "safetensors"])
def test_the_published_layout_is_recognised(tmp_path, wrapping):
    parser = random_parser(FILE)
    state = parser.state_dict()
    path = tmp_path / "79999_iter.pth"
    if wrapping in ("module", "both"):
        state = {f"module.{name}": tensor for name, tensor in state.items()}
    if wrapping == "safetensors":
        save_file(state, path)
    else:
        content = {"state_dict": state, "epoch": 3} if wrapping in ("state_dict", "both") else state
        torch.save(content, path, _use_new_zipfile_serialization=wrapping != "legacy")
    loaded = load_model(path, architecture="bisenet")
    assert loaded.architecture == "bisenet" and loaded.module.config == FILE
    assert same(loaded.module, parser) and not loaded.module.training
    image = images()
    assert torch.equal(loaded.module(image, size=48), parser(image, size=48))


def test_converting_keeps_names_and_numbers(tmp_path):
    parser = random_parser(FILE)
    torch.save(parser.state_dict(), tmp_path / "a.pth")
    path = convert(tmp_path / "a.pth", tmp_path / "b.safetensors")
    with safe_open(path, "pt") as file:
        header = file.metadata()
        assert set(file.keys()) == set(parser.state_dict())
    assert header["architecture"] == "bisenet" and json.loads(header["config"])["stages"] == list(FILE.stages)
    loaded = load_model(path)
    assert same(loaded.module, parser) and loaded.identity == load_model(tmp_path / "a.pth").identity
    half = load_model(convert(path, tmp_path / "half.safetensors", torch.float16)).module
    difference = (half(images(), size=48) - parser(images(), size=48)).abs().max()
    assert 0 < difference < 0.05


def test_own_classes_and_size_are_kept_in_the_header(tmp_path):
    config = FaceParserConfig(**{**vars(SLIM), "classes": LAPA_CLASSES, "size": 40})
    parser = random_parser(config)
    loaded = load_model(save_model(parser, tmp_path / "a.safetensors")).module
    assert loaded.config == config
    found = parse(loaded, images())
    assert found.classes == LAPA_CLASSES
    assert torch.equal(found.probabilities, parse(parser, images()).probabilities)


def test_files_without_batch_counters_load(tmp_path):
    parser = random_parser(FILE)
    state = {name: tensor for name, tensor in parser.state_dict().items() if not name.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "a.pth")
    assert same(load_model(tmp_path / "a.pth").module, parser)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cp.arm16.bn_atten.bias": None}, r"lacks cp\.arm16\.bn_atten\.bias\."),
        ({"conv_out16.conv_out.weight": torch.zeros(19, 9, 1, 1)}, r"shapes that do not fit: conv_out16\.conv_out\.weight"),
        ({"cp.resnet.layer1.2.conv1.weight": torch.zeros(4, 4, 3, 3)}, r"unknown cp\.resnet\.layer1\.2\.conv1\.weight"),
        ({"conv_out.conv_out.weight": torch.zeros(8, 7, 1, 1)}, r"8 classes, and 19 names"),
        ({"cp.conv_avg.conv.weight": None}, r"without a convolution cp\.conv_avg"),
    ],
)  # fmt: skip
def test_damaged_or_other_networks_are_refused(tmp_path, change, message):
    state = {**random_parser(FILE).state_dict(), **change}
    torch.save({name: tensor for name, tensor in state.items() if tensor is not None}, tmp_path / "a.pth")
    with pytest.raises(UnsupportedModelError, match=rf"a\.pth cannot be used\. .*{message}"):
        load_model(tmp_path / "a.pth")


@pytest.mark.parametrize("config", [{"classes": 5}, {"classes": ["hair"] * 19}, {"classes": "x" * 19}, {"size": -1}])
def test_headers_that_make_no_sense_are_refused(tmp_path, config):
    header = {"format": "gan-inversion", "architecture": "bisenet", "config": json.dumps(config)}
    save_file(random_parser().state_dict(), tmp_path / "a.safetensors", header)
    with pytest.raises(UnsupportedModelError, match=r"a\.safetensors cannot be used"):
        load_model(tmp_path / "a.safetensors")


def test_a_file_that_wants_to_run_code_runs_none(tmp_path):
    class Payload:
        def __reduce__(self):
            return open, (str(tmp_path / "ran"), "w")

    torch.save({**random_parser().state_dict(), "extra": Payload()}, tmp_path / "79999_iter.pth")
    with pytest.raises(UnsafeFileError, match=r"open"):
        load_model(tmp_path / "79999_iter.pth")
    assert not (tmp_path / "ran").exists()


def test_the_catalogue_names_this_architecture():
    entry = find("bisenet-face-parsing")
    assert (entry.kind, entry.architecture) == ("face-parsing", FaceParserConfig().architecture)
    assert entry.original_name == "79999_iter.pth" and entry.resolution == FaceParserConfig.size
    assert entry.sha256 and entry.non_commercial
