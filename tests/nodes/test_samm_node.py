"""SAMM Align on tiny networks, in inference mode as ComfyUI does it."""

import dataclasses
import json
import os

import pytest
import torch

from gan_inversion.core.encoders import Encoder, EncoderConfig, StyleEncoder
from gan_inversion.core.errors import (
    GeneratorMismatchError,
    InvalidInputError,
    ModelNotFoundError,
    NotFiniteError,
    UnsupportedModelError,
)
from gan_inversion.core.generator import Generator, GeneratorConfig
from gan_inversion.core.inversion import FeatureWarp, PixelBlend
from gan_inversion.core.samm import Samm, SammConfig
from gan_inversion.model_registry import catalogue, load_model, save_model
from gan_inversion.model_registry.perceptual import BUNDLED_DISTANCE
from gan_inversion.nodes import _alignment, samm_align
from gan_inversion.nodes._flow_drawing import draw_flow, longest_shift
from gan_inversion.nodes.headless import stand_in

from .test_execution import SIDE, is_image
from .test_refining_nodes import bar, pictures, smile, square, wire  # noqa: F401

LEVELS = (8, 16, 32)
PER_IMAGE = "per image (no network)"
MODES = {"network": {"method": "samm.safetensors"}, "per image": {"method": PER_IMAGE, "steps": 3}}


@pytest.fixture(autouse=True)
def networks(models):
    """A SAMM network for the tiny generator that says whose it is, and one for a generator of other widths."""
    if (models / "samm.safetensors").exists():
        return
    encoder = load_model(models / "e4e.safetensors").module
    for name, width in (("tiny", 8), ("wide", 12)):
        torch.manual_seed(1)
        sizes = GeneratorConfig(SIDE, (width,) * 4, z_dim=16, w_dim=16, mapping_layers=2)
        samm = Samm(SammConfig.for_networks(Generator(sizes), encoder, iterations=2)).eval()
        for level in LEVELS:
            last = samm.level(level).body.body[1]
            for norm in (last.res_layer[4], last.shortcut_layer[1]):
                norm.weight.data.normal_(std=2.0)
        facts = {"generator": f"C:\\models\\{name}.safetensors", "encoder": "elsewhere/e4e.safetensors"}
        save_model(samm, models / ("samm.safetensors" if name == "tiny" else "wide-samm.safetensors"), facts)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(samm_align, "_CELL", 96)


def outputs(run, wire, **inputs):  # noqa: F811
    names = ("inversion", "reconstruction", "mask", "level_masks", "preview", "report")
    return dict(zip(names, run("SAMMAlign", inversion=wire, **inputs), strict=True))


@pytest.fixture
def batch(run, generator, encoder, pictures):  # noqa: F811
    """Three encoded pictures, the second of which no method can make anything of."""
    images = torch.cat((pictures[:1], torch.full((1, SIDE, SIDE, 3), 0.5), pictures[1:]))
    return run("Encode", image=images, encoder=encoder, generator=generator)[0]


@pytest.mark.parametrize("mode", MODES)
def test_keeps_the_photograph_where_the_mask_says_and_changes_nothing_it_was_given(run, wire, smile, mode):  # noqa: F811
    given = run("ApplyDirection", inversion=wire, direction=smile, strength=1.0)[0]
    codes, before = given.inversion.w_plus.clone(), run("Render", inversion=given)[1]
    found = outputs(run, given, **MODES[mode])
    aligned, drawn = found["inversion"], found["reconstruction"]
    assert aligned.edit == given.edit and aligned.generator is given.generator and not given.inversion.modulations
    assert torch.equal(given.inversion.w_plus, codes) and torch.equal(run("Render", inversion=given)[1], before)
    assert aligned.inversion.generator is given.generator.generator
    assert [type(m) for m in aligned.inversion.modulations] == [FeatureWarp] * 3 + [PixelBlend]
    photograph = (given.inversion.image.movedim(1, -1) + 1) / 2
    assert is_image(drawn, 1) and (drawn - photograph).square().mean() < (before - photograph).square().mean()
    edited, again = run("Render", inversion=aligned)
    assert torch.equal(again, drawn) and not torch.allclose(edited, drawn, atol=1e-3)
    whole = outputs(run, given, mask=torch.ones(1, 8, 8), **MODES[mode])
    torch.testing.assert_close(run("Render", inversion=whole["inversion"])[0], photograph)
    tensors = [t for m in aligned.inversion.modulations for t in vars(m).values() if isinstance(t, torch.Tensor)]
    assert tensors and not any(t.requires_grad or t.is_inference() for t in tensors)


def test_automatic_takes_the_network_that_names_the_generator(run, wire, models):  # noqa: F811
    found, named = (outputs(run, wire, **inputs) for inputs in ({}, MODES["network"]))
    assert torch.equal(found["mask"], named["mask"]) and found["report"] == named["report"]
    assert found["report"].startswith(
        "Aligned 1 of 1 image(s) by the SAMM network samm.safetensors with features of e4e.safetensors, 2 iterations, "
        "levels of 8, 16, 32 px. The photograph stays in "
    )
    assert f"stays in {100 * float(found['mask'].mean()):.0f} % of" in found["report"]


def test_without_a_network_it_says_so_and_how_to_train_one(run, generator, wire, smile):  # noqa: F811
    nameless = dataclasses.replace(wire, generator=dataclasses.replace(generator, name="mine.pt", source=None))
    found = outputs(run, nameless, steps=2)
    for words in (
        "each on its own in 2 steps, without a network", "No trained SAMM network is known for mine.pt, so",
        "`gan-inversion train samm --portraits FOLDER --generator mine.pt", f"Distance: {BUNDLED_DISTANCE}",
    ):  # fmt: skip
        assert words in found["report"]
    chosen = outputs(run, nameless, method=PER_IMAGE, steps=2)
    assert torch.equal(found["mask"], chosen["mask"]) and "No trained" not in chosen["report"]
    ffhq = dataclasses.replace(generator, domain="ffhq", name="stylegan2-ffhq-1024", source=None)
    assert "stylegan2-ffhq-1024 (none was ever published)" in _alignment.no_network(ffhq)
    assert _alignment.known_network(ffhq) is None
    edited = run("ApplyDirection", inversion=nameless, direction=smile)[0]
    assert "follow_edit needs a network" in outputs(run, edited, steps=1, follow_edit=True)["report"]


def test_a_network_of_the_catalogue_is_known_by_its_domain(generator, models, monkeypatch):
    known = catalogue.find("portraits-e4e")
    entry = dataclasses.replace(known, id="ours-samm", kind="samm", architecture="samm")
    monkeypatch.setattr(catalogue, "load_catalogue", lambda: (entry,))
    monkeypatch.setattr(catalogue, "locate", lambda one, **_: (models / "samm.safetensors", None))
    monkeypatch.setattr(catalogue, "_registered", [])
    ours = dataclasses.replace(generator, domain="portraits")
    assert _alignment.known_network(ours) == "ours-samm"
    assert _alignment.methods()[:3] == ["automatic", PER_IMAGE, "ours-samm"]
    assert _alignment.known_network(generator) is None  # whose domain nobody knows
    monkeypatch.setattr(catalogue, "locate", lambda *_, **__: (None, None))
    assert _alignment.known_network(ours) is None  # it would have to be downloaded


def test_networks_and_encoders_of_others_are_refused_once_and_clearly(run, wire, models, tmp_path):  # noqa: F811
    with pytest.raises(
        GeneratorMismatchError, match="wide-samm.*another generator than tiny.*12 channels at 8.*per im"
    ):
        outputs(run, wire, method="wide-samm.safetensors")
    with pytest.raises(UnsupportedModelError, match="holds a stylegan2 network: expected samm"):
        outputs(run, wire, method="tiny.safetensors")
    with pytest.raises(ModelNotFoundError, match=r"gone\.pth"):
        outputs(run, wire, method="gone.pth")
    (encoder,) = run("LoadEncoder", model="e4e.safetensors")
    sizes = {"stem": 6, "widths": (6, 8, 10), "units": (1, 1, 1), "se_reduction": 2, "input_size": (SIDE, SIDE)}
    other = Encoder(EncoderConfig("Encoder4Editing", num_ws=8, w_dim=16, **sizes))
    stranger = dataclasses.replace(encoder, encoder=other, name="strange.pt")
    with pytest.raises(InvalidInputError, match="strange.pt does not belong to the SAMM network samm.*trained with"):
        outputs(run, wire, encoder=stranger, **MODES["network"])
    cars = dataclasses.replace(wire.generator, domain="car")
    samm = load_model(models / "samm.safetensors")
    samm.module.config = dataclasses.replace(samm.module.config, domain="ffhq")
    with pytest.raises(GeneratorMismatchError, match="x was trained for ffhq pictures, generator tiny.* draws car"):
        _alignment._check_generator(samm.module, samm, "x", cars)
    save_model(samm.module, models / "alone.safetensors")
    try:
        with pytest.raises(ModelNotFoundError, match="features of the encoder it was trained with.*connect it"):
            outputs(run, wire, method="alone.safetensors")
        assert "features of e4e" in outputs(run, wire, method="alone.safetensors", encoder=encoder)["report"]
    finally:
        (models / "alone.safetensors").unlink()


def test_a_connected_encoder_is_used(run, wire, encoder):  # noqa: F811
    usual = outputs(run, wire, **MODES["network"])
    same = outputs(run, wire, encoder=encoder, **MODES["network"])
    assert torch.equal(same["mask"], usual["mask"]) and same["report"] == usual["report"]
    torch.manual_seed(9)
    fresh = Encoder(encoder.encoder.config).eval().requires_grad_(False)
    other = outputs(
        run, wire, encoder=dataclasses.replace(encoder, encoder=fresh, name="psp.pt"), **MODES["network"]
    )  # fmt: skip
    assert not torch.allclose(other["mask"], usual["mask"], atol=1e-3)
    assert "trained with the encoder e4e.safetensors, not with psp.pt" in other["report"]


@pytest.mark.parametrize("mode", MODES)
def test_a_painted_mask_joins_the_one_found(run, wire, mode):  # noqa: F811
    found = outputs(run, wire, **MODES[mode])["mask"]
    assert found.shape == (1, SIDE, SIDE) and 0.01 < float(found.mean()) < 0.99
    painted = square()
    expected = {
        "union": torch.maximum(found, painted),
        "intersect": torch.minimum(found, painted),
        "replace": painted,
        "subtract": found * (1 - painted),
    }
    for merge, mask in expected.items():
        torch.testing.assert_close(outputs(run, wire, mask=painted, merge=merge, **MODES[mode])["mask"], mask)
    empty = outputs(run, wire, mask=torch.zeros(1, 64, 64), merge="replace", **MODES[mode])
    assert torch.equal(empty["mask"], found)
    level = float(found.median())
    cut = outputs(run, wire, mask_threshold=level, **MODES[mode])["mask"]
    assert torch.equal(cut, torch.where(found < level, 0.0, found)) and not torch.equal(cut, found)
    painted_faintly = outputs(run, wire, mask=square(0.01), mask_threshold=1.0, **MODES[mode])["mask"]
    assert float(painted_faintly.max()) == pytest.approx(0.01)
    patches = outputs(run, wire, edges="superpixels", **MODES[mode])["mask"]
    assert set(patches.unique().tolist()) <= {0.0, 1.0} and not torch.equal(patches, found)


def test_masks_of_a_batch_one_for_each_or_one_for_all(run, batch):
    one = outputs(run, batch, mask=square(), merge="replace", **MODES["network"])["mask"]
    assert torch.equal(one[0], square()[0]) and torch.equal(one[2], square()[0]) and not one[1].any()
    three = torch.cat((square(), square(), square().flip(1)))
    assert torch.equal(outputs(run, batch, mask=three, merge="replace", **MODES["network"])["mask"][2], three[2])
    with pytest.raises(InvalidInputError, match="2 masks for 3 images"):
        outputs(run, batch, mask=square().repeat(2, 1, 1), **MODES["network"])
    with pytest.raises(NotFiniteError, match="mask contains NaN"):
        outputs(run, batch, mask=square(float("nan")), **MODES["network"])


@pytest.mark.parametrize("mode", MODES)
def test_one_bad_picture_is_named_and_the_rest_finish(run, generator, encoder, batch, pictures, mode):  # noqa: F811
    found = outputs(run, batch, **MODES[mode])
    assert "Aligned 2 of 3 image(s)" in found["report"] and "Image 2: The picture is one flat" in found["report"]
    before = run("Render", inversion=batch)[1]
    assert is_image(found["reconstruction"], 3) and torch.equal(found["reconstruction"][1], before[1])
    assert found["level_masks"].shape == (9, SIDE, SIDE) and not found["level_masks"][3:6].any()
    assert not found["mask"][1].any() and found["mask"][0].any() and found["mask"][2].any()
    alone = run("Encode", image=pictures[1:], encoder=encoder, generator=generator)[0]
    single = outputs(run, alone, **MODES[mode])
    torch.testing.assert_close(found["reconstruction"][2:], single["reconstruction"], atol=1e-4, rtol=0)
    torch.testing.assert_close(found["level_masks"][6:], single["level_masks"], atol=1e-4, rtol=0)
    assert is_image(found["preview"], 3, *single["preview"].shape[1:3])


def test_a_picture_of_nan_fails_alone(run, batch):
    image = batch.inversion.image.clone()
    image[1, 0, 0, 0] = float("nan")
    broken = dataclasses.replace(batch, inversion=dataclasses.replace(batch.inversion, image=image))
    found = outputs(run, broken, **MODES["network"])
    assert "Image 2: The picture holds NaN" in found["report"] and found["preview"].isfinite().all()
    only = dataclasses.replace(broken, inversion=broken.inversion[1])
    with pytest.raises(NotFiniteError, match="holds NaN"):
        outputs(run, only, **MODES["network"])


def test_level_masks_are_those_of_the_warps_from_coarse_to_fine(run, wire):  # noqa: F811
    found = outputs(run, wire, **MODES["network"])
    warps = [m for m in found["inversion"].inversion.modulations if isinstance(m, FeatureWarp)]
    assert [m.resolution for m in warps] == list(LEVELS)
    for warp, mask in zip(warps, found["level_masks"], strict=True):
        expected = torch.nn.functional.interpolate(warp.mask, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
        torch.testing.assert_close(mask, expected[0, 0])
    a, b, c = found["level_masks"]
    merged = a * (1 - a + b)
    torch.testing.assert_close(found["mask"][0], (merged * (1 - merged + c)).clamp(0, 1))


def test_iterations_and_warp(run, wire):  # noqa: F811
    usual, once, twice, thrice = (outputs(run, wire, iterations=n, **MODES["network"]) for n in (0, 1, 2, 3))
    assert torch.equal(usual["mask"], twice["mask"])
    assert not torch.equal(once["mask"], twice["mask"]) and not torch.equal(twice["mask"], thrice["mask"])
    assert "1 iteration," in once["report"] and "3 iterations," in thrice["report"]
    with pytest.raises(InvalidInputError, match="Input 'iterations' is 4: expected 1 to 3, or 0"):
        outputs(run, wire, iterations=4, **MODES["network"])
    still = outputs(run, wire, warp=False, **MODES["network"])
    assert [m.kind for m in still["inversion"].inversion.modulations] == ["pixel-blend"]
    assert torch.equal(still["mask"], usual["mask"])
    assert not torch.equal(still["reconstruction"], usual["reconstruction"])


def test_masks_follow_the_edit_where_asked_to(run, wire, smile):  # noqa: F811
    given = run("ApplyDirection", inversion=wire, direction=smile, strength=2.0)[0]
    plain = outputs(run, wire, **MODES["network"])["mask"]
    assert torch.equal(outputs(run, given, **MODES["network"])["mask"], plain)
    followed = outputs(run, given, follow_edit=True, **MODES["network"])
    assert not torch.allclose(followed["mask"], plain, atol=1e-3)
    assert "belong to this edit" in followed["report"] and followed["inversion"].edit == given.edit
    none = outputs(run, wire, follow_edit=True, **MODES["network"])
    assert torch.equal(none["mask"], plain) and "follow_edit found no edit" in none["report"]


def test_per_image_settings_reach_the_method(run, wire, monkeypatch):  # noqa: F811
    seen = []
    usual = samm_align.align_image
    monkeypatch.setattr(samm_align, "align_image", lambda *a, **k: seen.append((a[1], k["warp"])) or usual(*a, **k))
    found = outputs(run, wire, method=PER_IMAGE, steps=4, refine_w=True, seed=5, seconds=9.0, warp=False)
    (config, warp) = seen[0]
    assert (config.steps, config.refine_w, config.seed, config.seconds, warp) == (4, True, 5, 9.0, False)
    assert not torch.equal(found["inversion"].inversion.w_plus, wire.inversion.w_plus)
    report = outputs(run, wire, method=PER_IMAGE, steps=2000, seconds=0.2)["report"]
    assert 1 <= int(report.split(" in ")[1].split(" steps")[0]) < 2000
    for name in ("seconds", "mask_threshold"):
        with pytest.raises(InvalidInputError, match=f"Input '{name}' is nan: expected a finite"):
            outputs(run, wire, **{name: float("nan")})
    with pytest.raises(InvalidInputError, match="seconds -1.0: expected a finite number of at least 0"):
        outputs(run, wire, method=PER_IMAGE, seconds=-1.0)
    first, again = (outputs(run, wire, method=PER_IMAGE, steps=2)["reconstruction"] for _ in range(2))
    assert torch.equal(first, again)


@pytest.mark.parametrize("mode", MODES)
def test_progress_shows_pictures_and_an_interrupt_stops(run, batch, bar, mode):  # noqa: F811
    bar.clear()
    outputs(run, batch, **MODES[mode])
    each = MODES[mode].get("steps", 1)
    values = [value for value, total, _ in bar if total == 3 * each]
    assert values == sorted(values) and values[-1] == 3 * each
    kind, picture, _ = next(preview for _, _, preview in bar if preview)
    assert kind == "JPEG" and picture.size == (SIDE, SIDE)
    bar.clear()
    bar.stop_at = 1
    with pytest.raises(stand_in.InterruptProcessingException):
        outputs(run, batch, **MODES[mode])
    assert len(bar) == 1
    bar.stop_at = None
    assert is_image(outputs(run, batch, **MODES[mode])["reconstruction"], 3)


@pytest.mark.parametrize("mode", MODES)
def test_works_after_the_host_moved_the_weights_in_inference_mode(run, generator, wire, mode):  # noqa: F811
    with torch.inference_mode():
        mapping = generator.generator.mapping
        mapping.fc0.weight = torch.nn.Parameter(mapping.fc0.weight.clone(), requires_grad=False)
    assert is_image(outputs(run, wire, **MODES[mode])["reconstruction"], 1)


@pytest.mark.parametrize("mode", MODES)
def test_saved_and_aligned_again(run, generator, wire, mode):  # noqa: F811
    found = outputs(run, wire, **MODES[mode])
    (name,) = run("SaveInversion", inversion=found["inversion"], filename_prefix="aligned")
    loaded = run("LoadInversion", file=name, generator=generator)[0]
    assert torch.equal(run("Render", inversion=loaded)[1], found["reconstruction"])
    again = outputs(run, found["inversion"], **MODES[mode])  # takes the place of the first one
    torch.testing.assert_close(again["reconstruction"], found["reconstruction"])
    assert len(again["inversion"].inversion.modulations) == 4


def test_goes_with_other_refinements(run, wire):  # noqa: F811
    tuned = run("TuneGenerator", inversion=wire, steps=2, stop_at=0.0)[0]
    found = outputs(run, tuned, **MODES["network"])["inversion"]
    assert [m.kind for m in found.inversion.modulations] == ["weight-offset"] + ["feature-warp"] * 3 + ["pixel-blend"]
    assert is_image(run("TuneGenerator", inversion=found, steps=2, stop_at=0.0)[1], 1)


def test_moving_the_slider_runs_nothing_again(run, wire, smile, monkeypatch):  # noqa: F811
    aligned = [outputs(run, wire, **inputs)["inversion"] for inputs in MODES.values()]

    def never(*_, **__):
        raise AssertionError("aligned or encoded again")

    for place, name in ((samm_align, "align"), (samm_align, "align_image"), (StyleEncoder, "forward")):
        monkeypatch.setattr(place, name, never)
    for one in aligned:
        weak, strong = (
            run("Render", inversion=run("ApplyDirection", inversion=one, direction=smile, strength=s)[0])[0]
            for s in (0.5, 2.0)
        )
        assert not torch.equal(weak, strong)


def test_names_and_fingerprints(nodes, places, models):
    node = nodes["GANInversionSAMMAlign"]
    options = next(one.options for one in node.define_schema().inputs if one.id == "method")
    assert options[:2] == ["automatic", PER_IMAGE] and "samm.safetensors" in options and "none found" not in options
    for good in ("automatic", PER_IMAGE, "samm.safetensors"):
        assert node.validate_inputs(method=good) is True
    assert "no catalogue id" in node.validate_inputs(method="gone.pth")
    assert "outside" in node.validate_inputs(method="../../x.pt")
    assert "choose a SAMM network" in node.validate_inputs(method="portraits")
    before = {method: node.fingerprint_inputs(method=method) for method in ("automatic", "samm.safetensors", PER_IMAGE)}
    os.utime(models / "samm.safetensors", ns=(1, 1))
    changed = {method for method, found in before.items() if node.fingerprint_inputs(method=method) != found}
    assert changed == {"automatic", "samm.safetensors"}


def test_a_header_without_sense_is_no_network_of_this_generator(generator, models, tmp_path, monkeypatch):
    from safetensors.torch import save_file

    monkeypatch.setattr(catalogue, "_registered", [(None, tmp_path)])
    for index, config in enumerate(("", "[]", json.dumps({"resolutions": [8], "channels": 3}), "{}")):
        header = {"format": "gan-inversion", "architecture": "samm", "generator": "tiny.safetensors", "config": config}
        save_file({"x": torch.zeros(1)}, tmp_path / f"{index}.safetensors", metadata=header)
    (tmp_path / "broken.safetensors").write_bytes(b"nonsense")
    assert _alignment.known_network(generator) is None


# The picture of a flow


def test_a_flow_is_drawn_where_it_acts():
    image, flow = torch.zeros(1, 3, SIDE, SIDE), torch.zeros(1, 2, 16, 16)
    flow[:, 0] = -0.1  # features come from the left, so they move to the right: red
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., :8] = 1
    assert longest_shift(flow, mask) == pytest.approx(0.1) and longest_shift(flow, 0 * mask) == 0
    drawn, gain = draw_flow(image, flow, mask, 256)
    assert drawn.shape == (1, 3, 256, 256) and gain in (1, 2, 4, 8)
    left = drawn[0, :, 20:100, 4:110]
    red = (left[0] > 0.9) & (left[1] < -0.9) & (left[2] < -0.9)
    assert float(red.float().mean()) > 0.6
    white = (left > 0.9).all(dim=0)
    assert bool(white.any())  # arrows
    right = drawn[0, :, 20:200, 150:]
    assert float(right[:, :, :40].std()) < 1e-4  # nothing moves there
    still, _ = draw_flow(image, 0 * flow, mask, 256)
    assert float(still[0, :, :100, :100].std()) < 1e-4
