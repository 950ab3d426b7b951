"""ReGANIE's network against written-out arithmetic, and the rectification as one modulation among others."""

import dataclasses
import json
import math

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file

from gan_inversion import load_model
from gan_inversion.core import inversion_reading
from gan_inversion.core.editing import Direction, Edit
from gan_inversion.core.errors import CorruptFileError, InvalidInputError, UnsupportedModelError
from gan_inversion.core.generator import Generator, GeneratorConfig
from gan_inversion.core.inversion import Inversion, Modulation, PixelBlend, ResidualTransfer, WeightOffset, render
from gan_inversion.core.ops import upfirdn2d_reference
from gan_inversion.core.reganie import (
    EncoderConv,
    Rectification,
    Reganie,
    ReganieConfig,
    SGConv,
    blur,
    modulate,
    rectify,
    resized,
)
from gan_inversion.core.skeleton import skeleton
from gan_inversion.model_registry.loading import save_model

W = 8
TINY = ReganieConfig(32, (4, 6, 8), 5, (8,), 7, 1, (8, 6))


def make_network(config=TINY, seed=5):
    torch.manual_seed(seed)
    network = Reganie(config).eval().requires_grad_(False)
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return network


@pytest.fixture(scope="module")
def network():
    return make_network()


@pytest.fixture(scope="module")
def generator():
    torch.manual_seed(0)
    return Generator(GeneratorConfig(32, (8, 8, 8, 4), W, W, 1)).eval().requires_grad_(False)


@pytest.fixture
def inversion(generator):
    torch.manual_seed(1)
    return Inversion(torch.rand(2, 3, 32, 32) * 2 - 1, torch.randn(2, generator.num_ws, W), generator)


@pytest.fixture
def edit():
    torch.manual_seed(2)
    return Edit.of(Direction("up", torch.randn(1, W)), 1.5)


def half(network):
    """What a rectification computes with: matrices rounded to float16."""
    rounded = make_network(network.config)
    rounded.load_state_dict({k: v.half().float() if v.ndim > 1 else v for k, v in network.state_dict().items()})
    return rounded


def test_default_sizes_are_the_papers():
    with skeleton():
        network = Reganie()
    shapes = {name: tuple(t.shape) for name, t in network.state_dict().items()}
    assert network.config.code_side == 32 and len(network.ups) == 4 and len(network.base) == 2
    assert shapes["primary.fromrgb.weight"] == (32, 3, 1, 1)
    assert shapes["primary.blocks.3.conv1.weight"] == (512, 256, 3, 3)
    assert shapes["global_linear.weight"] == (2048, 2048) and shapes["spatial_head.1.weight"] == (64, 512, 1, 1)
    assert shapes["ups.0.conv0.affine.weight"] == (512, 64)  # the spatial code first
    assert shapes["ups.0.conv1.affine.weight"] == (512, 2048)  # then the global one
    assert shapes["torgb.weight"] == (3, 128, 1, 1)
    x = torch.empty(1, 3, 512, 512, device="meta")
    assert network(x, x).shape == x.shape


def test_global_code_first():
    network = make_network(dataclasses.replace(TINY, global_first=True))
    assert network.ups[0].conv0.affine.weight.shape == (8, 7)
    x, difference = torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 32)
    spatial, global_ = network.codes(difference)
    found = network.ups[0](network.primary(x), spatial, global_)
    block = network.ups[0]
    skip = F.interpolate(network.primary(x) * block.conv1.gain / math.sqrt(2), scale_factor=2, mode="bilinear")
    expected = block.conv1(block.conv0(network.primary(x), global_), spatial) + skip
    torch.testing.assert_close(found, expected)
    assert network(x, difference).shape == x.shape


def test_slim_network_is_small_at_every_size():
    for size, side in ((32, 16), (64, 32), (128, 32), (256, 32)):
        with skeleton():
            network = Reganie(ReganieConfig.slim(size))
        assert network.config.code_side == side
        assert sum(p.numel() for p in network.parameters()) < 3_000_000


@pytest.mark.parametrize("up", [False, True])
@pytest.mark.parametrize("spatial", [False, True])
def test_modulated_convolution_is_the_written_out_one(spatial, up):
    """One image after another, one tap after another: upstream's spatial branch takes a batch of 1 only."""
    torch.manual_seed(3)
    conv = SGConv(4, 3, 5, up)
    torch.nn.init.normal_(conv.bias)
    x = torch.randn(3, 4, 6, 6)
    code = torch.randn(3, 5, 3, 3) if spatial else torch.randn(3, 5)
    found = conv(x, code)
    for b in range(3):
        if spatial:
            enlarged = F.interpolate(code[b : b + 1], size=(6, 6), mode="bilinear", align_corners=False)[0]
            style = torch.einsum("oc,chw->ohw", conv.affine.weight / math.sqrt(5), enlarged)
            style = style + conv.affine.bias[:, None, None]
        else:
            style = (conv.affine.weight @ code[b] / math.sqrt(5) + conv.affine.bias)[:, None, None].expand(4, 6, 6)
        style = style / (style.pow(2).mean(dim=0, keepdim=True) + 1e-8).sqrt()
        filters = torch.stack([f / (f.pow(2).sum() + 1e-8).sqrt() for f in conv.weight])
        y = x[b] * style
        if up:
            y = F.conv_transpose2d(y[None], filters.transpose(0, 1), stride=2)
            y = upfirdn2d_reference(y, pad=(1, 1), gain=4.0)[0]
        else:
            padded = F.pad(y, (1, 1, 1, 1))
            y = sum(
                torch.einsum("oi,ihw->ohw", filters[:, :, i, j], padded[:, i : i + 6, j : j + 6])
                for i in range(3)
                for j in range(3)
            )
        y = F.leaky_relu(y + conv.bias[:, None, None], 0.2) * math.sqrt(2)
        torch.testing.assert_close(found[b], y, rtol=1e-4, atol=1e-5)


def test_modulation_scales_and_nothing_else():
    x = torch.ones(2, 4, 3, 3)
    style = torch.tensor([[2.0, 0, 0, 0], [1, 1, 1, 1]])
    expected = torch.tensor([[2.0, 0, 0, 0], [1, 1, 1, 1]])[:, :, None, None].expand(-1, -1, 3, 3)
    torch.testing.assert_close(modulate(x, style), expected)
    torch.testing.assert_close(modulate(x, 7 * style), expected)


def test_encoder_convolution_blurs_and_halves_with_reflected_borders():
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    taps = torch.tensor([1.0, 2, 1]) / 4
    padded = F.pad(x, (2, 1, 2, 1), mode="reflect")
    smooth = sum(taps[i] * taps[j] * padded[:, :, i : i + 9, j : j + 9] for i in range(3) for j in range(3))
    torch.testing.assert_close(blur(padded), smooth)
    conv = EncoderConv(3, 5, 3, down=True)
    wanted = F.leaky_relu(F.conv2d(smooth, conv.weight / math.sqrt(27), stride=2), 0.2) * math.sqrt(2)
    torch.testing.assert_close(conv(x), wanted)
    skip = EncoderConv(3, 5, 1, down=True, activated=False, bias=False)
    padded = F.pad(x, (1, 0, 1, 0), mode="reflect")
    torch.testing.assert_close(
        skip(x), F.conv2d(F.conv2d(padded, torch.outer(taps, taps).expand(3, 1, 3, 3), groups=3), skip.weight, stride=2)
        / math.sqrt(3),
    )  # fmt: skip
    assert conv(x).shape == skip(x).shape == (2, 5, 4, 4)


@pytest.mark.parametrize("scale", ["unit", "rms", "free"])
def test_codes_are_normalised_and_a_batch_is_its_images(scale):
    network = make_network(dataclasses.replace(TINY, code_scale=scale))
    torch.manual_seed(4)
    primary, difference = torch.randn(2, 3, 3, 32, 32)
    spatial, global_ = network.codes(difference)
    assert spatial.shape == (3, 5, 8, 8) and global_.shape == (3, 7)
    for code, channels in ((spatial, 5), (global_, 7)):
        if scale == "free":
            assert code.norm(dim=1).std() > 1e-3
            continue
        length = torch.ones_like(code.norm(dim=1)) * (1 if scale == "unit" else math.sqrt(channels))
        torch.testing.assert_close(code.norm(dim=1), length, rtol=1e-3, atol=1e-3)
    together = network(primary, difference)
    each = [network(primary[i : i + 1], difference[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(together, torch.cat(each), rtol=1e-3, atol=1e-4)
    assert not torch.allclose(together, network(primary, difference.flip(0)))
    assert not torch.allclose(together, network(primary.flip(0), difference))


def test_residual_network_starts_from_the_primary_picture():
    torch.manual_seed(0)
    network = Reganie(dataclasses.replace(TINY, residual=True))
    primary = torch.randn(1, 3, 32, 32)
    assert torch.equal(network(primary, torch.randn(1, 3, 32, 32)), primary)


def test_wrong_sizes_are_refused(network):
    x = torch.zeros(1, 3, 32, 32)
    for primary, difference in ((x[..., :16], x), (x, x[:, :2]), (x, torch.cat((x, x)))):
        with pytest.raises(InvalidInputError, match="picture of shape"):
            network(primary, difference)
    for wrong in (
        {"generator_widths": (8,)},
        {"resolution": 30},
        {"global_widths": (4, 4, 4)},
        {"code_scale": "x"},
        {"spatial_channels": 0},
    ):
        with pytest.raises(InvalidInputError):
            dataclasses.replace(TINY, **wrong)


def test_saved_network_loads_with_what_shapes_do_not_show(tmp_path):
    config = dataclasses.replace(TINY, residual=True, code_scale="rms", global_first=True, domain="portraits")
    network = make_network(config)
    path = save_model(network, tmp_path / "r.safetensors")
    loaded = load_model(path)
    assert loaded.architecture == "reganie" and loaded.module.config == config and loaded.domain == "portraits"
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(loaded.module(x, x), network(x, x))
    bare = ReganieConfig.from_state_dict(network.state_dict())
    assert bare == dataclasses.replace(
        config, resolution=128, residual=False, code_scale="unit", global_first=False, domain=None
    )
    state = network.state_dict()
    with safe_open(path, "pt") as file:
        header = file.metadata()
    del state["base.0.conv1.weight"]
    save_file(state, tmp_path / "damaged.safetensors", metadata=header)
    with pytest.raises(UnsupportedModelError, match="lacks"):
        load_model(tmp_path / "damaged.safetensors")


def test_rectified_render_is_the_network_on_the_edited_picture(inversion, network, edit):
    rectified = rectify(inversion, network)
    difference = inversion.image - render(inversion)
    rounded = half(network)
    torch.testing.assert_close(render(rectified), rounded(render(inversion), difference))
    torch.testing.assert_close(render(rectified, edit), rounded(render(inversion, edit), difference))
    torch.testing.assert_close(render(rectified[1], edit), render(rectified, edit)[1:], rtol=1e-4, atol=1e-5)
    assert not inversion.modulations and rectified.info["rectification"] == "ReGANIE"


def test_strength_and_mask_say_how_much_and_where(inversion, network, edit):
    plain, full = render(inversion, edit), render(rectify(inversion, network), edit)
    assert torch.equal(render(rectify(inversion, network, strength=0), edit), plain)
    torch.testing.assert_close(render(rectify(inversion, network, strength=0.25), edit), plain.lerp(full, 0.25))
    mask = torch.zeros(32, 32)
    mask[:, 16:] = 1
    some = render(rectify(inversion, network, mask=mask), edit)
    assert torch.equal(some[..., :16], plain[..., :16])
    torch.testing.assert_close(some[..., 16:], full[..., 16:])
    with pytest.raises(InvalidInputError, match="3 masks"):
        rectify(inversion, network, mask=torch.ones(3, 1, 32, 32))
    with pytest.raises(InvalidInputError, match="finite"):
        rectify(inversion, network, strength=math.nan)


def test_rectification_composes_with_weights_below_and_a_blend_above(inversion, network, edit):
    torch.manual_seed(6)
    tuned = inversion.with_modulation(WeightOffset({"b16.conv1.weight": 0.3 * torch.randn(2, 8, 8, 3, 3)}))
    kept = torch.zeros(2, 1, 32, 32)
    kept[:, :, :8] = 1
    stacked = rectify(tuned, network).with_modulation(PixelBlend(kept))
    wanted = half(network)(render(tuned, edit), inversion.image - render(tuned))
    wanted[:, :, :8] = inversion.image[:, :, :8]
    torch.testing.assert_close(render(stacked, edit), wanted, rtol=1e-4, atol=1e-4)
    below = rectify(inversion.with_modulation(PixelBlend(torch.ones(2, 1, 32, 32))), network)
    nothing = half(network)(inversion.image, torch.zeros_like(inversion.image))
    torch.testing.assert_close(render(below, edit), nothing, rtol=1e-4, atol=1e-5)  # nothing was missing


def test_network_of_another_size_adds_what_it_changes(generator, inversion, edit):
    config = ReganieConfig(16, (4, 8), 5, (8,), 7, 1, (8,))
    network = make_network(config)
    rectified = render(rectify(inversion, network), edit)
    plain, difference = render(inversion, edit), inversion.image - render(inversion)
    small = F.avg_pool2d(plain, 2)
    change = half(network)(small, F.avg_pool2d(difference, 2)) - small
    wanted = plain + F.interpolate(change, size=(32, 32), mode="bicubic", align_corners=False)
    torch.testing.assert_close(rectified, wanted, rtol=1e-4, atol=1e-5)
    assert resized(plain, (64, 64)).shape[2:] == (64, 64)


def test_saved_inversion_brings_its_network(inversion, generator, network, edit, tmp_path):
    rectified = rectify(inversion, network, strength=0.5, mask=torch.rand(2, 1, 32, 32))
    path = rectified.save(tmp_path / "i.safetensors")
    loaded = Inversion.load(path, generator)
    assert torch.equal(render(loaded, edit), render(rectified, edit))
    (modulation,) = loaded.modulations
    assert isinstance(modulation, Rectification) and modulation.strength == 0.5
    assert modulation.weights["base.0.conv0.weight"].dtype == torch.float16
    assert modulation.weights["base.0.conv0.bias"].dtype == torch.float32
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        header = file.metadata()
    tensors["modulations.0.weights.torgb.weight"] = torch.zeros(1, 3, 5, 1, 1)
    save_file(tensors, tmp_path / "damaged.safetensors", metadata=header)
    with pytest.raises(CorruptFileError, match=r"torgb\.weight of shape"):
        Inversion.load(tmp_path / "damaged.safetensors", generator)
    described = json.loads(header["modulations"])
    described[0]["settings"]["config"] = '{"resolution": "many"}'
    tensors["modulations.0.weights.torgb.weight"] = torch.zeros(1, 3, 6, 1, 1)
    save_file(tensors, tmp_path / "other.safetensors", metadata={**header, "modulations": json.dumps(described)})
    with pytest.raises(CorruptFileError, match="configuration"):
        Inversion.load(tmp_path / "other.safetensors", generator)


def test_reading_a_saved_inversion_knows_rectifications():
    """They are not defined beside the other modulations: without this import, a file with one would be refused."""
    assert inversion_reading.reganie.Rectification is Modulation.registry["rectification"] is Rectification


def test_modulation_moves_and_batches(inversion, network, edit):
    rectified = rectify(inversion, network, strength=0.5)
    moved = rectified.to("meta").modulations[0]
    assert all(t.device.type == "meta" for t in (moved.mask, *moved.weights.values()))
    singles = [rectify(inversion[0], network, strength=0.5), rectify(inversion[1], network, strength=0.8)]
    first, second = (single.modulations[0] for single in singles)

    def joined(*modulations):
        return dataclasses.replace(inversion, modulations=(Rectification.batch(modulations),))

    wanted = torch.cat([render(single, edit) for single in singles])
    shared = joined(first, second)
    torch.testing.assert_close(render(shared, edit), wanted, rtol=1e-4, atol=1e-5)
    assert len(shared.modulations[0].weights["torgb.weight"]) == 1
    idle = render(joined(first, first.without_effect()), edit)
    torch.testing.assert_close(idle[:1], wanted[:1], rtol=1e-4, atol=1e-5)
    assert torch.equal(idle[1:], render(inversion, edit)[1:])
    other = rectify(inversion[1], make_network(seed=9)).modulations[0]
    both = joined(first, other)
    assert len(both.modulations[0].weights["torgb.weight"]) == 2
    alone = render(dataclasses.replace(inversion[1], modulations=(other,)), edit)
    torch.testing.assert_close(render(both, edit), torch.cat((wanted[:1], alone)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(render(both[1], edit), alone, rtol=1e-4, atol=1e-5)
    bigger = make_network(dataclasses.replace(TINY, spatial_channels=6))
    with pytest.raises(InvalidInputError, match="different sizes"):
        Rectification.batch([first, rectify(inversion[1], bigger).modulations[0]])


@pytest.mark.parametrize("kind", ["rectification", "residual-transfer"])
def test_an_image_with_an_empty_mask_stays_as_it_was_beside_a_photograph_of_nan(network, inversion, edit, kind):
    image = inversion.image.clone()
    image[1, 0, 0, 0] = math.nan
    broken = dataclasses.replace(inversion, image=image)
    mask = torch.tensor([1.0, 0.0])[:, None, None, None].expand(2, 1, 32, 32)
    found = rectify(broken, network, mask=mask)
    if kind == "residual-transfer":
        found = broken.with_modulation(ResidualTransfer(mask))
    with torch.no_grad():
        for each in (None, edit):
            drawn = render(found, each)
            assert torch.equal(drawn[1], render(broken, each)[1]) and not torch.equal(drawn[0], render(broken, each)[0])


def test_starts_from_weights_and_features_that_were_added_after_it(network, inversion, edit):
    name, weight = next(iter(inversion.generator.synthesis.named_parameters()))
    offset = WeightOffset({name: 0.2 * torch.randn(1, *weight.shape)})
    before = rectify(inversion.with_modulation(offset), network)
    after = rectify(inversion, network).with_modulation(offset)
    with torch.no_grad():
        torch.testing.assert_close(render(after, edit), render(before, edit))
        assert not torch.allclose(render(after, edit), render(rectify(inversion, network), edit), atol=1e-3)
