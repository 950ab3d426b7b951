"""What is measured, on networks of a few kilobytes and methods whose result is known."""

import math
import time

import numpy as np
import pytest
import torch

from gan_inversion.core import evaluation, methods
from gan_inversion.core.deeplab import DeepLabConfig
from gan_inversion.core.editing import Direction, Edit
from gan_inversion.core.encoder_config import EncoderConfig
from gan_inversion.core.encoders import Encoder
from gan_inversion.core.errors import InvalidInputError, NotFiniteError
from gan_inversion.core.evaluation import Context, EditTest, Measures, Method, Photographs, Result, evaluate_method
from gan_inversion.core.generator import Generator, GeneratorConfig
from gan_inversion.core.inversion import Inversion, render
from gan_inversion.core.invertibility import TAU, InvertibilityConfig, InvertibilityNet, latent_map, out_of_domain
from gan_inversion.core.latents import sample
from gan_inversion.core.losses import LayeredDistance
from gan_inversion.core.multilayer_encoder import MultilayerEncoder, MultilayerEncoderConfig, encode_multilayer
from gan_inversion.core.reganie import Reganie, ReganieConfig, rectify
from gan_inversion.core.samm import SEGMENT_THRESHOLD, SEGMENTS, Samm, SammConfig, align
from gan_inversion.core.samm_image import ImageAlignmentConfig, align_image
from gan_inversion.core.superpixels import mean_per_segment, superpixels

SIDE, W_DIM, COUNT = 32, 16, 3


@pytest.fixture(scope="module")
def generator():
    torch.set_num_threads(1)
    torch.manual_seed(0)
    made = Generator(GeneratorConfig(SIDE, (8, 8, 8, 8), z_dim=W_DIM, w_dim=W_DIM, mapping_layers=2)).eval()
    made.requires_grad_(False)
    made.mapping.w_avg.copy_(made.estimate_w_avg(200))
    # Pictures well inside [-1, 1], so that an offset is not clamped away.
    for block in made.synthesis.blocks():
        block.torgb.weight.mul_(0.05)
    return made


@pytest.fixture(scope="module")
def codes(generator):
    return sample(generator, range(COUNT))


@pytest.fixture(scope="module")
def drawn(generator, codes):
    pictures = generator.synthesis(codes)
    assert pictures.abs().max() < 0.6
    return pictures


@pytest.fixture
def known(generator, codes, drawn):
    """A method that knows the codes: it finds the picture whose drawn twin is nearest."""

    def run(images, context, mask=None):
        at = torch.cdist(images.flatten(1), drawn.flatten(1)).argmin(dim=1)
        return Result(Inversion(images, codes[at], context.generator), mask and mask(images))

    return lambda mask=None: Method("known", (), lambda images, context: run(images, context, mask))


def names(count=COUNT):
    return [f"person {index}" for index in range(count)]


def test_an_offset_of_a_tenth_is_26_db(generator, drawn, known):
    photographs = Photographs(names(), drawn + 0.1)
    measures = Measures(
        perceptual=lambda a, b: (a - b).abs().mean(dim=(1, 2, 3)),
        embed=lambda x: torch.nn.functional.normalize((x - x.mean(dim=(1, 2, 3), keepdim=True)).flatten(1)),
        features=lambda x: x.mean(dim=(2, 3)),
    )
    report = evaluate_method(known(), photographs, Context(generator), measures, batch=2)
    row = report.row
    assert row["method"] == "known" and row["images"] == COUNT
    assert row["mse"] == pytest.approx(0.01, rel=1e-3)
    assert row["psnr"] == pytest.approx(10 * math.log10(4 / 0.01), abs=0.01)
    assert row["psnr_min"] == min(row["per_image"]["psnr"]) == pytest.approx(row["psnr"], abs=0.01)
    assert row["lpips"] == pytest.approx(0.1, rel=1e-3)
    assert row["id"] == pytest.approx(1, abs=1e-4)
    assert row["frechet"] == pytest.approx(3 * 0.1**2, rel=1e-2)  # the same covariance, each mean moved by 0.1
    assert row["per_image"]["names"] == names() and len(row["per_image"]["psnr"]) == COUNT
    low, high = row["intervals"]["psnr"]
    assert low <= row["psnr"] + 1e-6 and row["psnr"] <= high + 1e-6
    assert not {"mask_iou", "aoa", "psnr_in_domain", "peak_memory_mb", "edit", "failed"} & row.keys()
    torch.testing.assert_close(report.images, drawn)


def test_absent_measures_leave_their_keys_out(generator, drawn, known):
    row = evaluate_method(known(), Photographs(names(), drawn + 0.1), Context(generator)).row
    assert not {"lpips", "id", "frechet"} & row.keys()
    assert {"mse", "psnr", "ssim", "ms_ssim", "seconds"} <= row.keys()


def test_a_perfect_image_has_no_finite_psnr_and_hides_no_other(generator, drawn, known):
    images = drawn.clone()
    images[1:] += 0.1
    row = evaluate_method(known(), Photographs(names(), images), Context(generator), batch=8).row
    assert row["psnr"] == pytest.approx(26.02, abs=0.02)
    assert row["per_image"]["psnr"][0] is None


def test_masks_split_the_error(generator, drawn, known):
    truth = torch.zeros(COUNT, 1, SIDE, SIDE)
    truth[..., : SIDE // 2] = 1
    images = drawn + torch.where(truth > 0, 0.2, 0.1)

    def predicted(pictures):  # half of the true area, at half the resolution
        mask = torch.zeros(len(pictures), 1, SIDE // 2, SIDE // 2)
        mask[..., : SIDE // 8] = 1
        return mask

    row = evaluate_method(known(predicted), Photographs(names(), images, truth), Context(generator)).row
    assert row["psnr_in_domain"] == pytest.approx(10 * math.log10(4 / 0.01), abs=0.02)
    assert row["psnr_out_of_domain"] == pytest.approx(10 * math.log10(4 / 0.04), abs=0.02)
    assert row["aoa"] == pytest.approx(0.25)
    assert row["mask_iou"] == pytest.approx(0.5, abs=0.05)


def test_measuring_at_another_size(generator, drawn, known):
    checks = torch.ones(SIDE, SIDE)
    checks[::2, ::2], checks[1::2, 1::2] = -1, -1
    images = drawn + 0.2 * checks  # averages out over 2x2 pixels
    at_full = evaluate_method(known(), Photographs(names(), images), Context(generator)).row
    at_half = evaluate_method(known(), Photographs(names(), images), Context(generator), Measures(size=SIDE // 2)).row
    assert at_full["mse"] == pytest.approx(0.04, rel=1e-3) and at_half["mse"] < 1e-6


def test_photographs_may_be_loaded_when_they_are_needed(generator, drawn, known):
    lazy = Photographs(names(), lambda rows: drawn[rows] + 0.1)
    rows = [evaluate_method(known(), p, Context(generator)).row for p in (lazy, Photographs(names(), drawn + 0.1))]
    assert rows[0]["per_image"] == rows[1]["per_image"]
    with pytest.raises(InvalidInputError, match="2 names"):
        Photographs(names(2), drawn)


def test_the_warm_up_is_one_image_and_not_timed(generator, codes):
    calls = []

    def run(images, context):
        calls.append((len(images), context.warm_up, context.steps_or(50)))
        time.sleep(0.4 if context.warm_up else 0.01 * len(images))
        return Result(Inversion(images, codes[: len(images)], context.generator))

    photographs = Photographs(names(), torch.zeros(COUNT, 3, SIDE, SIDE))
    row = evaluate_method(Method("sleeper", (), run), photographs, Context(generator), batch=2).row
    assert calls == [(1, True, 1), (2, False, 50), (1, False, 50)]
    assert 0.01 <= row["seconds"] < 0.13  # a third of 0.4 if it were counted


def test_one_bad_image_does_not_take_the_batch_with_it(generator, drawn, known):
    images = drawn + 0.1
    images[1, 0, 0, 0] = 0.99

    def run(batch, context):
        if (batch[:, 0, 0, 0] == 0.99).any():
            raise NotFiniteError("diverged")
        return known().run(batch, context)

    report = evaluate_method(Method("picky", (), run), Photographs(names(), images), Context(generator), batch=3)
    assert report.row["images"] == 2 and report.row["per_image"]["names"] == ["person 0", "person 2"]
    assert report.row["failed"] == [{"name": "person 1", "why": "diverged"}]
    assert (report.images[1] == 1).all() and (report.images[2] != 1).any()
    with pytest.raises(NotFiniteError, match="diverged"):
        evaluate_method(
            Method("picky", (), run), Photographs(["bad"], images[1:2]), Context(generator), batch=3
        )  # fmt: skip


def test_the_registry():
    assert [method.name for method in evaluation.find_methods(["w-plus", "e4e", "w-plus"])] == ["w-plus", "e4e"]
    with pytest.raises(InvalidInputError, match="No method 'e5e'.*e4e, psp, restyle-e4e"):
        evaluation.find_methods(["e4e", "e5e"])
    with pytest.raises(InvalidInputError, match="already"):
        evaluation.register(Method("w", (), lambda images, context: None))
    assert evaluation.METHODS["restyle-psp"].needs == ("restyle-psp",) and evaluation.METHODS["w"].needs == ()


def encoder(kind, channels):
    torch.manual_seed(1)
    made = Encoder(
        EncoderConfig(
            kind, num_ws=8, w_dim=W_DIM, input_size=(32, 32), stem=8, widths=(8, 16, 32), units=(1, 1, 1),
            style_channels=16, se_reduction=8, input_channels=channels,
        )
    )  # fmt: skip
    return made.eval().requires_grad_(False)


def test_encoders_and_projections(generator, drawn):
    kinds = {"e4e": ("Encoder4Editing", 3), "psp": ("GradualStyleEncoder", 3),
             "restyle-e4e": ("ProgressiveBackboneEncoder", 6), "restyle-psp": ("BackboneEncoder", 6)}  # fmt: skip
    models = {name: encoder(*kind) for name, kind in kinds.items()}
    for one in models.values():
        one.set_latent_avg(generator.w_avg)
    context = Context(generator, models, steps=6)
    images = drawn[:2]
    with torch.no_grad():
        found = {
            name: evaluation.METHODS[name].run(images, context).inversion.w_plus
            for name in [*kinds, "w", "w-plus"]  # fmt: skip
        }
    for name in kinds:
        expected = models[name](images, generator=generator)
        torch.testing.assert_close(found[name], expected)
    assert (found["w"] == found["w"][:, :1]).all() and (found["w-plus"] != found["w-plus"][:, :1]).any()
    assert evaluation.METHODS["w"].settings(context)["start"] == "mean of the rows of the e4e code"
    assert evaluation.METHODS["w-plus"].settings(context)["steps"] == 6
    assert evaluation.METHODS["w-plus"].settings(Context(generator))["start"] == "average code"
    assert evaluation.METHODS["restyle-e4e"].settings(context)["iterations"] == 5
    start = evaluate_method(evaluation.METHODS["e4e"], Photographs(names(2), images), context).row["mse"]
    context = Context(generator, models, steps=30)
    assert evaluate_method(evaluation.METHODS["w-plus"], Photographs(names(2), images), context).row["mse"] < start


@pytest.fixture(scope="module")
def refining(generator):
    """An e4e encoder of the tiny generator with a SAMM network, an invertibility predictor and a multilayer encoder."""
    e4e = encoder("Encoder4Editing", 3)
    e4e.set_latent_avg(generator.w_avg)
    torch.manual_seed(2)
    samm = Samm(SammConfig.for_networks(generator, e4e, iterations=1)).eval().requires_grad_(False)
    small = DeepLabConfig(stem=8, widths=(8, 8, 8), units=(1, 1, 1), pyramid=8, low_level=8, decoder=8, outputs=4)
    predictor = InvertibilityNet(InvertibilityConfig(("W+", "F0", "F2", "F4"), small, threshold=0.2))
    multilayer = MultilayerEncoder(MultilayerEncoderConfig(("F0", "F2", "F4"), (8, 8, 8), 32, width=4, widest=8))
    for network in multilayer.networks.values():
        torch.nn.init.normal_(network.last.weight, std=0.1)
    models = {"e4e": e4e, "samm": samm, "sam-invertibility": predictor, "sam-encoder": multilayer}
    return {name: model.eval().requires_grad_(False) for name, model in models.items()}


def only(models, *names):
    return {name: models[name] for name in names}


def test_samm(generator, drawn, refining):
    images, context = drawn[:2] + 0.1, Context(generator, only(refining, "e4e", "samm"))
    start = evaluation.METHODS["e4e"].run(images, context).inversion
    for name, iterations, warp in (
        ("samm", 2, True), ("samm-1", 1, True), ("samm-3", 3, True), ("samm-blend-only", 2, False),
    ):  # fmt: skip
        method = evaluation.METHODS[name]
        with torch.no_grad():
            found = method.run(images, context)
        expected = align(start, refining["e4e"], refining["samm"], iterations=iterations, warp=warp)
        torch.testing.assert_close(render(found.inversion), render(expected.inversion))
        assert torch.equal(found.mask, expected.mask) and found.mask.shape == (2, 1, SIDE, SIDE)
        assert method.needs == ("e4e", "samm") and not method.compares
        settings = method.settings(context)
        assert (settings["iterations"], settings["warp"], settings["features"]) == (iterations, warp, "e4e")


@pytest.mark.parametrize(("soft", "name"), [("samm", "samm-segments"), ("samm-image", "samm-image-segments")])
def test_samm_by_segments(generator, drawn, refining, soft, name):
    models = only(refining, "e4e", "samm")
    context = Context(generator, models, steps=3, distance=Trunk())
    with torch.no_grad():
        mask, whole = (evaluation.METHODS[n].run(drawn[:1] + 0.1, context).mask for n in (soft, name))
    labels = superpixels(drawn[:1] + 0.1, SEGMENTS)
    expected = (mean_per_segment(mask, labels) >= SEGMENT_THRESHOLD).float()
    assert torch.equal(whole, expected)
    described = [evaluation.METHODS[n].settings(context)["edges"] for n in (soft, name)]
    assert described == ["soft", "superpixels"]


class Trunk(LayeredDistance):
    """Colours under the name of the bundled network, for which other settings hold than for LPIPS."""

    name = "portraits-perceptual"

    def features(self, image):
        return [image]

    def maps(self, found, wanted):
        return [(a - b).square().mean(dim=1, keepdim=True) for a, b in zip(found, wanted, strict=True)]


class Lpips(Trunk):
    name = "lpips-vgg"


def test_samm_per_image(generator, drawn, refining):
    method = evaluation.METHODS["samm-image"]
    context = Context(generator, only(refining, "e4e"), steps=3, distance=Trunk(), seed=5)
    with torch.no_grad():
        found = method.run(drawn[:2], context)
    start = evaluation.METHODS["e4e"].run(drawn[:2], context).inversion
    expected = align_image(start, ImageAlignmentConfig(steps=3, seed=5), distance=Trunk())
    assert torch.equal(found.mask, expected.mask) and method.needs == ("e4e",) and method.compares
    settings = method.settings(context)
    assert settings["steps"] == 3 and settings["distance"] == "portraits-perceptual"
    assert settings["distance_weight"] == 1.0
    with pytest.raises(InvalidInputError, match="give the context a distance"):
        method.run(drawn[:1], Context(generator, only(refining, "e4e")))


def test_sam_by_a_predictor_or_by_measuring(generator, drawn, refining, monkeypatch):
    method = evaluation.METHODS["sam"]
    seen = []
    usual, usual_map = methods.invert_multilayer, methods.latent_map
    monkeypatch.setattr(
        methods, "invert_multilayer", lambda *a, **k: seen.append(("invert", a[3], k["start"])) or usual(*a, **k)
    )
    monkeypatch.setattr(
        methods,
        "latent_map",
        lambda errors, segments, tau: seen.append(("map", tau)) or usual_map(errors, segments, tau),
    )
    models = only(refining, "e4e", "sam-invertibility")
    context = Context(generator, models, steps=2, distance=Trunk(), seed=3)
    with torch.no_grad():
        found = method.run(drawn[:2], context)
        code = models["e4e"](drawn[:2], generator=generator)
    (_, tau), (_, config, start) = seen
    assert tau == 0.2 and torch.equal(start, code)
    assert (config.steps, config.distance_weight, config.feature_weight, config.seed) == (2, 0.2, 0.2, 3)
    errors = refining["sam-invertibility"](drawn[:2])
    expected = out_of_domain(usual_map(errors, superpixels(drawn[:2]), 0.2))
    assert torch.equal(found.mask, expected) and expected.any()
    settings = method.settings(context)
    assert settings["errors"] == "sam-invertibility" and settings["tau"] == 0.2 and settings["feature_weight"] == 0.2
    for distance, tau, weights in ((Trunk(), 0.55, (0.2, 0.2)), (Lpips(), TAU, (1.0, 5.0))):
        seen.clear()
        context = Context(generator, only(refining, "e4e"), steps=2, distance=distance)
        with torch.no_grad():
            assert method.run(drawn[:1], context).mask.shape == (1, 1, SIDE, SIDE)
        assert seen[0][1] == tau and (seen[1][1].distance_weight, seen[1][1].feature_weight) == weights
        settings = method.settings(context)
        assert settings["errors"] == "measured" and settings["measuring_steps"] == 2 and settings["tau"] == tau
        assert settings["distance"] == distance.name
    long = method.settings(Context(generator, only(refining, "e4e"), steps=500, distance=Trunk()))
    assert (long["steps"], long["measuring_steps"]) == (500, 100)
    assert method.wants == ("sam-invertibility",) and method.compares


def test_sam_by_an_encoder(generator, drawn, refining):
    method = evaluation.METHODS["sam-encoder"]
    assert set(method.needs) == {"e4e", "sam-invertibility", "sam-encoder"} and not method.compares
    context = Context(generator, refining)
    with torch.no_grad():
        found = method.run(drawn[:2], context)
    latent = latent_map(refining["sam-invertibility"](drawn[:2]), superpixels(drawn[:2]), 0.2)
    start = evaluation.METHODS["e4e"].run(drawn[:2], context).inversion
    expected = encode_multilayer(start, latent, refining["sam-encoder"])
    torch.testing.assert_close(render(found.inversion), render(expected))
    assert torch.equal(found.mask, out_of_domain(latent)) and found.inversion.modulations
    assert method.settings(context)["tau"] == 0.2


def test_reganie_and_the_baseline_it_has_to_beat(generator, drawn, refining):
    torch.manual_seed(11)
    network = Reganie(ReganieConfig(SIDE, (4, 6, 8), 5, (8,), 7, 1, (8, 6), residual=True)).eval()
    torch.nn.init.normal_(network.torgb.weight, std=0.1)
    context = Context(generator, {"e4e": refining["e4e"], "reganie": network.requires_grad_(False)})
    edit = Edit.of(Direction("anything", torch.randn(1, W_DIM)), 0.5)
    images = drawn[:2] + 0.1
    start = evaluation.METHODS["e4e"].run(images, context).inversion
    method, baseline = evaluation.METHODS["reganie"], evaluation.METHODS["residual-transfer"]
    assert method.needs == ("e4e", "reganie") and baseline.needs == ("e4e",)
    with torch.no_grad():
        found, plain = (one.run(images, context).inversion for one in (method, baseline))
        torch.testing.assert_close(render(found, edit), render(rectify(start, network), edit))
        assert not torch.allclose(render(found), render(start), atol=1e-3)
        torch.testing.assert_close(render(plain), images)
        torch.testing.assert_close(render(plain, edit), render(start, edit) + images - render(start))
    assert method.settings(context)["network_resolution"] == SIDE
    assert baseline.settings(context)["role"].startswith("baseline")
    report = evaluate_method(baseline, Photographs(names(2), images), context, edit=EditTest("x", 0.5, edit, 0.0))
    assert report.row["images"] == 2 and report.row["per_image"]["mse"] == pytest.approx([0, 0], abs=1e-9)


def test_which_methods_compare_features():
    assert {m.name for m in evaluation.METHODS.values() if m.compares} == {
        "dhr", "dhr-keep", "pti", "samm-image", "samm-image-no-warp", "samm-image-segments", "sam",
    }  # fmt: skip


def brightness(images):
    """As wide a mouth as the picture is bright: corners 48 and 54."""
    points = np.zeros((len(images), 68, 2))
    points[:, 54, 0] = 10 + images.mean(dim=(1, 2, 3)).numpy()
    return points


def test_edits(generator, codes, drawn, known):
    edit = Edit.of(Direction("anything", torch.randn(1, W_DIM, generator=torch.Generator().manual_seed(2))))
    edited = generator.synthesis(edit.apply(codes)).clamp(-1, 1)
    measures = Measures(
        perceptual=lambda a, b: (a - b).abs().mean(dim=(1, 2, 3)),
        embed=lambda x: torch.nn.functional.normalize(x.mean(dim=(2, 3))),
        landmarks=brightness,
    )
    smiles = {"person 0": edited[:1], "person 2": drawn[2:]}
    photographs = Photographs(names(), drawn + 0.05, smiles=smiles)
    report = evaluate_method(
        known(), photographs, Context(generator), measures, edit=EditTest("smile", 1.0, edit, 0.25), batch=2
    )
    torch.testing.assert_close(report.edited, edited)
    found = report.row["edit"]
    before, after = (evaluation.mouth_widths(brightness(x)) for x in (drawn, edited))
    assert found["name"] == "smile" and found["strength"] == 1.0 and found["id_other_people"] == 0.25
    assert found["mouth_wider_percent"] == pytest.approx(float(100 * (after / before - 1).mean()), rel=1e-3)
    assert found["wider_in"] == pytest.approx(float((after > before).mean()))
    embedded = [measures.embed(x) for x in (drawn + 0.05, drawn, edited)]
    assert found["id_to_source"] == pytest.approx(float((embedded[0] * embedded[2]).sum(1).mean()), abs=1e-5)
    assert found["id_to_inversion"] == pytest.approx(float((embedded[1] * embedded[2]).sum(1).mean()), abs=1e-5)
    # The first smile is the edited picture itself, the second the unedited one.
    assert found["nearer_to_real_smile"] == 0.5 and found["smiling_photographs"] == 2
    assert found["per_image"]["nearer_to_real_smile"] == [1.0, None, 0.0]


def test_attribute_response(generator, drawn, known):
    torch.manual_seed(3)
    directions = {
        "smile": Direction("s", torch.randn(1, W_DIM)), "brightness": Direction("b", torch.randn(1, W_DIM)),
        "age": Direction("a", torch.randn(1, W_DIM)),
    }  # fmt: skip

    def find(images):  # a mouth as wide as the picture is bright, between eyes 10 apart
        points = np.zeros((len(images), 68, 2))
        points[:, 42:48, 0] = 10
        points[:, 54, 0] = 20 + 10 * images.mean(dim=(1, 2, 3)).numpy()
        return points

    measures = Measures(embed=lambda x: torch.nn.functional.normalize(x.mean(dim=(2, 3))), landmarks=find)
    photographs = Photographs(names(), drawn + 0.05)
    rows = evaluation.attribute_response(
        known(), photographs, Context(generator), measures, directions, (-1.0, 0.0, 2.0), batch=2
    )
    assert [(row["direction"], row["alpha"]) for row in rows] == [
        (name, alpha) for name in directions for alpha in (-1.0, 0.0, 2.0)
    ]
    codes = sample(generator, range(COUNT))
    for row in rows:
        edited = generator.synthesis(directions[row["direction"]].delta(codes, row["alpha"]) + codes).clamp(-1, 1)
        before, after = (evaluation.mouth_widths(find(x)) for x in (drawn, edited))
        assert row["images"] == COUNT and len(row["per_image"]["smile_width"]) == COUNT
        assert row["changes"]["smile_width"] == pytest.approx(float(100 * (after / before - 1).mean()), abs=1e-3)
        source, plain, changed = (measures.embed(x) for x in (drawn + 0.05, drawn, edited))
        assert row["id_to_source"] == pytest.approx(float((source * changed).sum(1).mean()), abs=1e-5)
        assert row["id_to_inversion"] == pytest.approx(float((plain * changed).sum(1).mean()), abs=1e-5)
        meant = {"smile": "smile_width", "brightness": "brightness", "age": None}[row["direction"]]
        assert row.get("attribute") == meant and row.get("change") == (row["changes"][meant] if meant else None)
        if row["alpha"] == 0:
            assert all(abs(change) < 1e-3 for change in row["changes"].values())
            assert row["id_to_inversion"] == pytest.approx(1, abs=1e-5) and row["id_to_source"] < 1
        assert len(row["intervals"]["smile_width"]) == 2
    test = evaluation.AttributeTest(directions, (-1.0, 0.0, 2.0))
    report = evaluate_method(known(), photographs, Context(generator), measures, batch=2, attributes=test)
    assert report.row["attributes"] == rows
    bare = evaluation.attribute_response(known(), photographs, Context(generator), Measures(), directions)
    assert [row["alpha"] for row in bare[:2]] == [-2.0, 2.0] and "change" not in bare[0]
    assert bare[0]["changes"].keys() == {"brightness", "sharpness"} and "id_to_source" not in bare[0]
    for wrong in (({}, (1.0,)), (directions, ()), (directions, (math.nan,))):
        with pytest.raises(InvalidInputError, match="expected one or more of each"):
            evaluation.AttributeTest(*wrong)


def test_attribute_response_leaves_failed_photographs_out(generator, drawn, known):
    images = drawn + 0.05
    images[1, 0, 0, 0] = 0.99

    def run(batch, context):
        if (batch[:, 0, 0, 0] == 0.99).any():
            raise NotFiniteError("diverged")
        return known().run(batch, context)

    directions = {"brightness": Direction("b", torch.ones(1, W_DIM))}
    picky, context = Method("picky", (), run), Context(generator)
    rows = evaluation.attribute_response(picky, Photographs(names(), images), context, Measures(), directions, (1.0,))
    assert rows[0]["images"] == 2
    with pytest.raises(NotFiniteError, match="diverged"):
        evaluation.attribute_response(picky, Photographs(["bad"], images[1:2]), context, Measures(), directions)


def test_small_measures():
    points = np.zeros((2, 68, 2))
    points[:, 42:48, 0], points[:, 54] = 10, (3, 4)
    assert evaluation.mouth_widths(points).tolist() == [5, 5]
    moved = points.copy()
    moved[:, 48, 1] += 2
    agreement = evaluation.landmark_agreement(moved, points)
    assert agreement == {"all_points": pytest.approx(0.2 / 68), "mouth_corners": pytest.approx(0.1)}
    vectors = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    images = torch.arange(3.0)[:, None, None, None].expand(3, 3, 4, 4)
    between = evaluation.similarity_between_people(lambda x: vectors[x[:, 0, 0, 0].long()], images, batch=2)
    assert between == pytest.approx((0 + 0.6 + 0.8) / 3)
    assert evaluation.similarity_between_people(lambda x: x, images[:1]) is None


def test_samples(generator):
    count = 4
    measures = Measures(features=lambda x: x.mean(dim=(2, 3)))
    own = torch.cat([generator.synthesis(sample(generator, [seed])) for seed in range(count)]).clamp(-1, 1)
    others = torch.rand(2 * count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    report = evaluation.evaluate_samples(
        generator, count, measures, training=own.flip(-1), morphs=torch.cat((own, others[:count])), batch=3
    )
    torch.testing.assert_close(report.samples["truncation 1"], own)
    assert (report.samples["truncation 0.7"] - own).abs().max() > 1e-3
    assert report.values["count"] == count
    frechet, nearest = report.values["frechet"], report.values["nearest_distance"]
    assert frechet["truncation 1"] < 1e-6 < frechet["truncation 0.7"] < frechet["fresh morphs"]
    assert nearest["truncation 1"]["median"] == pytest.approx(0, abs=1e-5)  # copies, seen in a mirror
    assert 0 < nearest["truncation 0.7"]["min"] < nearest["fresh morphs"]["min"]
    torch.testing.assert_close(report.nearest["truncation 1"], own)
    alone = evaluation.evaluate_samples(generator, 1)
    assert alone.values == {"count": 1} and not alone.nearest
    with pytest.raises(InvalidInputError, match="64 px beside samples of 32 px"):
        evaluation.evaluate_samples(generator, 1, training=torch.zeros(1, 3, 64, 64))


def test_nearest_pictures_by_embedding_or_distance():
    bank = torch.stack([torch.full((3, 32, 32), value) for value in (-0.8, 0.0, 0.8)])
    images = bank[[2, 0]] + 0.1
    distance, at = evaluation.nearest_pictures(images, bank, Measures())
    assert at.tolist() == [2, 0] and distance.max() < 0.2
    measures = Measures(perceptual=lambda a, b: -(a - b).abs().mean(dim=(1, 2, 3)))  # the farthest is the nearest
    assert evaluation.nearest_pictures(images, bank, measures)[1].tolist() == [0, 2]

    def embed(x):
        angle = x.mean(dim=(1, 2, 3))
        return torch.stack((angle.cos(), angle.sin()), dim=1)

    distance, at = evaluation.nearest_pictures(images, bank, Measures(embed=embed))
    assert at.tolist() == [2, 0] and distance.tolist() == pytest.approx([1 - math.cos(0.1)] * 2, abs=1e-5)
    assert [evaluation.nearness_name(m) for m in (Measures(), measures, Measures(embed=embed))] == [
        "multiscale", "lpips", "id",
    ]  # fmt: skip


def test_bundled_landmarks_on_an_aligned_crop():
    from gan_inversion.core.landmarks import load_landmark_net

    points = evaluation.aligned_landmarks(load_landmark_net(), torch.zeros(1, 3, 64, 64))
    assert points.shape == (1, 68, 2) and np.isfinite(points).all()
    refused = evaluation.aligned_landmarks(load_landmark_net(), torch.zeros(1, 3, 64, 64), least_score=0.5)
    assert refused.shape == (1, 68, 2) and np.isnan(refused).all()
