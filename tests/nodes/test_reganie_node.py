"""ReGANIE Rectify on tiny networks, in inference mode as ComfyUI does it."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from gan_inversion.core.blending import match_mask
from gan_inversion.core.errors import (
    GeneratorMismatchError,
    InvalidInputError,
    ModelNotFoundError,
    NotFiniteError,
    UnsupportedModelError,
)
from gan_inversion.core.inversion import FeatureOffset, FeatureWarp, PixelBlend, ResidualTransfer, WeightOffset, render
from gan_inversion.core.reganie import Rectification, Reganie, ReganieConfig, rectify
from gan_inversion.model_registry import catalogue, load_model, save_model
from gan_inversion.model_registry.perceptual import BUNDLED_DISTANCE
from gan_inversion.nodes import reganie_rectify
from gan_inversion.nodes.headless import evaluate, stand_in

from .test_execution import SIDE, is_image
from .test_refining_nodes import bar, pictures, smile, square, wire  # noqa: F401

BASELINE = "residual transfer (baseline)"
MODES = {"network": {"method": "reganie.safetensors"}, "baseline": {"method": BASELINE}}
TINY = ReganieConfig(SIDE, (4, 6, 8), 5, (8,), 7, 1, (8, 6))


def write_network(path, facts=None, seed=5, **changes):
    torch.manual_seed(seed)
    network = Reganie(dataclasses.replace(TINY, **changes)).eval().requires_grad_(False)
    return save_model(network, path, facts or {})


@pytest.fixture(autouse=True)
def networks(models):
    """A network for the tiny generator that says whose it is."""
    facts = {"generator": "C:\\models\\tiny.safetensors", "encoder": "elsewhere/e4e.safetensors"}
    if not (models / "reganie.safetensors").exists():
        write_network(models / "reganie.safetensors", facts)


@pytest.fixture
def network(models):
    return load_model(models / "reganie.safetensors").module


@pytest.fixture
def batch(run, generator, encoder, pictures):  # noqa: F811
    """Three encoded pictures, the second of which holds NaN."""
    images = torch.cat((pictures[:1], pictures[:1].flip(2), pictures[1:]))
    found = run("Encode", image=images, encoder=encoder, generator=generator)[0]
    image = found.inversion.image.clone()
    image[1, 0, 0, 0] = float("nan")
    return dataclasses.replace(found, inversion=dataclasses.replace(found.inversion, image=image))


def outputs(run, wire, **inputs):  # noqa: F811
    names = ("inversion", "rectified", "reconstruction", "report")
    return dict(zip(names, run("ReGANIERectify", inversion=wire, **inputs), strict=True))


def shown(image):
    return (image.clamp(-1, 1).movedim(1, -1) + 1) / 2


def kinds(wire):  # noqa: F811
    return [m.kind for m in wire.inversion.modulations]


def test_pictures_are_those_of_the_library_edited_and_not(run, wire, smile, network):  # noqa: F811
    given = run("ApplyDirection", inversion=wire, direction=smile, strength=1.0)[0]
    found = outputs(run, given, **MODES["network"])
    expected = rectify(given.inversion, network)
    with torch.no_grad():
        torch.testing.assert_close(found["reconstruction"], shown(render(expected)))
        torch.testing.assert_close(found["rectified"], shown(render(expected, given.edit)))
        assert not torch.allclose(found["reconstruction"], shown(render(given.inversion)), atol=1e-2)
    assert is_image(found["rectified"], 1) and not torch.equal(found["rectified"], found["reconstruction"])
    assert found["inversion"].edit == given.edit and found["inversion"].generator is given.generator
    assert given.inversion.modulations == () and kinds(found["inversion"]) == ["rectification"]
    tensors = [
        *found["inversion"].inversion.modulations[0].weights.values(),
        found["inversion"].inversion.modulations[0].mask,
    ]
    assert not any(t.requires_grad or t.is_inference() for t in tensors)
    plain = outputs(run, wire, **MODES["network"])
    assert torch.equal(plain["rectified"], plain["reconstruction"])


@pytest.mark.parametrize("mode", MODES)
def test_edits_may_come_after_it_and_it_is_saved(run, generator, wire, smile, mode):  # noqa: F811
    before = run("ApplyDirection", inversion=wire, direction=smile, strength=1.0)[0]
    first = outputs(run, before, **MODES[mode])
    rectified = outputs(run, wire, **MODES[mode])["inversion"]
    after = run("ApplyDirection", inversion=rectified, direction=smile, strength=1.0)[0]
    edited, unedited = run("Render", inversion=after)
    assert torch.equal(edited, first["rectified"]) and torch.equal(unedited, first["reconstruction"])
    (name,) = run("SaveInversion", inversion=rectified, filename_prefix="rectified")
    loaded = run("LoadInversion", file=name, generator=generator)[0]
    assert torch.equal(run("Render", inversion=loaded)[0], unedited)


def test_residual_transfer_is_exact_unedited_and_says_that_it_is_the_baseline(run, wire, smile):  # noqa: F811
    given = run("ApplyDirection", inversion=wire, direction=smile, strength=1.0)[0]
    found = outputs(run, given, **MODES["baseline"])
    torch.testing.assert_close(found["reconstruction"], shown(given.inversion.image))
    with torch.no_grad():
        missing = given.inversion.image - render(given.inversion)
        expected = render(given.inversion, given.edit) + missing
    torch.testing.assert_close(found["rectified"], shown(expected))
    assert "by residual transfer, which is the baseline and not ReGANIE" in found["report"]
    assert "ghosts" in found["report"] and kinds(found["inversion"]) == ["residual-transfer"]


def test_automatic_takes_the_network_that_names_the_generator_or_its_domain(run, generator, wire, models):  # noqa: F811
    found, named = (outputs(run, wire, **inputs) for inputs in ({}, MODES["network"]))
    assert torch.equal(found["rectified"], named["rectified"])
    assert found["report"] == named["report"] == "Rectified 1 of 1 image(s) by the ReGANIE network reganie.safetensors."
    nameless = dataclasses.replace(generator, name="mine.pt", source=None)
    assert reganie_rectify.known_network(nameless) is None
    path = write_network(models / "a-painted.safetensors", {"domain": "photos"}, domain="paintings")
    try:
        assert reganie_rectify.known_network(dataclasses.replace(nameless, domain="paintings")) == path
        assert reganie_rectify.known_network(dataclasses.replace(nameless, domain="photos")) is None
        assert reganie_rectify.known_network(generator).name == "reganie.safetensors"
    finally:
        path.unlink()


def test_a_network_of_the_catalogue_is_known_by_its_domain_and_size(generator, models, monkeypatch):
    known = catalogue.find("portraits-e4e")
    entry = dataclasses.replace(known, id="ours", kind="reganie", architecture="reganie", resolution=SIDE)
    monkeypatch.setattr(catalogue, "load_catalogue", lambda: (entry,))
    monkeypatch.setattr(catalogue, "locate", lambda one, **_: (models / "reganie.safetensors", None))
    monkeypatch.setattr(catalogue, "_registered", [])
    ours = dataclasses.replace(generator, domain="portraits")
    assert reganie_rectify.known_network(ours) == "ours"
    assert reganie_rectify.GANInversionReGANIERectify.define_schema().inputs[2].options[:3] == [
        "automatic", BASELINE, "ours",
    ]  # fmt: skip
    assert reganie_rectify.known_network(generator) is None  # whose domain nobody knows
    monkeypatch.setattr(catalogue, "load_catalogue", lambda: (dataclasses.replace(entry, resolution=1024),))
    assert reganie_rectify.known_network(ours) is None
    monkeypatch.setattr(catalogue, "locate", lambda *_, **__: (None, None))
    monkeypatch.setattr(catalogue, "load_catalogue", lambda: (entry,))
    assert reganie_rectify.known_network(ours) is None  # it would have to be downloaded


def test_without_a_network_the_error_names_the_training_and_the_baseline(run, generator, wire):  # noqa: F811
    nameless = dataclasses.replace(wire, generator=dataclasses.replace(generator, name="mine.pt", source=None))
    with pytest.raises(
        ModelNotFoundError,
        match=r"No ReGANIE network for mine\.pt .*`gan-inversion train reganie --generator mine\.pt .*"
        r"'residual transfer \(baseline\)' works without a network",
    ):
        outputs(run, nameless)
    assert is_image(outputs(run, nameless, method=BASELINE)["rectified"], 1)


def test_networks_of_others_are_refused_where_that_is_known(run, wire, models):  # noqa: F811
    with pytest.raises(UnsupportedModelError, match="holds a stylegan2 network: expected reganie"):
        outputs(run, wire, method="tiny.safetensors")
    with pytest.raises(ModelNotFoundError, match=r"gone\.pth"):
        outputs(run, wire, method="gone.pth")
    cls = reganie_rectify.GANInversionReGANIERectify
    assert cls.validate_inputs("automatic") is cls.validate_inputs(BASELINE) is True
    assert cls.validate_inputs("reganie.safetensors") is True and "gone.pth" in cls.validate_inputs("gone.pth")
    cars = dataclasses.replace(wire, generator=dataclasses.replace(wire.generator, domain="car"))
    places = {
        "faces": {"domain": "ffhq"},
        "theirs": {"facts": {"generator": "/somewhere/other.safetensors"}},
        "unknown": {"facts": {"generator": "long-gone.pt", "encoder": "psp.pt"}},
    }
    paths = {name: write_network(models / f"{name}.safetensors", **more) for name, more in places.items()}
    try:
        with pytest.raises(
            GeneratorMismatchError, match=r"faces.* was trained for ffhq pictures, generator tiny.* draws car.*baseline"
        ):
            outputs(run, cars, method="faces.safetensors")
        with pytest.raises(GeneratorMismatchError, match=r"theirs.* for generator other\.safetensors, not for tiny"):
            outputs(run, wire, method="theirs.safetensors")
        report = outputs(run, wire, method="unknown.safetensors")["report"]
        assert "trained for generator long-gone.pt, not for tiny.safetensors" in report
        assert "trained with inversions of psp.pt, these are of e4e.safetensors" in report
        again = {name: cls.fingerprint_inputs(method=name) for name in ("automatic", "faces.safetensors")}
        paths["faces"].touch()
        assert all(cls.fingerprint_inputs(method=name) != before for name, before in again.items())
    finally:
        for path in paths.values():
            path.unlink()
    assert cls.fingerprint_inputs(method=BASELINE) == BASELINE


@pytest.mark.parametrize("mode", MODES)
def test_mask_and_strength_say_where_and_how_much(run, wire, mode):  # noqa: F811
    plain = run("Render", inversion=wire)[1]
    whole = outputs(run, wire, **MODES[mode])["reconstruction"]
    mask = square()
    found = outputs(run, wire, mask=mask, **MODES[mode])
    inside = match_mask(mask, (SIDE, SIDE))[0, 0].bool()
    torch.testing.assert_close(found["reconstruction"][:, inside], whole[:, inside])
    assert torch.equal(found["reconstruction"][:, ~inside], plain[:, ~inside])
    assert f"takes {100 * float(inside.float().mean()):.0f} % of the picture" in found["report"]
    empty = outputs(run, wire, mask=torch.zeros(1, 64, 64), **MODES[mode])
    assert torch.equal(empty["reconstruction"], whole) and "mask" not in empty["report"]
    assert torch.equal(outputs(run, wire, strength=0.0, **MODES[mode])["reconstruction"], plain)
    half = outputs(run, wire, strength=0.5, **MODES[mode])
    assert (half["reconstruction"] - whole).abs().max() > 1e-3 and "Strength 0.5." in half["report"]
    for wrong in (1.5, -0.1):
        with pytest.raises(InvalidInputError, match=f"Input 'strength' is {wrong}: expected 0 to 1"):
            outputs(run, wire, strength=wrong, **MODES[mode])
    with pytest.raises(InvalidInputError, match="Input 'strength' is nan"):
        outputs(run, wire, strength=float("nan"), **MODES[mode])
    with pytest.raises(NotFiniteError, match="mask contains NaN"):
        outputs(run, wire, mask=square(float("nan")), **MODES[mode])


@pytest.mark.parametrize("mode", MODES)
def test_a_second_run_takes_the_place_of_the_first(run, wire, mode):  # noqa: F811
    first = outputs(run, wire, mask=square(), strength=0.5, **MODES["baseline"])
    again = outputs(run, first["inversion"], **MODES[mode])
    once = outputs(run, wire, **MODES[mode])
    assert len(kinds(again["inversion"])) == 1 and torch.equal(again["rectified"], once["rectified"])
    assert "The earlier rectification was replaced." in again["report"] and "replaced" not in once["report"]
    assert again["inversion"].inversion.info == once["inversion"].inversion.info


def composed(wire):  # noqa: F811
    """An inversion with one of everything that others add, a blend among them."""
    torch.manual_seed(7)
    generator, count = wire.inversion.generator, len(wire.inversion)
    name, weight = next(iter(generator.synthesis.named_parameters()))
    mask = torch.rand(count, 1, 8, 8)
    kept = torch.zeros(count, 1, SIDE, SIDE)
    kept[..., 4:14, 4:14], kept[..., 14:18, 4:14] = 1.0, 0.5
    added = (
        WeightOffset({name: 0.3 * torch.randn(1, *weight.shape).expand(count, *weight.shape)}),
        FeatureWarp(8, 0.1 * torch.randn(count, 2, 8, 8), mask),
        PixelBlend(kept),
        FeatureOffset(16, torch.randn(count, 8, 16, 16), torch.rand(count, 1, 16, 16)),
    )
    return dataclasses.replace(wire, inversion=dataclasses.replace(wire.inversion, modulations=added)), kept


@pytest.mark.parametrize("mode", MODES)
def test_goes_behind_weights_and_features_and_before_blends(run, wire, smile, network, mode):  # noqa: F811
    given, kept = composed(wire)
    given = run("ApplyDirection", inversion=given, direction=smile, strength=1.0)[0]
    found = outputs(run, given, **MODES[mode])
    own = "rectification" if mode == "network" else "residual-transfer"
    assert kinds(found["inversion"]) == ["weight-offset", "feature-warp", "feature-offset", own, "pixel-blend"]
    photograph = shown(given.inversion.image)
    inside = kept[0, 0] == 1
    for name in ("rectified", "reconstruction"):
        torch.testing.assert_close(found[name][:, inside], photograph[:, inside])
    # Written out: all weights and features, then the network, then the blend.
    modulations = given.inversion.modulations
    unblended = dataclasses.replace(given.inversion, modulations=(*modulations[:2], modulations[3]))
    with torch.no_grad():
        plain, edited = render(unblended), render(unblended, given.edit)
        missing = given.inversion.image - plain
        half = Reganie(network.config).eval()
        half.load_state_dict({k: v.half().float() if v.ndim > 1 else v for k, v in network.state_dict().items()})
        redrawn = half(edited, missing) if mode == "network" else edited + missing
    expected = torch.lerp(redrawn, given.inversion.image, kept)
    torch.testing.assert_close(found["rectified"], shown(expected), atol=1e-4, rtol=0)
    assert "Pixels of the photograph that an earlier node kept stay as they are." in found["report"]
    again = outputs(run, found["inversion"], **MODES[mode])
    assert kinds(again["inversion"]) == kinds(found["inversion"])
    assert torch.equal(again["rectified"], found["rectified"])


def test_a_later_tuning_starts_from_it(run, wire):  # noqa: F811
    found = outputs(run, wire, **MODES["network"])["inversion"]
    settings = {"steps": 1, "stop_at": 0.0, "distance": BUNDLED_DISTANCE}
    tuned, drawn = run("TuneGenerator", inversion=found, **settings)[:2]
    assert kinds(tuned) == ["rectification", "weight-offset"] and is_image(drawn, 1)


@pytest.mark.parametrize("mode", MODES)
def test_one_bad_picture_is_named_and_the_rest_are_rectified(run, batch, smile, mode):  # noqa: F811
    given = run("ApplyDirection", inversion=batch, direction=smile, strength=1.0)[0]
    found = outputs(run, given, **MODES[mode])
    assert "Rectified 2 of 3 image(s)" in found["report"] and "Image 2: The picture holds NaN" in found["report"]
    edited, unedited = run("Render", inversion=given)
    for name, before in (("rectified", edited), ("reconstruction", unedited)):
        assert is_image(found[name], 3) and torch.equal(found[name][1], before[1])
        assert not torch.allclose(found[name][0], before[0], atol=1e-2)
    alone = dataclasses.replace(given, inversion=given.inversion[2])
    torch.testing.assert_close(outputs(run, alone, **MODES[mode])["rectified"], found["rectified"][2:])
    only = dataclasses.replace(given, inversion=given.inversion[1])
    with pytest.raises(NotFiniteError, match="holds NaN"):
        outputs(run, only, **MODES[mode])
    masks = torch.cat((square(), square(), square().flip(1)))
    where = outputs(run, given, mask=masks, **MODES[mode])["inversion"].inversion.modulations[0].mask
    assert torch.equal(where[:, 0], masks * torch.tensor([1.0, 0.0, 1.0])[:, None, None])
    with pytest.raises(InvalidInputError, match="2 masks for 3 images"):
        outputs(run, given, mask=square().repeat(2, 1, 1), **MODES[mode])


def test_one_network_serves_a_batch_and_another_size_adapts(run, wire, batch, models):  # noqa: F811
    weights = outputs(run, batch, **MODES["network"])["inversion"].inversion.modulations[0].weights
    assert all(len(tensor) == 1 for tensor in weights.values())
    path = write_network(models / "small.safetensors", {"generator": "tiny.safetensors"}, resolution=16)
    try:
        assert is_image(outputs(run, wire, method="small.safetensors")["rectified"], 1)
    finally:
        path.unlink()


def test_progress_and_interrupt(run, batch, smile, bar):  # noqa: F811
    given = run("ApplyDirection", inversion=batch, direction=smile, strength=1.0)[0]
    bar.clear()
    outputs(run, given, **MODES["network"])
    assert bar[-1][:2] == (6, 6)
    bar.clear()
    bar.stop_at = 2
    with pytest.raises(stand_in.InterruptProcessingException):
        outputs(run, given, **MODES["network"])


def test_evaluate_finds_the_network_by_architecture_and_refuses_one_of_other_pictures(
    generator, network, models, monkeypatch
):
    known = catalogue.find("portraits-e4e")
    more = [
        dataclasses.replace(known, id=f"ours-{domain}", kind="reganie", architecture="reganie", domain=domain)
        for domain in ("elsewhere", "portraits")
    ]
    entries = (*(entry for entry in catalogue.load_catalogue() if entry.architecture != "reganie"), *more)
    monkeypatch.setattr(catalogue, "load_catalogue", lambda: entries)
    monkeypatch.setattr(evaluate, "_is_here", lambda name: True)
    loaded = SimpleNamespace(
        catalogue_id="portraits", path=Path("g.pt"), domain="portraits", module=generator.generator
    )
    assert evaluate._default_model("reganie", loaded) == ("ours-portraits", "")
    ours = dataclasses.replace(load_model(models / "reganie.safetensors"), domain="portraits")
    evaluate._check_fit("reganie", ours, loaded, None)
    with pytest.raises(GeneratorMismatchError, match="reganie.safetensors for reganie was trained for car pictures"):
        evaluate._check_fit("reganie", dataclasses.replace(ours, domain="car"), loaded, None)


def test_rectification_is_taken_off_whatever_method_made_it(run, wire):  # noqa: F811
    for mode, kind in (("network", Rectification), ("baseline", ResidualTransfer)):
        found = outputs(run, wire, **MODES[mode])["inversion"].inversion
        assert isinstance(found.modulations[0], kind)
        assert reganie_rectify.without_rectification(found).modulations == ()
