"""Compare / Measure: numbers of known differences, batches, masks, layouts, and what the node shows."""

import math

import pytest
import torch

from gan_inversion.core import metrics
from gan_inversion.core.errors import InvalidInputError, NotFiniteError
from gan_inversion.nodes import _measuring
from gan_inversion.nodes.headless import stand_in

SIDE = 32


def smooth(side=SIDE, width=None):
    y, x = torch.meshgrid(torch.linspace(0.2, 0.8, side), torch.linspace(0.2, 0.8, width or side), indexing="ij")
    return torch.stack((x, y, (x + y) / 2), dim=-1)[None]


@pytest.fixture
def compare(run):
    def execute(**inputs):
        names = ("comparison", "psnr", "ssim", "lpips", "identity", "report")
        return dict(zip(names, run("Compare", **inputs), strict=True))

    return execute


@pytest.fixture
def faces(monkeypatch):
    """Sees a face in every picture that is not blue, with a mouth as wide as it is bright."""

    class Meter:
        def attributes(self, image):
            found = {"brightness": float((image.mean() + 1) / 2)}
            if image[:, 2].mean() > image[:, 0].mean() + 0.5:
                return found
            return {"smile_width": found["brightness"] * 2, "yaw": 3.0, **found}

        def similarity(self, a, b):
            return 1 - float((a - b).abs().mean())

    monkeypatch.setattr(_measuring.FaceMeter, "load", Meter)


def test_a_known_difference(compare, faces):
    before = smooth()
    kept = before.clone()
    found = compare(before=before, after=before + 0.1)
    assert found["psnr"] == pytest.approx(20.0, abs=1e-3) and torch.equal(before, kept)
    assert found["ssim"] == pytest.approx(
        float(metrics.ssim(before.movedim(-1, 1) * 2 - 1, (before + 0.1).movedim(-1, 1) * 2 - 1)), abs=1e-5
    )
    assert found["lpips"] > 0 and found["identity"] == pytest.approx(0.8, abs=1e-4)
    report = found["report"].splitlines()
    assert report[0] == "1 pair(s) of 32x32 px." and report[1].startswith("Pair 1: PSNR 20.00 dB, SSIM 0.")
    assert report[2].startswith(
        "  smile width 1.000 -> 1.200 (+20%), yaw +3.0° -> +3.0° (+0.0°), brightness 0.50 -> 0.60"
    )
    assert "portraits-perceptual, the bundled stand-in" in found["report"] and "not ArcFace" in found["report"]
    assert "Mean" not in found["report"]


def test_equal_pictures(compare):
    found = compare(before=smooth(), after=smooth())
    assert found["psnr"] == math.inf and found["ssim"] == pytest.approx(1) and found["lpips"] < 1e-6
    assert "PSNR inf dB" in found["report"]


def test_a_picture_without_a_face_has_no_identity(compare):
    found = compare(before=smooth(64), after=smooth(64) * 0.9)
    assert math.isnan(found["identity"]) and math.isfinite(found["lpips"])
    assert "no aligned face in before and after" in found["report"] and "brightness 0.50 -> 0.45" in found["report"]
    assert "yaw +" not in found["report"] and "ArcFace" not in found["report"]
    # Not square: no aligned picture either.
    assert math.isnan(compare(before=smooth(32, 48), after=smooth(32, 48) * 0.9)["identity"])


def test_batches(compare, faces):
    before = smooth()
    blue = before.clone()
    blue[..., 2], blue[..., 0] = 1.0, 0.0
    after = torch.cat((before + 0.1, before, blue))
    found = compare(before=before, after=after)
    assert found["comparison"].shape[0] == 3
    pairs = [line for line in found["report"].splitlines() if line.startswith("Pair")]
    assert [line.split(",")[0] for line in pairs[:2]] == ["Pair 1: PSNR 20.00 dB", "Pair 2: PSNR inf dB"]
    assert "no aligned face in after:" in found["report"]
    # Means of what is finite: the equal pair has no PSNR, the blue one no identity.
    third = compare(before=before, after=blue)
    assert found["psnr"] == pytest.approx((20 + third["psnr"]) / 2, abs=1e-3)
    assert found["identity"] == pytest.approx((0.8 + 1) / 2, abs=1e-4)
    assert found["report"].count("Mean: PSNR") == 1
    with pytest.raises(InvalidInputError, match="before 2, after 3"):
        compare(before=torch.cat((before, before)), after=after)


def test_masks_split_the_difference(compare, faces):
    before = smooth()
    mask = torch.zeros(1, SIDE, SIDE)
    mask[:, :, : SIDE // 2] = 1
    after = before.clone()
    after[:, :, : SIDE // 2] += 0.2
    after[:, :, SIDE // 2 :] += 0.1
    whole = compare(before=before, after=after, mask=mask)
    inside = compare(before=before, after=after, mask=mask[0], region="inside mask")
    outside = compare(before=before, after=after, mask=mask, region="outside mask")
    assert inside["psnr"] == pytest.approx(-20 * math.log10(0.2), abs=1e-3) and outside["psnr"] == pytest.approx(20)
    assert inside["psnr"] < whole["psnr"] < outside["psnr"] and inside["ssim"] < outside["ssim"]
    assert inside["lpips"] == whole["lpips"] and inside["identity"] == whole["identity"]
    assert "  inside mask: PSNR 13.98 dB" in whole["report"] and "  outside mask: PSNR 20.00 dB" in whole["report"]
    full = compare(before=before, after=after, mask=torch.ones(1, 8, 8), region="outside mask")
    assert math.isnan(full["psnr"]) and math.isnan(full["ssim"]) and "outside mask: no pixels" in full["report"]
    assert "mask" not in compare(before=before, after=after, mask=torch.zeros(1, 64, 64))["report"]


def test_other_sizes_are_resized_and_said(compare):
    found = compare(before=smooth(64), after=smooth(32))
    assert "'after' was resized from 32x32." in found["report"] and found["psnr"] > 30
    stretched = compare(before=smooth(64), after=smooth(32, 64))
    assert "'after' was resized from 64x32, which stretched it." in stretched["report"]
    assert compare(before=smooth()[..., :1], after=torch.rand(1, SIDE, SIDE, 4))["psnr"] > 0


def test_layouts(compare):
    before, after = torch.full((1, 128, 128, 3), 0.25), torch.full((1, 128, 128, 3), 0.75)
    sides = compare(before=before, after=after)["comparison"]
    height, width = sides.shape[1:3]
    assert width == 2 * 132 + 4 and height > 128
    top = (sides[0, :, 70] - 0.25).abs().amax(dim=1).lt(0.01).nonzero()[0]  # first row of the picture
    rows = slice(int(top), int(top) + 128)
    assert (sides[0, rows, 4:132] - 0.25).abs().max() < 0.01 and (sides[0, rows, 136:264] - 0.75).abs().max() < 0.01
    margins = torch.cat((sides[0, : int(top)], sides[0, int(top) + 128 :]))
    assert (margins[:, :132] < 0.3).any() and (margins[:, 132:] < 0.3).any()  # names above, numbers below
    split = compare(before=before, after=after, layout="split", split=0.25)["comparison"]
    assert split.shape[2] == 132 + 4
    row = split[0, int(top) + 64, 4:132]
    assert (row[:31] - 0.25).abs().max() < 0.01 and (row[34:] - 0.75).abs().max() < 0.01 and (row[31:34] == 1).any()
    for at, value in ((0.0, 0.75), (1.0, 0.25)):
        one = compare(before=before, after=after, layout="split", split=at)["comparison"]
        assert (one[0, rows, 4:132] - value).abs().max() < 0.01
    apart = compare(before=before, after=after - 0.4, layout="difference", gain=4.0)["comparison"]
    assert apart.shape[2] == 3 * 132 + 4 and (apart[0, rows, 268:396] - 0.4).abs().max() < 0.01
    small = compare(before=smooth(), after=smooth())["comparison"]
    assert small.shape[2] == sides.shape[2]  # enlarged, so that the text can be read


def test_the_node_shows_the_picture_and_the_report(nodes, places, tmp_path):
    with torch.inference_mode():
        output = nodes["GANInversionCompare"].execute(before=smooth(), after=smooth() * 0.9)
    assert nodes["GANInversionCompare"].define_schema().is_output_node
    assert output.ui["text"] == (output.result[-1],) and len(output.ui["images"]) == 1
    assert output.ui["images"][0]["type"] == "temp"
    assert (stand_in.Path(stand_in.get_temp_directory()) / output.ui["images"][0]["filename"]).exists()


@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        ({"layout": "flicker"}, InvalidInputError, "Input 'layout' is 'flicker'"),
        ({"region": "inside mask"}, InvalidInputError, "no mask is connected"),
        ({"region": "inside mask", "mask": torch.zeros(1, 8, 8)}, InvalidInputError, "or it is empty"),
        ({"before": smooth().repeat(2, 1, 1, 1), "mask": torch.ones(3, 8, 8)}, InvalidInputError, "before 2.*mask 3"),
        ({"split": 1.5}, InvalidInputError, "a split from 0 to 1"),
        ({"gain": math.nan}, InvalidInputError, "Input 'gain' is nan"),
        ({"before": torch.zeros(1, 8, 8, 3)}, InvalidInputError, "'before' is 8x8: expected 32 pixels or more"),
        ({"before": torch.zeros(1, 3, SIDE, SIDE)}, InvalidInputError, "Input 'before' is .*expected an IMAGE"),
        ({"after": torch.full((1, SIDE, SIDE, 3), math.nan)}, NotFiniteError, "after contains NaN"),
        ({"after": smooth() * 255}, InvalidInputError, "255|range|outside"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_in_words(compare, inputs, error, message):
    with pytest.raises(error, match=message):
        compare(**{"before": smooth(), "after": smooth(), **inputs})
