"""StyleGAN2 generator: shapes, codes, noise, hooks, precision. Parity with official code is in test_layouts."""

import pytest
import torch

from gan_inversion.core.errors import InvalidInputError
from gan_inversion.core.generator import Generator, GeneratorConfig, SynthesisHooks


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    generator = Generator(GeneratorConfig(32, (12, 12, 10, 8), 16, 16, 2)).eval().requires_grad_(False)
    for layer in generator.synthesis._noisy_layers():
        layer.noise_strength.fill_(0.3)
    return generator


@pytest.mark.parametrize(("resolution", "num_ws"), [(32, 8), (256, 14), (512, 16), (1024, 18)])
def test_official_sizes(resolution, num_ws):
    config = GeneratorConfig.official(resolution)
    assert config.num_ws == num_ws
    assert config.channels[-1] == min(32768 // resolution, 512)


def test_config_f_has_the_published_channels():
    assert GeneratorConfig.official(1024).channels == (512, 512, 512, 512, 512, 256, 128, 64, 32)


@pytest.mark.parametrize("resolution", [0, 48, 2048])
def test_wrong_resolution_is_named(resolution):
    with pytest.raises(InvalidInputError, match=str(resolution)):
        GeneratorConfig(resolution, (8,))


def test_batch_equals_singles(tiny):
    z = torch.randn(3, 16)
    together = tiny(z)
    assert together.shape == (3, 3, 32, 32)
    torch.testing.assert_close(together, torch.cat([tiny(row[None]) for row in z]), rtol=1e-4, atol=1e-5)


def test_style_codes_draw_the_same_image_as_w_plus(tiny):
    w_plus = torch.randn(2, tiny.num_ws, 16)
    styles = tiny.synthesis.styles(w_plus)
    torch.testing.assert_close(tiny.synthesis(w_plus), tiny.synthesis(w_plus, styles=styles))


def test_each_row_feeds_the_layers_the_papers_say(tiny):
    names = tiny.synthesis.style_names
    base = torch.randn(1, tiny.num_ws, 16)
    reference = tiny.synthesis.styles(base)
    for row in range(tiny.num_ws):
        changed = base.clone()
        changed[:, row] += 1
        moved = {
            n for n, a, b in zip(names, reference, tiny.synthesis.styles(changed), strict=True) if not torch.equal(a, b)
        }
        expected = {n for n, r in zip(names, tiny.synthesis.style_rows, strict=True) if r == row}
        assert moved == expected
    assert tiny.synthesis.style_rows == (0, 1, 1, 2, 3, 3, 4, 5, 5, 6, 7)


def test_noise_modes(tiny):
    w = torch.randn(1, tiny.num_ws, 16)
    const, none = tiny.synthesis(w), tiny.synthesis(w, noise="none")
    assert not torch.allclose(const, none)
    torch.testing.assert_close(const, tiny.synthesis(w, noise=tiny.synthesis.stored_noise()))

    def seeded(n):
        return tiny.synthesis(w, noise="random", generator=torch.Generator().manual_seed(n))

    torch.testing.assert_close(seeded(1), seeded(1))
    assert not torch.allclose(seeded(1), seeded(2))


@pytest.mark.parametrize("noise", ["Const", [torch.zeros(1, 1, 4, 4)]])
def test_wrong_noise_is_refused(tiny, noise):
    with pytest.raises(InvalidInputError, match="noise"):
        tiny.synthesis(torch.zeros(1, tiny.num_ws, 16), noise=noise)


def test_wrong_code_shape_says_what_was_expected(tiny):
    with pytest.raises(InvalidInputError, match=r"expected \[batch, 8, 16\]"):
        tiny.synthesis(torch.zeros(1, 18, 512))
    with pytest.raises(InvalidInputError, match=r"expected \[batch, 16\]"):
        tiny.mapping(torch.zeros(1, 512))


def test_block_hook_never_changes_that_blocks_own_rgb(tiny):
    w = torch.randn(1, tiny.num_ws, 16)
    hooks = SynthesisHooks(after_block={32: lambda x: x + 100})
    torch.testing.assert_close(tiny.synthesis(w, hooks=hooks), tiny.synthesis(w))
    hooks = SynthesisHooks(after_block={16: lambda x: x + 1})
    assert not torch.allclose(tiny.synthesis(w, hooks=hooks), tiny.synthesis(w))


def test_upconv_hook_stands_before_noise_and_bias(tiny):
    w, seen = torch.randn(1, tiny.num_ws, 16), {}
    tiny.synthesis(w, taps=seen)
    layer = tiny.synthesis.b16.conv0
    inside = {}
    handle = layer.register_forward_hook(lambda m, args, out: inside.update(out=out))
    tiny.synthesis(w)
    handle.remove()
    x = seen["upconv16"] + layer.noise_const * layer.noise_strength + layer.bias[:, None, None]
    torch.testing.assert_close(torch.nn.functional.leaky_relu(x, 0.2) * 2**0.5, inside["out"])


def test_unknown_hook_places_are_refused(tiny):
    w = torch.zeros(1, tiny.num_ws, 16)
    for hooks in (
        SynthesisHooks(after_block={64: lambda x: x}),
        SynthesisHooks(after_upconv={4: lambda x: x}),
        SynthesisHooks(style={"b64.conv0": lambda x: x}),
    ):
        with pytest.raises(InvalidInputError):
            tiny.synthesis(w, hooks=hooks)


def test_conv_clamp_limits_features():
    torch.manual_seed(0)
    generator = Generator(GeneratorConfig(32, (12, 12, 10, 8), 16, 16, 2, conv_clamp=0.5)).eval()
    taps = {}
    generator.synthesis(torch.randn(1, generator.num_ws, 16), taps=taps)
    assert taps["block16"].abs().max() <= 0.5


def test_truncation_and_cutoff(tiny):
    w = tiny.broadcast(torch.randn(2, 16))
    torch.testing.assert_close(tiny.truncate(w, 0.0), tiny.broadcast(tiny.w_avg[None]).expand_as(w))
    cut = tiny.truncate(w, 0.0, cutoff=3)
    torch.testing.assert_close(cut[:, 3:], w[:, 3:])
    torch.testing.assert_close(cut[:, :3], tiny.w_avg.expand(2, 3, 16))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.15), (torch.float16, 0.02)])
def test_half_precision_stays_close(tiny, dtype, tolerance):
    w = torch.randn(1, tiny.num_ws, 16)
    half = tiny.synthesis(w, dtype=dtype)
    assert half.dtype == torch.float32
    full = tiny.synthesis(w)
    assert (half - full).abs().max() < tolerance * full.abs().max()


def test_gradients_reach_the_code(tiny):
    w = torch.randn(1, tiny.num_ws, 16, requires_grad=True)
    tiny.synthesis(w).square().mean().backward()
    assert w.grad is not None and (w.grad.abs().sum(dim=2) > 0).all()


def test_w_average_is_reproducible(tiny):
    torch.testing.assert_close(tiny.estimate_w_avg(500), tiny.estimate_w_avg(500))
