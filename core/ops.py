"""Primitive operations of StyleGAN2: resampling filter, modulated convolution, equalised layers.

Paper: Karras et al., "Analyzing and Improving the Image Quality of StyleGAN" (CVPR 2020), section 2.2 and appendix B.
Reference implementations: rosinality/stylegan2-pytorch (`model.py`), NVlabs/stylegan3 (`torch_utils/ops`).
Each costly operation exists twice: `*_reference` follows the paper's formula, the other is what the networks call;
the tests hold them equal. Everything is plain PyTorch: no compiled extension, any device.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LRELU_SLOPE = 0.2
LRELU_GAIN = math.sqrt(2.0)  # keeps the variance through a leaky ReLU
FIR = (1.0, 3.0, 3.0, 1.0)  # the resampling filter of every StyleGAN2; the networks use its outer product, sum 1


def upfirdn2d_reference(
    x: Tensor, up: int = 1, down: int = 1, pad: tuple[int, int] = (0, 0), gain: float = 1.0
) -> Tensor:
    """Zero-insertion upsampling, padding, FIR filtering with [1,3,3,1] and decimation, step by step.

    Args:
        x: [B, C, H, W].
        up, down: integer factors.
        pad: (before, after), in pixels after zero insertion, the same for both axes; negative values crop.
        gain: factor on the result (up**2 keeps the mean when upsampling).
    """
    b, c, h, w = x.shape
    if up > 1:
        spread = x.new_zeros(b, c, h, up, w, up)
        spread[:, :, :, 0, :, 0] = x
        x = spread.reshape(b, c, h * up, w * up)
    x = F.pad(x, (pad[0], pad[1], pad[0], pad[1]))
    taps = torch.tensor(FIR, device=x.device, dtype=x.dtype)
    kernel = torch.outer(taps, taps) / taps.sum() ** 2 * gain
    x = F.conv2d(x, kernel.expand(c, 1, 4, 4), groups=c)
    return x[:, :, ::down, ::down]


def upfirdn2d(x: Tensor, up: int = 1, down: int = 1, pad: tuple[int, int] = (0, 0), gain: float = 1.0) -> Tensor:
    """Same result as `upfirdn2d_reference` without materialising inserted zeros or padding where it can be avoided."""
    if up == 2 and down == 1 and pad == (2, 1):
        return _upsample2(x, gain)
    if up > 1 or pad[0] != pad[1] or pad[0] < 0:
        return upfirdn2d_reference(x, up, down, pad, gain)
    c = x.shape[1]
    taps = torch.tensor(FIR, device=x.device, dtype=x.dtype)
    kernel = torch.outer(taps, taps) / taps.sum() ** 2 * gain
    return F.conv2d(x, kernel.expand(c, 1, 4, 4), groups=c, padding=pad[0], stride=down)


def _upsample2(x: Tensor, gain: float) -> Tensor:
    """Doubles H and W with pad (2, 1): each output phase is a two-tap mean of neighbours (weights 1/4 and 3/4)."""
    b, c, h, w = x.shape
    x = x * (gain / 4.0)
    near, far = 0.75, 0.25
    p = F.pad(x, (0, 0, 1, 1))
    even, odd = p[:, :, :-2] * far + x * near, x * near + p[:, :, 2:] * far
    x = torch.stack((even, odd), dim=3).reshape(b, c, 2 * h, w)
    p = F.pad(x, (1, 1))
    even, odd = p[..., :-2] * far + x * near, x * near + p[..., 2:] * far
    return torch.stack((even, odd), dim=4).reshape(b, c, 2 * h, 2 * w)


def modulated_conv2d_reference(
    x: Tensor, weight: Tensor, style: Tensor, demodulate: bool = True, up: bool = False, eps: float = 1e-8
) -> Tensor:
    """Modulated convolution as the paper writes it: one weight tensor per sample, scaled by its style, then normalised.

    Args:
        x: [B, I, H, W].
        weight: [O, I, k, k], unscaled (the 1/sqrt(I k k) of equalised learning rates is applied here).
        style: [B, I], the affine output, around 1.
        demodulate: scale each output filter to unit L2 norm (equation 3).
        up: double the size by a stride-2 transposed convolution and the FIR filter.
    """
    b, i, h, w = x.shape
    o, _, k, _ = weight.shape
    per_sample = weight * (1.0 / math.sqrt(i * k * k)) * style.view(b, 1, i, 1, 1)  # [B, O, I, k, k]
    if demodulate:
        per_sample = per_sample * torch.rsqrt(per_sample.square().sum(dim=(2, 3, 4), keepdim=True) + eps)
    x = x.reshape(1, b * i, h, w)
    if not up:
        x = F.conv2d(x, per_sample.reshape(b * o, i, k, k), padding=k // 2, groups=b)
        return x.reshape(b, o, h, w)
    per_sample = per_sample.transpose(1, 2).reshape(b * i, o, k, k)
    x = F.conv_transpose2d(x, per_sample, stride=2, groups=b)
    x = x.reshape(b, o, x.shape[2], x.shape[3])
    return upfirdn2d_reference(x, pad=(1, 1), gain=4.0)


def modulated_conv2d(
    x: Tensor, weight: Tensor, style: Tensor, demodulate: bool = True, up: bool = False, eps: float = 1e-8
) -> Tensor:
    """Same result as `modulated_conv2d_reference`: scales the input and the output, so all samples share one weight.

    In float16 the style and the weight are first brought to a maximum of 1: their scale cancels in the demodulation
    and would overflow before it. The demodulation factors are always computed in float32.
    """
    o, i, k, _ = weight.shape
    dtype = x.dtype
    style = style.float()
    weight32 = weight.float()
    scale = 1.0 / math.sqrt(i * k * k)
    if demodulate:
        if dtype == torch.float16:
            peak = weight32.abs().amax(dim=(1, 2, 3), keepdim=True)
            weight32, eps_scale = weight32 * (scale / peak), peak.view(1, o) / scale
            style_peak = style.abs().amax(dim=1, keepdim=True)
            style = style / style_peak
            # eps belongs to the unnormalised filters: rsqrt(n + eps) scaled back to the normalised ones.
            norms = style.square() @ weight32.square().sum(dim=(2, 3)).t()
            factors = torch.rsqrt(norms + eps / (style_peak * eps_scale * scale).square())
        else:
            weight32 = weight32 * scale
            norms = style.square() @ weight32.square().sum(dim=(2, 3)).t()  # [B, O]
            factors = torch.rsqrt(norms + eps)
    else:
        weight32 = weight32 * scale
        factors = None
    x = x * style.to(dtype)[:, :, None, None]
    kernel = weight32.to(dtype)
    if up:
        x = F.conv_transpose2d(x, kernel.transpose(0, 1), stride=2)
        x = upfirdn2d(x, pad=(1, 1), gain=4.0)
    else:
        x = F.conv2d(x, kernel, padding=k // 2)
    return x if factors is None else x * factors.to(dtype)[:, :, None, None]


class EqualLinear(nn.Module):
    """Linear layer with equalised learning rate: the stored weight is divided by sqrt(in) (and lr_mul) at run time.

    Stored weights have unit variance at lr_mul 1, as in NVIDIA's and rosinality's checkpoints.
    """

    def __init__(self, in_features: int, out_features: int, lr_mul: float = 1.0, bias_init: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_features, in_features) / lr_mul)
        self.bias = nn.Parameter(torch.full((out_features,), bias_init / lr_mul))
        self.lr_mul = lr_mul
        self.weight_gain = lr_mul / math.sqrt(in_features)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        return F.linear(x, self.weight * self.weight_gain, self.bias * self.lr_mul)

    def extra_repr(self) -> str:
        """Sizes for `print(module)`."""
        return f"{self.weight.shape[1]} -> {self.weight.shape[0]}, lr_mul={self.lr_mul}"


def leaky_relu_gained(x: Tensor) -> Tensor:
    """Leaky ReLU of slope 0.2 times sqrt(2), the activation of every StyleGAN2 layer."""
    return F.leaky_relu(x, LRELU_SLOPE) * LRELU_GAIN
