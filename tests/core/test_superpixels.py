"""Superpixels and means over segments."""

import sys

import pytest
import torch

from gan_inversion.core.errors import InvalidInputError, MissingPackageError
from gan_inversion.core.superpixels import mean_per_segment, superpixels


def halves():
    """Left half dark, right half bright, with a little noise."""
    image = torch.full((2, 3, 32, 32), -0.8)
    image[..., 16:] = 0.8
    return (image + 0.05 * torch.randn(image.shape, generator=torch.Generator().manual_seed(1))).clamp(-1, 1)


def test_segments_are_numbered_and_follow_edges():
    labels = superpixels(halves(), segments=16, sigma=0.0)
    assert labels.shape == (2, 32, 32) and labels.dtype == torch.int64
    for one in labels:
        assert one.unique().tolist() == list(range(int(one.max()) + 1))
        assert 8 <= int(one.max()) + 1 <= 24
        assert not set(one[:, :16].unique().tolist()) & set(one[:, 16:].unique().tolist())


def test_same_picture_same_segments_whatever_the_batch():
    image = halves()
    assert torch.equal(superpixels(image)[1:], superpixels(image[1:]))


def test_mean_per_segment():
    labels = torch.tensor([[[0, 0], [7, 7]], [[3, 4], [3, 4]]])
    values = torch.tensor([[[[1.0, 3.0], [5.0, 9.0]]], [[[1.0, 3.0], [5.0, 9.0]]]])
    means = mean_per_segment(values, labels)
    assert means[:, 0].tolist() == [[[2, 2], [7, 7]], [[3, 6], [3, 6]]]
    assert mean_per_segment(values, labels[:1])[1, 0].tolist() == [[2, 2], [7, 7]]


def test_wrong_input_is_named():
    with pytest.raises(InvalidInputError, match="compactness"):
        superpixels(halves(), compactness=0.0)
    with pytest.raises(InvalidInputError, match="integer labels"):
        mean_per_segment(torch.zeros(2, 1, 4, 4), torch.zeros(2, 4, 4))
    with pytest.raises(InvalidInputError, match="same height"):
        mean_per_segment(torch.zeros(2, 1, 4, 4), torch.zeros(2, 5, 4, dtype=torch.long))


def test_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage.segmentation", None)
    with pytest.raises(MissingPackageError, match="scikit-image"):
        superpixels(halves())
