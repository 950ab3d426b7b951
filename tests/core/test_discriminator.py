"""StyleGAN2 discriminator: formulas, groups, derivatives, precision. Official numbers are compared in test_layouts."""

import math

import pytest
import torch
import torch.nn.functional as F

from gan_inversion.core.discriminator import Discriminator, DiscriminatorConfig, _Filter, minibatch_std
from gan_inversion.core.errors import InvalidInputError
from gan_inversion.core.ops import upfirdn2d_reference

CONFIG = DiscriminatorConfig(16, (8, 6, 4))


def random_discriminator(config=CONFIG, seed=0):
    """Biases random too, so that a lost one is seen."""
    module = Discriminator(config).requires_grad_(False)
    random = torch.Generator().manual_seed(seed)
    for _, tensor in sorted(module.state_dict().items()):
        tensor.copy_(torch.randn(tensor.shape, generator=random))
    return module.requires_grad_(True)


def images(batch=4, size=16, seed=1):
    return torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def r1_penalty(module, x):
    x = x.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(module(x).sum(), x, create_graph=True)
    return gradient.square().sum(dim=(1, 2, 3)).mean()


# Configuration


def test_official_widths():
    assert DiscriminatorConfig.official(1024).channels == (512, 512, 512, 512, 512, 256, 128, 64, 32)
    assert DiscriminatorConfig.official(256, 16384).channels == (512, 512, 512, 512, 256, 128, 64)
    assert DiscriminatorConfig.official(64, 512, 32, conv_clamp=256).channels == (32, 32, 32, 16, 8)
    assert DiscriminatorConfig.official(64, 512, 32, conv_clamp=256).conv_clamp == 256


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((4, (8,)), "Discriminator resolution 4: expected a power of two from 8 to 1024"),
        ((48, (8, 8, 8, 8)), "resolution 48"),
        ((2048, (8,) * 10), "resolution 2048"),
        ((16, (8, 8)), r"2 channel counts \(8, 8\) for resolution 16: expected 3"),
        ((16, (8, 8, 8), 0), "mbstd_group_size 0: expected 1 or more, or None"),
        ((16, (8, 8, 8), 4, 3), "mbstd_channels 3: expected 0 .none. or a divisor of the 8"),
        ((16, (8, 8, 8), 4, -1), "mbstd_channels -1"),
    ],
)
def test_impossible_configurations_are_refused(arguments, message):
    with pytest.raises(InvalidInputError, match=message):
        DiscriminatorConfig(*arguments)


@pytest.mark.parametrize("resolution", [0, -8, 48])
def test_official_widths_of_an_impossible_size_are_refused(resolution):
    with pytest.raises(InvalidInputError, match=f"resolution {resolution}"):
        DiscriminatorConfig.official(resolution)


# The network against its formulas, written down without any folding


def by_the_formulas(module, x):
    clamp = module.config.conv_clamp

    def layer(conv, x, down=False, gain=1.0):
        o, i, k, _ = conv.weight.shape
        pad = k // 2
        if down:
            x = upfirdn2d_reference(x, pad=(pad + 1, pad + 1))
            pad = 0
        x = F.conv2d(x, conv.weight / math.sqrt(i * k * k), stride=2 if down else 1, padding=pad)
        if conv.bias is not None:
            x = F.leaky_relu(x + conv.bias[:, None, None], 0.2) * math.sqrt(2)
        x = x * gain
        return x if clamp is None or conv.bias is None else x.clamp(-clamp * gain, clamp * gain)

    gain = math.sqrt(0.5)
    x = layer(getattr(module, f"b{module.resolution}").fromrgb, x)
    for r in module.config.resolutions[:0:-1]:
        block = getattr(module, f"b{r}")
        skip = layer(block.skip, x, down=True, gain=gain)
        x = skip + layer(block.conv1, layer(block.conv0, x), down=True, gain=gain)
    group = min(module.config.mbstd_group_size or len(x), len(x))
    groups = [x[n :: len(x) // group] for n in range(len(x) // group)]  # images n, n + B/G, n + 2 B/G, ...
    spread = torch.stack([(g.var(dim=0, unbiased=False) + 1e-8).sqrt().mean() for g in groups])
    maps = spread.repeat(group)[:, None, None, None].expand(-1, 1, 4, 4)
    x = layer(module.b4.conv, torch.cat((x, maps), dim=1)).flatten(1)
    x = F.linear(x, module.b4.fc.weight / math.sqrt(x.shape[1]), module.b4.fc.bias)
    x = F.leaky_relu(x, 0.2) * math.sqrt(2)
    return F.linear(x, module.b4.out.weight / math.sqrt(x.shape[1]), module.b4.out.bias)


@pytest.mark.parametrize("clamp", [None, 0.6])
@pytest.mark.parametrize(("group", "batch"), [(4, 1), (4, 3), (4, 8), (2, 6), (None, 5)])
def test_logits_are_those_of_the_formulas(clamp, group, batch):
    module = random_discriminator(DiscriminatorConfig(16, (8, 6, 4), group, conv_clamp=clamp))
    x = images(batch)
    logits = module(x)
    assert logits.shape == (batch, 1) and logits.dtype == torch.float32
    torch.testing.assert_close(logits, by_the_formulas(module, x), rtol=1e-5, atol=1e-5)


def test_the_clamp_acts():
    free, clamped = (random_discriminator(DiscriminatorConfig(16, (8, 6, 4), conv_clamp=c)) for c in (None, 0.6))
    assert not torch.allclose(free(images()), clamped(images()), atol=1e-2)


@pytest.mark.parametrize("down", [1, 2])
def test_the_filter_is_upfirdn2d_and_its_own_second_derivative(down):
    pad = 3 - down
    random = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 6, 6, generator=random, dtype=torch.float64).requires_grad_(True)
    y = _Filter.apply(x, down, pad, False)
    torch.testing.assert_close(y, upfirdn2d_reference(x, down=down, pad=(pad, pad)))
    assert torch.autograd.gradcheck(lambda x: _Filter.apply(x, down, pad, False), x)
    assert torch.autograd.gradgradcheck(lambda x: _Filter.apply(x, down, pad, False).square(), x)


# Minibatch statistics


def test_images_are_grouped_as_in_the_official_code():
    x = torch.zeros(8, 2, 4, 4)
    x[::2] = torch.tensor([0.0, 2.0, 0.0, 2.0])[:, None, None, None]  # images 0, 2, 4, 6 differ; 1, 3, 5, 7 are equal
    maps = minibatch_std(x, 4)
    assert maps.shape == (8, 3, 4, 4) and torch.equal(maps[:, :2], x)
    torch.testing.assert_close(maps[::2, 2], torch.ones(4, 4, 4))
    torch.testing.assert_close(maps[1::2, 2], torch.full((4, 4, 4), 1e-4))


def test_statistics_of_one_image_of_a_whole_batch_and_of_shares_of_the_channels():
    torch.testing.assert_close(minibatch_std(torch.randn(1, 2, 4, 4))[:, 2], torch.full((1, 4, 4), 1e-4))
    x = torch.randn(5, 6, 4, 4)
    spread = (x.var(dim=0, unbiased=False) + 1e-8).sqrt()
    torch.testing.assert_close(minibatch_std(x, None)[3, 6], spread.mean().expand(4, 4))
    two = minibatch_std(x, None, channels=2)[3, 6:]
    torch.testing.assert_close(two[0], spread[:3].mean().expand(4, 4))
    torch.testing.assert_close(two[1], spread[3:].mean().expand(4, 4))


@pytest.mark.parametrize("batch", [5, 6, 7, 9])
def test_a_batch_that_does_not_divide_into_groups_is_refused(batch):
    expected = rf"batch of {batch} images: expected 1 to 4, or a multiple of 4"
    with pytest.raises(InvalidInputError, match=expected):
        random_discriminator()(images(batch))
    with pytest.raises(InvalidInputError, match=expected):
        minibatch_std(torch.zeros(batch, 2, 4, 4))


def test_without_statistics_any_batch_runs_and_images_do_not_meet():
    module = random_discriminator(DiscriminatorConfig(16, (8, 6, 4), mbstd_channels=0))
    x = images(5)
    torch.testing.assert_close(module(x), torch.cat([module(row[None]) for row in x]), rtol=1e-5, atol=1e-5)
    with_statistics = random_discriminator()
    alone = torch.cat([with_statistics(row[None]) for row in x[:4]])
    assert not torch.allclose(with_statistics(x[:4]), alone, atol=1e-2)


# Input


@pytest.mark.parametrize("shape", [(4, 3, 32, 32), (4, 1, 16, 16), (3, 16, 16), (4, 3, 16, 8), (0, 3, 16, 16)])
def test_images_of_another_shape_are_refused(shape):
    with pytest.raises(InvalidInputError, match=r"expected \[batch, 3, 16, 16\]"):
        random_discriminator()(torch.zeros(shape))


def test_integer_images_are_refused():
    with pytest.raises(InvalidInputError, match=r"torch.uint8: expected floating point in \[-1, 1\]"):
        random_discriminator()(torch.zeros(4, 3, 16, 16, dtype=torch.uint8))


# Features, memory, precision


def test_features_are_what_leaves_each_block():
    module, x, features = random_discriminator(), images(), {}
    before = x.clone()
    logits = module(x, features)
    shapes = {"block16": (4, 6, 8, 8), "block8": (4, 8, 4, 4), "block4": (4, 8, 4, 4)}
    assert {name: tuple(value.shape) for name, value in features.items()} == shapes
    assert torch.equal(x, before) and torch.equal(logits, module(x))
    # Layers write in place: what was handed out must still be what the block computed.
    torch.testing.assert_close(features["block16"], module.b16(x))
    torch.testing.assert_close(features["block8"], module.b8(features["block16"]))
    gradient = torch.autograd.grad(features["block16"].square().sum(), module.b16.fromrgb.weight)[0]
    assert gradient.abs().max() > 0


def test_channels_last_gives_the_same_logits_and_gradients():
    module, x = random_discriminator(), images(8)
    expected = torch.autograd.grad(r1_penalty(module, x) + module(x).sum(), list(module.parameters()))
    logits = module(x)
    module = module.to(memory_format=torch.channels_last)
    for given in (x, x.contiguous(memory_format=torch.channels_last)):
        torch.testing.assert_close(module(given), logits, rtol=1e-5, atol=1e-5)
        found = torch.autograd.grad(r1_penalty(module, given) + module(given).sum(), list(module.parameters()))
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_autocast_changes_the_logits_little_and_trains():
    module, x = random_discriminator(), images(8)
    with torch.autocast("cpu", torch.bfloat16):
        logits, features = module(x, features := {}), features
        penalty = r1_penalty(module, x)
    assert logits.dtype == torch.float32 and features["block16"].dtype == torch.bfloat16
    expected = module(x)
    assert (logits - expected).abs().max() < 0.05 * expected.abs().max()
    torch.testing.assert_close(penalty, r1_penalty(module, x), rtol=0.05, atol=0)
    (logits.mean() + penalty).backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in module.parameters())


# Derivatives


def test_the_r1_gradient_is_the_slope_of_the_penalty():
    module = random_discriminator(DiscriminatorConfig(8, (6, 4))).double()
    x = images(4, 8).double()
    parameters = list(module.parameters())
    gradients = torch.autograd.grad(r1_penalty(module, x), parameters, allow_unused=True)
    random = torch.Generator().manual_seed(5)
    directions = [torch.randn(p.shape, generator=random, dtype=torch.float64) for p in parameters]
    slope = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True) if g is not None)

    def moved(step):
        with torch.no_grad():
            for parameter, direction in zip(parameters, directions, strict=True):
                parameter.add_(direction, alpha=step)
        penalty = r1_penalty(module, x).detach()
        with torch.no_grad():
            for parameter, direction in zip(parameters, directions, strict=True):
                parameter.sub_(direction, alpha=step)
        return penalty

    torch.testing.assert_close((moved(1e-6) - moved(-1e-6)) / 2e-6, slope.detach(), rtol=1e-5, atol=1e-9)


def test_training_separates_two_kinds_of_image():
    torch.manual_seed(0)
    module = Discriminator(DiscriminatorConfig(8, (16, 16)))
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01, betas=(0.0, 0.99))
    for step in range(30):
        real, fake = (
            images(8, 8, seed=step),
            images(8, 8, seed=1000 + step).mean(dim=1, keepdim=True).expand(-1, 3, -1, -1),
        )
        loss = F.softplus(-module(real)).mean() + F.softplus(module(fake)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    real, grey = images(8, 8, seed=999), images(8, 8, seed=998).mean(dim=1, keepdim=True).expand(-1, 3, -1, -1)
    assert module(real).min() > 0 > module(grey).max()
