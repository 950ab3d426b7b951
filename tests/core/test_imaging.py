"""Files, PIL, uint8 and tensors: conversions are exact, and what is no picture is refused in plain words."""

import numpy as np
import pytest
import torch
from PIL import Image

from gan_inversion.core.errors import InvalidInputError, NotFiniteError
from gan_inversion.core.imaging import (
    area_pool,
    check_image,
    from_pil,
    from_uint8,
    load_image,
    load_image_with_alpha,
    resize_antialiased,
    save_image,
    to_pil,
    to_uint8,
)


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (2, 17, 23, 3), dtype=np.uint8)


def test_uint8_round_trip_is_exact_for_every_level():
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    tensor = from_uint8(levels)
    assert tensor.shape == (1, 3, 16, 16) and tensor.min() == -1.0 and tensor.max() == 1.0
    assert np.array_equal(to_uint8(tensor)[0, :, :, 1].numpy(), levels)


def test_channels_and_axes_keep_their_places(pixels):
    tensor = from_uint8(pixels)
    assert tensor.shape == (2, 3, 17, 23)
    assert np.allclose(tensor[1, 2, 5, 7], pixels[1, 5, 7, 2] / 127.5 - 1)


def test_rounding_is_the_default_and_truncation_a_choice():
    image = torch.full((1, 3, 1, 1), 100.7 / 127.5 - 1)
    assert to_uint8(image).unique().tolist() == [101]
    assert to_uint8(image, truncate=True).unique().tolist() == [100]
    assert to_uint8(image * 1000).unique().tolist() == [0]


def test_pil_round_trip(pixels):
    pictures = to_pil(from_uint8(pixels))
    assert [picture.size for picture in pictures] == [(23, 17)] * 2
    assert torch.equal(from_pil(pictures[1]), from_uint8(pixels[1]))


def test_load_applies_exif_orientation(tmp_path, pixels):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held so that the stored picture must turn by 90 degrees clockwise
    Image.fromarray(pixels[0]).save(tmp_path / "turned.png", exif=exif)
    assert torch.equal(load_image(tmp_path / "turned.png"), from_uint8(np.rot90(pixels[0], -1).copy()))


def test_load_composites_transparency_on_white_and_returns_alpha(tmp_path):
    colours = np.zeros((2, 2, 4), dtype=np.uint8)
    colours[..., 0] = 200
    colours[..., 3] = [[0, 255], [128, 255]]
    Image.fromarray(colours).save(tmp_path / "alpha.png")
    image, alpha = load_image_with_alpha(tmp_path / "alpha.png")
    assert alpha is not None and alpha.shape == (1, 1, 2, 2)
    assert torch.allclose(alpha[0, 0], torch.tensor([[0, 1], [128 / 255, 1]]))
    assert to_uint8(image)[0, 0, 0].tolist() == [255, 255, 255]
    assert to_uint8(image)[0, 0, 1].tolist() == [200, 0, 0]
    assert torch.equal(load_image(tmp_path / "alpha.png"), image)


def test_load_grey_and_sixteen_bit_pictures(tmp_path):
    grey = np.linspace(0, 255, 64).astype(np.uint8).reshape(8, 8)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    for name in ("grey.png", "deep.png"):
        image, alpha = load_image_with_alpha(tmp_path / name)
        assert alpha is None and np.array_equal(to_uint8(image)[0, :, :, 0].numpy(), grey), name


@pytest.mark.parametrize("brightest", [3, 200, 255])
def test_dark_deep_pictures_stay_dark(tmp_path, brightest):
    """The mode says how deep a picture is, not its brightest pixel."""
    levels = np.linspace(0, brightest, 64).reshape(8, 8)
    Image.fromarray(levels.astype(np.uint16)).save(tmp_path / "dark.png")
    assert to_uint8(load_image(tmp_path / "dark.png")).max() <= 1
    assert to_uint8(from_pil(Image.fromarray(levels.astype(np.uint16)))).max() <= 1
    with Image.open(tmp_path / "dark.png") as picture:
        assert to_uint8(from_pil(picture)).max() <= 1


def test_white_of_each_deep_mode(tmp_path):
    grey = np.linspace(0, 255, 64).astype(np.uint8).reshape(8, 8)
    deep = {
        "16.tif": grey.astype(np.uint16) * 257,
        "32.tif": grey.astype(np.int32) * 257,
        "f.tif": grey / np.float32(255),
    }
    for name, values in deep.items():
        Image.fromarray(values).save(tmp_path / name)
        assert np.array_equal(to_uint8(load_image(tmp_path / name))[0, :, :, 0].numpy(), grey), name
        with Image.open(tmp_path / name) as picture:
            assert torch.equal(from_pil(picture), load_image(tmp_path / name)), name
    for mode in ("I", "F"):
        assert np.array_equal(to_uint8(from_pil(Image.fromarray(grey).convert(mode)))[0, :, :, 0].numpy(), grey), mode
    Image.fromarray(np.full((4, 4), np.nan, dtype=np.float32)).save(tmp_path / "nan.tif")
    with pytest.raises(NotFiniteError, match="The picture contains NaN"):
        load_image(tmp_path / "nan.tif")


def test_what_is_no_picture_is_refused(tmp_path, pixels):
    (tmp_path / "page.png").write_text("<!DOCTYPE html><html>404</html>")
    with pytest.raises(InvalidInputError, match=r"page\.png is not a picture that can be read"):
        load_image(tmp_path / "page.png")
    with pytest.raises(InvalidInputError, match=r"There is no picture at .*missing\.png"):
        load_image(tmp_path / "missing.png")
    Image.fromarray(pixels[0]).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:300])
    with pytest.raises(InvalidInputError, match=r"cut\.png is not a picture"):
        load_image(tmp_path / "cut.png")


def test_save_then_load_is_exact(tmp_path, pixels):
    image = from_uint8(pixels[0])
    save_image(image, tmp_path / "deeper" / "image.png")
    assert torch.equal(load_image(tmp_path / "deeper" / "image.png"), image)
    with pytest.raises(InvalidInputError, match="Got 2 images for the one file"):
        save_image(from_uint8(pixels), tmp_path / "two.png")


@pytest.mark.parametrize("name", ["x.foo", "x", "x.psd", "x.xbm", ".png"])
def test_suffixes_of_no_picture_format_are_refused(tmp_path, pixels, name):
    with pytest.raises(InvalidInputError, match=r"Use \.png, \.jpg or \.webp"):
        save_image(from_uint8(pixels[0]), tmp_path / "folder" / name)
    assert not list(tmp_path.rglob("*.part")) and not (tmp_path / "folder" / name).exists()


@pytest.mark.parametrize("name", ["x.jpg", "x.JPEG", "x.webp", "x.bmp", "x.tiff"])
def test_the_suffix_decides_the_format(tmp_path, pixels, name):
    save_image(from_uint8(pixels[0]), tmp_path / name)
    with Image.open(tmp_path / name) as picture:
        assert (
            picture.format
            == {"jpg": "JPEG", "peg": "JPEG", "ebp": "WEBP", "bmp": "BMP", "iff": "TIFF"}[name.lower()[-3:]]
        )


def test_check_image_names_what_is_wrong():
    good = torch.zeros(2, 3, 4, 4)
    assert check_image(good) is good
    broken = good.clone()
    broken[1, 0, 2, 2] = float("nan")
    with pytest.raises(NotFiniteError, match="portrait contains NaN or infinity in batch item 1"):
        check_image(broken, "portrait")
    with pytest.raises(InvalidInputError, match=r"shape \(3, 4, 4\); expected \[B, 3, H, W\]"):
        check_image(good[0])
    with pytest.raises(InvalidInputError, match=r"shape \(2, 4, 4, 3\)"):
        check_image(good.permute(0, 2, 3, 1))
    with pytest.raises(InvalidInputError, match="holds no pixels"):
        check_image(good[:0])
    with pytest.raises(InvalidInputError, match="torch.uint8"):
        check_image(good.to(torch.uint8))
    with pytest.raises(InvalidInputError, match="expected a torch tensor"):
        check_image(np.zeros((1, 3, 4, 4)))


@pytest.mark.parametrize(("mode", "filter_"), [("bilinear", 2), ("bicubic", 3), ("lanczos", 1)])
@pytest.mark.parametrize("size", [(9, 11), (40, 31), (17, 6)])
def test_resize_follows_pil(pixels, mode, filter_, size):
    smooth = resize_antialiased(from_uint8(pixels[:1]), (60, 70), "bicubic").clamp(-1, 1)
    bands = [Image.fromarray(band) for band in smooth[0].numpy()]  # float bands: PIL then rounds nothing
    expected = np.stack([np.asarray(band.resize(size[::-1], Image.Resampling(filter_))) for band in bands])
    assert np.abs(resize_antialiased(smooth, size, mode)[0].numpy() - expected).max() < 2e-5


def test_resize_keeps_equal_sizes_untouched_and_refuses_bad_ones():
    image = torch.rand(1, 3, 8, 8)
    assert resize_antialiased(image, 8) is image
    with pytest.raises(InvalidInputError, match="Unknown resize mode 'nearest'"):
        resize_antialiased(image, 4, "nearest")
    with pytest.raises(InvalidInputError, match=r"Size \(0, 4\) is empty"):
        resize_antialiased(image, (0, 4))


def test_area_pool_is_the_mean_of_blocks():
    image = torch.arange(16.0).view(1, 1, 4, 4)
    assert torch.equal(area_pool(image, 2)[0, 0], torch.tensor([[2.5, 4.5], [10.5, 12.5]]))
