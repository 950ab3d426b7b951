"""One explicit key-mapping function per foreign layout, from what a file holds to this package's canonical names.

Canonical generator names are NVIDIA's (`mapping.fc0.weight`, `synthesis.b8.conv0.affine.weight`, ...), see
`core/generator.py`. Sources of the foreign names: rosinality/stylegan2-pytorch `model.py` and `convert_weight.py`,
NVlabs/stylegan2-ada-pytorch `training/networks.py`, NVlabs/stylegan3 `legacy.py`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..core.errors import UnsupportedModelError
from ..core.generator import MAPPING_LR_MUL
from ..core.ops import FIR
from .reading import PickledNetwork, RawFile

FORMAT = "gan-inversion"  # value of "format" in the metadata of our own safetensors files


@dataclass(frozen=True)
class CanonicalState:
    """Tensors under canonical names, with what shapes cannot say."""

    tensors: dict[str, Tensor]
    layout: str  # "gan-inversion", "nvidia-torch", "nvidia-tensorflow", "rosinality", "encoder" or "unknown"
    options: Mapping[str, Any] = field(default_factory=dict)  # conv_clamp, or an encoder checkpoint's options
