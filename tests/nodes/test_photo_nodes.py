"""Align Face, Blend and Paste Back: photographs in, photographs out."""

import numpy as np
import pytest
import torch

from gan_inversion.core.alignment import CropTransform
from gan_inversion.core.errors import InvalidInputError
from gan_inversion.nodes import align_face
from gan_inversion.nodes._types import CropsWire

FIVE = np.array([[17.0, 21.0], [23.0, 21.0], [20.0, 24.0], [17.5, 27.0], [22.5, 27.0]])
FAR = FIVE * 0.5 + 1  # half as large, in the upper left


def faces(*frames):
    return {"frames": [[{"landmarks_xy": points} for points in frame] for frame in frames], "image_size": (48, 40)}


def test_align_with_landmarks_and_one_frame_without_a_face(run, photo):
    before = photo.clone()
    aligned, crop, footprint, report = run("AlignFace", image=photo, size=32, face_landmarks=faces([FIVE, FAR], []))
    assert aligned.shape == (2, 32, 32, 3) and footprint.shape == (2, 48, 40) and torch.equal(photo, before)
    assert isinstance(crop.crops[0], CropTransform) and crop.crops[1] is None
    assert footprint[0].max() == 1 and footprint[0, 0, 0] == 0 and not footprint[1].any()
    lines = report.splitlines()
    assert "1 of 2, found by landmarks" in lines[0] and lines[1] == "Image 2 of 2: no face found, passed through"
    assert lines[2] == "1 of 2 images have a face; 1 passed through as they were."
    torch.testing.assert_close(aligned[1, 16, 16], photo[1, 24, 20], atol=0.05, rtol=0)


def test_align_uses_the_generators_size_and_the_chosen_face(run, photo, generator):
    given = faces([FIVE, FAR])
    small = run("AlignFace", image=photo[:1], size=64, generator=generator, choose="left", face_landmarks=given)
    assert small[0].shape == (1, 32, 32, 3)
    large = run("AlignFace", image=photo[:1], size=64, choose="largest", face_landmarks=given)
    assert small[1].crops[0].side < large[1].crops[0].side
    missing = run("AlignFace", image=photo[:1], size=64, choose="left", index=2, face_landmarks=given)
    assert missing[1].crops == (None,) and "no face number 2, only 2" in missing[3]


@pytest.mark.parametrize("channels", [1, 4])
def test_align_takes_grey_and_alpha(run, channels):
    image = torch.rand(1, 48, 40, channels)
    assert run("AlignFace", image=image, size=32, face_landmarks=faces([FIVE]))[0].shape == (1, 32, 32, 3)


def test_boxes_of_other_nodes_in_every_layout(monkeypatch, run, photo):
    seen = []
    monkeypatch.setattr(align_face, "face_from_bounding_box", lambda image, box: seen.append((len(image), box)))
    box = {"x": 1, "y": 2, "width": 3, "height": 4}
    sides = (1, (1, 2, 3, 4))
    for given, count in ((box, 2), ([box, box], 2), ([[box, box], []], 2), ([[box]], 2)):
        seen.clear()
        run("AlignFace", image=photo, size=32, bounding_box=given)
        assert seen == [sides] * count
    with pytest.raises(InvalidInputError, match="'bounding_box' is a list of 3"):
        run("AlignFace", image=photo, size=32, bounding_box=[box] * 3)
    with pytest.raises(InvalidInputError, match="'face_landmarks'"):
        run("AlignFace", image=photo, size=32, face_landmarks={"frames": None})


def test_no_boxes_at_all_mean_no_face_in_any_frame(run, photo):
    for count in (1, 2):
        for given in ({"bounding_box": []}, {"face_landmarks": []}, {"face_landmarks": {"frames": []}}):
            _, crop, _, report = run("AlignFace", image=photo[:count], size=32, **given)
            assert crop.crops == (None,) * count and report.count("no face found, passed through") == count


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ({"x": 1, "y": 2, "width": 3}, "box 1 has no 'height'"),
        ({"x": 1, "y": 2, "width": 0, "height": 4}, "width 0"),
        ({"x": 100, "y": 2, "width": 3, "height": 4}, "does not touch the 48x40"),
        ({"x": 1, "y": 2, "width": 1e30, "height": 4}, "does not fit a picture of 40x48"),
        ({"x": float("nan"), "y": 2, "width": 3, "height": 4}, "x nan"),
        ({"x": "a", "y": 2, "width": 3, "height": 4}, "could not convert"),
        ({"x": None, "y": 2, "width": 3, "height": 4}, "box 1 cannot be used"),
        ("face", "box 1 cannot be used"),
        (None, "passed through"),
    ],
)
def test_a_bad_box_leaves_one_frame_without_a_face(run, photo, monkeypatch, box, reason):
    real = align_face.face_from_bounding_box

    def find(image, sides):
        return align_face.face_from_landmarks(FIVE) if sides == (15, 15, 10, 15) else real(image, sides)

    monkeypatch.setattr(align_face, "face_from_bounding_box", find)
    good = {"x": 15, "y": 15, "width": 10, "height": 15}
    aligned, crop, footprint, report = run("AlignFace", image=photo, size=32, bounding_box=[box, good])
    assert aligned.shape == (2, 32, 32, 3) and crop.crops[0] is None and crop.crops[1] is not None
    first, second, counted = report.splitlines()
    assert "no face found, passed through" in first and reason in first and "found by" in second
    assert counted.startswith("1 of 2 images have a face")
    assert torch.equal(run("PasteBack", photo=photo, edited=1 - aligned, crop=crop)[0][0], photo[0])
    assert run("AlignFace", image=photo[:1], size=32, bounding_box=[[box]])[1].crops == (None,)


@pytest.mark.parametrize(
    ("face", "reason"),
    [
        ({"points": FIVE}, "landmarks 1 has no 'landmarks_xy'"),
        ({"landmarks_xy": FIVE[:4]}, "Got 4 landmarks"),
        ({"landmarks_xy": FIVE * np.nan}, "NaN"),
        ({"landmarks_xy": FIVE[[1, 0, 2, 4, 3]]}, "do not form a face"),
        ({"landmarks_xy": FIVE + 1000}, "wholly outside the 48x40"),
        ({"landmarks_xy": (FIVE - 20) * 1e8}, "does not fit a picture of 40x48"),
        ({"landmarks_xy": None}, "Points have shape"),
        (7, "landmarks 1 cannot be used"),
    ],
)
def test_bad_landmarks_leave_one_frame_without_a_face(run, photo, face, reason):
    given = {"frames": [[face], [{"landmarks_xy": FIVE}]]}
    _, crop, footprint, report = run("AlignFace", image=photo, size=32, face_landmarks=given)
    assert crop.crops[0] is None and crop.crops[1] is not None and not footprint[0].any()
    assert "no face found, passed through" in report.splitlines()[0] and reason in report.splitlines()[0]


def test_a_bad_face_does_not_hide_a_good_one(run, photo):
    given = {"frames": [[{}, {"landmarks_xy": FIVE}]]}
    _, crop, _, report = run("AlignFace", image=photo[:1], size=32, face_landmarks=given)
    assert crop.crops[0] is not None and "1 of 1, found by landmarks" in report and "has no 'landmarks_xy'" in report
    alone = run("AlignFace", image=photo[:1], size=32, face_landmarks={"landmarks_xy": FIVE})[1]
    assert alone.crops == crop.crops


@pytest.mark.parametrize("given", [5, "face", [1, 2], ["a", "b"]])
def test_faces_of_a_wrong_type_are_refused(run, photo, given):
    for name in ("bounding_box", "face_landmarks"):
        with pytest.raises(InvalidInputError, match=f"Input '{name}' is .*expected faces for 2 image"):
            run("AlignFace", image=photo, size=32, **{name: given})


@pytest.mark.parametrize("side", [64, 32, 48])  # LoadImage's without an alpha channel, the crop's, the photograph's
def test_an_entirely_empty_mask_counts_as_none(run, side):
    photo, empty = torch.rand(1, 48, 48, 3), torch.zeros(1, side, side)
    aligned, crop, *_ = run("AlignFace", image=photo, size=32, face_landmarks=faces([FIVE]))
    options = {"photo": photo, "edited": 1 - aligned, "crop": crop}
    whole, used = run("PasteBack", **options)
    assert not torch.equal(whole, photo)
    for mask_on in ("crop", "photo"):
        pasted, where = run("PasteBack", mask=empty, mask_on=mask_on, **options)
        assert torch.equal(pasted, whole) and torch.equal(where, used)
    first = torch.zeros(1, 48, 48)
    first[:, 20:] = 1
    for merge in ("union", "intersect", "replace", "subtract"):
        options = {"source": photo, "image": 1 - photo, "mask": first, "feather": 0.0}
        _, used = run("Blend", painted_mask=empty, merge=merge, **options)
        assert torch.equal(used, first)
    assert not run("Blend", source=photo, image=1 - photo, mask=empty)[1].any()


def test_an_empty_mask_among_painted_ones_is_kept(run):
    photo, masks = torch.rand(2, 48, 48, 3), torch.zeros(2, 48, 48)
    masks[1] = 1
    aligned, crop, *_ = run("AlignFace", image=photo, size=32, face_landmarks=faces([FIVE], [FIVE]))
    pasted, _ = run("PasteBack", photo=photo, edited=1 - aligned, crop=crop, mask=masks, mask_on="photo")
    assert torch.equal(pasted[0], photo[0]) and not torch.equal(pasted[1], photo[1])


def test_a_search_for_faces_stops_at_an_interrupt(run, monkeypatch):
    class Stopped(Exception):
        pass

    def stop():
        raise Stopped

    monkeypatch.setattr(align_face, "check_interrupt", stop)
    with pytest.raises(Stopped):
        run("AlignFace", image=torch.rand(1, 48, 48, 3), detector="cascade")


def test_real_photograph_without_any_download(run, monkeypatch):
    from skimage import data

    from gan_inversion.core.landmarks import default_weights_path

    if not default_weights_path().is_file():
        pytest.skip("the bundled landmark weights are missing")
    photo = torch.from_numpy(data.astronaut()).float()[None] / 255
    monkeypatch.setattr(align_face, "_yunet_file", lambda: None)
    aligned, crop, _, report = run("AlignFace", image=photo, size=64)
    assert aligned.shape == (1, 64, 64, 3) and "cascade" in crop.crops[0].detector
    assert "found by cascade" in report and "yunet" in report
    x, y = crop.crops[0].crop_to_source((31.5, 31.5))
    assert abs(x - 222) < 20 and abs(y - 112) < 25


def test_paste_back_leaves_everything_outside_untouched(run):
    photo = torch.rand(2, 48, 40, 3)
    before = photo.clone()
    aligned, crop, footprint, _ = run("AlignFace", image=photo, size=32, face_landmarks=faces([FAR], []))
    pasted, mask = run("PasteBack", photo=photo, edited=1 - aligned, crop=crop)
    assert torch.equal(photo, before) and pasted.shape == photo.shape
    outside = (footprint == 0)[..., None].expand_as(photo)
    assert torch.equal(pasted[outside], photo[outside]) and torch.equal(pasted[1], photo[1])
    assert (pasted[0] - photo[0]).abs().max() > 0.1 and torch.equal(mask, footprint)


def test_paste_back_of_only_the_change(run):
    photo = torch.rand(1, 48, 40, 3)
    aligned, crop, *_ = run("AlignFace", image=photo, size=32, face_landmarks=faces([FIVE]))
    drawn = torch.rand_like(aligned)
    assert torch.equal(run("PasteBack", photo=photo, edited=drawn, crop=crop, unedited=drawn)[0], photo)
    changed = run("PasteBack", photo=photo, edited=(drawn + 0.1).clamp(0, 1), crop=crop, unedited=drawn)[0]
    assert 0 < (changed - photo).abs().max() < 0.3


@pytest.mark.parametrize("mask_on", ["crop", "photo"])
def test_paste_back_only_where_an_odd_sized_painted_mask_allows(run, photo, mask_on):
    aligned, crop, footprint, _ = run("AlignFace", image=photo, size=32, face_landmarks=faces([FAR], [FAR]))
    mask = torch.zeros(37, 53)
    mask[:, :14] = 1
    options = {"photo": photo, "edited": torch.ones_like(aligned), "crop": crop, "mask_on": mask_on}
    pasted, used = run("PasteBack", mask=mask, **options)
    whole, _ = run("PasteBack", **options)
    assert torch.equal(pasted[used == 0], photo[used == 0])
    assert 0 < (pasted != photo).sum() < (whole != photo).sum()
    empty = torch.zeros(1, 64, 64)  # what LoadImage gives for an opaque picture
    assert torch.equal(run("PasteBack", mask=empty, **options)[0], whole)


def test_paste_back_of_several_edits_of_one_photograph(run, photo):
    aligned, crop, *_ = run("AlignFace", image=photo[:1], size=32, face_landmarks=faces([FIVE]))
    edits = torch.stack([aligned[0] * share for share in (0.0, 0.5, 1.0)])
    pasted, mask = run("PasteBack", photo=photo[:1], edited=edits, crop=crop)
    assert pasted.shape == (3, 48, 40, 3) and mask.shape == (3, 48, 40)
    with pytest.raises(InvalidInputError, match="photo 2, edited 3, crop 1"):
        run("PasteBack", photo=photo, edited=edits, crop=crop)


def test_paste_back_drops_alpha_and_names_a_wrong_photograph(run, photo):
    aligned, crop, *_ = run("AlignFace", image=photo[:1], size=32, face_landmarks=faces([FIVE]))
    with_alpha = torch.cat((photo[:1], torch.ones(1, 48, 40, 1)), dim=-1)
    assert run("PasteBack", photo=with_alpha, edited=aligned, crop=crop)[0].shape == (1, 48, 40, 3)
    with pytest.raises(InvalidInputError, match="32x32.*48x40"):
        run("PasteBack", photo=aligned, edited=aligned, crop=crop)


def test_encode_keeps_the_crop_and_names_a_wrong_one(run, photo, generator, encoder):
    aligned, crop, *_ = run("AlignFace", image=photo, generator=generator, face_landmarks=faces([FIVE], []))
    wire, _ = run("Encode", image=aligned, encoder=encoder, generator=generator, crop=crop)
    assert wire.inversion.crops == crop.crops
    file = run("SaveInversion", inversion=wire)[0]
    loaded = run("LoadInversion", file=file, generator=generator)[1]
    assert loaded.crops == crop.crops
    with pytest.raises(InvalidInputError, match="'crop' belongs to 1"):
        run("Encode", image=aligned, encoder=encoder, generator=generator, crop=CropsWire(crop.crops[:1]))


def test_blend_keeps_the_sources_bits(run):
    source, image = torch.rand(2, 30, 44, 3), torch.rand(2, 30, 44, 3)
    mask = torch.zeros(30, 44)
    mask[10:20, 10:20] = 1
    blended, used = run("Blend", source=source, image=image, mask=mask, feather=4.0)
    assert torch.equal(blended[used == 0], source[used == 0]) and used.shape == (2, 30, 44)
    assert 0 < used[0, 8, 15] < 1
    hard, _ = run("Blend", source=source, image=image, mask=mask, feather=0.0)
    assert torch.equal(hard[:, 10:20, 10:20], image[:, 10:20, 10:20])
    kept, _ = run("Blend", source=source, image=image, mask=mask, feather=0.0, mode="source inside mask")
    assert torch.equal(kept[:, 10:20, 10:20], source[:, 10:20, 10:20]) and torch.equal(kept[:, 0], image[:, 0])


def test_blend_with_painted_masks_of_odd_sizes(run):
    source, image = torch.zeros(1, 30, 44, 3), torch.ones(2, 15, 22, 4)
    left, top = torch.zeros(1, 17, 23), torch.zeros(1, 9, 5)
    left[:, :, :11], top[:, :4] = 1, 1
    sums = {}
    for merge in ("union", "intersect", "replace", "subtract"):
        blended, _ = run("Blend", source=source, image=image, mask=left, painted_mask=top, merge=merge, feather=0.0)
        assert blended.shape == (2, 30, 44, 3)
        sums[merge] = float(blended.sum())
    assert sums["union"] > sums["replace"] > sums["intersect"] > 0 and sums["subtract"] < sums["union"]
    grown, _ = run("Blend", source=source, image=image, mask=left, feather=5.0, grow=True)
    assert grown.sum() > run("Blend", source=source, image=image, mask=left, feather=5.0)[0].sum()
    empty = torch.zeros(1, 64, 64)
    assert not run("Blend", source=source, image=image, mask=empty)[0].any()
    with pytest.raises(InvalidInputError, match="source 1, image 2, mask 3"):
        run("Blend", source=source, image=image, mask=torch.zeros(3, 30, 44))


def test_region_face_leaves_the_crops_border_bit_identical(run):
    photo = torch.rand(1, 80, 80, 3, generator=torch.Generator().manual_seed(0))
    crop = CropsWire((CropTransform.whole_square((80, 80), 64),))
    options = {"photo": photo, "edited": torch.ones(1, 64, 64, 3), "crop": crop}
    whole = run("PasteBack", **options)[0]
    face = run("PasteBack", **options, region="face")[0]
    assert torch.equal(face[:, :12], photo[:, :12]) and torch.equal(face[:, :, :10], photo[:, :, :10])
    assert (face[:, 45:55, 35:45] - whole[:, 45:55, 35:45]).abs().max() < 1e-5
    assert not torch.equal(whole[:, 20:60, 4:9], photo[:, 20:60, 4:9])
