"""Reader and network of face-api.js's landmark weights; the real ones are used where the photographs are."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from gan_inversion.core import face_api_landmarks as face_api
from gan_inversion.core.errors import CorruptFileError, ModelNotFoundError, UnsupportedModelError

SHARED = Path(os.environ.get("GAN_INVERSION_SHARED", Path(__file__).resolve().parents[2].parent / "shared")) / "data"
MANIFEST = f"{face_api.MODEL_NAME}-weights_manifest.json"
SHARD = f"{face_api.MODEL_NAME}-shard1"


def write(folder, tensors, quantised=True):
    """A manifest and its shard, in the manner of TF.js."""
    weights, data = [], b""
    for name, tensor in tensors.items():
        weight = {"name": name, "shape": list(tensor.shape), "dtype": "float32"}
        values = tensor.numpy()
        if quantised:
            low, high = float(values.min()), float(values.max())
            scale = (high - low) / 255 or 1.0
            weight["quantization"] = {"dtype": "uint8", "scale": scale, "min": low}
            data += np.rint((values - low) / scale).astype("u1").tobytes()
        else:
            data += values.astype("<f4").tobytes()
        weights.append(weight)
    (folder / MANIFEST).write_text(json.dumps([{"weights": weights, "paths": [SHARD]}]))
    (folder / SHARD).write_bytes(data)


def random_tensors():
    torch.manual_seed(0)
    tensors = {}
    for name, value in face_api.FaceApiLandmarkNet().state_dict().items():
        source = face_api._tfjs_name(name)
        if source.endswith("depthwise_filter"):
            value = value.permute(2, 3, 0, 1)
        elif value.ndim == 4:
            value = value.permute(2, 3, 1, 0)
        elif value.ndim == 2:
            value = value.T
        tensors[source] = value.contiguous()
    return tensors


def test_reads_quantised_and_plain_tensors(tmp_path):
    tensors = {"a": torch.linspace(-1, 2, 12).reshape(3, 4), "b": torch.tensor([0.5])}
    for quantised, tolerance in ((True, 3 / 255 / 2 + 1e-6), (False, 0)):
        write(tmp_path, tensors, quantised)
        found = face_api.read_tfjs_weights(tmp_path / MANIFEST)
        assert list(found) == ["a", "b"]
        for name, value in tensors.items():
            assert found[name].shape == value.shape and (found[name] - value).abs().max() <= tolerance


def test_loads_the_whole_network(tmp_path):
    tensors = random_tensors()
    assert len(tensors) == 49 and tensors["dense0/conv0/filters"].shape == (3, 3, 3, 32)
    assert tensors["dense3/conv0/depthwise_filter"].shape == (3, 3, 128, 1) and tensors["fc/weights"].shape == (
        256,
        136,
    )
    write(tmp_path, tensors, quantised=False)
    net = face_api.load_face_api_landmarks(tmp_path)
    torch.testing.assert_close(net.blocks[1].convs[2].pointwise.weight[3, 5, 0, 0],
                               tensors["dense1/conv2/pointwise_filter"][0, 0, 5, 3])  # fmt: skip
    points = net(torch.zeros(2, 3, 112, 112))
    assert points.shape == (2, 68, 2) and torch.equal(points[0], points[1])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda t: t.pop("fc/bias"), UnsupportedModelError, "no tensor 'fc/bias'"),
        (lambda t: t.update(extra=torch.zeros(1)), UnsupportedModelError, "unknown tensor 'extra'"),
        (lambda t: t.update({"fc/bias": torch.zeros(3)}), UnsupportedModelError, "'fc/bias' has shape"),
    ],
)
def test_refuses_other_networks(tmp_path, change, error, message):
    tensors = random_tensors()
    change(tensors)
    write(tmp_path, tensors)
    with pytest.raises(error, match=message):
        face_api.load_face_api_landmarks(tmp_path)


def test_refuses_damaged_files(tmp_path):
    with pytest.raises(ModelNotFoundError, match="expected a folder"):
        face_api.load_face_api_landmarks(tmp_path)
    write(tmp_path, {"a": torch.arange(8.0)})
    data = (tmp_path / SHARD).read_bytes()
    for wrong in (data[:-1], data + b"x"):
        (tmp_path / SHARD).write_bytes(wrong)
        with pytest.raises(CorruptFileError):
            face_api.read_tfjs_weights(tmp_path / MANIFEST)
    (tmp_path / SHARD).unlink()
    with pytest.raises(ModelNotFoundError, match="shard1"):
        face_api.read_tfjs_weights(tmp_path / MANIFEST)
    for text in ("<html>", "{}", '[{"weights": [], "paths": ["../secret"]}]', "[1]"):
        (tmp_path / MANIFEST).write_text(text)
        if text != "{}":
            with pytest.raises(CorruptFileError, match="no weights manifest"):
                face_api.read_tfjs_weights(tmp_path / MANIFEST)


def test_stride_two_pads_like_tensorflow():
    conv = face_api._Separable(1, 1, 2)
    with torch.no_grad():
        conv.depthwise.weight.zero_()
        conv.depthwise.weight[0, 0, 0, 0] = 1  # the top left of each window
        conv.pointwise.weight.fill_(1)
        conv.pointwise.bias.zero_()
    x = torch.arange(16.0).view(1, 1, 4, 4)
    torch.testing.assert_close(conv(x), x[..., ::2, ::2])


def test_mirrored_pictures_have_mirrored_points(tmp_path):
    from gan_inversion.core.landmarks import mirror_points

    write(tmp_path, random_tensors())
    net = face_api.load_face_api_landmarks(tmp_path)
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    plain, mirrored = face_api.predict_face_api_landmarks(net, torch.cat((image, image.flip(-1))))
    np.testing.assert_allclose(plain, mirror_points(mirrored, 64), atol=1e-3)


def test_mouth_corners_of_real_people():
    from gan_inversion.core.alignment import CropTransform, align
    from gan_inversion.core.imaging import load_image
    from gan_inversion.core.training.portraits import FIVE_OF_189

    portraits = SHARED / "portraits"
    if not (SHARED / "nets" / "face_api" / MANIFEST).is_file() or not portraits.is_dir():
        pytest.skip("the shared photographs and networks are not here")
    net = face_api.load_face_api_landmarks(SHARED / "nets" / "face_api")
    marks = json.loads((portraits / "landmarks.json").read_text())
    for name in ("neutral/003", "canada/113m"):
        photograph, five = load_image(portraits / f"{name}.jpg"), np.array(marks[name])[list(FIVE_OF_189)]
        crop = CropTransform.from_landmarks(five, tuple(photograph.shape[2:]), 128)
        (points,) = face_api.predict_face_api_landmarks(net, align(photograph, crop))
        expected = crop.source_to_crop(five)
        eyes = np.hypot(*(expected[1] - expected[0]))
        assert np.hypot(*(points[[48, 54]] - expected[3:]).T).max() < 0.08 * eyes
