"""Predict Invertibility and Multilayer Invert on tiny networks, in inference mode as ComfyUI does it."""

import dataclasses
import functools

import pytest
import torch

from gan_inversion.core import multilayer, parsing
from gan_inversion.core.deeplab import DeepLabConfig
from gan_inversion.core.errors import (
    GeneratorMismatchError,
    InvalidInputError,
    ModelNotFoundError,
    NotFiniteError,
    UnsupportedModelError,
)
from gan_inversion.core.inversion import FeatureOffset, FeatureOverride, PixelBlend, WeightOffset
from gan_inversion.core.invertibility import TAU, InvertibilityConfig, InvertibilityNet, LatentMap, latent_spaces
from gan_inversion.core.multilayer import MultilayerConfig
from gan_inversion.core.multilayer_encoder import MultilayerEncoder, MultilayerEncoderConfig
from gan_inversion.model_registry import catalogue, save_model
from gan_inversion.model_registry.perceptual import BUNDLED_DISTANCE
from gan_inversion.nodes import _refinement, multilayer_invert, predict_invertibility
from gan_inversion.nodes._types import LatentMapWire
from gan_inversion.nodes.headless import stand_in

from .test_execution import SIDE, is_image
from .test_refining_nodes import bar, pictures, smile, wire  # noqa: F401

SPACES = latent_spaces(SIDE)  # W+, F0, F2, F4
MEASURE = "measure (no network)"
ENCODER = "encoder (one pass)"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    few = functools.partial(MultilayerConfig, samples=50)
    monkeypatch.setattr(multilayer, "MultilayerConfig", few)
    monkeypatch.setattr(predict_invertibility, "_memory", type(predict_invertibility._memory)())


def predictor(spaces=SPACES, threshold=None):
    torch.manual_seed(2)
    base = DeepLabConfig(stem=4, widths=(4, 4, 4), units=(1, 1, 1), pyramid=4, low_level=4, decoder=4, outputs=4)
    network = InvertibilityNet(InvertibilityConfig(spaces, base, threshold=threshold))
    for place, head in enumerate(network.heads.values()):
        torch.nn.init.constant_(head.m[3].bias, 0.8 - 0.15 * place)
    return network


@pytest.fixture
def own(tmp_path, models, places, monkeypatch):
    """A model folder of this test, searched after the usual one."""
    folder = tmp_path / "own"
    folder.mkdir()
    monkeypatch.setattr(catalogue, "_registered", [(None, models), (None, folder)])
    return folder


@pytest.fixture
def network(own):
    """A predictor that says which generator it was made for."""
    return save_model(predictor(threshold=0.31), own / "invertible.safetensors", {"generator": "runs/tiny.safetensors"})


@pytest.fixture
def both(run, generator, encoder, pictures):  # noqa: F811
    """Two encoded pictures."""
    return run("Encode", image=pictures, encoder=encoder, generator=generator)[0]


@pytest.fixture
def three(run, generator, encoder, pictures):  # noqa: F811
    """Two pictures and a flat one between them."""
    batch = torch.cat((pictures[:1], torch.full((1, SIDE, SIDE, 3), 0.5), pictures[1:]))
    return run("Encode", image=batch, encoder=encoder, generator=generator)[0]


def predict(run, wire, **inputs):  # noqa: F811
    return run("PredictInvertibility", inversion=wire, **{"steps": 2, "segments": "per pixel", **inputs})


def given(wire, index=None):  # noqa: F811
    """A map on a wire, the left half W+ and the right half the finest, or of the given rows."""
    if index is None:
        index = (torch.arange(SIDE) >= SIDE // 2).long().expand(len(wire.inversion), SIDE, -1) * (len(SPACES) - 1)
    errors = {space: torch.full((len(index), 1, SIDE, SIDE), 0.1) for space in SPACES}
    return LatentMapWire(LatentMap(SPACES, index.contiguous()), wire.generator, errors, 0.2)


def never(*_, **__):
    raise AssertionError("ran again")


# Predict Invertibility


def test_measures_where_no_predictor_is_known(run, both):
    made, mask, errors, preview, report = predict(run, both)
    chosen = made.latent_map
    assert chosen.spaces == SPACES and chosen.index.shape == (2, SIDE, SIDE) and made.generator is both.generator
    assert mask.shape == (2, SIDE, SIDE) and torch.equal(mask, (chosen.index > 0).float())
    assert errors.shape == (2 * len(SPACES), SIDE, SIDE) and 0 <= errors.min() < errors.max() <= 1
    torch.testing.assert_close(errors[len(SPACES)], (made.errors["W+"][1, 0] / (2 * 0.55)).clamp(0, 1))
    assert is_image(preview, 2, 544, 512)
    assert "No predictor for tiny.safetensors is on this machine" in report and "2 steps in each space" in report
    assert f"Distance: {BUNDLED_DISTANCE}" in report and f"tau 0.55 (usual for {BUNDLED_DISTANCE})" in report
    first, second = report.splitlines()[1:]
    assert first.startswith("Image 1: W+ ") and "Mean error: W+ " in first and second.startswith("Image 2: W+ ")
    assert "Errors were measured" in predict(run, both, method=MEASURE)[-1]


def test_automatic_takes_the_predictor_of_this_generator(run, both, network):
    made, _, _, _, report = predict(run, both)
    assert report.startswith("Predictor: invertible.safetensors. Threshold tau 0.31 (the predictor's own).")
    expected = predictor().eval()
    named = predict(run, both, method="invertible.safetensors", tau=0.5)
    assert "tau 0.5 (given)" in named[-1]
    for space, error in made.errors.items():
        assert error.shape == (2, 1, SIDE, SIDE) and torch.equal(error, named[0].errors[space])
        with torch.no_grad():
            torch.testing.assert_close(error, expected(both.inversion.image)[space], atol=1e-5, rtol=0)


def test_other_generators_networks_and_spaces_are_not_taken_for_it(run, both, own):
    save_model(predictor(("W+", "F8", "F10")), own / "a.safetensors", {"generator": "tiny.safetensors"})
    save_model(predictor(), own / "b.safetensors", {"generator": "other.safetensors", "domain": "cars"})
    assert "were measured" in predict(run, both)[-1]
    cars = dataclasses.replace(both, generator=dataclasses.replace(both.generator, domain="cars"))
    assert "Predictor: b.safetensors. Threshold tau 0.225 (SAM's)." in predict(run, cars)[-1] and TAU == 0.225
    faces = dataclasses.replace(both, generator=dataclasses.replace(both.generator, domain="ffhq"))
    words = predict(run, faces, method="b.safetensors")[-1]
    assert "It was trained on cars pictures, tiny.safetensors draws ffhq." in words
    with pytest.raises(
        GeneratorMismatchError, match=r"a.safetensors was made for.*F8, F10; generator tiny.*F0, F2, F4"
    ):
        predict(run, both, method="a.safetensors")
    with pytest.raises(UnsupportedModelError, match="expected sam-invertibility"):
        predict(run, both, method="tiny.safetensors")


def test_tau_decides_and_measures_nothing_again(run, both, monkeypatch):
    predict(run, both)
    monkeypatch.setattr(predict_invertibility, "measure_errors", never)
    shares = [float(predict(run, both, tau=tau)[1].mean()) for tau in (0.05, 0.3, 5.0)]
    assert shares == sorted(shares, reverse=True) and shares[0] > shares[2] == 0
    predict(run, both, mask=torch.ones(1, 8, 8), mask_space="F2", segments="superpixels")
    for other in ({"steps": 3}, {"seed": 1}):
        with pytest.raises(AssertionError, match="ran again"):
            predict(run, both, **other)
    moved = dataclasses.replace(both, inversion=dataclasses.replace(both.inversion, w_plus=both.inversion.w_plus + 0.1))
    with pytest.raises(AssertionError, match="ran again"):
        predict(run, moved)


def test_what_is_remembered_has_a_bound(run, both, network, monkeypatch):
    monkeypatch.setattr(predict_invertibility, "_REMEMBERED", 1)
    predict(run, both)
    assert len(predict_invertibility._memory) == 1


def test_segments_decide_as_a_whole(run, both, monkeypatch):
    ragged = predict(run, both, tau=0.3)[0].latent_map.index
    patches = predict(run, both, tau=0.3, segments="superpixels")
    assert not torch.equal(ragged, patches[0].latent_map.index) and "superpixels as a whole" in patches[-1]
    assert (
        "superpixels as a whole" in predict(run, both, tau=0.3, segments="automatic")[-1]
    )  # no parser, no known domain

    def halves(parser, image):
        left = (torch.arange(SIDE) < SIDE // 2).float().expand(len(image), SIDE, -1)
        return parsing.Parsing(torch.stack((left, 1 - left), dim=1), ("nose", "hair"))

    asked = []
    monkeypatch.setattr(predict_invertibility, "parse", halves)
    monkeypatch.setattr(
        predict_invertibility, "find_face_parser", lambda name, _: asked.append(name) or torch.nn.Identity()
    )
    parts = predict(run, both, tau=0.3, segments="face parser")
    index = parts[0].latent_map.index
    assert asked == [_refinement.FACE_PARSER] and "face parts as a whole" in parts[-1]
    for half in (index[..., : SIDE // 2], index[..., SIDE // 2 :]):
        assert all(len(one.unique()) == 1 for one in half)


def test_the_mask_decides_last(run, both):
    before = predict(run, both, tau=5.0)[0].latent_map.index
    assert not before.any()
    mask = torch.zeros(1, 64, 64)
    mask[:, :32] = 1
    top = slice(0, SIDE // 2)
    for name, place in (("keep the finest", len(SPACES) - 1), ("F2", SPACES.index("F2"))):
        made, drawn, _, _, report = predict(run, both, tau=5.0, mask=mask, mask_space=name)
        assert (made.latent_map.index[:, top] == place).all() and not made.latent_map.index[:, SIDE // 2 :].any()
        assert drawn[:, top].all() and f"The mask puts 50% of the picture into {SPACES[place]}." in report
    assert not predict(run, both, tau=0.01, mask=torch.ones(2, SIDE, SIDE), mask_space="W+")[1].any()
    assert torch.equal(predict(run, both, tau=5.0, mask=torch.zeros(1, 64, 64))[0].latent_map.index, before)
    with pytest.raises(InvalidInputError, match="'F10': this map has W[+], F0, F2, F4"):
        predict(run, both, mask=mask, mask_space="F10")
    with pytest.raises(NotFiniteError, match="mask contains NaN"):
        predict(run, both, mask=mask * float("nan"))


def test_a_given_map_is_changed_by_the_mask_alone(run, both, monkeypatch):
    monkeypatch.setattr(predict_invertibility, "measure_errors", never)
    first = given(both)
    mask = torch.zeros(1, SIDE, SIDE)
    mask[:, :4] = 1
    made, *_, report = predict(run, both, latent_map=first, mask=mask, mask_space="F2")
    assert (made.latent_map.index[:, :4] == SPACES.index("F2")).all()
    assert torch.equal(made.latent_map.index[:, 4:], first.latent_map.index[:, 4:])
    assert first.latent_map.index[0, 0, -1] == len(SPACES) - 1 and "nothing was predicted" in report
    again, *_ = predict(run, both, latent_map=made, mask=mask.flip(1), mask_space="W+")
    assert (again.latent_map.index[:, :4] == SPACES.index("F2")).all() and not again.latent_map.index[:, -4:].any()
    one = dataclasses.replace(both, inversion=both.inversion[0])
    with pytest.raises(InvalidInputError, match="connect maps of the same images"):
        predict(run, one, latent_map=first)
    other = dataclasses.replace(first, generator=run("LoadStyleGAN", model="other.safetensors")[0])
    with pytest.raises(GeneratorMismatchError, match="'latent_map' and 'inversion'"):
        predict(run, both, latent_map=other)


def test_one_bad_picture_is_named_and_the_rest_are_predicted(run, three, network):
    made, mask, errors, preview, report = predict(run, three, segments="superpixels", tau=0.01)
    assert mask[0].any() and mask[2].any() and not mask[1].any() and not errors[4:8].any()
    lines = report.splitlines()
    assert (
        "Image 2: The picture is one flat colour" in lines[2]
        and lines[3].startswith("Image 3: W+")
        and len(preview) == 3
    )
    bad = three.inversion.image.clone()
    bad[0] = float("nan")
    holed = dataclasses.replace(three, inversion=dataclasses.replace(three.inversion, image=bad))
    report = predict(run, holed, segments="superpixels")[-1]
    assert "Image 1: The picture holds NaN" in report and "Image 3: W+" in report
    only = dataclasses.replace(three, inversion=three.inversion[1])
    with pytest.raises(InvalidInputError, match="one flat colour"):
        predict(run, only)


def test_measuring_reports_steps_and_stops_at_an_interrupt(run, both, bar):  # noqa: F811
    bar.clear()
    predict(run, both, steps=5)
    total = 2 * 5 * len(SPACES)
    assert bar[-1][0] == total and {t for _, t, _ in bar} == {total}
    assert any(preview for _, _, preview in bar)
    predict_invertibility._memory.clear()
    bar.clear()
    bar.stop_at = 7
    with pytest.raises(stand_in.InterruptProcessingException):
        predict(run, both, steps=5)
    assert len(bar) == 7
    bar.stop_at = None
    assert predict(run, both, steps=5)[1].shape == (2, SIDE, SIDE)
    assert all(p.grad is None and not p.requires_grad for p in both.generator.generator.parameters())


class Plain:
    """A distance for pictures of any size."""

    name = "lpips-vgg"

    def __call__(self, image, target):
        return (image - target).abs().mean(dim=(1, 2, 3))


def test_bars_of_car_pictures_are_no_part_of_the_map(run, both, monkeypatch):
    for place in (predict_invertibility, multilayer_invert):
        monkeypatch.setattr(place, "distance_named", lambda *_: Plain())
    image = both.inversion.image.clone()
    image[:, :, :4] = image[:, :, -4:] = -1.0
    cars = dataclasses.replace(
        both,
        inversion=dataclasses.replace(both.inversion, image=image),
        generator=dataclasses.replace(both.generator, domain="car"),
    )
    mask = torch.ones(1, SIDE, SIDE)
    for segments in ("superpixels", "per pixel"):
        made, drawn, errors, preview, report = predict(run, cars, tau=0.2, mask=mask, segments=segments)
        assert made.latent_map.index.shape == (2, SIDE * 3 // 4, SIDE) and is_image(preview, 2, 544, 512)
        assert drawn[:, 4:-4].all() and not drawn[:, :4].any() and not drawn[:, -4:].any() and not errors[:, :4].any()
        assert "100% of the picture" in report
    refined, reconstruction, _ = run("MultilayerInvert", inversion=cars, latent_map=made, steps=2)
    assert is_image(reconstruction, 2)
    finest = refined.inversion.modulations[-1]
    assert finest.resolution == 16 and not finest.mask[:, :, :2].round().any() and finest.mask[:, :, 4:-4].all()
    square = dataclasses.replace(both, generator=cars.generator)  # without bars
    assert predict(run, square, tau=0.2)[0].latent_map.index.shape == (2, SIDE, SIDE)


def test_predict_checks_and_fingerprints(nodes, network, own):
    node = nodes["GANInversionPredictInvertibility"]
    options = next(one.options for one in node.define_schema().inputs if one.id == "method")
    assert options[:2] == ["automatic", MEASURE] and "invertible.safetensors" in options
    assert "sam-invertibility-ffhq" not in options and "none found" not in options
    for good in ("automatic", MEASURE, "invertible.safetensors", "sam-invertibility-ffhq"):
        assert node.validate_inputs(method=good) is True
    assert "no catalogue id" in node.validate_inputs(method="gone.pt")
    assert "choose an invertibility predictor" in node.validate_inputs(method="portraits")
    marks = [node.fingerprint_inputs(method=m) for m in ("automatic", "invertible.safetensors", MEASURE)]
    assert marks == [node.fingerprint_inputs(method=m) for m in ("automatic", "invertible.safetensors", MEASURE)]
    save_model(predictor(threshold=0.4), network, {"generator": "tiny.safetensors", "more": "x" * 50})
    changed = [node.fingerprint_inputs(method=m) for m in ("automatic", "invertible.safetensors", MEASURE)]
    assert [a != b for a, b in zip(marks, changed, strict=True)] == [True, True, False]


@pytest.mark.parametrize("bad", [float("nan"), -1.0])
def test_a_tau_that_is_none_is_refused(run, both, bad):
    with pytest.raises(InvalidInputError, match="Input 'tau' is"):
        predict(run, both, tau=bad)


# Multilayer Invert


def invert(run, wire, chosen=None, **inputs):  # noqa: F811
    inputs = {"steps": 3, "latent_map": given(wire) if chosen is None else chosen, **inputs}
    return run("MultilayerInvert", inversion=wire, **inputs)


def test_comes_closer_and_keeps_the_edit(run, generator, wire, smile):  # noqa: F811
    start = run("ApplyDirection", inversion=wire, direction=smile, strength=1.0)[0]
    codes = start.inversion.w_plus.clone()
    plain, unedited = run("Render", inversion=start)
    refined, drawn, report = invert(run, start, steps=15)
    target = (start.inversion.image.movedim(1, -1) + 1) / 2
    assert is_image(drawn, 1) and (drawn - target).square().mean() < 0.9 * (unedited - target).square().mean()
    assert refined.edit == start.edit and refined.inversion.generator is generator.generator
    assert [m.kind for m in refined.inversion.modulations] == ["feature-offset"]
    assert refined.inversion.modulations[0].resolution == 16
    assert torch.equal(start.inversion.w_plus, codes) and not torch.equal(refined.inversion.w_plus, codes)
    edited, again = run("Render", inversion=refined)
    assert torch.equal(again, drawn) and not torch.allclose(edited, drawn, atol=1e-3)
    assert torch.equal(run("Render", inversion=start)[0], plain)
    assert "Refined 1 of 1 image(s) in 15 steps each." in report and "Regions: W+ 50%, F4 50%." in report
    assert f"Distance: {BUNDLED_DISTANCE}" in report
    assert all(p.grad is None and not p.requires_grad for p in generator.generator.parameters())
    offset = refined.inversion.modulations[0].offset
    assert not offset.requires_grad and not refined.inversion.w_plus.requires_grad
    (name,) = run("SaveInversion", inversion=refined, filename_prefix="regions")
    loaded = run("LoadInversion", file=name, generator=generator)[0]
    assert torch.equal(run("Render", inversion=loaded)[1], drawn)


def test_images_of_a_batch_may_use_different_spaces(run, both):
    index = torch.zeros(2, SIDE, SIDE, dtype=torch.long)
    index[0, :8], index[0, 8:16], index[1, :16] = 1, 3, 2
    refined, drawn, report = invert(run, both, given(both, index), steps=4)
    assert [m.resolution for m in refined.inversion.modulations] == [4, 8, 16] and "in 4 steps each" in report
    for row in range(2):
        one = dataclasses.replace(both, inversion=both.inversion[row])
        alone = invert(run, one, given(one, index[row : row + 1]), steps=4)[1]
        torch.testing.assert_close(drawn[row : row + 1], alone, atol=1e-5, rtol=0)


def test_one_map_serves_a_batch(run, both):
    single = given(both, given(both).latent_map.index[:1])
    assert torch.equal(invert(run, both, single)[1], invert(run, both)[1])
    three_maps = given(both, torch.zeros(3, SIDE, SIDE, dtype=torch.long))
    with pytest.raises(InvalidInputError, match="'latent_map' is of 3 image"):
        invert(run, both, three_maps)


def test_a_map_of_w_plus_alone_adds_no_features(run, wire):  # noqa: F811
    refined, _, report = invert(run, wire, given(wire, torch.zeros(1, SIDE, SIDE, dtype=torch.long)))
    assert refined.inversion.modulations == () and "Regions: W+ 100%." in report


def earlier(wire):  # noqa: F811
    """The inversion after other refinements: tuned weights, features, kept pixels."""
    network, count = wire.generator.generator, len(wire.inversion)
    weights = {"b16.conv1.weight": torch.randn(count, *network.synthesis.b16.conv1.weight.shape) * 0.05}
    mask = torch.zeros(count, 1, SIDE, SIDE)
    mask[..., :4] = 1
    modulations = (
        WeightOffset(weights),
        FeatureOverride(8, torch.ones(count, 8, 8, 8), torch.zeros(count, 1, 8, 8)),
        FeatureOffset(8, torch.ones(count, 8, 8, 8), torch.ones(count, 1, 8, 8)),
        PixelBlend(mask),
    )
    return dataclasses.replace(wire, inversion=dataclasses.replace(wire.inversion, modulations=modulations))


@pytest.mark.parametrize("batch", [1, 3])
def test_earlier_refinements(run, three, batch, monkeypatch):
    tuned = []
    usual = multilayer_invert.invert_multilayer
    monkeypatch.setattr(
        multilayer_invert,
        "invert_multilayer",
        lambda *a, **k: tuned.append(a[1].synthesis.b16.conv1.weight) or usual(*a, **k),
    )
    start = earlier(three if batch == 3 else dataclasses.replace(three, inversion=three.inversion[0]))
    before = run("Render", inversion=start)[1]
    refined, drawn, report = invert(run, start, steps=12)
    kinds = [m.kind for m in refined.inversion.modulations]
    target = (start.inversion.image.movedim(1, -1) + 1) / 2
    assert "Replaced what was there before: DHR's features, multilayer features." in report
    assert torch.equal(drawn[:, :, :4], target[:, :, :4])  # the pixels kept
    good = [0] if batch == 1 else [0, 2]
    assert (drawn - target)[good].square().mean() < (before - target)[good].square().mean()
    if batch == 1:
        assert kinds == ["weight-offset", "pixel-blend", "feature-offset"]
        assert refined.inversion.modulations[0].offsets.keys() == start.inversion.modulations[0].offsets.keys()
    # Codes and features are found with the tuned weights, which they are drawn with.
    own, offset = three.generator.generator.synthesis.b16.conv1.weight, start.inversion.modulations[0]
    for row, weight in zip(good, tuned, strict=True):
        torch.testing.assert_close(weight, own + offset.offsets["b16.conv1.weight"][row])
    if batch == 3:  # the failed image keeps all it had
        assert "Refined 2 of 3" in report and "Image 2: The picture is one flat colour" in report
        torch.testing.assert_close(drawn[1], before[1], atol=1e-5, rtol=0)
        one = dataclasses.replace(start, inversion=start.inversion[0])
        torch.testing.assert_close(drawn[:1], invert(run, one, steps=12)[1], atol=1e-5, rtol=0)


def test_one_bad_picture_loses_nothing(run, three):
    refined, drawn, report = invert(run, three)
    assert "Refined 2 of 3 image(s) in 3 steps each." in report and "Image 2: The picture is one flat colour" in report
    before = run("Render", inversion=three)[1]
    assert torch.equal(drawn[1], before[1]) and torch.equal(refined.inversion.w_plus[1], three.inversion.w_plus[1])
    assert not any(torch.allclose(drawn[i], before[i], atol=1e-3) for i in (0, 2))
    with pytest.raises(InvalidInputError, match="one flat colour"):
        invert(run, dataclasses.replace(three, inversion=three.inversion[1]))


def test_progress_preview_interrupt_and_time(run, both, bar):  # noqa: F811
    bar.clear()
    invert(run, both, steps=6)
    assert [value for value, _, _ in bar][:12] == list(range(1, 13)) and {total for _, total, _ in bar[:12]} == {12}
    kind, picture, _ = next(preview for _, _, preview in bar if preview)
    assert kind == "JPEG" and picture.size == (SIDE, SIDE)
    bar.clear()
    bar.stop_at = 8  # within the second image
    with pytest.raises(stand_in.InterruptProcessingException):
        invert(run, both, steps=6)
    assert len(bar) == 8
    bar.stop_at = None
    assert "in 1 steps each" in invert(run, both, steps=500, seconds=1e-6)[2]


def test_settings_reach_the_optimiser(run, wire, monkeypatch):  # noqa: F811
    seen = []
    usual = multilayer_invert.invert_multilayer
    monkeypatch.setattr(
        multilayer_invert, "invert_multilayer", lambda *a, **k: seen.append((a[3], k["distance"])) or usual(*a, **k)
    )
    first, again = (invert(run, wire, seed=4)[1] for _ in range(2))
    assert torch.equal(first, again)
    invert(run, wire, learning_rate=0.01, feature_weight=7.0)
    monkeypatch.setattr(multilayer_invert, "distance_named", lambda *_: Plain())
    invert(run, wire, distance="lpips-vgg")
    automatic, _, own, lpips = (config for config, _ in seen)
    assert (automatic.feature_weight, automatic.distance_weight, automatic.seed) == (0.2, 0.2, 4)
    assert (own.learning_rate, own.feature_weight, own.distance_weight) == (0.01, 7.0, 0.2)
    assert (lpips.feature_weight, lpips.distance_weight, lpips.learning_rate) == (5.0, 1.0, 0.05)
    for name in ("seconds", "learning_rate", "feature_weight"):
        with pytest.raises(InvalidInputError, match=f"Input '{name}' is nan: expected a finite number"):
            invert(run, wire, **{name: float("nan")})
        with pytest.raises(InvalidInputError, match=f"{name} -1.*: expected a finite number of at least 0"):
            invert(run, wire, **{name: -1.0})


def test_a_map_of_another_generator_is_refused(run, wire):  # noqa: F811
    other = dataclasses.replace(given(wire), generator=run("LoadStyleGAN", model="other.safetensors")[0])
    with pytest.raises(GeneratorMismatchError, match="'latent_map' and 'inversion' belong to different generators"):
        invert(run, wire, other)


@pytest.fixture
def one_pass(own, generator):
    """A multilayer encoder that changes something."""
    torch.manual_seed(3)
    network = MultilayerEncoder(MultilayerEncoderConfig.for_generator(generator.generator, width=4, widest=4, units=1))
    for part in network.networks.values():
        torch.nn.init.normal_(part.last.weight, std=0.3)
    return save_model(network, own / "one-pass.safetensors", {"generator": "tiny.safetensors"})


def test_one_pass_of_an_encoder(run, three, one_pass, monkeypatch):
    monkeypatch.setattr(multilayer_invert, "invert_multilayer", never)
    start = earlier(three)
    before = run("Render", inversion=start)[1]
    refined, drawn, report = invert(run, start, method=ENCODER)
    kinds = [m.kind for m in refined.inversion.modulations]
    assert kinds == ["weight-offset", "feature-override", "pixel-blend", "feature-offset", "feature-offset"]
    assert torch.equal(refined.inversion.w_plus, three.inversion.w_plus)
    assert "One pass of one-pass.safetensors; the codes stayed as they are." in report and "Refined 2 of 3" in report
    torch.testing.assert_close(drawn[1], before[1], atol=1e-5, rtol=0)
    assert not torch.allclose(drawn[0], before[0], atol=1e-3)
    named = invert(run, start, method=ENCODER, encoder="one-pass.safetensors")[1]
    assert torch.equal(named, drawn)


def test_no_encoder_for_this_generator(run, wire, own, nodes):  # noqa: F811
    with pytest.raises(ModelNotFoundError, match="'optimise'.*gan-inversion train multilayer"):
        invert(run, wire, method=ENCODER)
    with pytest.raises(UnsupportedModelError, match="expected sam-encoder"):
        invert(run, wire, method=ENCODER, encoder="e4e.safetensors")
    wide = MultilayerEncoder(MultilayerEncoderConfig(("F0", "F2", "F4"), (6, 6, 6), 32, 4, 4, 1))
    save_model(wide, own / "wide.safetensors", {"generator": "elsewhere.safetensors"})
    with pytest.raises(GeneratorMismatchError, match="6 channels in F0, this generator has 8"):
        invert(run, wire, method=ENCODER, encoder="wide.safetensors")
    node = nodes["GANInversionMultilayerInvert"]
    assert node.validate_inputs(encoder="automatic") is node.validate_inputs(encoder="wide.safetensors") is True
    assert "no catalogue id" in node.validate_inputs(encoder="gone.pt")
    marks = [node.fingerprint_inputs(method=m) for m in ("optimise", ENCODER)]
    (own / "wide.safetensors").unlink()
    after = [node.fingerprint_inputs(method=m) for m in ("optimise", ENCODER)]
    assert after[0] == marks[0] and "wide" in marks[1] and "wide" not in after[1]
    with pytest.raises(InvalidInputError, match="Input 'method' is 'fast'"):
        invert(run, wire, method="fast")


def test_predicted_map_to_edited_picture(run, both, network, smile):  # noqa: F811
    made = predict(run, both, segments="superpixels")[0]
    refined, drawn, _ = invert(run, both, made)
    edited = run("Render", inversion=run("ApplyDirection", inversion=refined, direction=smile, strength=2.0)[0])[0]
    assert is_image(edited, 2) and not torch.allclose(edited, drawn, atol=1e-3)
