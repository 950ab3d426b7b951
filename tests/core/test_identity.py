"""The identity embedding: what it must not see, what it hands back, and that the bundled one knows people apart."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import gan_inversion as gi
from gan_inversion.core.errors import InvalidInputError, UnsupportedModelError
from gan_inversion.core.identity import (
    IdentityConfig,
    IdentityNet,
    face_window,
    identity_distance,
    identity_similarity,
)
from gan_inversion.core.imaging import resize_antialiased
from gan_inversion.model_registry import load_model, save_model

BUNDLED = Path(gi.__file__).parent / "model_registry" / "bundled"
SMALL = IdentityConfig(widths=(4, 6, 8, 10), dim=12)


def random_net(config: IdentityConfig = SMALL, seed: int = 0) -> IdentityNet:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = IdentityNet(config).train()
        for name, tensor in net.state_dict().items():
            if tensor.ndim == 1 and name.endswith("weight"):
                tensor.uniform_(0.5, 1.5)
        with torch.no_grad():
            for number in range(10):  # so that the statistics fit the weights, and pictures differ
                net(pictures(16, size=96, seed=100 + number))
    return net.eval()


def pictures(count: int = 2, size: int = 128, seed: int = 1) -> torch.Tensor:
    """Smooth random pictures in the middle half of the range, so that light can change without clipping."""
    coarse = torch.rand(count, 3, 12, 12, generator=torch.Generator().manual_seed(seed))
    return resize_antialiased(coarse - 0.5, size, "bicubic").clamp(-0.9, 0.9)


@pytest.mark.parametrize("size", [32, 96, 128, 200])
def test_embeddings_have_length_one_at_every_size(size):
    found = random_net()(pictures(size=size))
    assert found.shape == (2, 12) and found.dtype == torch.float32
    assert torch.allclose(found.norm(dim=1), torch.ones(2), atol=1e-5)


def test_the_same_picture_larger_is_the_same_person():
    net, image = random_net(), pictures(size=96)
    assert identity_similarity(net, image, resize_antialiased(image, 192)).min() > 0.99


def test_exposure_and_contrast_do_not_matter():
    net, image = random_net(), pictures()
    assert torch.allclose(net(0.6 * image - 0.3), net(image), atol=2e-3)
    warmer = image * torch.tensor([1.0, 1.0, 0.3])[:, None, None]
    assert not torch.allclose(net(warmer), net(image), atol=2e-3)


def test_what_surrounds_the_face_does_not_matter():
    image = pictures()
    other = image.clone()
    other[..., :28, :] = 0.9  # hair
    other[..., :20] = -0.9
    other[..., -20:] = -0.9
    assert torch.allclose(face_window(other), face_window(image), atol=1e-5)
    mouth = image.clone()
    mouth[..., 85:95, 50:78] = 0.9
    assert not torch.allclose(face_window(mouth), face_window(image), atol=0.1)


def test_a_flat_picture_gives_no_noise():
    window = face_window(torch.full((1, 3, 64, 64), 0.3))
    assert window.shape == (1, 3, 64, 64) and window.abs().max() < 1e-3


def test_gradient_reaches_the_face_alone():
    net = random_net().requires_grad_(False)
    image = pictures(1).requires_grad_(True)
    identity_distance(net)(image, pictures(1, seed=2)).sum().backward()
    assert image.grad[..., 60:90, 50:80].abs().min() > 0
    assert image.grad[..., :16].abs().max() == 0


def test_distance_is_none_to_itself_and_leaves_the_target_alone():
    net, target = random_net(), pictures(seed=3).requires_grad_(True)
    distance = identity_distance(net)(target.detach(), target)
    assert distance.shape == (2,) and distance.abs().max() < 1e-5
    (distance.sum() + 0 * target.sum()).backward()
    assert target.grad.abs().max() == 0


def test_one_picture_is_compared_with_many():
    net, image = random_net(), pictures(3)
    found = identity_similarity(net, image[:1], image)
    assert found.shape == (3,) and found[0] > 0.999 and found[1:].max() < 0.999
    with pytest.raises(InvalidInputError, match="batches of 2 and 3"):
        identity_similarity(net, image[:2], image)


@pytest.mark.parametrize("shape", [(1, 3, 64, 80), (1, 1, 64, 64), (3, 64, 64), (1, 3, 24, 24)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(InvalidInputError, match="expected FFHQ crops"):
        random_net()(torch.zeros(shape))


@pytest.mark.parametrize("config", [SMALL, IdentityConfig((8, 5, 7, 3), 20, domain="other")])
def test_files_give_the_same_network_back(tmp_path, config):
    net = random_net(config)
    loaded = load_model(save_model(net, tmp_path / "a.safetensors"))
    assert loaded.architecture == "identity" and loaded.module.config == config and loaded.domain == config.domain
    assert torch.equal(loaded.module(pictures()), net(pictures()))
    half = load_model(save_model(net, tmp_path / "b.safetensors", dtype=torch.float16)).module
    assert identity_similarity(half, pictures(), pictures()).min() > 0.999
    assert torch.allclose(half(pictures()), net(pictures()), atol=0.01)


def test_files_that_do_not_fit_are_named(tmp_path):
    tensors = random_net().state_dict()
    for name, message in (
        ("down_8.0.weight", "without down_8.0.weight"),
        ("residual_8.first.0.weight", "lacks residual"),
    ):
        with pytest.raises(UnsupportedModelError, match=message):
            load_model(_written({k: v for k, v in tensors.items() if k != name}, tmp_path / "a.safetensors"))
    tensors["stem.0.weight"] = tensors["stem.0.weight"].flatten()
    with pytest.raises(UnsupportedModelError, match=r"stem\.0\.weight of shape \(108,\)"):
        load_model(_written(tensors, tmp_path / "a.safetensors"))


def _written(tensors: dict[str, torch.Tensor], path: Path) -> Path:
    from safetensors.torch import save_file

    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path


def test_the_bundled_embedding_knows_generated_people_apart():
    """A smile and another light leave a person, another code makes another one."""
    path = BUNDLED / "portraits-identity.safetensors"
    assert path.stat().st_size < 1_000_000
    net = load_model(path).module
    generator = load_model(BUNDLED / "portraits.safetensors").module
    smile = gi.load_direction(BUNDLED / "portraits-smile.safetensors")
    with torch.no_grad():
        w = generator.mapping(torch.randn(6, generator.config.z_dim, generator=torch.Generator().manual_seed(4)))
        plain = generator.synthesis(generator.broadcast(w))
        inversion = gi.Inversion(plain, generator.broadcast(w), generator)
        smiling = gi.render(inversion, gi.Edit.of(smile, 1.0))
        cosines = net(plain) @ net((smiling + 1) * 0.7 - 1).t()
    own = torch.eye(6, dtype=torch.bool)
    assert cosines[own].mean() > cosines[~own].mean() + 0.3
    assert (cosines.argmax(dim=1) == torch.arange(6)).all()
