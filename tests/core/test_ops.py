"""Reference operations against the fast ones, and both against hand-made answers."""

import itertools

import pytest
import torch

from gan_inversion.core import ops


@pytest.mark.parametrize(
    ("up", "down", "pad", "gain"),
    [
        (1, 1, (1, 1), 4.0),
        (2, 1, (2, 1), 4.0),
        (1, 2, (2, 2), 1.0),
        (2, 1, (1, 1), 4.0),
        (1, 1, (2, 1), 1.0),
        (1, 1, (0, 0), 1.0),
    ],
)
def test_upfirdn2d_equals_reference(up, down, pad, gain):
    x = torch.randn(2, 3, 9, 12, dtype=torch.float64)
    expected = ops.upfirdn2d_reference(x, up, down, pad, gain)
    torch.testing.assert_close(ops.upfirdn2d(x, up, down, pad, gain), expected)


def test_upsampling_an_impulse_draws_the_filter():
    x = torch.zeros(1, 1, 4, 4, dtype=torch.float64)
    x[0, 0, 1, 1] = 1.0
    y = ops.upfirdn2d(x, up=2, pad=(2, 1), gain=4.0)
    row = torch.tensor([0.0, 1.0, 3.0, 3.0, 1.0, 0.0, 0.0, 0.0], dtype=torch.float64) / 4
    torch.testing.assert_close(y[0, 0], torch.outer(row, row))


def test_upsampling_keeps_a_constant_inside():
    y = ops.upfirdn2d(torch.ones(1, 2, 6, 6), up=2, pad=(2, 1), gain=4.0)
    torch.testing.assert_close(y[:, :, 1:-1, 1:-1], torch.ones(1, 2, 10, 10))


@pytest.mark.parametrize(("demodulate", "up", "k"), list(itertools.product([True, False], [True, False], [1, 3])))
def test_modulated_conv_equals_reference(demodulate, up, k):
    if up and k == 1:
        pytest.skip("up-convolutions are 3x3")
    torch.manual_seed(0)
    x, weight, style = torch.randn(3, 5, 8, 8).double(), torch.randn(4, 5, k, k).double(), torch.randn(3, 5).double()
    expected = ops.modulated_conv2d_reference(x, weight, style, demodulate, up)
    actual = ops.modulated_conv2d(x, weight, style, demodulate, up)
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-5)


def test_demodulated_output_has_unit_variance():
    torch.manual_seed(0)
    x, weight = torch.randn(4, 64, 32, 32), torch.randn(48, 64, 3, 3)
    y = ops.modulated_conv2d(x, weight, 5.0 * torch.rand(4, 64) + 0.1)
    assert y[:, :, 1:-1, 1:-1].std().item() == pytest.approx(1.0, abs=0.05)


def test_float16_survives_styles_that_would_overflow():
    torch.manual_seed(0)
    x, weight, style = torch.randn(2, 16, 8, 8), torch.randn(8, 16, 3, 3), torch.rand(2, 16) * 40_000
    expected = ops.modulated_conv2d(x, weight, style)
    actual = ops.modulated_conv2d(x.half(), weight, style)
    assert actual.dtype == torch.float16
    torch.testing.assert_close(actual.float(), expected, rtol=2e-2, atol=2e-2)
