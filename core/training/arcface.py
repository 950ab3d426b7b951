"""The identity network of the original trainings (SAMM, e4e, pSp), around ArcFace weights of the user's.

Paper: Deng et al., "ArcFace" (CVPR 2019). Network and names: TreB1eN/InsightFace_Pytorch `model.py`, IR-SE50 of 112 px
(`model_ir_se50.pth`); crop and resizing: OOD-GAN-inversion `src/losses/id_loss.py`. Nothing is downloaded.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backbones import DEFAULT_UNITS, IR_SE50, Trunk
from ..errors import CorruptFileError, UnsupportedModelError

_INPUT = 112  # pixels
_DIM = 512
_TOP, _BOTTOM, _LEFT, _RIGHT = 35, 33, 32, 36  # cut off an FFHQ crop of 256 px


class ArcFace(Trunk):
    """FFHQ crops -> unit vectors; frozen. Random weights until `load`."""

    def __init__(
        self,
        stem: int = 64,
        widths: Sequence[int] = (64, 128, 256, 512),
        units: Sequence[int] = DEFAULT_UNITS[IR_SE50],
    ) -> None:
        super().__init__(IR_SE50, 3, stem, widths, units)
        side = _INPUT >> len(widths)
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(widths[-1]),
            nn.Dropout(0.6),
            nn.Flatten(),
            nn.Linear(widths[-1] * side * side, _DIM),
            nn.BatchNorm1d(_DIM),
        )
        self.requires_grad_(False).eval()

    @staticmethod
    def load(path: str | Path) -> ArcFace:
        """Reads a .pth or .safetensors file; nothing in it can execute.

        Raises:
            CorruptFileError: not readable.
            UnsupportedModelError: other tensors than those of an IR-SE50.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            if Path(path).suffix == ".safetensors":
                weights = load_file(path)
            else:
                weights = torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, ValueError, RuntimeError, EOFError, pickle.UnpicklingError, SafetensorError) as error:
            raise CorruptFileError(f"{path}: not a readable file of ArcFace weights ({error}).") from error
        network = ArcFace()
        network.load_weights(weights)
        return network

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Takes tensors with the official names. Raises UnsupportedModelError where they do not fit."""
        given = dict(weights)
        for name in self.state_dict().keys() - given.keys():
            if name.endswith(".num_batches_tracked"):
                given[name] = torch.zeros((), dtype=torch.long)  # older files leave it out; it is not used here
        try:
            self.load_state_dict(given)
        except (RuntimeError, TypeError, ValueError, AttributeError) as error:
            raise UnsupportedModelError(
                f"Not the weights of an ArcFace IR-SE50 (model_ir_se50.pth): {error}"
            ) from error

    def forward(self, image: Tensor) -> Tensor:
        """FFHQ crops [B, 3, S, S] in [-1, 1] -> embeddings [B, 512] of length 1. From 256 px on, the face is cut out."""
        unit = image.shape[2] // 256
        if unit:
            height, width = image.shape[2:]
            image = image[:, :, _TOP * unit : height - _BOTTOM * unit, _LEFT * unit : width - _RIGHT * unit]
        x = F.adaptive_avg_pool2d(image.float(), _INPUT)
        return F.normalize(self.output_layer(self.stages(x)[-1]), dim=1)
