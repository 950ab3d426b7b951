"""load_model and convert: detection from keys and shapes, round trips, refusals."""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import gan_inversion
from gan_inversion.core.encoders import Encoder, EncoderConfig
from gan_inversion.core.errors import InvalidInputError, ModelNotFoundError, UnsupportedModelError
from gan_inversion.core.fingerprint import fingerprint
from gan_inversion.core.generator import Generator, GeneratorConfig
from gan_inversion.core.skeleton import skeleton
from gan_inversion.model_registry import catalogue, convert, hub, load_direction, load_model, save_model

from .foreign_files import CONFIG, noise_tensors, nvidia_pickle, random_generator, rosinality_tensors

ENCODER = EncoderConfig(
    encoder_type="GradualStyleEncoder", num_ws=6, w_dim=10, input_size=(32, 32), stem=8, widths=(8, 16, 32),
    units=(1, 1, 1), style_channels=16, se_reduction=8,
)  # fmt: skip


def same(module: torch.nn.Module, other: torch.nn.Module) -> bool:
    a, b = module.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def random_encoder(config: EncoderConfig = ENCODER) -> Encoder:
    torch.manual_seed(0)
    encoder = Encoder(config).eval()
    encoder.set_latent_avg(torch.randn(config.w_dim))
    return encoder


def random_config(seed: int) -> GeneratorConfig:
    draw = random.Random(seed)
    blocks = draw.randint(2, 5)
    return GeneratorConfig(
        resolution=4 << (blocks - 1),
        channels=tuple(draw.randint(1, 9) for _ in range(blocks)),
        z_dim=draw.randint(1, 9),
        w_dim=draw.randint(1, 9),
        mapping_layers=draw.randint(1, 9),
        conv_clamp=draw.choice([None, 256.0]),
    )


@pytest.mark.parametrize("seed", range(12))
def test_random_configurations_are_recovered_from_shapes(tmp_path, seed):
    config = random_config(seed)
    generator = random_generator(config, seed)
    loaded = load_model(save_model(generator, tmp_path / "a.safetensors"))
    assert loaded.module.config == config and same(loaded.module, generator)
    torch.save({"g_ema": {**rosinality_tensors(generator), **noise_tensors(generator)}}, tmp_path / "a.pt")
    recovered = load_model(tmp_path / "a.pt").module.config
    assert recovered == GeneratorConfig(**{**vars(config), "conv_clamp": None})


def test_a_loaded_model_is_ready_for_use(tmp_path):
    generator = random_generator()
    path = save_model(generator, tmp_path / "sub" / "a.safetensors", {"domain": "portraits", "steps": 7})
    with torch.inference_mode():  # as in a ComfyUI node
        loaded = load_model(path)
    assert loaded.architecture == "stylegan2" and loaded.path == path and loaded.domain == "portraits"
    assert loaded.metadata["steps"] == "7" and loaded.catalogue_id is None
    assert not loaded.module.training and not any(p.requires_grad for p in loaded.module.parameters())
    assert {t.dtype for t in loaded.module.state_dict().values()} == {torch.float32}
    w_plus = torch.randn(1, CONFIG.num_ws, CONFIG.w_dim, requires_grad=True)
    loaded.module.synthesis(w_plus).sum().backward()  # tensors made in inference mode could not do this
    assert w_plus.grad is not None


def test_files_with_own_noise_but_without_prefix_and_filters(tmp_path):
    generator = random_generator()
    save_file(
        {**generator.state_dict(), "synthesis.b8.conv0.resample_filter": torch.ones(1)}, tmp_path / "a.safetensors"
    )
    with pytest.raises(UnsupportedModelError, match="filter"):
        load_model(tmp_path / "a.safetensors")
    torch.save(generator.state_dict(), tmp_path / "b.pt")
    assert same(load_model(tmp_path / "b.pt").module, generator)


# Identity


def test_one_generator_has_one_identity_in_every_format(tmp_path):
    generator = random_generator()
    state = {**rosinality_tensors(generator), **noise_tensors(generator)}
    torch.save({"g_ema": state}, tmp_path / "without_average.pt")
    torch.save({"g_ema": state, "latent_avg": generator.w_avg}, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    paths = [tmp_path / "without_average.pt", tmp_path / "a.pt", save_model(generator, tmp_path / "a.safetensors")]
    paths.append(nvidia_pickle(tmp_path / "a.pkl", generator.state_dict()))
    assert {load_model(path).identity for path in paths} == {fingerprint(generator)}


@pytest.mark.parametrize(
    "name", ["synthesis.b4.const", "synthesis.b16.conv0.weight", "synthesis.b8.conv1.noise_strength"]
)
def test_fine_tuning_changes_the_identity(name):
    generator = random_generator(GeneratorConfig(resolution=16, channels=(64, 64, 64), z_dim=8, w_dim=8))
    before = fingerprint(generator)
    generator.get_parameter(name).data.mul_(1.001)
    assert fingerprint(generator) != before
    assert len(before) == 16 and fingerprint(random_generator(seed=1)) != fingerprint(random_generator(seed=2))


# Converting


@pytest.mark.parametrize("source", ["a.pt", "a.pkl", "a.safetensors"])
def test_converting_keeps_every_tensor(tmp_path, source):
    generator = random_generator(GeneratorConfig(**{**vars(CONFIG), "conv_clamp": 256.0 if source != "a.pt" else None}))
    if source == "a.pt":
        state = {**rosinality_tensors(generator), **noise_tensors(generator)}
        torch.save({"g_ema": state, "latent_avg": generator.w_avg}, tmp_path / source)
    elif source == "a.pkl":
        nvidia_pickle(tmp_path / source, generator.state_dict(), {"synthesis.b4.conv1.conv_clamp": 256})
    else:
        save_model(generator, tmp_path / source, {"domain": "x"})
    written = convert(tmp_path / source, tmp_path / "converted.safetensors")
    loaded = load_model(written)
    assert same(loaded.module, generator) and loaded.module.config == generator.config
    assert loaded.identity == load_model(tmp_path / source).identity
    with safe_open(written, "pt") as file:
        metadata = file.metadata()
    assert metadata["format"] == "gan-inversion" and metadata["format_version"] == "1"
    assert metadata["architecture"] == "stylegan2" and metadata["source"] == source
    assert len(metadata["source_sha256"]) == 64
    assert json.loads(metadata["config"])["conv_clamp"] == generator.config.conv_clamp
    assert metadata.get("domain") == ("x" if source == "a.safetensors" else None)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([source, "converted.safetensors"])


def test_half_precision_files_load_as_float32_and_keep_vectors_and_large_values(tmp_path):
    generator = random_generator()
    generator.mapping.fc0.weight[0, 0] = 1e6
    loaded = load_model(save_model(generator, tmp_path / "half.safetensors", dtype=torch.float16)).module
    assert loaded.synthesis.b4.const.dtype == torch.float32
    assert torch.equal(loaded.synthesis.b4.const, generator.synthesis.b4.const.half().float())
    assert torch.equal(loaded.synthesis.b8.conv0.bias, generator.synthesis.b8.conv0.bias)
    assert torch.equal(loaded.mapping.fc0.weight, generator.mapping.fc0.weight)
    assert convert(tmp_path / "half.safetensors", tmp_path / "full").name == "full.safetensors"
    assert same(load_model(tmp_path / "full.safetensors").module, loaded)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = save_model(random_generator(seed=1), tmp_path / "a.safetensors")
    before = path.read_bytes()

    def full_disk(tensors, name, metadata):
        Path(name).write_bytes(b"half a file")
        raise OSError("No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_model(random_generator(seed=2), path)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_wrong_arguments_of_convert_and_save(tmp_path):
    path = save_model(random_generator(), tmp_path / "a.safetensors")
    with pytest.raises(
        InvalidInputError, match=r"a.safetensors is the source itself: give the converted file another name"
    ):
        convert(path, path)
    with pytest.raises(InvalidInputError, match=r"dtype torch.float64: expected one of torch.float32"):
        convert(path, tmp_path / "b.safetensors", dtype=torch.float64)
    with pytest.raises(InvalidInputError, match="expected a name ending in .safetensors"):
        save_model(random_generator(), tmp_path / "a.pt")
    with pytest.raises(InvalidInputError, match="Linear is no network of this package"):
        save_model(torch.nn.Linear(2, 2), tmp_path / "b.safetensors")


def test_an_interrupt_ends_a_conversion_without_a_file(tmp_path):
    path = save_model(random_generator(), tmp_path / "a.safetensors")
    calls = []

    def interrupt() -> None:
        calls.append(1)
        if len(calls) > 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(path, tmp_path / "b.safetensors", check_interrupt=interrupt)
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


# Files of other networks


def test_a_file_of_an_unknown_network_lists_its_keys_and_what_is_known(tmp_path):
    torch.save(
        {"state_dict": {"layer1.0.conv1.weight": torch.zeros(4, 3, 3, 3), "fc.bias": torch.zeros(10)}},
        tmp_path / "a.pt",
    )
    with pytest.raises(
        UnsupportedModelError,
        match=r"a.pt cannot be used\. No known architecture has these 2 keys: layer1.0.conv1.weight \(4, 3, 3, 3\), "
        r"fc.bias \(10,\), \.\.\. Known: StyleGAN2 generators .*e4e encoders, psp encoders, restyle-e4e encoders",
    ):
        load_model(tmp_path / "a.pt")


@pytest.mark.parametrize("content", [[torch.zeros(2)], torch.zeros(2), 3])
def test_a_file_without_a_dictionary(tmp_path, content):
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(
        UnsupportedModelError, match=r"a.pt holds a (list|Tensor|int): expected a dictionary of tensors"
    ):
        load_model(tmp_path / "a.pt")


def test_stylegan3_is_recognised_and_refused_in_a_plain_sentence(tmp_path):
    tensors = {"synthesis.input.freqs": torch.zeros(4, 2), "synthesis.L0_36_512.weight": torch.zeros(2, 2, 3, 3)}
    sentence = r"This is a StyleGAN3 \(alias-free\) generator. Only StyleGAN2 generators are supported"
    with pytest.raises(UnsupportedModelError, match=rf"a.pkl cannot be used. {sentence}"):
        load_model(
            nvidia_pickle(tmp_path / "a.pkl", {**tensors, "mapping.fc0.weight": torch.zeros(2, 2)}, {"c_dim": 0})
        )
    torch.save(tensors, tmp_path / "a.pt")
    with pytest.raises(UnsupportedModelError, match=sentence):
        load_model(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("synthesis.b4.torgb.weight", torch.zeros(4, 16, 1, 1), r"4 image channels: expected 3 \(RGB\)"),
        ("mapping.embed.weight", torch.zeros(2, 2), "Class-conditional StyleGAN2"),
        ("synthesis.b64.conv1.weight", torch.zeros(2, 2, 3, 3), "4 channel counts .* for resolution 64"),
        ("mapping.fc0.weight", None, "without mapping.fc0.weight: the file is incomplete"),
    ],
)
def test_generators_that_are_not_built_are_refused(tmp_path, name, value, message):
    tensors = {**random_generator().state_dict(), name: value}
    torch.save({key: tensor for key, tensor in tensors.items() if tensor is not None}, tmp_path / "a.pt")
    with pytest.raises(UnsupportedModelError, match=message):
        load_model(tmp_path / "a.pt")


def test_the_wrong_kind_of_file_is_named(tmp_path):
    path = save_model(random_generator(), tmp_path / "a.safetensors")
    with pytest.raises(
        UnsupportedModelError, match=r"a.safetensors cannot be used. It holds a stylegan2 network: expected e4e"
    ):
        load_model(path, architecture="e4e")
    with pytest.raises(UnsupportedModelError, match="holds no decoder: expected an encoder checkpoint"):
        load_model(path, part="decoder")
    with pytest.raises(
        UnsupportedModelError, match="Unknown part 'mapping': expected 'decoder', 'discriminator' or None"
    ):
        load_model(path, part="mapping")


# Catalogue ids


def test_catalogue_ids_are_fetched(tmp_path, monkeypatch):
    path = save_model(random_generator(), tmp_path / "a.safetensors")
    entry = SimpleNamespace(id="some-model", domain="cats")
    monkeypatch.setattr(catalogue, "find", lambda model_id: entry)
    monkeypatch.setattr(hub, "fetch", lambda found, **_: path if found is entry else None)
    monkeypatch.chdir(tmp_path)
    loaded = load_model("some-model")
    assert (loaded.catalogue_id, loaded.domain, loaded.path) == ("some-model", "cats", path)


@pytest.mark.parametrize("name", ["no-such-model", "missing.pt"])
def test_neither_file_nor_id(name):
    with pytest.raises(ModelNotFoundError, match=rf"{name}: no such file, and no catalogue entry of that id"):
        load_model(name)


@pytest.mark.parametrize("name", [None, 3, b"a.pt", ["a.pt"]])
@pytest.mark.parametrize("load", [load_model, load_direction])
def test_what_is_neither_path_nor_id_is_refused(load, name):
    with pytest.raises(InvalidInputError, match=r"of type \w+: expected the path of a file or a catalogue id"):
        load(name)


def test_converting_onto_a_folder_or_below_a_file_is_refused(tmp_path):
    path = save_model(random_generator(), tmp_path / "a.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "sub").mkdir()
    for target in ("folder.safetensors", "sub", "folder"):
        with pytest.raises(InvalidInputError, match="is a folder: expected the name of a file to write"):
            convert(path, tmp_path / target)
    for target in ("a.safetensors/b.safetensors", "a.safetensors/b/c"):
        with pytest.raises(InvalidInputError, match=r"lies below .*a\.safetensors, which is no folder"):
            convert(path, tmp_path / target)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a.safetensors", "folder.safetensors", "sub"]


# Directions


def test_a_direction_is_loaded_by_its_id_or_from_a_file(tmp_path):
    bundled = gan_inversion.load_direction("portraits-smile")
    assert isinstance(bundled, gan_inversion.Direction) and bundled.offset is not None
    path = gan_inversion.save_direction(tmp_path / "mine.safetensors", bundled)
    for place in (path, str(path)):
        again = load_direction(place, name="renamed", limits=(-1, 1))
        assert again.name == "renamed" and again.limits == (-1, 1) and torch.equal(again.offset, bundled.offset)


def test_the_root_names_what_the_catalogue_needs():
    ids = [entry.id for entry in gan_inversion.load_catalogue()]
    assert "portraits-smile" in ids
    assert gan_inversion.fetch("portraits-smile").name == "portraits-smile.safetensors"
    assert gan_inversion.load_direction is load_direction and set(gan_inversion.__all__) <= set(dir(gan_inversion))


def test_fetching_a_direction_passes_the_callbacks_on(tmp_path, monkeypatch):
    path = gan_inversion.save_direction(tmp_path / "a.safetensors", gan_inversion.Direction("a", torch.ones(1, 4)))
    seen = {}
    monkeypatch.setattr(hub, "fetch", lambda found, **options: seen.update(options) or path)
    load_direction("sam-ffhq-old", progress=print, check_interrupt=list)
    assert seen == {"progress": print, "check_interrupt": list}


def test_the_id_of_another_kind_of_model_is_no_direction(monkeypatch):
    monkeypatch.setattr(hub, "fetch", lambda *_, **__: pytest.fail("downloaded"))
    with pytest.raises(InvalidInputError, match=r"e4e-ffhq is a model of kind 'encoder' .*, expected kind 'direction'"):
        load_direction("e4e-ffhq")
    with pytest.raises(ModelNotFoundError, match=r"nothing\.pt: no such file, and no catalogue entry"):
        load_direction("nothing.pt")
    with pytest.raises(ModelNotFoundError, match="does not exist: expected a direction file"):
        load_direction(Path("nothing.pt"))


# Encoders


def checkpoint(encoder: Encoder, generator: Generator | None, **options: object) -> dict:
    state = {name: tensor for name, tensor in encoder.state_dict().items() if name != "latent_avg"}
    if generator is not None:
        decoder = {**rosinality_tensors(generator), **noise_tensors(generator)}
        state |= {f"decoder.{name}": tensor for name, tensor in decoder.items()}
    return {"state_dict": state, "latent_avg": encoder.latent_avg, "opts": options}


@pytest.mark.parametrize("as_namespace", [True, False])
def test_encoder_checkpoints_give_the_encoder_and_on_request_the_decoder(tmp_path, as_namespace):
    encoder, generator = random_encoder(), random_generator()
    content = checkpoint(encoder, generator, encoder_type="GradualStyleEncoder", dataset_type="ffhq_encode")
    if as_namespace:
        content["opts"] = argparse.Namespace(**content["opts"])
    torch.save(content, tmp_path / "a.pt")
    loaded = load_model(tmp_path / "a.pt")
    assert loaded.architecture == "psp" and loaded.domain == "ffhq" and same(loaded.module, encoder)
    assert not loaded.module.training and not any(p.requires_grad for p in loaded.module.parameters())
    decoder = load_model(tmp_path / "a.pt", part="decoder")
    assert decoder.architecture == "stylegan2" and decoder.identity == fingerprint(generator)
    assert torch.equal(decoder.module.w_avg, encoder.latent_avg[0])


def test_an_encoder_without_options_is_e4e_unless_the_caller_says_psp(tmp_path):
    content = checkpoint(random_encoder(), None)
    torch.save(content, tmp_path / "a.pt")
    assert load_model(tmp_path / "a.pt").architecture == "e4e"
    assert load_model(tmp_path / "a.pt", architecture="psp").module.config.encoder_type == "GradualStyleEncoder"
    with pytest.raises(UnsupportedModelError, match="It holds a e4e network: expected restyle-e4e"):
        load_model(tmp_path / "a.pt", architecture="restyle-e4e")


def test_converting_an_encoder_keeps_every_tensor_and_its_options(tmp_path):
    config = EncoderConfig(**{**vars(ENCODER), "domain": "cars", "start_from_latent_avg": False, "num_ws": 5})
    encoder = random_encoder(config)
    path = save_model(encoder, tmp_path / "a.safetensors", {"generator": "0123456789abcdef"})
    loaded = load_model(convert(path, tmp_path / "b.safetensors"))
    assert loaded.architecture == "psp" and loaded.module.config == config and same(loaded.module, encoder)
    assert loaded.metadata["generator"] == "0123456789abcdef" and loaded.domain == "cars"
    with pytest.raises(UnsupportedModelError, match="holds no decoder"):
        load_model(path, part="decoder")


def test_a_missing_encoder_average_is_computed_from_the_decoder(tmp_path):
    content = checkpoint(random_encoder(), random_generator())
    del content["latent_avg"]
    torch.save(content, tmp_path / "a.pt")
    encoder = load_model(tmp_path / "a.pt").module
    decoder = load_model(tmp_path / "a.pt", part="decoder").module
    assert torch.equal(encoder.latent_avg, decoder.w_avg.expand(6, -1))


def test_an_encoder_whose_tensors_contradict_its_options_is_refused(tmp_path):
    torch.save(checkpoint(random_encoder(), None, encoder_type="ProgressiveBackboneEncoder"), tmp_path / "a.pt")
    with pytest.raises(
        UnsupportedModelError, match="a.pt cannot be used.*names encoder type 'ProgressiveBackboneEncoder'"
    ):
        load_model(tmp_path / "a.pt")


# Structure without values


def test_a_skeleton_has_the_structure_of_the_module_and_no_memory():
    with skeleton():
        hollow = [Generator(CONFIG), Encoder(ENCODER)]
    for module, full in zip(hollow, (random_generator(), random_encoder()), strict=True):
        a, b = module.state_dict(), full.state_dict()
        assert a.keys() == b.keys()
        assert all(a[n].shape == b[n].shape and a[n].dtype == b[n].dtype and a[n].is_meta for n in b)
