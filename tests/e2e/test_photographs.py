"""Pictures as users have them: transparent, painted on, grey, tiny, huge, and in batches where one has no face."""

import shutil

import numpy as np
import pytest
from PIL import Image
from skimage import data

from gan_inversion.core.landmarks import default_weights_path
from gan_inversion.nodes.headless.runner import Runner

from .workflows import core, edited, node

PHOTO = data.astronaut()
MOUTH = (slice(110, 160), slice(190, 260))  # rows, columns
NO_FACE = "no face found, passed through"

finds_faces = pytest.mark.skipif(
    not default_weights_path().is_file(), reason="NO FACES TESTED: the bundled landmark weights are missing"
)


@pytest.fixture
def put(server):
    """Writes a picture into the input folder; gives its name."""

    def write(picture: Image.Image | np.ndarray, name: str, **options) -> str:
        picture = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
        path = server.base / "input" / name
        path.parent.mkdir(exist_ok=True)
        picture.save(path, **options)
        return name

    return write


def painted(selected: tuple[slice, slice]) -> Image.Image:
    """The photograph as ComfyUI's mask editor saves it: transparent where the user painted."""
    alpha = np.full(PHOTO.shape[:2], 255, np.uint8)
    alpha[selected] = 0
    return Image.fromarray(np.dstack((PHOTO, alpha)))


def changed(pixels: np.ndarray, original: np.ndarray = PHOTO) -> np.ndarray:
    """Where a picture is not the original, bit for bit."""
    return (pixels != original).any(-1)


@finds_faces
def test_only_the_crop_changes(server):
    done = server.run(edited())
    (pixels,) = server.pictures(done, "save")
    (report,) = done["outputs"]["report"]["text"]
    assert "found by" in report and NO_FACE not in report
    where = changed(pixels)
    assert where[MOUTH].mean() > 0.5 and not where[400:].any() and not where[:, 450:].any()


@finds_faces
@pytest.mark.parametrize("place", ["painted.png", "clipspace/clipspace-mask-1.png [input]"])
def test_only_what_the_user_painted_changes(server, put, place):
    put(painted(MOUTH), place.removesuffix(" [input]"))
    workflow = edited(place, mask=["photo", 1], mask_on="photo")
    (pixels,) = server.pictures(server.run(workflow), "save")
    where = changed(pixels)
    assert where[MOUTH].mean() > 0.5
    where[MOUTH] = False
    assert not where.any()


@finds_faces
def test_an_opaque_pictures_empty_mask_counts_as_none(server):
    masked = edited(mask=["photo", 1], mask_on="photo")
    with_mask, without = (server.pictures(server.run(workflow), "save")[0] for workflow in (masked, edited()))
    assert (with_mask == without).all() and changed(with_mask).any()


def opaque(mode: str) -> Image.Image:
    """The photograph in a form whose empty mask has the picture's size in some or all versions of ComfyUI."""
    return Image.fromarray(PHOTO).convert(mode)


@finds_faces
@pytest.mark.parametrize("mode", ["RGBA", "P"])
@pytest.mark.parametrize("mask_on", ["crop", "photo"])
def test_an_opaque_pictures_mask_of_its_own_size_counts_as_none(server, put, mode, mask_on):
    name = put(opaque(mode), f"opaque-{mode}.png")
    masked = edited(name, mask=["photo", 1], mask_on=mask_on)
    with_mask, without = (server.pictures(server.run(workflow), "save")[0] for workflow in (masked, edited(name)))
    assert (with_mask == without).all() and changed(with_mask, np.asarray(opaque(mode).convert("RGB")))[MOUTH].any()


@pytest.mark.parametrize("merge", ["union", "intersect", "replace", "subtract"])
def test_an_opaque_pictures_mask_leaves_blends_own_as_it_is(server, put, merge):
    size = {"width": 512, "height": 512}
    workflow = {
        "photo": core("LoadImage", image=put(opaque("RGBA"), "opaque-blend.png")),
        "red": core("EmptyImage", batch_size=1, color=0xFF0000, **size),
        "all": core("SolidMask", value=1.0, **size),
        "blend": node(
            "Blend", source=["photo", 0], image=["red", 0], mask=["all", 0], painted_mask=["photo", 1], merge=merge,
            feather=0.0,
        ),
        "save": core("SaveImage", images=["blend", 0], filename_prefix="blend"),
    }  # fmt: skip
    (pixels,) = server.pictures(server.run(workflow), "save")
    assert (pixels == (255, 0, 0)).all()


@finds_faces
def test_a_painted_mask_joins_a_drawn_one_in_blend(server, put):
    name = put(painted((slice(0, 256), slice(None))), "upper.png")
    size = {"width": 512, "height": 512}
    workflow = {
        "photo": core("LoadImage", image=name),
        "red": core("EmptyImage", batch_size=1, color=0xFF0000, **size),
        "none": core("SolidMask", value=0.0, **size),
        "blend": node(
            "Blend", source=["photo", 0], image=["red", 0], mask=["none", 0], painted_mask=["photo", 1], feather=0.0
        ),
        "save": core("SaveImage", images=["blend", 0], filename_prefix="blend"),
    }
    (pixels,) = server.pictures(server.run(workflow), "save")
    assert (pixels[:256] == (255, 0, 0)).all() and (pixels[256:] == PHOTO[256:]).all()


@finds_faces
def test_an_image_with_an_alpha_channel_is_taken_as_it_looks(server):
    workflow = edited()
    workflow["half"] = core("SolidMask", value=0.5, width=512, height=512)
    workflow["rgba"] = core("JoinImageWithAlpha", image=["photo", 0], alpha=["half", 0])
    workflow["align"]["inputs"]["image"] = workflow["paste"]["inputs"]["photo"] = ["rgba", 0]
    with_alpha, without = (server.pictures(server.run(one), "save")[0] for one in (workflow, edited()))
    assert with_alpha.shape == PHOTO.shape and (with_alpha == without).all()


@finds_faces
@pytest.mark.parametrize("mode", ["L", "LA", "P", "CMYK"])
def test_pictures_of_every_kind(server, put, mode):
    workflow = edited(put(Image.fromarray(PHOTO).convert(mode), f"{mode}." + ("tif" if mode == "CMYK" else "png")))
    # What ComfyUI itself makes of the file: versions round differently.
    workflow["plain"] = core("SaveImage", images=["photo", 0], filename_prefix="plain")
    done = server.run(workflow)
    (pixels,), (original,) = (server.pictures(done, key) for key in ("save", "plain"))
    assert pixels.shape == PHOTO.shape and "found by" in done["outputs"]["report"]["text"][0]
    where = changed(pixels, original)
    assert where[MOUTH].mean() > 0.5 and not where[400:].any()


@finds_faces
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "I;16"])
def test_same_pixels_as_without_comfyui(server, put, tmp_path, monkeypatch, mode):
    if mode == "I;16":
        if server.version < (0, 4):
            pytest.skip("this version of ComfyUI reads grey of 16 bits as nearly white")
        picture = Image.fromarray(np.asarray(Image.fromarray(PHOTO).convert("L")).astype(np.uint16) * 257)
    else:
        picture = painted(MOUTH) if mode == "RGBA" else Image.fromarray(PHOTO).convert(mode)
    with_mask = {"mask": ["photo", 1], "mask_on": "photo"} if mode in ("RGBA", "P") else {}
    workflow = edited(put(picture, f"same-{mode}.png"), **with_mask)
    (pixels,) = server.pictures(server.run(workflow), "save")
    shutil.copytree(server.base / "models" / "stylegan", tmp_path / "models")
    monkeypatch.setenv("GAN_INVERSION_HOME", str(tmp_path))
    (path,) = Runner(input_dir=server.base / "input", output_dir=tmp_path / "out").run(workflow).images
    assert abs(pixels.astype(int) - np.asarray(Image.open(path)).astype(int)).max() <= 2


@finds_faces
def test_a_photograph_that_was_taken_sideways(server, put):
    upright = PHOTO[:, :400]
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to view
    name = put(np.rot90(upright), "sideways.jpg", exif=exif, quality=95)
    done = server.run(edited(name))
    (pixels,) = server.pictures(done, "save")
    assert pixels.shape == upright.shape and "found by" in done["outputs"]["report"]["text"][0]


def test_a_picture_of_16_bits_goes_through_as_comfyui_reads_it(server, put):
    grey = np.asarray(Image.fromarray(PHOTO[:64, :64]).convert("L")).astype(np.uint16) * 257
    workflow = edited(put(grey, "grey-16.png"))
    workflow["plain"] = core("SaveImage", images=["photo", 0], filename_prefix="plain")
    done = server.run(workflow)
    (pixels,), (original,) = (server.pictures(done, key) for key in ("save", "plain"))
    assert pixels.shape == (64, 64, 3) and not changed(pixels, original).any()


@pytest.mark.parametrize("size", [(1, 1), (7, 3), (64, 64), (150, 2), (3, 120)])
def test_pictures_too_small_for_a_face_come_back_unchanged(server, put, size):
    original = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    name = put(original, f"small-{size[0]}-{size[1]}.png")
    done = server.run(edited(name, mask=["photo", 1], mask_on="photo"))
    (pixels,) = server.pictures(done, "save")
    assert (pixels == original).all() and NO_FACE in done["outputs"]["report"]["text"][0]


@finds_faces
def test_a_huge_photograph_keeps_its_size(server, put):
    original = np.full((3000, 4000, 3), 90, np.uint8)
    original[900:2436, 1200:2736] = Image.fromarray(PHOTO).resize((1536, 1536))
    name = put(original, "huge.png", compress_level=1)
    done = server.run(edited(name))
    (pixels,) = server.pictures(done, "save")
    assert "found by" in done["outputs"]["report"]["text"][0]
    where = changed(pixels, original)
    assert pixels.shape == original.shape and where.any() and not where[2500:].any() and not where[:, :1100].any()


@finds_faces
def test_a_batch_with_a_face_in_one_picture_only(server, put):
    face, plain = PHOTO[:256, 96:352], data.coffee()[:256, :256]
    alone = edited(put(face, "face.png"))
    workflow = edited()
    workflow["one"], workflow["two"] = alone["photo"], core("LoadImage", image=put(plain, "plain.png"))
    workflow["photo"] = core("ImageBatch", image1=["one", 0], image2=["two", 0])
    done = server.run(workflow)
    first, second = server.pictures(done, "save")
    told = done["outputs"]["report"]["text"][0].splitlines()
    assert "found by" in told[0] and told[1] == f"Image 2 of 2: {NO_FACE}"
    assert changed(first, face).any() and (second == plain).all()
    (expected,) = server.pictures(server.run(alone), "save")
    assert abs(expected.astype(int) - first.astype(int)).max() <= 1


@finds_faces
def test_a_saved_batch_still_knows_where_it_was_cut(server, put):
    workflow = edited()
    workflow["file"] = node("SaveInversion", inversion=["encode", 0], filename_prefix="batch/of_one")
    workflow["name"] = core("PreviewAny", source=["file", 0])
    done = server.run(workflow)
    (file,) = done["outputs"]["name"]["text"]
    later = edited()
    later["align"] = later["encode"] = None
    later = {key: value for key, value in later.items() if value and key not in ("e", "report")}
    later["load"] = node("LoadInversion", file=file, generator=["g", 0])
    later["slider"]["inputs"]["inversion"], later["paste"]["inputs"]["crop"] = ["load", 0], ["load", 1]
    one, other = (server.pictures(found, "save")[0] for found in (done, server.run(later)))
    assert (one == other).all() and changed(one).any()
