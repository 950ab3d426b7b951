"""DHR Refine and Tune Generator on tiny networks, in inference mode as ComfyUI does it."""

import dataclasses
import functools

import pytest
import torch

from gan_inversion.core.dhr import Calibration, DhrConfig
from gan_inversion.core.directions import save_direction
from gan_inversion.core.discriminator import Discriminator, DiscriminatorConfig
from gan_inversion.core.editing import Direction
from gan_inversion.core.encoders import StyleEncoder
from gan_inversion.core.errors import GeneratorMismatchError, InvalidInputError, ModelNotFoundError, NotFiniteError
from gan_inversion.core.tuning import NearPerfectConfig, PtiConfig
from gan_inversion.model_registry import catalogue, save_model
from gan_inversion.model_registry.perceptual import BUNDLED_DISTANCE
from gan_inversion.nodes import _refinement, dhr_refine, tune_generator
from gan_inversion.nodes.headless import stand_in

from .test_execution import SIDE, is_image

METHODS = {
    "DHR": ("DHRRefine", {"steps": 3}),
    "PTI": ("TuneGenerator", {"steps": 3, "stop_at": 0.0}),
    "near-perfect": ("TuneGenerator", {"steps": 3, "method": "near-perfect", "discriminator": "judge.safetensors"}),
}
COARSE = 4  # steps of DHR's segmentation, 40 otherwise


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    # So scaled, a part of the tiny generator's pictures is out of domain.
    fixed = Calibration(1.0, 0.3, 2.0, 1.3)
    monkeypatch.setattr(dhr_refine, "DhrConfig", functools.partial(DhrConfig, coarse_steps=COARSE, calibration=fixed))
    monkeypatch.setattr(
        tune_generator, "NearPerfectConfig", functools.partial(NearPerfectConfig, stand_ins=4, pivot_steps=4)
    )
    monkeypatch.setattr(tune_generator, "PtiConfig", functools.partial(PtiConfig, pivot_steps=4))


@pytest.fixture(autouse=True)
def judge(models):
    """A discriminator of the tiny generator's size, and one of another."""
    for name, side in (("judge", SIDE), ("small-judge", SIDE // 2)):
        channels = (8,) * (side.bit_length() - 2)
        if not (models / f"{name}.safetensors").exists():
            torch.manual_seed(1)
            save_model(Discriminator(DiscriminatorConfig(side, channels)), models / f"{name}.safetensors")


@pytest.fixture
def smile(run, places, models):
    direction = Direction("smile", torch.randn(1, 16, generator=torch.Generator().manual_seed(5)), limits=(-2.0, 2.0))
    save_direction(models / "smile.safetensors", direction)
    return run("LoadDirection", direction="smile.safetensors")[0]


@pytest.fixture
def pictures():
    """Two smooth pictures with a square that no smooth picture has, IMAGE [2, 32, 32, 3]."""
    y, x = torch.meshgrid(torch.linspace(0, 1, SIDE), torch.linspace(0, 1, SIDE), indexing="ij")
    image = torch.stack((torch.stack((x, y, 1 - x), dim=-1), torch.stack((1 - y, x, x), dim=-1)))
    image[:, 4:14, 4:14] = torch.tensor([1.0, 0.0, 0.2])
    return image


@pytest.fixture
def wire(run, generator, encoder, pictures):
    """One encoded picture."""
    return run("Encode", image=pictures[:1], encoder=encoder, generator=generator)[0]


@pytest.fixture
def bar(monkeypatch):
    """What the progress bars were told: (value, total, preview); `stop_at` is the update at which the user cancels."""

    class Seen(list):
        stop_at = None

    seen = Seen()

    class Bar(stand_in.ProgressBar):
        def update_absolute(self, value, total=None, preview=None):
            seen.append((value, total, preview))
            if len(seen) == seen.stop_at:
                stand_in.interrupt_current_processing()
            super().update_absolute(value, total, preview)

    monkeypatch.setattr("gan_inversion.nodes._comfy.ProgressBar", Bar)
    return seen


def refine(run, method, wire, **inputs):
    node, usual = METHODS[method]
    outputs = run(node, inversion=wire, **{**usual, **inputs})
    return outputs[0], outputs[1], outputs[-1]


@pytest.mark.parametrize("method", METHODS)
def test_comes_closer_and_changes_nothing_it_was_given(run, generator, wire, smile, method):
    before = {name: value.clone() for name, value in generator.generator.state_dict().items()}
    given = run("ApplyDirection", inversion=wire, direction=smile, strength=1.0)[0]
    codes, image = given.inversion.w_plus.clone(), given.inversion.image.clone()
    plain, unedited = run("Render", inversion=given)
    faster = {"learning_rate": 0.01} if method == "PTI" else {}
    refined, drawn, report = refine(run, method, given, steps=12, **faster)
    target = (image.movedim(1, -1) + 1) / 2
    assert is_image(drawn, 1) and (drawn - target).square().mean() < 0.9 * (unedited - target).square().mean()
    assert refined.edit == given.edit and refined.generator is given.generator and len(refined.edit.terms) == 1
    assert refined.inversion.generator is generator.generator and torch.equal(refined.inversion.w_plus, codes)
    assert given.inversion.modulations == () and refined.inversion.modulations
    assert torch.equal(given.inversion.w_plus, codes) and torch.equal(given.inversion.image, image)
    edited, again = run("Render", inversion=refined)
    assert torch.equal(again, drawn) and not torch.allclose(edited, drawn, atol=1e-3)
    assert not torch.allclose(edited, plain, atol=1e-3) and torch.equal(run("Render", inversion=given)[0], plain)
    assert "Refined 1 of 1 image(s) in 12 steps" in report
    assert all(torch.equal(before[name], value) for name, value in generator.generator.state_dict().items())
    parameters = list(generator.generator.parameters())
    assert all(p.grad is None and not p.requires_grad for p in parameters)
    tensors = [t for m in refined.inversion.modulations for v in vars(m).values() if isinstance(v, torch.Tensor | dict)
               for t in (v.values() if isinstance(v, dict) else [v])]  # fmt: skip
    assert tensors and not any(t.requires_grad for t in [refined.inversion.w_plus, *tensors])


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_gives_the_same_pixels(run, wire, method):
    first, again = (refine(run, method, wire, seed=3)[1] for _ in range(2))
    assert torch.equal(first, again)


@pytest.mark.parametrize("method", METHODS)
def test_works_after_the_host_moved_the_weights_in_inference_mode(run, generator, wire, method):
    with torch.inference_mode():
        moved = generator.generator.mapping.fc0.weight = torch.nn.Parameter(
            generator.generator.mapping.fc0.weight.clone(), requires_grad=False
        )
    assert moved.is_inference()
    refined, drawn, _ = refine(run, method, wire)
    assert is_image(drawn, 1) and refined.inversion.generator is generator.generator


@pytest.mark.parametrize("method", METHODS)
def test_one_bad_picture_is_named_and_the_rest_finish(run, generator, encoder, pictures, method):
    batch = torch.cat((pictures[:1], torch.full((1, SIDE, SIDE, 3), 0.5), pictures[1:]))
    given = run("Encode", image=batch, encoder=encoder, generator=generator)[0]
    refined, drawn, report = refine(run, method, given)
    assert is_image(drawn, 3) and len(refined.inversion) == 3
    assert "Refined 2 of 3 image(s) in 3 steps each." in report
    assert "Image 2: The picture is one flat colour" in report and "Image 1" not in report and "Image 3" not in report
    before = run("Render", inversion=given)[1]
    assert torch.equal(drawn[1], before[1])
    assert not any(torch.allclose(drawn[i], before[i], atol=1e-3) for i in (0, 2))
    alone = refine(run, method, run("Encode", image=pictures[:1], encoder=encoder, generator=generator)[0])[1]
    torch.testing.assert_close(drawn[:1], alone, atol=2e-2, rtol=0)


@pytest.mark.parametrize("method", METHODS)
def test_nothing_but_bad_pictures_is_an_error(run, generator, encoder, method):
    given = run("Encode", image=torch.full((2, SIDE, SIDE, 3), 0.5), encoder=encoder, generator=generator)[0]
    with pytest.raises(InvalidInputError, match="one flat colour"):
        refine(run, method, given)


@pytest.mark.parametrize("method", METHODS)
def test_progress_counts_every_step_and_shows_the_picture(run, generator, encoder, pictures, bar, method):
    given = run("Encode", image=pictures, encoder=encoder, generator=generator)[0]
    bar.clear()
    refine(run, method, given, steps=10)
    each = 10 + (COARSE if method == "DHR" else 0)
    assert [value for value, _, _ in bar] == list(range(1, 2 * each + 1)) and {total for _, total, _ in bar} == {
        2 * each
    }
    kind, picture, side = next(preview for _, _, preview in bar if preview)
    assert kind == "JPEG" and picture.size == (SIDE, SIDE) and side > 0


@pytest.mark.parametrize("method", METHODS)
def test_an_interrupt_stops_within_a_step(run, generator, wire, bar, method):
    bar.clear()
    bar.stop_at = 3
    with pytest.raises(stand_in.InterruptProcessingException):
        refine(run, method, wire, steps=20)
    assert len(bar) == 3
    stand_in.throw_exception_if_processing_interrupted()  # the request was used up
    bar.stop_at = None
    assert all(p.grad is None and not p.requires_grad for p in generator.generator.parameters())
    assert is_image(refine(run, method, wire)[1], 1)


def test_an_interrupt_in_the_refinement_itself(run, wire, bar):
    bar.clear()
    bar.stop_at = COARSE + 2
    with pytest.raises(stand_in.InterruptProcessingException):
        refine(run, "DHR", wire, steps=20)
    assert len(bar) == COARSE + 2


@pytest.mark.parametrize("method", METHODS)
def test_time_is_up(run, wire, method):
    report = refine(run, method, wire, steps=2000, seconds=0.2)[2]
    steps = int(report.split(" in ")[1].split(" steps")[0])
    assert 1 <= steps < 2000


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_refused_by_name(run, wire, method, bad):
    names = {"DHR": ("threshold", "seconds")}.get(method, ("stop_at", "learning_rate", "seconds"))
    for name in names:
        with pytest.raises(InvalidInputError, match=f"Input '{name}' is .*(nan|inf): expected a finite number"):
            refine(run, method, wire, **{name: bad})


@pytest.mark.parametrize("method", METHODS)
def test_settings_out_of_range_are_refused(run, wire, method):
    for bad in ({"steps": 0}, {"seconds": -1.0}):
        with pytest.raises(InvalidInputError, match=f"{next(iter(bad))} .*: expected a finite number of at least"):
            refine(run, method, wire, **bad)


@pytest.mark.parametrize("method", METHODS)
def test_a_saved_refinement_renders_the_same_picture(run, generator, wire, smile, method):
    refined, drawn, _ = refine(run, method, wire)
    (name,) = run("SaveInversion", inversion=refined, filename_prefix="refined")
    loaded = run("LoadInversion", file=name, generator=generator)[0]
    assert torch.equal(run("Render", inversion=loaded)[1], drawn)
    edited = [
        run("Render", inversion=run("ApplyDirection", inversion=w, direction=smile)[0])[0] for w in (refined, loaded)
    ]
    assert torch.equal(*edited)


@pytest.mark.parametrize("method", METHODS)
def test_a_refined_inversion_can_be_refined_again(run, wire, method):
    refined, drawn, _ = refine(run, method, wire, steps=6)
    other = "PTI" if method == "DHR" else "DHR"
    again, redrawn, _ = refine(run, other, refined, steps=6)
    kept = len(refined.inversion.modulations)
    assert again.inversion.modulations[:kept] and len(again.inversion.modulations) > kept
    target = (wire.inversion.image.movedim(1, -1) + 1) / 2
    assert (redrawn - target).square().mean() <= (drawn - target).square().mean() + 1e-4


def test_moving_the_slider_runs_no_refinement(run, wire, smile, monkeypatch):
    refined = [refine(run, method, wire)[0] for method in METHODS]

    def never(*_, **__):
        raise AssertionError("refined or encoded again")

    for place, name in ((dhr_refine, "refine"), (tune_generator, "tune"), (tune_generator, "near_perfect"),
                        (StyleEncoder, "forward")):  # fmt: skip
        monkeypatch.setattr(place, name, never)
    for one in refined:
        weak, strong = (
            run("Render", inversion=run("ApplyDirection", inversion=one, direction=smile, strength=s)[0])[0]
            for s in (0.5, 2.0)
        )
        assert not torch.equal(weak, strong)


# DHR Refine


def square(value=1.0):
    """A painted mask, MASK [1, 32, 32], at the lower right."""
    mask = torch.zeros(1, SIDE, SIDE)
    mask[:, 20:30, 20:30] = value
    return mask


def test_dhr_gives_the_mask_and_the_tinted_photograph(run, wire, pictures):
    _, drawn, mask, shown, report = run("DHRRefine", inversion=wire, steps=3)
    assert mask.shape == (1, SIDE, SIDE) and set(mask.unique().tolist()) == {0.0, 1.0}
    inside, outside = mask[0] == 1, mask[0] == 0
    assert is_image(shown, 1) and is_image(drawn, 1)
    assert torch.equal(drawn[0][inside], ((wire.inversion.image.movedim(1, -1) + 1) / 2)[0][inside])
    torch.testing.assert_close(shown[0][outside], pictures[0][outside], atol=1e-5, rtol=0)
    tint = shown[0][inside] - pictures[0][inside]
    assert (tint[:, 0] >= -1e-5).all() and tint[:, 0].max() > 0.3
    for words in (
        f"Distance: {BUNDLED_DISTANCE}",
        "LPIPS",
        f"Segmented with {BUNDLED_DISTANCE}",
        "no face parser was used",
    ):
        assert words in report
    assert "on this machine" not in run("DHRRefine", inversion=wire, steps=1, distance=BUNDLED_DISTANCE)[-1]


def test_dhr_merges_a_painted_mask(run, wire):
    found = run("DHRRefine", inversion=wire, steps=1)[2]
    painted = square()
    expected = {
        "union": torch.maximum(found, painted),
        "intersect": torch.minimum(found, painted),
        "replace": painted,
        "subtract": found * (1 - painted),
    }
    for merge, mask in expected.items():
        assert torch.equal(run("DHRRefine", inversion=wire, mask=painted, merge=merge, steps=1)[2], mask), merge
    larger = torch.nn.functional.interpolate(painted[None], scale_factor=3)[0]
    resized = run("DHRRefine", inversion=wire, mask=larger, merge="replace", steps=1)[2]
    assert torch.equal(resized.round(), painted)
    empty = torch.zeros(1, 64, 64)  # LoadImage's, for a photograph without transparency
    for merge in expected:
        assert torch.equal(run("DHRRefine", inversion=wire, mask=empty, merge=merge, steps=1)[2], found), merge


def test_dhr_replace_looks_for_nothing(run, wire, bar, monkeypatch):
    asked = []
    usual = dhr_refine.distance_named
    monkeypatch.setattr(dhr_refine, "distance_named", lambda name, wanted: asked.append(wanted) or usual(name, wanted))
    monkeypatch.setattr(dhr_refine, "find_face_parser", lambda *_: pytest.fail("looked for a face parser"))
    bar.clear()
    report = run("DHRRefine", inversion=wire, mask=square(), merge="replace", steps=5)[-1]
    assert [value for value, _, _ in bar] == [1, 2, 3, 4, 5] and {total for _, total, _ in bar} == {5}
    assert asked == [dhr_refine._REFINING] and "nothing was segmented" in report and "parser" not in report


def test_dhr_takes_one_mask_for_each_image_or_one_for_all(run, generator, encoder, pictures):
    given = run("Encode", image=pictures, encoder=encoder, generator=generator)[0]
    one = run("DHRRefine", inversion=given, mask=square(), merge="replace", steps=1)[2]
    assert torch.equal(one, square().expand(2, -1, -1))
    two = torch.cat((square(), square().flip(1)))
    assert torch.equal(run("DHRRefine", inversion=given, mask=two, merge="replace", steps=1)[2], two)
    with pytest.raises(InvalidInputError, match="3 masks for 2 images"):
        run("DHRRefine", inversion=given, mask=square().repeat(3, 1, 1), steps=1)
    with pytest.raises(NotFiniteError, match="mask contains NaN"):
        run("DHRRefine", inversion=given, mask=square(float("nan")), steps=1)


def test_dhr_threshold_and_keep_pixels(run, wire):
    sizes = [float(run("DHRRefine", inversion=wire, steps=1, threshold=t)[2].mean()) for t in (0.1, 1.0, 5.0)]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > sizes[2]
    kinds = [
        [m.kind for m in run("DHRRefine", inversion=wire, mask=square(), merge="replace", steps=2, keep_pixels=keep)[0]
         .inversion.modulations] for keep in (True, False)
    ]  # fmt: skip
    assert kinds == [["weight-offset", "feature-override", "pixel-blend"], ["weight-offset", "feature-override"]]


def test_dhr_face_parser(run, wire, monkeypatch):
    loaded = []

    def tiny_parser(name, **options):
        from gan_inversion.core.parsing import FaceParser, FaceParserConfig

        loaded.append((name, options["architecture"], torch.is_inference_mode_enabled()))
        torch.manual_seed(0)
        parser = FaceParser(FaceParserConfig((8, 8, 8, 8), 8, 8, 8, 8, size=64)).eval().requires_grad_(False)
        return dataclasses.make_dataclass("Loaded", ["module"])(parser)

    monkeypatch.setattr(_refinement, "load_model", tiny_parser)
    report = run("DHRRefine", inversion=wire, steps=1, face_parser="bisenet-face-parsing")[-1]
    assert loaded == [("bisenet-face-parsing", "bisenet", False)] and "by face parsing and superpixels" in report
    for name in ("automatic", "none"):
        assert "no face parser" in run("DHRRefine", inversion=wire, steps=1, face_parser=name)[-1]
    monkeypatch.setattr(catalogue, "locate", lambda entry, **_: (entry.file_name, None))
    monkeypatch.setattr(dhr_refine, "distance_named", lambda *_: _refinement.distance_named(BUNDLED_DISTANCE, ()))
    assert "no face parser" in run("DHRRefine", inversion=wire, steps=1)[-1]  # the generator's domain is unknown
    assert len(loaded) == 1
    faces = dataclasses.replace(wire, generator=dataclasses.replace(wire.generator, domain="portraits"))
    assert "by face parsing" in run("DHRRefine", inversion=faces, steps=1)[-1] and len(loaded) == 2


# Tune Generator


def test_tune_stops_when_the_picture_is_close_enough(run, generator, bar):
    own = run("Sample", generator=generator)[0]
    bar.clear()
    assert "in 1 steps each" in run("TuneGenerator", inversion=own, steps=9, stop_at=1.0)[-1]
    assert bar[-1][:2] == (9, 9)  # the bar is full at the end all the same
    assert "in 9 steps" in run("TuneGenerator", inversion=own, steps=9, stop_at=0.0)[-1]


def test_tune_settings_reach_the_method(run, wire, monkeypatch):
    seen = []

    def kept(function):
        def call(inversion, measure, config, **options):
            seen.append(config)
            return function(inversion, measure, config, **options)

        return call

    for name in ("tune", "near_perfect"):
        monkeypatch.setattr(tune_generator, name, kept(getattr(tune_generator, name)))
    refined = refine(run, "PTI", wire, pivot="W projection", locality=True, learning_rate=0.01, stop_at=0.5, seed=4)[0]
    rows = refined.inversion.w_plus
    assert bool((rows == rows[:, :1]).all()) and not torch.equal(rows, wire.inversion.w_plus)
    refine(run, "near-perfect", wire, seconds=5.0)
    pti, near = seen
    assert (pti.pivot, pti.locality, pti.learning_rate, pti.stop_at, pti.seed) == ("w", True, 0.01, 0.5, 4)
    assert (near.pivot, near.learning_rate, near.seconds, near.steps) == (
        "given",
        NearPerfectConfig.learning_rate,
        5.0,
        3,
    )
    assert pti.seconds is None


def test_near_perfect_needs_a_discriminator(run, generator, wire, nodes):
    with pytest.raises(ModelNotFoundError, match="tiny.safetensors comes without its discriminator.*choose the disc"):
        run("TuneGenerator", inversion=wire, method="near-perfect", steps=1)
    nameless = dataclasses.replace(wire, generator=dataclasses.replace(generator, source=None))
    with pytest.raises(ModelNotFoundError, match="No discriminator is known for tiny.safetensors: choose its file"):
        run("TuneGenerator", inversion=nameless, method="near-perfect", steps=1)
    with pytest.raises(GeneratorMismatchError, match="pictures of 16 px, the generator draws 32 px"):
        refine(run, "near-perfect", wire, discriminator="small-judge.safetensors")
    assert "Discriminator: judge.safetensors." in refine(run, "near-perfect", wire)[2]
    check = nodes["GANInversionTuneGenerator"].validate_inputs
    for good in ("automatic", "judge.safetensors", "portraits-discriminator"):
        assert check(discriminator=good) is True
    assert "no catalogue id" in check(discriminator="gone.pkl") and "outside" in check(discriminator="../../x.pt")
    assert "choose a discriminator" in check(discriminator="portraits")
    assert "portraits-discriminator" in _options(nodes) and "judge.safetensors" in _options(nodes)
    assert "stylegan2-ffhq-1024" not in _options(nodes)


def _options(nodes):
    schema = nodes["GANInversionTuneGenerator"].define_schema()
    return next(one.options for one in schema.inputs if one.id == "discriminator")


def test_near_perfect_finds_the_discriminator_in_the_generators_file(run, wire, monkeypatch):
    asked = []
    usual = _refinement.load_model

    def load(path, **options):
        asked.append((str(path), options.get("part")))
        return usual(path.parent / "judge.safetensors", **options)

    monkeypatch.setattr(_refinement, "load_model", load)
    report = refine(run, "near-perfect", wire, discriminator="automatic")[2]
    assert [(path.endswith("tiny.safetensors"), part) for path, part in asked] == [(True, "discriminator")]
    assert "Discriminator: judge.safetensors." in report


def test_the_discriminator_is_left_as_it_was(run, wire, monkeypatch):
    found = []
    usual = tune_generator.discriminator_of
    monkeypatch.setattr(tune_generator, "discriminator_of", lambda *a: found.append(usual(*a)) or found[0])
    refine(run, "near-perfect", wire)
    fresh = usual("judge.safetensors", wire.generator)[0].state_dict()
    assert all(torch.equal(fresh[name], value) for name, value in found[0][0].state_dict().items())
    assert all(p.grad is None for p in found[0][0].parameters())


@pytest.mark.parametrize(
    ("node", "inputs", "said"),
    [
        ("DHRRefine", {"mask": torch.ones(1, 8, 8), "merge": "replace"}, "nothing was segmented"),
        ("TuneGenerator", {"stop_at": 0.0}, "portraits-perceptual"),
        ("TuneGenerator", {"method": "near-perfect"}, "Discriminator: portraits-discriminator."),
    ],
)
def test_bundled_models(run, node, inputs, said):
    (portraits,) = run("LoadStyleGAN", model="portraits")
    given = run("MixStyles", inversion=run("Sample", generator=portraits, seed=1)[0],
                style=run("Sample", generator=portraits, seed=2)[0], amount=0.2)[0]  # fmt: skip
    outputs = run(node, inversion=given, steps=2, **inputs)
    assert is_image(outputs[1], 1, 128, 128) and "in 2 steps each" in outputs[-1] and said in outputs[-1]
