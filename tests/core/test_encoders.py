"""Encoders: parity with the official code, configuration from shapes, input sizes, average code, ReStyle, errors."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from gan_inversion.core.encoders import (
    ENCODER_TYPES,
    Encoder,
    EncoderConfig,
    StyleEncoder,
    build_encoder,
    detect_architecture,
)
from gan_inversion.core.errors import GeneratorMismatchError, InvalidInputError, UnsupportedModelError
from gan_inversion.core.generator import Generator, GeneratorConfig

TESTS = Path(__file__).parents[1]
SLIM = {"stem": 8, "widths": (8, 16, 24), "units": (1, 2, 1), "se_reduction": 4, "input_size": (32, 32), "w_dim": 12}
E4E_TYPES = {"Encoder4Editing", "ProgressiveBackboneEncoder", "ResNetProgressiveBackboneEncoder"}


def _parity() -> ModuleType:
    path = TESTS / "parity" / "encoder_parity.py"
    spec = importlib.util.spec_from_file_location("encoder_parity", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _no_grad():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny tensors: more threads only wait for each other on a busy machine
    with torch.no_grad():
        yield
    torch.set_num_threads(threads)


def _slim(encoder_type: str = "Encoder4Editing", seed: int = 0, **changes) -> Encoder:
    torch.manual_seed(seed)
    config = EncoderConfig(**{"encoder_type": encoder_type, "num_ws": 8, **SLIM, **changes})
    encoder = Encoder(config)
    for name, tensor in encoder.named_buffers():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
    encoder.set_latent_avg(torch.randn(config.num_ws, config.w_dim))
    return encoder.eval()


def _slim_generator(resolution: int = 32, w_dim: int = 12, seed: int = 1) -> Generator:
    torch.manual_seed(seed)
    channels = (8,) * (resolution.bit_length() - 2)
    return Generator(GeneratorConfig(resolution, channels, z_dim=w_dim, w_dim=w_dim, mapping_layers=2)).eval()


def _images(batch: int = 1, height: int = 32, width: int = 32, seed: int = 2) -> torch.Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("name", ["e4e", "psp_cars", "restyle_e4e"])
def test_official_sizes_give_the_codes_that_the_official_code_gave(name: str) -> None:
    parity = _parity()
    case = parity.FIXTURES[name]
    rows = 2 * case["resolution"].bit_length() - 4
    with torch.device("meta"):
        size = (192, 256) if case.get("cars") else (256, 256)
        shapes = StyleEncoder(EncoderConfig(case["encoder_type"], num_ws=rows, input_size=size)).state_dict()
    encoder = parity.our_encoder(case, {key: tuple(tensor.shape) for key, tensor in shapes.items()}, rows)
    codes = parity.our_codes(case, encoder).numpy()
    with np.load(TESTS / "fixtures" / "encoders" / f"{name}.npz") as official:
        np.testing.assert_allclose(codes[0], official["first"], atol=1e-3, rtol=0)
        np.testing.assert_allclose(codes[-1], official["last"], atol=1e-3, rtol=0)
        assert np.abs(official["first"]).max() > 0.5


def test_default_configuration_has_the_official_tensor_shapes() -> None:
    with torch.device("meta"):
        shapes = {key: tuple(tensor.shape) for key, tensor in StyleEncoder(EncoderConfig()).state_dict().items()}
    assert shapes["input_layer.0.weight"] == (64, 3, 3, 3)
    assert shapes["body.7.shortcut_layer.0.weight"] == (256, 128, 1, 1)
    assert shapes["body.23.res_layer.5.fc1.weight"] == (32, 512, 1, 1)
    assert "body.24.res_layer.0.weight" not in shapes
    assert shapes["latlayer2.weight"] == (512, 128, 1, 1)
    depths = [
        sum(key.startswith(f"styles.{row}.convs.") and key.endswith("weight") for key in shapes) for row in (2, 3, 7)
    ]
    assert depths == [4, 5, 6]
    assert shapes["styles.17.linear.weight"] == (512, 512)


@pytest.mark.parametrize("encoder_type", [name for name in ENCODER_TYPES if ENCODER_TYPES[name].head != "single"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_ws": 12, "w_dim": 20, "style_channels": 16, "units": (2, 1, 3)},
        {"num_ws": 5, "stem": 12, "widths": (8, 12, 16, 20), "units": (1, 1, 1, 1), "input_size": (64, 64)},
        {"num_ws": 9, "coarse_ind": 2, "middle_ind": 4, "input_size": (64, 64)},
        {"num_ws": 3, "se_reduction": 8},
    ],
)
def test_configuration_is_read_back_from_shapes(encoder_type: str, changes: dict) -> None:
    config = EncoderConfig(**{"encoder_type": encoder_type, "num_ws": 8, "domain": "portraits", **SLIM, **changes})
    with torch.device("meta"):
        state = Encoder(config).state_dict()
    found = EncoderConfig.from_state_dict(state, encoder_type=encoder_type, dataset_type="portraits")
    assert found == config
    shapes_only = {key: tuple(tensor.shape) for key, tensor in state.items()}
    assert EncoderConfig.from_state_dict(shapes_only, encoder_type=encoder_type, dataset_type="portraits") == config
    assert detect_architecture(state, encoder_type) == config.architecture


def test_slim_128_pixel_encoder_has_the_planned_sizes() -> None:
    config = EncoderConfig(
        num_ws=12, w_dim=256, stem=16, widths=(16, 32, 64, 128), units=(2, 2, 4, 2), input_size=(128, 128)
    )
    assert config.last_convs == 3 and config.style_channels == 128
    encoder = Encoder(config).eval()
    assert encoder(_images(2, 128, 128)).shape == (2, 12, 256)
    assert EncoderConfig.from_state_dict(encoder.state_dict()) == config


def test_single_code_encoder_repeats_its_code_and_needs_the_number_of_rows() -> None:
    encoder = _slim("SingleStyleCodeEncoder", input_size=(128, 128))
    encoder.set_latent_avg(torch.zeros(12))
    codes = encoder(_images())
    assert torch.equal(codes[:, 0], codes[:, 7])
    with pytest.raises(UnsupportedModelError, match="num_ws"):
        EncoderConfig.from_state_dict(encoder.state_dict())
    assert EncoderConfig.from_state_dict(encoder.state_dict(), num_ws=8) == encoder.config


def test_encoder_type_alone_tells_e4e_from_psp() -> None:
    e4e, psp = _slim("Encoder4Editing"), _slim("GradualStyleEncoder")
    assert e4e.state_dict().keys() == psp.state_dict().keys()
    state = e4e.state_dict()
    assert detect_architecture(state) == detect_architecture(state.keys()) == "e4e"
    assert detect_architecture(state, "GradualStyleEncoder") == "psp"
    assert EncoderConfig.from_state_dict(state, architecture="psp").encoder_type == "GradualStyleEncoder"
    psp.load_encoder_state(state)
    image = _images()
    deltas, rows = e4e(image) - e4e.latent_avg, psp(image) - psp.latent_avg
    assert torch.allclose(deltas[:, 0], rows[:, 0], atol=1e-6)
    assert torch.allclose(deltas[:, 1:], rows[:, :1] + rows[:, 1:], atol=1e-5)


@pytest.mark.parametrize(
    ("encoder_type", "architecture"),
    [
        ("ProgressiveBackboneEncoder", "restyle-e4e"),
        ("BackboneEncoder", "restyle-psp"),
        ("ResNetProgressiveBackboneEncoder", "restyle-e4e"),
        ("ResNetBackboneEncoder", "restyle-psp"),
    ],
)
def test_restyle_types_are_detected(encoder_type: str, architecture: str) -> None:
    state = _slim(encoder_type).state_dict()
    assert detect_architecture(state, encoder_type) == architecture
    assert detect_architecture(state) == detect_architecture(state.keys()) == "restyle-e4e"
    with pytest.raises(UnsupportedModelError, match="'Encoder4Editing', but its tensors"):
        EncoderConfig.from_state_dict(state, encoder_type="Encoder4Editing")
    with pytest.raises(UnsupportedModelError, match="Architecture 'psp'"):
        EncoderConfig.from_state_dict(state, architecture="psp")


def test_other_networks_are_no_encoders() -> None:
    assert detect_architecture(_slim_generator().state_dict()) is None
    trunk = {key: value for key, value in _slim().encoder.state_dict().items() if "styles" not in key}
    assert detect_architecture(trunk) is None
    with pytest.raises(UnsupportedModelError, match="no map-to-style blocks"):
        EncoderConfig.from_state_dict(trunk)
    with pytest.raises(UnsupportedModelError, match="not those of an e4e, pSp or ReStyle"):
        EncoderConfig.from_state_dict({"fc.weight": (3, 3)})


@pytest.mark.parametrize("size", [(32, 32), (100, 100), (17, 17), (40, 25), (25, 90)])
def test_images_of_any_size_are_resized_as_pil_does(size: tuple[int, int]) -> None:
    encoder = _slim()
    pixels = np.random.RandomState(0).randint(0, 256, (*size, 3), dtype=np.uint8)
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1.0
    resized = encoder.resize(image)
    pil = np.asarray(Image.fromarray(pixels).resize((32, 32), Image.Resampling.BILINEAR), dtype=np.float32)
    expected = torch.from_numpy(pil).permute(2, 0, 1)[None] / 127.5 - 1.0
    assert (resized - expected).abs().max() <= 1.5 / 127.5  # PIL rounds to 8 bits after each axis
    assert torch.equal(encoder(image), encoder(resized))


@pytest.mark.parametrize("encoder_type", list(ENCODER_TYPES))
def test_a_batch_equals_its_single_images(encoder_type: str) -> None:
    encoder = _slim(encoder_type)
    generator = _slim_generator() if encoder.config.is_restyle else None
    images = _images(3, 40, 40)
    together = encoder(images, generator=generator, iterations=2)
    one_by_one = [encoder(image[None], generator=generator, iterations=2) for image in images]
    assert together.shape == (3, 8, 12)
    assert torch.allclose(together, torch.cat(one_by_one), atol=1e-5)


def test_average_code_of_every_accepted_shape() -> None:
    encoder = _slim()
    image = _images()
    encoder.set_latent_avg(torch.zeros(12))
    relative = encoder(image)
    average = torch.arange(12.0)
    for shaped in (average, average[None], average.expand(8, -1), average.expand(18, -1)):
        encoder.set_latent_avg(shaped)
        assert encoder.latent_avg.shape == (8, 12)
        assert torch.allclose(encoder(image), relative + average, atol=1e-5)
    by_row = torch.arange(8.0)[:, None].expand(-1, 12)
    encoder.set_latent_avg(by_row)
    assert torch.allclose(encoder(image), relative + by_row, atol=1e-5)
    for wrong in (torch.zeros(13), torch.zeros(7, 12), torch.zeros(1, 8, 12)):
        with pytest.raises(InvalidInputError, match="latent_avg of shape"):
            encoder.set_latent_avg(wrong)


def test_average_code_is_not_added_when_the_file_says_so() -> None:
    state = {key: value for key, value in _slim().state_dict().items() if key != "latent_avg"}
    encoder = build_encoder(EncoderConfig.from_state_dict(state, start_from_latent_avg=False), state)
    assert torch.equal(encoder(_images()), encoder.encoder(_images()))
    with pytest.raises(UnsupportedModelError, match="no latent_avg"):
        build_encoder(EncoderConfig.from_state_dict(state), state)


def test_official_checkpoint_layout_loads_strictly() -> None:
    original = _slim()
    state = {**original.state_dict(), "decoder.input.input": torch.zeros(1)}
    config = EncoderConfig.from_state_dict(state)
    assert torch.equal(build_encoder(config, state)(_images()), original(_images()))
    bare = {k: v for k, v in original.encoder.state_dict().items() if not k.endswith("num_batches_tracked")}
    assert torch.equal(build_encoder(config, bare, original.latent_avg)(_images()), original(_images()))
    half = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
    loaded = build_encoder(config, half)
    assert all(p.dtype == torch.float32 and p.device.type == "cpu" for p in loaded.parameters())
    copied = Encoder(config)
    copied.load_encoder_state(state)
    assert torch.equal(copied.eval()(_images()), original(_images()))


def test_missing_unexpected_and_misshapen_keys_are_named() -> None:
    encoder = _slim()
    state = dict(encoder.state_dict())
    del state["encoder.styles.3.linear.weight"]
    state["encoder.styles.8.linear.bias"] = torch.zeros(12)
    state["encoder.body.0.res_layer.1.weight"] = torch.zeros(8, 9, 3, 3)
    with pytest.raises(UnsupportedModelError) as caught:
        build_encoder(encoder.config, state)
    message = str(caught.value)
    assert "1 missing (styles.3.linear.weight)" in message
    assert "1 unexpected (styles.8.linear.bias)" in message
    assert "1 misshapen (body.0.res_layer.1.weight)" in message
    incomplete = {key: value for key, value in encoder.state_dict().items() if ".styles.0.convs.2" not in key}
    with pytest.raises(UnsupportedModelError):
        build_encoder(EncoderConfig.from_state_dict(incomplete), incomplete)


def test_cars_keep_sixteen_rows_and_see_three_quarters_of_a_square() -> None:
    made_for_18 = _slim(num_ws=18, input_size=(32, 32))
    state = made_for_18.state_dict()
    config = EncoderConfig.from_state_dict(state, dataset_type="cars_encode")
    assert (config.num_ws, config.style_count, config.input_size, config.domain) == (16, 18, (24, 32), "cars")
    cars = build_encoder(config, state)
    image = _images(1, 48, 64)
    codes = cars(image)
    assert codes.shape == (1, 16, 12)
    all_rows = made_for_18.encoder(cars.resize(image)) + made_for_18.latent_avg
    assert torch.allclose(codes, all_rows[:, :16], atol=1e-6)
    square = _images(1, 64, 64)
    assert torch.equal(cars(square), cars(square[:, :, 8:56]))


def test_restyle_follows_the_loop_of_the_paper() -> None:
    encoder, generator = _slim("ProgressiveBackboneEncoder"), _slim_generator(resolution=32)
    image = _images(2)
    average = encoder.latent_avg.expand(2, -1, -1)
    drawn = generator.synthesis(average, noise="const")
    first = average + encoder.encoder(torch.cat((image, drawn), dim=1))
    second = first + encoder.encoder(torch.cat((image, generator.synthesis(first, noise="const")), dim=1))
    passes = encoder(image, generator=generator, iterations=2, return_all=True)
    assert torch.allclose(passes[0], first, atol=1e-5)
    assert torch.allclose(passes[1], second, atol=1e-4)
    assert torch.equal(encoder(image, generator=generator, iterations=2), passes[1])


def test_restyle_cars_crops_the_reconstruction_before_pooling() -> None:
    encoder = _slim("ResNetProgressiveBackboneEncoder", input_size=(24, 32), num_ws=10)
    generator = _slim_generator(resolution=64)
    codes = torch.randn(1, 10, 12, generator=torch.Generator().manual_seed(5))
    whole = generator.synthesis(codes)
    expected = torch.nn.functional.avg_pool2d(whole[:, :, 8:56], 2)
    assert torch.allclose(encoder.draw(codes, generator), expected, atol=1e-5)
    assert encoder(_images(1, 24, 32), generator=generator).shape == (1, 10, 12)


def test_restyle_without_its_generator_says_what_to_do() -> None:
    encoder = _slim("BackboneEncoder")
    with pytest.raises(InvalidInputError, match=r"encoder\(image, generator=G, iterations=5\)"):
        encoder(_images())
    with pytest.raises(InvalidInputError, match="iterations=0"):
        encoder(_images(), generator=_slim_generator(), iterations=0)


@pytest.mark.parametrize("encoder_type", ["Encoder4Editing", "BackboneEncoder"])
def test_a_generator_with_other_codes_is_refused(encoder_type: str) -> None:
    encoder = _slim(encoder_type)
    for other in (_slim_generator(resolution=64), _slim_generator(w_dim=16)):
        with pytest.raises(GeneratorMismatchError, match=r"gives codes \[8, 12\]"):
            encoder(_images(), generator=other)


@pytest.mark.parametrize(
    "image", [torch.zeros(3, 32, 32), torch.zeros(1, 4, 32, 32), torch.zeros(1, 3, 32, 32, dtype=torch.uint8)]
)
def test_wrong_images_are_refused(image: torch.Tensor) -> None:
    with pytest.raises(InvalidInputError, match=r"expected float \[batch, 3, height, width\]"):
        _slim()(image)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"widths": (8, 8, 16)}, "strictly growing"),
        ({"widths": (8, 16), "units": (1, 1)}, "3 stages or more"),
        ({"widths": (8, 16, 22)}, "multiples of se_reduction"),
        ({"input_size": (48, 48)}, "power of two"),
        ({"num_ws": 10, "style_count": 8}, "num_ws 10 of 8"),
        ({"input_channels": 6}, "input channels"),
    ],
)
def test_impossible_configurations_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        EncoderConfig(**{"num_ws": 8, **SLIM, **changes})


def test_progressive_training_adds_one_delta_after_the_other() -> None:
    encoder = _slim()
    x = _images()
    complete = encoder.encoder(x)
    encoder.encoder.progressive_stage = 2
    partial = encoder.encoder(x)
    assert torch.equal(partial[:, :3], complete[:, :3])
    assert torch.equal(partial[:, 3], partial[:, 0]) and torch.equal(partial[:, 7], partial[:, 0])
    assert not torch.equal(complete[:, 3], complete[:, 0])


def test_an_untrained_encoder_starts_near_the_average_and_every_weight_learns() -> None:
    encoder = _slim().train()
    with torch.enable_grad():
        codes = encoder(_images(4))
        codes.square().mean().backward()
    assert (codes - encoder.latent_avg).detach().std() < 0.5
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in encoder.parameters())
    assert "Encoder4Editing, input 3x32x32 -> [8, 12]" in repr(encoder)
