"""SAMM: the algorithms against their formulas, modulations that repeat the pass, configuration from shapes, files."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from gan_inversion import load_model
from gan_inversion.core.editing import Direction, Edit
from gan_inversion.core.encoders import Encoder, EncoderConfig
from gan_inversion.core.errors import GeneratorMismatchError, InvalidInputError, UnsupportedModelError
from gan_inversion.core.generator import Generator, GeneratorConfig
from gan_inversion.core.inversion import FeatureWarp, Inversion, PixelBlend, ResidualTransfer, WeightOffset, render
from gan_inversion.core.samm import (
    SEGMENT_THRESHOLD,
    Alignment,
    Samm,
    SammConfig,
    align,
    alignment_penalties,
    gated,
    merge_levels,
    warp_features,
    without_alignment,
)
from gan_inversion.core.skeleton import skeleton
from gan_inversion.model_registry.loading import save_model

W = 8
LEVELS = (8, 16, 32)


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def make_generator(seed=1, resolution=32, channels=(10, 8, 6, 4)):
    torch.manual_seed(seed)
    generator = Generator(GeneratorConfig(resolution, channels, W, W, 1)).eval().requires_grad_(False)
    for name, parameter in generator.named_parameters():
        if name.endswith("noise_strength"):
            parameter.fill_(0.3)
    return generator


def make_encoder(kind="Encoder4Editing", side=32, widths=(8, 12, 16), rows=8):
    torch.manual_seed(2)
    config = EncoderConfig(
        kind, num_ws=rows, w_dim=W, stem=4, widths=widths, units=(1, 1, 1), se_reduction=4, input_size=(side, side)
    )
    return Encoder(config).eval().requires_grad_(False)


def make_samm(config, seed=3):
    torch.manual_seed(seed)
    samm = Samm(config).eval().requires_grad_(False)
    for module in samm.modules():
        if isinstance(module, torch.nn.InstanceNorm2d) and module.affine:
            module.weight.uniform_(0.5, 2)
            module.bias.uniform_(-0.5, 0.5)
    return samm


@pytest.fixture(scope="module")
def networks():
    generator, encoder = make_generator(), make_encoder()
    return generator, encoder, make_samm(SammConfig.for_networks(generator, encoder))


def make_inversion(generator, batch=2, seed=4):
    random = torch.Generator().manual_seed(seed)
    image = torch.rand(batch, 3, 32, 32, generator=random) * 2 - 1
    return Inversion(image, torch.randn(batch, generator.num_ws, W, generator=random), generator)


def make_edit(strength=1.0):
    delta = torch.randn(8, W, generator=torch.Generator().manual_seed(5))
    return Edit.of(Direction("turn", delta), strength)


def written_out(level, generated, encoded, below, iterations):
    """Algorithm 1, step by step as the paper has it; the network's output before the filter is taken for granted."""
    scale, size = level.body.warp_scale, generated.shape[-1]

    def estimate(current):
        a, b = (F.instance_norm(x, eps=1e-5) for x in (current, encoded))
        x = level.body.body(torch.cat((a - b, b), dim=1))
        x = torch.cat((torch.tanh(x[:, :2]) * scale, torch.sigmoid(x[:, 2:])), dim=1)
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
        kernel = (torch.outer(taps, taps) / 64).expand(3, 1, 4, 4)
        return F.conv2d(F.pad(x, (2, 1, 2, 1)), kernel, groups=3)

    moved, total = generated, None
    for step in range(1, iterations + 1):
        found = estimate(moved)
        if total is None:
            flow, mask = found[:, :2], found[:, 2:]
        else:
            flow, old, new = (total[:, :2] + found[:, :2]).clip(-scale, scale), total[:, 2:], found[:, 2:]
            mask = (old * (1 - old + new)).clip(0, 1)
        if step == iterations and below is not None:
            up = F.interpolate(below, size=(size, size), mode="bicubic", align_corners=True)
            mask = (up * (1 - up + mask)).clip(0, 1)
        total = torch.cat((flow, mask), dim=1)
        y, x = torch.meshgrid(torch.linspace(-1, 1, size), torch.linspace(-1, 1, size), indexing="ij")
        grid = torch.stack((x + flow[:, 0], y + flow[:, 1]), dim=-1)
        moved = mask * F.grid_sample(generated, grid, align_corners=False) + (1 - mask) * generated
    return moved, flow, mask


@pytest.mark.parametrize("iterations", [1, 2, 3])
@pytest.mark.parametrize("bias", [False, True])
def test_algorithm_1_is_the_written_out_recurrence(iterations, bias):
    torch.manual_seed(6)
    level = Alignment(4, 0.3, bias).eval()
    for parameter in level.parameters():
        parameter.add_(0.3 * torch.randn_like(parameter))
    generated, encoded, below = torch.randn(2, 4, 16, 16), torch.randn(2, 4, 16, 16), torch.rand(2, 1, 8, 8)
    for coarser in (None, below):
        for ours, theirs in zip(
            level(generated, encoded, coarser, iterations),
            written_out(level, generated, encoded, coarser, iterations),
            strict=True,
        ):
            torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0)


def test_iterations_change_the_flow_and_stay_within_the_scale():
    level = make_samm(SammConfig((8,), (4,), (3,), warp_scale=0.1)).level(8)
    random = torch.Generator().manual_seed(1)
    generated, encoded = torch.randn(2, 1, 4, 8, 8, generator=random)
    once, twice = (level(generated, encoded, None, n)[1] for n in (1, 2))
    assert not torch.allclose(once, twice, atol=1e-3)
    assert float(twice.abs().max()) <= 0.1 + 1e-6


def test_a_warp_without_flow_zooms_and_darkens_the_rim_as_the_original_does():
    moved = warp_features(torch.ones(1, 1, 8, 8), torch.zeros(1, 2, 8, 8))[0, 0]
    assert moved[0, 3] == pytest.approx(0.5) and moved[0, 0] == pytest.approx(0.25)
    assert torch.allclose(moved[1:-1, 1:-1], torch.ones(6, 6))


def test_warp_is_that_of_the_modulation():
    random = torch.Generator().manual_seed(7)
    x, flow = torch.randn(2, 3, 16, 16, generator=random), torch.rand(2, 2, 16, 16, generator=random) - 0.5
    mask = torch.rand(2, 1, 16, 16, generator=random)
    change = FeatureWarp(16, flow, mask).hooks(None).after_upconv[16]
    assert torch.equal(change(x), torch.lerp(x, warp_features(x, flow), mask))


def test_algorithm_2_goes_from_coarse_to_fine():
    ones = {8: torch.ones(1, 1, 8, 8), 16: torch.full((1, 1, 16, 16), 0.25)}
    assert torch.allclose(merge_levels(ones, 32), torch.full((1, 1, 32, 32), 0.25))
    half = {32: torch.zeros(1, 1, 32, 32), 16: torch.full((1, 1, 16, 16), 0.5)}
    assert torch.allclose(merge_levels(half, 32), torch.full((1, 1, 32, 32), 0.25))  # 0.5 * (1 - 0.5 + 0)
    assert torch.allclose(gated(torch.tensor(0.5), torch.tensor(1.0)), torch.tensor(0.75))
    with pytest.raises(InvalidInputError, match="masks"):
        merge_levels({}, 32)


def test_penalties_count_what_is_above_the_allowance():
    mask = torch.tensor([0.0, 1.0, 1.0, 0.6]).view(1, 1, 2, 2)
    area, binary = alignment_penalties([mask, mask * 0], [0.5, 0.1])
    assert area.tolist() == pytest.approx([0.15]) and binary.tolist() == pytest.approx([0.1])


def blended_pass(networks, inversion, edit=None):
    """The original's pass: features replaced while the generator draws, then the merged mask."""
    generator, encoder, samm = networks
    encoded = samm.encoded(encoder.features(inversion.image, generator))
    hooks, found = samm.hooks(encoded)
    w_plus = inversion.w_plus if edit is None else edit.apply(inversion.w_plus)
    drawn = generator.synthesis(w_plus, hooks=hooks)
    mask = merge_levels(found.masks, 32)
    return mask * inversion.image + (1 - mask) * drawn


def test_render_of_the_aligned_inversion_is_the_pass_itself(networks):
    inversion = make_inversion(networks[0])
    result = align(inversion, *networks[1:])
    torch.testing.assert_close(render(result.inversion), blended_pass(networks, inversion), atol=2e-5, rtol=0)
    assert not torch.allclose(render(result.inversion), render(inversion), atol=0.1)
    assert list(result.flows) == list(result.masks) == list(LEVELS)
    assert result.flows[16].shape == (2, 2, 16, 16) and result.masks[32].shape == (2, 1, 32, 32)
    kinds = [type(modulation) for modulation in result.inversion.modulations]
    assert kinds == [FeatureWarp] * 3 + [PixelBlend] and inversion.modulations == ()
    assert torch.equal(result.mask, result.predicted) and float(result.mask.std()) > 0


def test_an_edit_keeps_the_masks_unless_it_is_given(networks):
    inversion, edit = make_inversion(networks[0]), make_edit()
    kept, anew = align(inversion, *networks[1:]), align(inversion, *networks[1:], edit=edit)
    assert not torch.allclose(kept.mask, anew.mask, atol=1e-3)
    torch.testing.assert_close(render(anew.inversion, edit), blended_pass(networks, inversion, edit), atol=2e-5, rtol=0)
    full = dataclasses.replace(kept.inversion, modulations=kept.inversion.modulations[:-1])
    expected = torch.lerp(render(full, edit), inversion.image, kept.mask)
    torch.testing.assert_close(render(kept.inversion, edit), expected)


def test_segments_are_kept_as_a_whole_or_not_at_all(networks):
    inversion = make_inversion(networks[0])
    soft = align(inversion, *networks[1:])
    labels = (torch.arange(32) // 8).repeat(32, 1)[None] + 4 * (torch.arange(32) // 8)[:, None]  # squares of 8 px
    cut = align(inversion, *networks[1:], segments=labels)
    means = torch.nn.functional.avg_pool2d(soft.predicted, 8)
    expected = (means >= SEGMENT_THRESHOLD).float().repeat_interleave(8, 2).repeat_interleave(8, 3)
    assert torch.equal(cut.mask, expected) and 0 < float(expected.mean()) < 1
    assert torch.equal(cut.predicted, soft.predicted) and torch.equal(cut.inversion.modulations[-1].mask, cut.mask)
    painted = align(inversion, *networks[1:], segments=labels, mask=torch.full((32, 32), 0.5))
    assert torch.equal(painted.mask, expected.clamp(min=0.5))  # the user's own mask stays as it is
    with pytest.raises(InvalidInputError, match="Segments are"):
        align(inversion, *networks[1:], segments=labels.float())


def test_each_image_is_aligned_for_itself(networks):
    inversion = make_inversion(networks[0], batch=3)
    together = align(inversion, *networks[1:])
    alone = align(inversion[1], *networks[1:])
    torch.testing.assert_close(together.mask[1:2], alone.mask, atol=1e-5, rtol=0)
    torch.testing.assert_close(together.flows[32][1:2], alone.flows[32], atol=1e-5, rtol=0)


def test_tuned_weights_are_those_of_each_image(networks):
    inversion = make_inversion(networks[0])
    offset = torch.randn(2, 8, 8, 3, 3, generator=torch.Generator().manual_seed(8)) * 2
    tuned = inversion.with_modulation(WeightOffset({"b8.conv1.weight": offset}))
    together = align(tuned, *networks[1:])
    torch.testing.assert_close(together.mask[1:2], align(tuned[1], *networks[1:]).mask, atol=1e-5, rtol=0)
    assert not torch.allclose(together.mask, align(inversion, *networks[1:]).mask, atol=1e-3)
    assert together.inversion.modulations[0] is tuned.modulations[0]


def test_users_mask_joins_or_replaces_and_faint_values_can_go(networks):
    inversion, mask = make_inversion(networks[0]), torch.zeros(64, 64)
    mask[:32] = 1
    joined = align(inversion, *networks[1:], mask=mask)
    assert torch.all(joined.mask[:, :, :15] == 1) and torch.equal(joined.mask[:, :, 17:], joined.predicted[:, :, 17:])
    replaced = align(inversion, *networks[1:], mask=mask, mask_mode="replace")
    assert torch.all(replaced.mask[:, :, 17:] == 0)
    assert torch.equal(render(replaced.inversion)[:, :, :15], inversion.image[:, :, :15])
    middle = float(joined.predicted.median())
    hard = align(inversion, *networks[1:], mask_threshold=middle).mask
    assert float(hard[hard > 0].min()) >= middle and float((hard == 0).float().mean()) > 0.3


def test_without_warp_the_plain_picture_is_blended(networks):
    inversion = make_inversion(networks[0])
    result = align(inversion, *networks[1:], warp=False)
    torch.testing.assert_close(
        render(result.inversion), torch.lerp(render(inversion), inversion.image, result.mask), atol=1e-6, rtol=0
    )
    assert torch.equal(result.mask, align(inversion, *networks[1:]).mask)


def test_aligning_again_replaces_the_first_alignment(networks):
    inversion = make_inversion(networks[0]).with_modulation(PixelBlend(torch.zeros(1, 1, 32, 32)))
    once = align(inversion, *networks[1:])
    twice = align(once.inversion, *networks[1:])
    assert torch.equal(once.mask, twice.mask) and len(twice.inversion.modulations) == 5
    assert without_alignment(twice.inversion).modulations == inversion.modulations
    *aligned, blend = twice.inversion.modulations
    rectifying = ResidualTransfer(blend.mask)
    between = dataclasses.replace(twice.inversion, modulations=(*aligned, rectifying, blend))
    assert without_alignment(between).modulations == (*inversion.modulations, rectifying)
    blended = align(inversion, *networks[1:], warp=False)  # leaves no warp to be known by
    assert without_alignment(blended.inversion).modulations == inversion.modulations


def test_alignment_survives_a_file_and_inference_mode(networks, tmp_path):
    with torch.inference_mode():
        result = align(make_inversion(networks[0]), *networks[1:])
    assert not result.mask.is_inference()
    path = result.inversion.save(tmp_path / "aligned.safetensors")
    assert torch.equal(render(Inversion.load(path, networks[0])), render(result.inversion))


def test_restyle_features_are_those_of_the_last_pass(networks):
    encoder = make_encoder("ProgressiveBackboneEncoder")
    image = make_inversion(networks[0]).image
    for passes in (1, 3):
        seen = []
        handle = encoder.encoder.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0]))
        encoder(image, networks[0], passes)
        handle.remove()
        expected = encoder.encoder.maps(seen[-1])
        for ours, theirs in zip(encoder.features(image, networks[0], passes), expected, strict=False):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    for passes in (1, 2):
        with pytest.raises(InvalidInputError, match="needs the generator"):
            encoder.features(image, None, passes)


@pytest.mark.parametrize("kind", ["Encoder4Editing", "BackboneEncoder", "ResNetBackboneEncoder"])
def test_features_have_the_planned_sizes(kind):
    encoder, generator = make_encoder(kind), make_generator()
    features = encoder.features(torch.zeros(1, 3, 50, 50), generator, 1)
    sides = [16, 16, 8] if kind.startswith("ResNet") else [32, 16, 8]
    assert [tuple(f.shape[1:]) for f in features] == [(c, s, s) for c, s in zip((4, 8, 12), sides, strict=True)]
    config = SammConfig.for_networks(generator, encoder)
    assert config.resolutions == tuple(sorted(set(sides)))
    assert set(Samm(config).encoded(features)) == set(sides)


def test_official_sizes():
    with skeleton():
        for resolution in (1024, 256):
            generator, encoder = Generator(GeneratorConfig.official(resolution)), Encoder(EncoderConfig())
            assert SammConfig.for_networks(generator, encoder, domain=None) == SammConfig()
        small = Generator(GeneratorConfig(128, (192, 192, 192, 96, 48, 24), 256, 256, 4))
        slim = Encoder(EncoderConfig(num_ws=12, w_dim=256, stem=16, widths=(16, 32, 64, 128), input_size=(128, 128)))
        config = SammConfig.for_networks(small, slim)
        state = Samm().state_dict()
    assert config.resolutions == (16, 32, 64, 128) and config.channels == (192, 96, 48, 24)
    assert config.encoder_channels == (64, 32, 16, 16)
    assert state["modulation.0.alignment.body.body.0.res_layer.1.weight"].shape == (256, 256, 3, 3)
    assert state["modulation.3.alignment.body.body.1.shortcut_layer.0.weight"].shape == (3, 1024, 1, 1)
    assert state["feats_conv.2.weight"].shape == (512, 128, 1, 1)
    assert sum(tensor.numel() for tensor in state.values()) == 43_974_144


def official_file(samm):
    """What the official trainer saves: also the generator's style layers, filters and unused parameters."""
    state = {**samm.state_dict(), "generator.convs.0.conv.modulation.weight": torch.zeros(4, 8)}
    kernel = torch.outer(torch.tensor([1.0, 3, 3, 1]), torch.tensor([1.0, 3, 3, 1])) / 64
    for k in range(len(samm.modulation)):
        state |= {
            f"modulation.{k}.weight": torch.ones(1),
            f"modulation.{k}.noiseInj.weight": torch.zeros(1),
            f"modulation.{k}.alignment.blur.kernel": kernel,
        }
    return state


@pytest.mark.parametrize("bias", [False, True])
def test_official_checkpoint_loads_by_its_keys(tmp_path, bias):
    samm = make_samm(SammConfig(channels=(5, 4, 3, 2), encoder_channels=(4, 3, 2, 1), conv_bias=bias))
    state = official_file(samm)
    torch.save({"params": {k: v * 0 for k, v in state.items()}, "params_ema": state}, tmp_path / "net_g.pth")
    loaded = load_model(tmp_path / "net_g.pth")
    assert loaded.architecture == "samm" and loaded.module.config == samm.config
    found = loaded.module.state_dict()
    assert found.keys() == samm.state_dict().keys()
    assert all(torch.equal(value, found[name]) for name, value in samm.state_dict().items())
    del state["modulation.2.alignment.body.body.0.res_layer.0.weight"]
    torch.save({"params_ema": state}, tmp_path / "damaged.pth")
    with pytest.raises(UnsupportedModelError, match="lacks"):
        load_model(tmp_path / "damaged.pth")


def test_own_file_keeps_what_shapes_do_not_show(networks, tmp_path):
    samm = make_samm(dataclasses.replace(networks[2].config, warp_scale=0.2, iterations=3, domain="portraits"))
    loaded = load_model(save_model(samm, tmp_path / "samm.safetensors"))
    assert loaded.architecture == "samm" and loaded.module.config == samm.config and loaded.domain == "portraits"


def test_networks_that_do_not_fit_are_refused(networks):
    generator, encoder, samm = networks
    inversion = make_inversion(generator)
    with pytest.raises(InvalidInputError, match="encoder it was trained with"):
        align(inversion, make_encoder(widths=(12, 16, 20)), samm)
    other = make_generator(channels=(10, 7, 6, 4))
    with pytest.raises(GeneratorMismatchError, match="8 channels at 8 px"):
        align(dataclasses.replace(inversion, generator=other), encoder, samm)
    with pytest.raises(InvalidInputError, match="noise"):
        align(inversion, encoder, samm, noise="random")
    for wrong in ({"channels": (4,)}, {"resolutions": (64, 32, 128, 256)}, {"iterations": 0}, {"warp_scale": 0.0}):
        with pytest.raises(InvalidInputError):
            SammConfig(**wrong)
