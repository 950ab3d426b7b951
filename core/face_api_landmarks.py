"""The 68-point landmark net of face-api.js, as a second opinion that this project did not train.

Network and weights: justadudewhohacks/face-api.js (MIT), `face_landmark_68_model`, the files given by the caller.
Four dense blocks of separable convolutions at strides 2, a mean over the last 7x7 map and one linear layer; input
112x112 RGB. The weights are bytes: value = scale * byte + min, tensors one after another in the manifest's order.
Deviations: made for FFHQ crops, whose face has a known place: the square around the face is fixed (the original takes
its detector's box), and three sizes of it and their mirror images are averaged.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .alignment import CropTransform, align
from .errors import CorruptFileError, ModelNotFoundError, UnsupportedModelError
from .landmarks import mirror_points, region_transform

INPUT_SIZE = 112
POINT_COUNT = 68
MODEL_NAME = "face_landmark_68_model"
_MEAN_RGB = (122.782, 117.001, 104.298)  # of 0..255
_WIDTHS = (32, 64, 128, 256)
_CONVS = 4  # in each block
# The square it works best on, in FFHQ crop widths: measured on 40 photographs whose mouth corners are known.
_REGION_SIDE, _REGION_CENTRE = 0.66, (0.5, 0.61)
_TRIALS = (0.92, 1.0, 1.08)  # sizes that are averaged, as parts of that side
_TYPES = {"float32": "<f4", "int32": "<i4", "uint8": "u1", "uint16": "<u2"}


class _Separable(nn.Module):
    """Depthwise 3x3, then pointwise with a bias; no activation between."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.depthwise = nn.Conv2d(inputs, inputs, 3, stride, groups=inputs, bias=False)
        self.pointwise = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise(self.depthwise(_padded(x, self.stride)))


class _Full(nn.Conv2d):
    """3x3 convolution with a bias."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(_padded(x, self.stride[0]))


def _padded(x: Tensor, stride: int) -> Tensor:
    """TensorFlow's "same" for a 3x3 kernel: at stride 2 and even sizes the odd pixel goes to the right and below."""
    return F.pad(x, (1, 1, 1, 1) if stride == 1 else (0, 1, 0, 1))


class _DenseBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, first: bool) -> None:
        super().__init__()
        entry = _Full(inputs, outputs, 3, 2) if first else _Separable(inputs, outputs, 2)
        self.convs = nn.ModuleList([entry, *(_Separable(outputs, outputs, 1) for _ in range(_CONVS - 1))])

    def forward(self, x: Tensor) -> Tensor:
        """Each convolution sees the rectified sum of all before it; so does the next block."""
        total = F.relu(self.convs[0](x))
        for conv in list(self.convs)[1:]:
            total = total + conv(F.relu(total))
        return F.relu(total)


class FaceApiLandmarkNet(nn.Module):
    """68 points in iBUG order from a square around a face; see `forward`."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(_MEAN_RGB)[:, None, None], persistent=False)
        widths = (3, *_WIDTHS)
        self.blocks = nn.ModuleList(
            _DenseBlock(inputs, outputs, index == 0)
            for index, (inputs, outputs) in enumerate(zip(widths, widths[1:], strict=False))
        )
        self.fc = nn.Linear(_WIDTHS[-1], 2 * POINT_COUNT)

    def forward(self, crop: Tensor) -> Tensor:
        """Crops [B, 3, 112, 112] in [-1, 1] -> points [B, 68, 2] as (x, y) in crop pixels, pixel centres at whole numbers."""
        x = ((crop + 1) * 127.5 - self.mean) / 255
        for block in self.blocks:
            x = block(x)
        return self.fc(x.mean(dim=(2, 3))).unflatten(1, (POINT_COUNT, 2)) * INPUT_SIZE - 0.5


def load_face_api_landmarks(folder: str | Path, device: torch.device | str = "cpu") -> FaceApiLandmarkNet:
    """The net with the weights of a folder holding `face_landmark_68_model-weights_manifest.json` and its shard.

    Raises:
        ModelNotFoundError: one of the files is missing.
        CorruptFileError: the manifest is not one, or the bytes do not fit it.
        UnsupportedModelError: the tensors are another network's.
    """
    found = read_tfjs_weights(Path(folder) / f"{MODEL_NAME}-weights_manifest.json")
    net = FaceApiLandmarkNet()
    state = {}
    for name, wanted in net.state_dict().items():
        source = _tfjs_name(name)
        if source not in found:
            raise UnsupportedModelError(f"{folder}: no tensor {source!r}; expected face-api.js's {MODEL_NAME}.")
        state[name] = _in_torch_order(source, found.pop(source))
        if state[name].shape != wanted.shape:
            raise UnsupportedModelError(
                f"{folder}: tensor {source!r} has shape {tuple(state[name].shape)} in torch's order, expected "
                f"{tuple(wanted.shape)}: it is another network than {MODEL_NAME}."
            )
    if found:
        raise UnsupportedModelError(f"{folder}: unknown tensor {next(iter(found))!r}; expected {MODEL_NAME}.")
    net.load_state_dict(state)
    return net.eval().requires_grad_(False).to(device)


def _tfjs_name(name: str) -> str:
    """`blocks.1.convs.0.pointwise.bias` -> `dense1/conv0/bias`."""
    if name.startswith("fc."):
        return "fc/weights" if name.endswith("weight") else "fc/bias"
    _, block, _, conv, *rest = name.split(".")
    last = {
        "weight": "filters", "bias": "bias", "depthwise.weight": "depthwise_filter",
        "pointwise.weight": "pointwise_filter", "pointwise.bias": "bias",
    }[".".join(rest)]  # fmt: skip
    return f"dense{block}/conv{conv}/{last}"


def _in_torch_order(name: str, tensor: Tensor) -> Tensor:
    if name.endswith("depthwise_filter"):
        return tensor.permute(2, 3, 0, 1)  # [3, 3, C, 1] -> [C, 1, 3, 3]
    if tensor.ndim == 4:
        return tensor.permute(3, 2, 0, 1)  # [3, 3, in, out] -> [out, in, 3, 3]
    return tensor.T if tensor.ndim == 2 else tensor


def read_tfjs_weights(manifest: str | Path) -> dict[str, Tensor]:
    """Tensors of a TF.js weights manifest and the shards beside it, float32, in TensorFlow's axis order.

    Plain float32 and int32 tensors, and tensors quantised to uint8 or uint16, are read; nothing in them can execute.

    Raises:
        ModelNotFoundError: the manifest or a shard is missing.
        CorruptFileError: not such a manifest, or shards shorter or longer than it says.
    """
    manifest = Path(manifest)
    if not manifest.is_file():
        raise ModelNotFoundError(f"There is no {manifest}: expected a folder with the weight files of face-api.js.")
    tensors: dict[str, Tensor] = {}
    try:
        for group in json.loads(manifest.read_text(encoding="utf-8")):
            data = b"".join(_shard(manifest.parent, path) for path in group["paths"])
            position = 0
            for weight in group["weights"]:
                tensors[weight["name"]], position = _read_tensor(weight, data, position)
            if position != len(data):
                raise CorruptFileError(
                    f"{manifest}: its shards hold {len(data)} bytes, the manifest describes {position}. Fetch both again."
                )
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise CorruptFileError(f"{manifest} is no weights manifest of TF.js ({error}). Fetch it again.") from error
    return tensors


def _shard(folder: Path, name: str) -> bytes:
    path = folder / name
    if Path(name).name != name:
        raise ValueError(f"shard {name!r} lies outside the folder")
    if not path.is_file():
        raise ModelNotFoundError(f"There is no {path}, which the weights manifest beside it names.")
    return path.read_bytes()


def _read_tensor(weight: Mapping[str, Any], data: bytes, position: int) -> tuple[Tensor, int]:
    shape = [int(side) for side in weight["shape"]]
    quantised = weight.get("quantization")
    kind = np.dtype(_TYPES[quantised["dtype"] if quantised else weight["dtype"]])
    end = position + math.prod(shape) * kind.itemsize
    values = np.frombuffer(data[position:end], kind)  # a short read has the wrong count and fails in reshape
    tensor = torch.from_numpy(values.astype(np.float32).reshape(shape))
    if quantised:
        tensor = tensor * float(quantised["scale"]) + float(quantised["min"])
    return tensor, end


@torch.no_grad()
def predict_face_api_landmarks(net: FaceApiLandmarkNet, images: Tensor) -> np.ndarray:
    """68 points [B, 68, 2] as (x, y) in pixels, float64, of faces in FFHQ crops [B, 3, S, S] in [-1, 1].

    The mean of what the net finds in squares of several sizes and in their mirror images. The squares do not depend on
    the picture, so that two pictures of one crop are measured alike.
    """
    size = (images.shape[2], images.shape[3])
    centre = (_REGION_CENTRE[0] * size[1] - 0.5, _REGION_CENTRE[1] * size[0] - 0.5)
    regions = [
        region_transform(centre, _REGION_SIDE * side * size[1], 0.0, size).with_output_size(INPUT_SIZE)
        for side in _TRIALS
    ]
    return np.stack([_look(net, image, regions) for image in images.detach().float().clamp(-1, 1).split(1)])


def _look(net: FaceApiLandmarkNet, image: Tensor, regions: list[CropTransform]) -> np.ndarray:
    crops = torch.cat([align(image, region) for region in regions]).to(next(net.parameters()))
    found = net(torch.cat([crops, crops.flip(-1)])).double().cpu().numpy()
    points = [
        region.crop_to_source((plain + mirror_points(mirrored, INPUT_SIZE)) / 2)
        for region, plain, mirrored in zip(regions, found[: len(regions)], found[len(regions) :], strict=True)
    ]
    return np.mean(points, axis=0)
