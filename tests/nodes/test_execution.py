"""Every node executed on tiny networks, in inference mode as ComfyUI does it."""

import dataclasses
import re
import time

import pytest
import torch

from gan_inversion import model_registry
from gan_inversion.core.directions import save_direction
from gan_inversion.core.discovery import sample_w
from gan_inversion.core.editing import Direction
from gan_inversion.core.encoders import StyleEncoder
from gan_inversion.core.errors import (
    CorruptFileError,
    GeneratorMismatchError,
    InvalidInputError,
    ModelNotFoundError,
    UnsupportedModelError,
)
from gan_inversion.core.inversion import render
from gan_inversion.model_registry import catalogue, save_model
from gan_inversion.nodes import project as project_node
from gan_inversion.nodes._types import to_core
from gan_inversion.nodes.headless import stand_in

SIDE = 32


def is_image(image, count, height=SIDE, width=SIDE):
    assert image.shape == (count, height, width, 3) and image.dtype == torch.float32
    assert image.is_contiguous() and image.device.type == "cpu" and 0 <= image.min() <= image.max() <= 1
    return True


@pytest.fixture
def smile(run, places, models):
    direction = Direction("smile", torch.randn(1, 16, generator=torch.Generator().manual_seed(5)), limits=(-2.0, 2.0))
    save_direction(models / "smile.safetensors", direction)
    return run("LoadDirection", direction="smile.safetensors")[0]


def test_load_stylegan(run, nodes, models, places):
    (wire,) = run("LoadStyleGAN", model="tiny.safetensors", dtype="fp16")
    assert wire.generator.resolution == SIDE and wire.name == "tiny.safetensors" and len(wire.identity) == 16
    assert wire.dtype == torch.float16 and wire.dtype_on(torch.device("cpu")) == torch.float32
    cls = nodes["GANInversionLoadStyleGAN"]
    options = cls.define_schema().inputs[0].options
    assert "tiny.safetensors" in options and "stylegan2-ffhq-1024" in options
    assert "stylegan3-t-ffhq-1024" not in options and "stylegan2-car-512-hdf5" not in options
    assert (
        cls.validate_inputs(model="tiny.safetensors") is True
        and cls.validate_inputs(model="stylegan2-ffhq-1024") is True
    )
    assert "no catalogue id" in cls.validate_inputs(model="nothing.pt")
    assert "outside" in cls.validate_inputs(model="../../etc/passwd") and "outside" in cls.validate_inputs(
        model="/etc/passwd"
    )
    before = cls.fingerprint_inputs(model="tiny.safetensors")
    (models / "tiny.safetensors").touch()
    assert cls.fingerprint_inputs(model="tiny.safetensors") != before


def test_bundled_models_come_first(monkeypatch):
    from gan_inversion.model_registry import catalogue
    from gan_inversion.nodes import _models

    known = catalogue.find("stylegan2-ffhq-1024")
    ours = dataclasses.replace(
        known, id="portraits", source=catalogue.BundledSource("portraits.safetensors"), format=None
    )
    monkeypatch.setattr(catalogue, "load_catalogue", lambda: (known, ours))
    assert _models.choices("generator")[:2] == ["portraits", "stylegan2-ffhq-1024"]


def test_loaders_refuse_what_belongs_elsewhere(run, models):
    with pytest.raises(UnsupportedModelError, match="Load Encoder"):
        run("LoadStyleGAN", model="e4e.safetensors")
    with pytest.raises(UnsupportedModelError, match="Load StyleGAN"):
        run("LoadEncoder", model="tiny.safetensors")
    (models / "page.pt").write_text("<!DOCTYPE html><html></html>")
    with pytest.raises(CorruptFileError, match="page.pt"):
        run("LoadStyleGAN", model="page.pt")
    with pytest.raises(ModelNotFoundError, match="gone.pt"):
        run("LoadEncoder", model="gone.pt")


def test_encode_gives_codes_and_what_they_draw(run, generator, encoder, aligned):
    before = aligned.clone()
    wire, drawn = run("Encode", image=aligned, encoder=encoder, generator=generator)
    assert is_image(drawn, 2) and torch.equal(aligned, before)
    assert wire.inversion.w_plus.shape == (2, 8, 16) and not wire.edit.terms
    torch.testing.assert_close(wire.inversion.image, to_core(aligned))
    expected = encoder.encoder(to_core(aligned), generator=generator.generator)
    torch.testing.assert_close(wire.inversion.w_plus, expected)
    torch.testing.assert_close(drawn, (render(wire.inversion).clamp(-1, 1).movedim(1, -1) + 1) / 2)


def test_encode_in_chunks_equals_one_by_one(run, generator, encoder):
    images = torch.rand(5, SIDE, SIDE, 3)
    together = run("Encode", image=images, encoder=encoder, generator=generator)[0].inversion.w_plus
    for index in range(5):
        alone = run("Encode", image=images[index : index + 1], encoder=encoder, generator=generator)[0].inversion.w_plus
        torch.testing.assert_close(together[index : index + 1], alone, atol=1e-5, rtol=1e-4)


def test_encode_with_restyle_runs_its_iterations(run, generator, aligned):
    (restyle,) = run("LoadEncoder", model="restyle.safetensors")
    codes = {
        n: run("Encode", image=aligned, encoder=restyle, generator=generator, iterations=n)[0].inversion.w_plus
        for n in (1, 3)
    }
    assert not torch.allclose(codes[1], codes[3])


def test_encode_takes_grey_alpha_and_other_sizes(run, generator, encoder):
    for channels in (1, 4):
        wire, drawn = run("Encode", image=torch.rand(1, 50, 50, channels), encoder=encoder, generator=generator)
        assert is_image(drawn, 1) and wire.inversion.image.shape == (1, 3, SIDE, SIDE)


def test_encode_refuses_what_is_not_aligned(run, generator, encoder, photo, aligned):
    with pytest.raises(InvalidInputError, match="40x48.*Align Face"):
        run("Encode", image=photo, encoder=encoder, generator=generator)
    with pytest.raises(InvalidInputError, match="'image'.*expected an IMAGE"):
        run("Encode", image=aligned[..., :2], encoder=encoder, generator=generator)


@pytest.mark.parametrize("space", ["W", "W+"])
def test_project_in_inference_mode(run, generator, aligned, space):
    before = {name: value.clone() for name, value in generator.generator.state_dict().items()}
    wire, drawn = run("Project", image=aligned, generator=generator, space=space, steps=8)
    assert is_image(drawn, 2) and len(wire.inversion) == 2
    rows = wire.inversion.w_plus
    assert bool((rows == rows[:, :1]).all()) is (space == "W")
    assert not wire.inversion.w_plus.requires_grad
    assert all(torch.equal(before[name], value) for name, value in generator.generator.state_dict().items())


def test_project_after_the_host_moved_the_weights_in_inference_mode(run, generator, aligned):
    with torch.inference_mode():
        for parameter in generator.generator.parameters():
            parameter.data = parameter.data.clone()
        moved = generator.generator.mapping.fc0.weight = torch.nn.Parameter(
            generator.generator.mapping.fc0.weight.clone(), requires_grad=False
        )
    assert moved.is_inference()
    wire, _ = run("Project", image=aligned[:1], generator=generator, steps=2)
    assert wire.inversion.generator is generator.generator


def test_project_improves_on_its_start(run, generator):
    wire, target = run("Sample", generator=generator, seed=3)
    start = run("Sample", generator=generator, seed=4)[0]
    found, drawn = run("Project", image=target, generator=generator, start=start, steps=40, learning_rate=0.1)
    assert (drawn - target).square().mean() < 0.5 * (to_core(target) - start.inversion.image).square().mean() / 4


def test_project_reports_each_step_and_stops(run, generator, aligned, monkeypatch):
    seen = []

    class Bar(stand_in.ProgressBar):
        def update_absolute(self, value, total=None, preview=None):
            seen.append((value, total, preview))
            if len(seen) == 4:
                stand_in.interrupt_current_processing()
            super().update_absolute(value, total, preview)

    monkeypatch.setattr("gan_inversion.nodes._comfy.ProgressBar", Bar)
    with pytest.raises(stand_in.InterruptProcessingException):
        run("Project", image=aligned, generator=generator, steps=50)
    assert len(seen) == 4 and all(total == 2 * 51 for _, total, _ in seen)
    kind, picture, side = next(preview for _, _, preview in seen if preview)
    assert kind == "JPEG" and picture.size == (SIDE, SIDE) and side > 0
    stand_in.throw_exception_if_processing_interrupted()  # the request was used up


def test_directions_chain_and_apply_in_any_order(run, generator, encoder, aligned, smile):
    wire, plain = run("Encode", image=aligned, encoder=encoder, generator=generator)
    (other, info) = run("DiscoverDirections", generator=generator, method="PCA", index=1, samples=200)
    assert info.startswith("pca:1")
    one = run("ApplyDirection", inversion=wire, direction=smile, strength=2.0)[0]
    both = run("ApplyDirection", inversion=one, direction=other, strength=-1.0)[0]
    swapped = run("ApplyDirection", inversion=run("ApplyDirection", inversion=wire, direction=other, strength=-1.0)[0],
                  direction=smile, strength=2.0)[0]  # fmt: skip
    edited, unedited = run("Render", inversion=both)
    assert is_image(edited, 2) and torch.equal(unedited, plain) and not torch.allclose(edited, plain, atol=1e-3)
    torch.testing.assert_close(run("Render", inversion=swapped)[0], edited, atol=1e-5, rtol=1e-4)
    assert [len(w.edit.terms) for w in (wire, one, both)] == [0, 1, 2]
    assert run("Render", inversion=run("ApplyDirection", inversion=wire, direction=smile, strength=0.0)[0])[0].equal(
        plain
    )


def test_changing_a_strength_runs_neither_encoder_nor_optimiser(run, generator, encoder, aligned, smile, monkeypatch):
    calls = {"encoder": 0, "optimiser": 0, "synthesis": 0}

    def counted(name, function):
        def call(*args, **kwargs):
            calls[name] += 1
            return function(*args, **kwargs)

        return call

    monkeypatch.setattr(StyleEncoder, "forward", counted("encoder", StyleEncoder.forward))
    monkeypatch.setattr(project_node, "project", counted("optimiser", project_node.project))
    synthesis = type(generator.generator.synthesis)
    wire, _ = run("Encode", image=aligned[:1], encoder=encoder, generator=generator)
    projected, _ = run("Project", image=aligned[:1], generator=generator, steps=2, start=wire)
    assert calls["encoder"] == 1 and calls["optimiser"] == 1
    monkeypatch.setattr(synthesis, "forward", counted("synthesis", synthesis.forward))
    pictures = []
    for strength in (-1.0, 0.5, 2.0):
        moved = run("ApplyDirection", inversion=projected, direction=smile, strength=strength)[0]
        assert calls["synthesis"] == 2 * len(pictures)
        pictures.append(run("Render", inversion=moved)[0])
    assert calls == {"encoder": 1, "optimiser": 1, "synthesis": 6}
    assert not torch.equal(pictures[0], pictures[1]) and not torch.equal(pictures[1], pictures[2])


def test_layer_range_of_apply_direction(run, generator, smile):
    wire, plain = run("Sample", generator=generator, seed=1)
    some = run("ApplyDirection", inversion=wire, direction=smile, first_layer=2, last_layer=3)[0]
    change = some.edit.apply(wire.inversion.w_plus) - wire.inversion.w_plus
    assert change[:, 2:4].abs().min() > 0 and not change[:, :2].any() and not change[:, 4:].any()
    for first, last in ((5, 4), (8, -1), (0, 8)):
        with pytest.raises(InvalidInputError, match="<= 7"):
            run("ApplyDirection", inversion=wire, direction=smile, first_layer=first, last_layer=last)


def test_a_direction_of_another_generator_is_refused_or_told(run, generator, caplog):
    wire = run("Sample", generator=generator)[0]
    with pytest.raises(GeneratorMismatchError, match="'wide'"):
        run("ApplyDirection", inversion=wire, direction=Direction("wide", torch.randn(1, 512)))
    run("ApplyDirection", inversion=wire, direction=Direction("near", torch.randn(1, 16), generator_id="0" * 16))
    assert "near was made with another generator" in caplog.text


def test_load_direction(run, models, nodes):
    comp = torch.linalg.qr(torch.randn(16, 16)).Q[:4]
    torch.save({"comp": comp[:, None], "mean": torch.zeros(1, 16), "std": torch.arange(4.0, 0, -1)}, models / "pca.pt")
    direction, info = run("LoadDirection", direction="pca.pt", component="2")
    assert torch.equal(direction.offset, comp[2:3]) and direction.unit == 2 and "holds 4 directions: pca:0" in info
    assert run("LoadDirection", direction="pca.pt")[0].name == "pca:0"
    assert run("LoadDirection", direction="pca.pt", component="pca:1", absolute=True)[0].coordinate is not None
    with pytest.raises(InvalidInputError, match="pca.pt, component 'beard'"):
        run("LoadDirection", direction="pca.pt", component="beard")
    options = nodes["GANInversionLoadDirection"].define_schema().inputs[0].options
    assert "pca.pt" in options and "interfacegan-ffhq-age" in options and "styleclip-fs3-ffhq" not in options


def test_discover_directions(run, generator):
    first, info = run("DiscoverDirections", generator=generator, index=2, first_layer=0, last_layer=3, name="tilt")
    assert first.name == "tilt" and first.layers == (0, 4) and first.generator_id == generator.identity
    assert info.startswith("tilt: natural from -3 to 3, layers 0 to 3. SeFa")
    a, b = (run("Sample", generator=generator, seed=seed, count=3)[0] for seed in (0, 10))
    pairs, info = run("DiscoverDirections", generator=generator, method="from pairs", without=a, with_attribute=b)
    whole = float(re.search(r"The whole step between the two groups is strength ([\d.]+)\.", info)[1])
    moved = run("ApplyDirection", inversion=a, direction=pairs, strength=whole)[0]
    step = (b.inversion.w_plus - a.inversion.w_plus).mean(dim=0)
    torch.testing.assert_close(
        moved.edit.apply(a.inversion.w_plus) - a.inversion.w_plus, step.expand(3, -1, -1), atol=1e-4, rtol=5e-3
    )
    assert run("DiscoverDirections", generator=generator, method="from two sets", without=a, with_attribute=b)[0]
    with pytest.raises(InvalidInputError, match="'without'"):
        run("DiscoverDirections", generator=generator, method="from pairs", without=a)


@pytest.mark.parametrize("method", ["SeFa", "PCA", "from pairs", "from two sets"])
def test_discovered_directions_are_calibrated_on_the_generator(run, generator, method):
    a, b = (run("Sample", generator=generator, seed=seed, count=3)[0] for seed in (0, 10))
    direction, info = run(
        "DiscoverDirections", generator=generator, method=method, without=a, with_attribute=b, samples=200
    )
    low, high = direction.limits
    assert (
        f"Calibrated on 2000 random codes of tiny.safetensors: strength 1 is one standard deviation, {low:g} to" in info
    )
    assert high == pytest.approx(3) and low == -high
    w_plus = generator.generator.broadcast(sample_w(generator.generator, 500, seed=7)).flatten(1)
    step = direction.delta(torch.zeros(1, 8, 16), 1.0).flatten(1)[0]
    assert float((w_plus @ step / step.norm()).std()) == pytest.approx(float(step.norm()), rel=0.15)


def test_discover_directions_refuses_pictures_of_another_generator(run, generator):
    own = run("Sample", generator=generator, count=2)[0]
    foreign = run("Sample", generator=run("LoadStyleGAN", model="other.safetensors")[0], count=2)[0]
    for inputs, name in (({"without": foreign, "with_attribute": own}, "'without'"),
                         ({"without": own, "with_attribute": foreign}, "'with_attribute'")):  # fmt: skip
        for method in ("from pairs", "from two sets"):
            with pytest.raises(GeneratorMismatchError, match=f"{name} and 'generator'"):
                run("DiscoverDirections", generator=generator, method=method, **inputs)


@pytest.mark.parametrize(("of_encoder", "told"), [("ffhq", False), (None, False), ("car", True)])
def test_encode_tells_when_encoder_and_generator_are_of_other_pictures(
    run, generator, encoder, aligned, caplog, of_encoder, told
):
    generator = dataclasses.replace(generator, domain="ffhq")
    run("Encode", image=aligned, encoder=dataclasses.replace(encoder, domain=of_encoder), generator=generator)
    assert ("was trained on car pictures, generator tiny.safetensors draws ffhq" in caplog.text) is told


def test_the_domain_comes_from_the_file_or_the_catalogue(run, models, monkeypatch, generator):
    save_model(generator.generator, models / "cars.safetensors", {"domain": "car"})
    assert run("LoadStyleGAN", model="cars.safetensors")[0].domain == "car" and generator.domain is None
    known = catalogue.find("e4e-ffhq")
    size = (models / "e4e.safetensors").stat().st_size
    for length, domain in ((size, "ffhq"), (size + 1, None)):
        entry = dataclasses.replace(known, file_name="e4e.safetensors", size=length)
        monkeypatch.setattr(catalogue, "load_catalogue", lambda entry=entry: (entry,))
        assert run("LoadEncoder", model="e4e.safetensors")[0].domain == domain


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_none_are_refused_by_name(run, generator, smile, aligned, bad):
    wire = run("Sample", generator=generator)[0]
    style = Direction("style", style={"b8.conv0": torch.ones(8)})
    for node, name, inputs in (
        ("ApplyDirection", "strength", {"inversion": wire, "direction": smile}),
        ("ApplyDirection", "strength", {"inversion": wire, "direction": style}),
        ("Sample", "psi", {"generator": generator}),
        ("MixStyles", "amount", {"inversion": wire, "style": wire}),
        ("DirectionSweep", "low", {"inversion": wire, "direction": smile, "range": "from low to high"}),
        ("DirectionSweep", "high", {"inversion": wire, "direction": smile, "range": "from low to high"}),
        ("Project", "learning_rate", {"image": aligned, "generator": generator}),
        ("Project", "pull_to_average", {"image": aligned, "generator": generator}),
        ("Blend", "feather", {"source": aligned, "image": aligned, "mask": torch.ones(1, SIDE, SIDE)}),
    ):
        with pytest.raises(InvalidInputError, match=f"Input '{name}' is .*(nan|inf): expected a finite number"):
            run(node, **inputs, **{name: bad})


def test_project_with_another_distance(run, generator, aligned, monkeypatch):
    asked = []

    def perceptual(name, *, progress, check_interrupt):
        asked.append((name, callable(progress), callable(check_interrupt), torch.is_inference_mode_enabled()))
        weight = torch.ones(1)
        return lambda image, target: weight * (image - target).abs().mean(dim=(1, 2, 3))

    monkeypatch.setattr(model_registry, "perceptual_distance", perceptual, raising=False)
    codes = {
        name: run("Project", image=aligned[:1], generator=generator, steps=8, distance=name)[0].inversion.w_plus
        for name in ("multi-scale", "lpips-vgg")
    }
    assert asked == [("lpips-vgg", True, True, False)]
    assert not torch.equal(codes["multi-scale"], codes["lpips-vgg"])
    usual = run("Project", image=aligned[:1], generator=generator, steps=8)[0].inversion.w_plus
    assert torch.equal(usual, codes["multi-scale"])


def test_loaders_refuse_catalogue_ids_of_another_kind(run, nodes, models):
    for node, name, found, wanted in (
        ("LoadDirection", "portraits", "a generator", "a direction"),
        ("LoadEncoder", "portraits", "a generator", "an encoder"),
        ("LoadStyleGAN", "portraits-e4e", "an encoder", "a generator"),
        ("LoadStyleGAN", "portraits-smile", "a direction", "a generator"),
        ("LoadStyleGAN", "stylegan3-t-ffhq-1024", "a generator of a form that cannot be used here", "a generator"),
    ):
        cls = nodes[f"GANInversion{node}"]
        socket = cls.define_schema().inputs[0].id
        answer = cls.validate_inputs(**{socket: name})
        assert (
            answer.startswith(f"{name!r} is {found}") and f"choose {wanted} from the list, such as portraits" in answer
        )
        with pytest.raises(InvalidInputError, match="choose"):
            run(node, **{socket: name})
        assert cls.fingerprint_inputs(**{socket: name}) == name
        for strange in (None, 3, ["a"], "a\0b"):
            assert isinstance(cls.validate_inputs(**{socket: strange}), str)


def test_sample_is_the_same_for_a_seed(run, generator):
    wire, images = run("Sample", generator=generator, seed=5, count=3)
    assert is_image(images, 3) and len(wire.inversion) == 3
    alone, image = run("Sample", generator=generator, seed=6)
    assert torch.equal(alone.inversion.w_plus, wire.inversion.w_plus[1:2])
    torch.testing.assert_close(image, images[1:2])
    torch.testing.assert_close(to_core(image), alone.inversion.image)
    average = run("Sample", generator=generator, seed=2**64 - 1, psi=0.0, count=2)[1]
    torch.testing.assert_close(average[0], average[1])


def test_mix_styles(run, generator, smile):
    a = run("ApplyDirection", inversion=run("Sample", generator=generator, seed=1, count=2)[0], direction=smile)[0]
    b = run("Sample", generator=generator, seed=9)[0]
    mixed, image = run("MixStyles", inversion=a, style=b, first_layer=4)
    assert is_image(image, 2) and mixed.edit == a.edit
    assert torch.equal(mixed.inversion.w_plus[:, :4], a.inversion.w_plus[:, :4])
    assert torch.equal(mixed.inversion.w_plus[:, 4:], b.inversion.w_plus[:, 4:].expand(2, -1, -1))
    half = run("MixStyles", inversion=b, style=a, first_layer=0, amount=0.5)[0].inversion.w_plus
    torch.testing.assert_close(half, (a.inversion.w_plus + b.inversion.w_plus) / 2)
    other = run("LoadStyleGAN", model="other.safetensors")[0]
    with pytest.raises(GeneratorMismatchError, match="tiny.safetensors.*other.safetensors"):
        run("MixStyles", inversion=a, style=run("Sample", generator=other)[0])


def test_direction_sweep(run, generator, smile):
    wire = run("Sample", generator=generator, seed=1, count=2)[0]
    grid, frames, labels = run("DirectionSweep", inversion=wire, direction=smile, steps=3, cell=64)
    assert is_image(frames, 6) and is_image(grid, 1, *grid.shape[1:3]) and grid.shape[2] > 3 * 64
    assert labels == "Columns: -2, 0, +2\nRows: #1 smile, #2 smile"
    torch.testing.assert_close(frames[1], run("Render", inversion=wire)[0][0])
    second = run("DiscoverDirections", generator=generator)[0]
    one = run("Sample", generator=generator, seed=1)[0]
    _, frames, labels = run(
        "DirectionSweep", inversion=one, direction=smile, steps=2, range="from low to high", low=0.0, high=1.0,
        second_direction=second, second_steps=3, cell=64,
    )  # fmt: skip
    assert is_image(frames, 6) and labels.startswith("Columns: smile 0, smile +1\nRows: sefa:0 -3")
    edited = run("ApplyDirection", inversion=one, direction=smile)[0]
    torch.testing.assert_close(frames[3], run("Render", inversion=edited)[0][0], atol=1e-5, rtol=1e-4)


def test_direction_sweep_measures_each_cell(run, generator, smile, monkeypatch):
    from gan_inversion.nodes import _measuring

    asked = []

    class Meter:  # of pictures that are no faces: a mouth as wide as the picture is bright
        def attributes(self, image):
            asked.append(image)
            return {"yaw": 0.0, "smile_width": float(image.mean()) + 2}

        def similarity(self, a, b):
            return 1 - float((a - b).abs().mean())

    monkeypatch.setattr(_measuring.FaceMeter, "load", Meter)
    wire = run("Sample", generator=generator, seed=1, count=2)[0]
    bare, plain_frames, _ = run("DirectionSweep", inversion=wire, direction=smile, steps=3, cell=64)
    edited = run("ApplyDirection", inversion=wire, direction=smile, strength=1.0)[0]
    grid, frames, labels = run("DirectionSweep", inversion=wire, direction=smile, steps=3, cell=64, measure=True)
    assert torch.equal(frames, plain_frames) and grid.shape[1] > bare.shape[1] and grid.shape[2] == bare.shape[2]
    assert len(asked) == 2 + 6  # each unedited picture once
    unedited = run("Render", inversion=wire)[1]
    lines = labels.splitlines()
    assert lines[:2] == ["Columns: -2, 0, +2", "Rows: #1 smile, #2 smile"]
    for row, line in enumerate(lines[2:4]):
        assert line.startswith(f"#{row + 1} smile: -2: id ") and "; 0: id 1.00 smile +0%; +2: id " in line
        last, before = frames[3 * row + 2] * 2 - 1, unedited[row] * 2 - 1
        change = 100 * ((last.mean() + 2) / (before.mean() + 2) - 1)
        assert line.endswith(f"+2: id {1 - (last - before).abs().mean():.2f} smile {change:+.0f}%")
    assert "smile width" in lines[4] and "not ArcFace" in lines[4]
    # Against the unedited picture, not against strength 0 of the sweep, where another edit is on the wire.
    assert "; 0: id 1.00" not in run("DirectionSweep", inversion=edited, direction=smile, steps=3, measure=True)[2]


def test_direction_sweep_says_where_it_finds_no_face(run, generator, smile):
    wire = run("Sample", generator=generator, seed=1)[0]
    labels = run("DirectionSweep", inversion=wire, direction=smile, steps=2, cell=64, measure=True)[2]
    assert "smile: -2: no face; +2: no face" in labels


def test_save_and_load_render_the_same_picture(run, nodes, generator, encoder, aligned, smile, places):
    wire, drawn = run("Encode", image=aligned, encoder=encoder, generator=generator)
    node = nodes["GANInversionSaveInversion"]
    output = node.execute(inversion=wire, filename_prefix="people/ann")
    assert output.result == ("people/ann_00001_.safetensors",) and output.ui.as_dict() == {
        "text": ("Saved people/ann_00001_.safetensors",)
    }
    assert run("SaveInversion", inversion=wire, filename_prefix="people/ann") == ("people/ann_00002_.safetensors",)
    loader = nodes["GANInversionLoadInversion"]
    assert loader.define_schema().inputs[0].options == [
        "people/ann_00001_.safetensors",
        "people/ann_00002_.safetensors",
    ]
    loaded, crop, image = run("LoadInversion", file="people/ann_00001_.safetensors", generator=generator)
    assert torch.equal(run("Render", inversion=loaded)[0], drawn) and crop.crops == (None, None)
    torch.testing.assert_close(image, aligned)
    saved = places / "out" / "people" / "ann_00002_.safetensors"
    saved.rename(places / "in" / "bob.safetensors")
    assert loader.define_schema().inputs[0].options[-1] == "bob.safetensors [input]"
    assert len(run("LoadInversion", file="bob.safetensors [input]", generator=generator)[0].inversion) == 2
    with pytest.raises(GeneratorMismatchError, match="ann_00001_"):
        other = run("LoadStyleGAN", model="other.safetensors")[0]
        run("LoadInversion", file="people/ann_00001_.safetensors", generator=other)


def test_file_names_hold_the_date_and_the_size(run, generator, monkeypatch):
    monkeypatch.setattr(stand_in.time, "localtime", lambda: time.struct_time((2031, 2, 3, 4, 5, 6, 0, 34, 0)))
    wire = run("Sample", generator=generator)[0]
    prefix = "%year%-%month%/%day%_%hour%%minute%%second%_%width%x%height%_%other%"
    assert run("SaveInversion", inversion=wire, filename_prefix=prefix) == (
        "2031-02/03_040506_32x32_%other%_00001_.safetensors",
    )


def test_file_names_stay_inside_their_folders(run, nodes, generator, places):
    wire = run("Sample", generator=generator)[0]
    for prefix in ("../escape", "/tmp/escape", "a/../../escape", ""):
        with pytest.raises(InvalidInputError, match="outside the output folder"):
            run("SaveInversion", inversion=wire, filename_prefix=prefix)
    wire.inversion.save(places / "secret.safetensors")
    loader = nodes["GANInversionLoadInversion"]
    for file in ("../secret.safetensors", str(places / "secret.safetensors"), "../secret.safetensors [input]"):
        assert "outside" in loader.validate_inputs(file=file)
        with pytest.raises(InvalidInputError, match="outside"):
            run("LoadInversion", file=file, generator=generator)
    assert "Save Inversion" in loader.validate_inputs(file="missing.safetensors")
    assert loader.fingerprint_inputs(file="missing.safetensors") == "missing.safetensors"
