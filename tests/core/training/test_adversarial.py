"""Adversarial training: data, augmentation, losses that move both networks, exact resumption."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from gan_inversion.core.errors import InvalidInputError
from gan_inversion.core.generator import Generator, GeneratorConfig
from gan_inversion.core.training import adversarial, augment
from gan_inversion.core.training import generator as generator_training
from gan_inversion.core.training.augment import AdaptiveAugmentation
from gan_inversion.core.training.images import FolderImages, MorphImages

SMALL = adversarial.AdversarialTraining(
    steps=6,
    batch=4,
    r1_interval=2,
    path_length_interval=3,
    augmentation=AdaptiveAugmentation(target=-2.0, interval=2, images=64.0),  # below every mean sign: always rises
)


def tiny_generator():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Generator(GeneratorConfig(16, (16, 16, 8), 16, 16, 2))


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def anchor_of(bank):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        embedding = generator_training.CodeEmbedding(bank.code_dim, 16).requires_grad_(False)
    settings = generator_training.GeneratorTraining(levels=2)
    return generator_training.portrait_anchor(bank, embedding, 16, settings)


@pytest.mark.parametrize("anchored", [False, True])
@pytest.mark.parametrize("stop_at", [1, 4])
def test_resumes_to_the_same_weights(bank, tmp_path, anchored, stop_at):
    reals, anchor = MorphImages(bank, 16), anchor_of(bank) if anchored else None
    straight = adversarial.train(tiny_generator(), reals, tmp_path / "one", SMALL, anchor=anchor)
    adversarial.train(tiny_generator(), reals, tmp_path / "two", SMALL, anchor=anchor, max_steps=stop_at)
    resumed = adversarial.train(tiny_generator(), reals, tmp_path / "two", SMALL, anchor=anchor)
    assert same(straight[0], resumed[0]) and same(straight[1], resumed[1])
    assert not same(straight[0], tiny_generator())


def test_w_stays_where_an_anchor_is(bank, tmp_path):
    start = tiny_generator()
    anchored, _ = adversarial.train(start, MorphImages(bank, 16), tmp_path / "a", SMALL, anchor=anchor_of(bank))
    assert same(start.mapping, anchored.mapping)
    free, _ = adversarial.train(start, MorphImages(bank, 16), tmp_path / "b", SMALL)
    assert not torch.equal(start.mapping.fc0.weight, free.mapping.fc0.weight)
    assert free.w_avg.abs().sum() > 0  # followed while training


def test_the_discriminator_learns_to_tell(bank, tmp_path):
    settings = dataclasses.replace(
        SMALL, steps=30, generator_rate=0.0, augmentation=None, path_length=0.0, r1_gamma=0.1
    )
    reals = MorphImages(bank, 16)
    generator, discriminator = adversarial.train(tiny_generator(), reals, tmp_path, settings)
    real = reals.draw(8, torch.Generator().manual_seed(5))
    fake = generator(torch.randn(8, 16, generator=torch.Generator().manual_seed(6)), noise="random")
    assert discriminator(real).mean() > discriminator(fake).mean() + 1


def test_augmentation_probability_is_kept_and_logged(bank, tmp_path):
    settings = dataclasses.replace(SMALL, steps=10)
    adversarial.train(tiny_generator(), MorphImages(bank, 16), tmp_path, settings)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert state["probability"] == pytest.approx(10 * 4 / 64)
    assert (tmp_path / "adversarial.csv").read_text().startswith("step,generator,")


def test_probability_stays_between_zero_and_one():
    rule = AdaptiveAugmentation(target=0.6, interval=4, images=1000.0)
    assert rule.adjust(0.5, 0.9, 100) == pytest.approx(0.6)
    assert rule.adjust(0.5, 0.1, 100) == pytest.approx(0.4)
    assert rule.adjust(0.0, 0.1, 100) == 0.0 and rule.adjust(0.99, 0.9, 100) == 1.0


def test_augmentation_zero_changes_nothing_and_a_seed_decides():
    images = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert augment.augment(images, 0.0, torch.Generator()) is images
    once, again = (augment.augment(images, 0.7, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(once, again)
    other = augment.augment(images, 0.7, torch.Generator().manual_seed(4))
    assert (once - other).abs().mean() > 0.05


def test_augmentation_leaves_pictures_that_no_coin_chose():
    images = torch.rand(200, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    changed = augment.augment(images, 0.02, torch.Generator().manual_seed(1))
    untouched = (changed - images).abs().amax(dim=(1, 2, 3)) < 1e-4
    assert 0.55 < untouched.float().mean() < 0.95  # 0.98 to the power of the dozen changes


def test_augmentation_matrices():
    turn = augment._rotation(torch.tensor([0.3]))[0]
    torch.testing.assert_close(turn @ turn.t(), torch.eye(3))
    hue = augment._hue(torch.tensor([0.4]), torch.full((3,), 3**-0.5))[0]
    grey = torch.tensor([0.3, 0.3, 0.3, 1.0])
    torch.testing.assert_close(hue @ grey, grey)  # grey has no hue
    torch.testing.assert_close(torch.linalg.det(hue), torch.tensor(1.0))


def test_gradients_pass_through_the_augmentation():
    images = torch.zeros(2, 3, 16, 16, requires_grad=True)
    augment.augment(images, 1.0, torch.Generator().manual_seed(0)).square().sum().backward()
    assert images.grad.abs().sum() > 0


@pytest.fixture
def folder(tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for index in range(9):
        array = np.full((20 + index, 30, 3), index * 20, np.uint8)
        array[:, : 15 if index else 30] = 255 if index else 0
        Image.fromarray(array).save(pictures / f"{index}.png")
    (pictures / "broken.jpg").write_bytes(b"no picture")
    return pictures


def test_folder_images(folder, tmp_path, caplog):
    images = FolderImages.open(folder, tmp_path / "cache", 16)
    assert len(images) == 9 and "broken.jpg" in caplog.text
    drawn = images.draw(64, torch.Generator().manual_seed(0))
    assert drawn.shape == (64, 3, 16, 16) and drawn.min() >= -1 and drawn.max() <= 1
    assert torch.equal(drawn, images.draw(64, torch.Generator().manual_seed(0)))
    left_brighter = drawn[:, :, :, 0].mean(dim=(1, 2)) > drawn[:, :, :, -1].mean(dim=(1, 2))
    assert 10 < left_brighter.sum() < 54  # half are mirrored
    plain = FolderImages.open(folder, tmp_path / "cache", 16, mirror=False).draw(64, torch.Generator().manual_seed(0))
    assert (plain[:, :, :, 0] >= plain[:, :, :, -1]).all()


def test_folder_cache_follows_the_files(folder, tmp_path):
    cache = tmp_path / "cache"
    FolderImages.open(folder, cache, 16)
    written = (cache / "images-16.npy").stat().st_mtime_ns
    FolderImages.open(folder, cache, 16)
    assert (cache / "images-16.npy").stat().st_mtime_ns == written
    Image.new("RGB", (16, 16), "red").save(folder / "new.png")
    assert len(FolderImages.open(folder, cache, 16)) == 10


def test_folder_errors(tmp_path):
    with pytest.raises(InvalidInputError, match="no such folder"):
        FolderImages.open(tmp_path / "missing", tmp_path, 16)
    (tmp_path / "few").mkdir()
    with pytest.raises(InvalidInputError, match="0 readable pictures"):
        FolderImages.open(tmp_path / "few", tmp_path, 16)


def test_a_run_goes_on_from_an_earlier_generator(bank, tmp_path):
    """The embedding of the earlier run is found again through an encoder that reads its W exactly."""
    settings = dataclasses.replace(
        generator_training.GeneratorTraining(),
        channels=(16, 16, 8), w_dim=16, mapping_layers=2, stages=((16, 4),), batch=4, levels=2,
    )  # fmt: skip
    earlier = generator_training.train(bank, tmp_path / "one", settings)
    _, embedding = generator_training.load_trained(tmp_path / "one", bank)
    rendered = []

    class Bank(type(bank)):
        def render(self, codes, resolution):
            rendered.append(embedding(codes)[:, None])
            return bank.render(codes, resolution)

    watched = Bank(bank.textures, bank.fields, bank.mean_points, bank.point_offsets, bank.people, bank.expressions)
    generator_training.start_from(earlier, lambda image: rendered[-1], watched, tmp_path / "two", settings, samples=400)
    generator, found = generator_training.load_trained(tmp_path / "two", bank)
    codes = bank.draw_codes(16, torch.Generator().manual_seed(3))
    error = (found(codes) - embedding(codes)).square().mean() / embedding(codes).var(dim=0).mean()
    assert error < 1e-3
    assert torch.equal(generator.synthesis.b16.conv1.weight, earlier.synthesis.b16.conv1.weight)
