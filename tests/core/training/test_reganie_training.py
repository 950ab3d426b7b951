"""The ReGANIE trainer: exact resumption, an error that falls, triplets that are what the paper says."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch

from gan_inversion import load_model
from gan_inversion.core.editing import Direction, Edit
from gan_inversion.core.encoders import Encoder, EncoderConfig
from gan_inversion.core.errors import InvalidInputError
from gan_inversion.core.generator import Generator, GeneratorConfig
from gan_inversion.core.reganie import ReganieConfig
from gan_inversion.core.training import reganie as training
from gan_inversion.core.training.common import load_checkpoint, make_accelerator, step_generator
from gan_inversion.core.training.reganie import Editor, ReganieTraining, dry_run, families_of, train
from gan_inversion.model_registry.loading import save_model

W = 8
SIZES = ReganieConfig(32, (4, 6, 8), 5, (8,), 7, 1, (8, 6))
SMALL = ReganieTraining(
    steps=3, batch=2, r1_every=2, uses=2, occluded_share=1.0, discriminator_widths=(8, 8, 8, 4), portrait_share=0.5
)
ENCODER = EncoderConfig(
    num_ws=8, w_dim=W, stem=4, widths=(8, 12, 16), units=(1, 1, 1), se_reduction=4, input_size=(32, 32)
)
SMILE = Direction("smile", torch.linspace(-1, 1, W)[None], limits=(-2.0, 2.0))


@pytest.fixture(scope="module")
def networks():
    torch.manual_seed(0)
    generator = Generator(GeneratorConfig(32, (8, 8, 8, 4), W, W, 1)).requires_grad_(False)
    return generator, Encoder(ENCODER)


@pytest.fixture(scope="module")
def families(networks):
    return families_of(networks[0], [Direction("pose", torch.randn(1, W))], 2, 2)


@pytest.fixture(autouse=True)
def _few_held_out(monkeypatch):
    monkeypatch.setattr(training, "_HELD_OUT", 2)


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def new_run(networks, families, settings, config=SIZES, **more):
    return training._Run(*networks, families, settings, config, make_accelerator(), **more)


def test_a_run_that_was_stopped_ends_in_the_same_weights(bank, networks, families, tmp_path):
    known = {"morphs": bank, "held_out": [SMILE]}
    straight = train(*networks, families, tmp_path / "straight", SMALL, SIZES, **known)
    train(*networks, families, tmp_path / "stopped", SMALL, SIZES, max_steps=1, **known)  # amid the pictures' uses
    resumed = train(*networks, families, tmp_path / "stopped", SMALL, SIZES, **known)
    assert same(straight.state_dict(), resumed.state_dict()) and not straight.training
    states = [load_checkpoint(tmp_path / name / "checkpoint.pt") for name in ("straight", "stopped")]
    assert same(*states) and states[0]["step"] == 3
    rows = (tmp_path / "straight" / "held-out.csv").read_text().splitlines()
    portraits = [f"portraits_{name}" for name in ("edited", "edited_plain", "plain", "rectified")]
    names = ["edited", "edited_plain", "plain", *portraits, "rectified"]
    assert rows[0].split(",") == ["step", *(f"psnr_{name}" for name in names)] and len(rows) == 2
    assert (tmp_path / "straight" / "samples-000003.png").is_file()
    with pytest.raises(InvalidInputError, match="another folder"):
        train(*networks, families, tmp_path / "straight", SMALL, dataclasses.replace(SIZES, spatial_channels=6))


@pytest.mark.parametrize("residual", [False, True])
def test_training_reduces_the_error(networks, families, residual):
    settings = dataclasses.replace(SMALL, steps=60, adversarial=0.0, learning_rate=1e-2, uses=60)
    run = new_run(networks, families, settings, dataclasses.replace(SIZES, residual=residual))
    values = [run.one_step() for _ in range(60)]
    begun, ended = (sum(value["l1"] for value in part) for part in (values[:10], values[-10:]))
    assert ended < 0.8 * begun
    assert "adversarial" not in values[0]


def test_triplets_are_the_papers(bank, networks, families):
    """Each is one of the three, found by comparing with all pictures of the step."""
    run = new_run(networks, families, dataclasses.replace(SMALL, batch=6, uses=1), morphs=bank)
    seen = set()
    for step in range(6):
        run.step = step
        triplets, pictures = run.triplets(), run._prepared[1]
        assert len(pictures.image) == 12
        missing = pictures.image - pictures.hat
        for own in range(6):
            edit = own + 6
            options = {"itself": (own, own, own), "difference": (edit, own, own), "primary": (own, edit, edit)}
            fits = [
                name
                for name, (d, p, w) in options.items()
                if torch.equal(triplets.difference[own], missing[d])
                and torch.equal(triplets.primary[own], pictures.hat[p])
                and torch.equal(triplets.wanted[own], pictures.image[w])
            ]
            assert len(fits) == 1
            seen |= set(fits)
    assert seen == {"difference", "primary", "itself"}


def test_a_portrait_and_its_edit_share_their_objects_and_differ_in_shape(bank, networks, families):
    settings = dataclasses.replace(SMALL, batch=4, occluded_share=1.0, deformation=0.0)
    held = lambda stream: step_generator(3, 0, stream)  # noqa: E731
    own, edited = new_run(networks, families, settings, morphs=bank)._portraits(4, held)
    assert (own != edited).flatten(1).any(dim=1).all()
    still = dataclasses.replace(settings, portrait_edits=0.0)
    own, edited = new_run(networks, families, still, morphs=bank)._portraits(4, held)
    assert torch.equal(own, edited)  # objects come from the same seeds


def test_pictures_serve_several_steps_in_new_triplets(networks, families):
    run = new_run(networks, families, dataclasses.replace(SMALL, batch=8, uses=3))
    found = []
    for step in range(4):
        run.step = step
        found.append((run.triplets(), run._prepared[1]))
    assert found[0][1] is found[2][1] and found[3][1] is not found[0][1]
    assert not torch.equal(found[0][0].wanted, found[1][0].wanted)  # mirrored, or the edited one
    wanted = {tuple(x.flatten().tolist()) for x in found[1][0].wanted}
    known = found[0][1].image
    assert wanted <= {tuple(x.flatten().tolist()) for x in torch.cat((known, known.flip(3)))}


def test_frozen_networks_stay_and_the_discriminator_comes_in_on_time(networks, families):
    before = [{k: v.clone() for k, v in network.state_dict().items()} for network in networks]
    run = new_run(networks, families, dataclasses.replace(SMALL, steps=9, adversarial_start=1))
    discriminator = {k: v.clone() for k, v in run.discriminator.state_dict().items()}
    values = [run.one_step()]
    assert same(discriminator, run.discriminator.state_dict())
    values += [run.one_step() for _ in range(2)]
    assert ["adversarial" in value for value in values] == [False, True, True]
    assert ["r1" in value for value in values] == [False, False, True]
    assert not same(discriminator, run.discriminator.state_dict())
    assert run.discriminator.config.mbstd_channels == 0
    assert all(same(old, network.state_dict()) for old, network in zip(before, networks, strict=True))
    assert [value["rate"] for value in values] == [2e-3] * 3  # fixed


def test_edits_stay_within_limits_and_rows():
    one = Direction("one", torch.eye(W)[:1], limits=(-1.0, 3.0), layers=(2, 4))
    style = Direction("style", style={"b8.conv1": torch.ones(8)})
    codes = torch.zeros(200, 8, W)
    settings = dataclasses.replace(SMALL, terms=(1, 1), some_rows=0.0)
    edited = Editor([[one, style], []], settings)(codes, torch.Generator().manual_seed(0))[..., 0]
    assert torch.equal(edited[:, 2], edited[:, 3]) and not edited[:, :2].any() and not edited[:, 4:].any()
    assert -1 <= edited.min() < -0.8 and 2.8 < edited.max() <= 3
    free = Editor([[one]], dataclasses.replace(settings, some_rows=1.0))(codes, torch.Generator().manual_seed(0))
    assert (free[..., 0] != 0).any(dim=0).all() and len({tuple(row.nonzero()[:, 0].tolist()) for row in free}) > 20
    with pytest.raises(InvalidInputError, match="--directions"):
        Editor([[style], []], settings)


def test_a_larger_generator_is_seen_at_the_networks_size(networks, families):
    config = ReganieConfig(16, (4, 8), 5, (8,), 7, 1, (8,))
    run = new_run(networks, families, dataclasses.replace(SMALL, discriminator_widths=(8, 8, 4)), config)
    assert run.triplets().primary.shape == (2, 3, 16, 16)
    assert "adversarial" in run.one_step()


def test_wrong_settings_are_refused():
    for wrong in ({"portrait_share": 2.0}, {"objects": (0, 1)}, {"terms": (2, 1)}, {"uses": 0}, {"steps": 0}):
        with pytest.raises(InvalidInputError):
            ReganieTraining(**wrong)
    assert ReganieTraining().widths(512)[0] == 512 and ReganieTraining().widths(128) == (128, 128, 128, 64, 32, 16)


def test_dry_run_says_what_a_step_costs():
    found = dry_run(SMALL, SIZES, generator=GeneratorConfig(32, (8, 8, 8, 4), W, W, 1), encoder=ENCODER, steps=1)
    assert found.parameters == sum(p.numel() for p in training.Reganie(SIZES).parameters())
    assert found.seconds_per_step > 0 and "seconds per step" in str(found)


def test_the_command_writes_a_model_that_loads(bank, networks, tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    bank.save(tmp_path / "runs" / "morphs.safetensors")
    known = {"G": networks[0], "E": networks[1]}
    asked = []
    registry = SimpleNamespace(
        load_model=lambda name: SimpleNamespace(module=known[str(name)], domain="portraits"),
        load_direction=lambda name: asked.append(name) or dataclasses.replace(SMILE, name=name),
        save_model=save_model,
    )
    monkeypatch.setattr(training, "ReganieTraining", lambda: SMALL)
    monkeypatch.setattr(training, "config_for", lambda generator, **changes: dataclasses.replace(SIZES, **changes))
    arguments = [
        *("--portraits", str(tmp_path), "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "r.safetensors")),
        *("--generator", "G", "--encoder", "E", "--perceptual", "none", "--device", "cpu", "--steps", "1"),
        *("--directions", "age", "smile", "--held-out", "smile", "--spatial-channels", "6", "--residual"),
    ]
    written = training.main(arguments, registry)
    loaded = load_model(written)
    assert loaded.architecture == "reganie" and loaded.domain == "portraits"
    assert loaded.module.config == dataclasses.replace(SIZES, spatial_channels=6, residual=True, domain="portraits")
    assert loaded.metadata["directions"] == "age" and loaded.metadata["held_out"] == "smile"
    assert asked == ["age", "smile"] and '"steps": 1' in loaded.metadata["settings"]
    monkeypatch.setattr(training, "dry_run", lambda settings, config, **more: config)
    said = training.main([*arguments, "--dry-run"], registry)
    assert "resolution=512" in said and "spatial_channels=6" in said


def test_sheet_shows_the_edit_that_the_figures_speak_of(networks, families, tmp_path, monkeypatch):
    run, sheets = new_run(networks, families, SMALL, held_out=[SMILE]), []
    monkeypatch.setattr(training, "write_sheet", lambda images, path, columns: sheets.append((images, columns)))
    found = run.samples(tmp_path / "s.png")
    (images, columns), (generator, encoder) = sheets[0], networks
    assert columns == 2 and len(images) == 5 * 2
    codes = encoder(images[:2])
    torch.testing.assert_close(images[2:4], generator.synthesis(codes), rtol=1e-3, atol=1e-4)
    edit = Edit.of(SMILE, 0.6 * 2.0)
    torch.testing.assert_close(images[6:8], generator.synthesis(edit.apply(codes)), rtol=1e-3, atol=1e-4)
    assert set(found) == {"psnr_plain", "psnr_rectified", "psnr_edited_plain", "psnr_edited"}


@pytest.fixture
def half_precision():
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(True)  # one precision for each process, otherwise
    yield make_accelerator("cpu", "bf16")
    AcceleratorState._reset_state(True)


def test_bfloat16_trains(networks, families, half_precision):
    run = training._Run(*networks, families, SMALL, SIZES, half_precision)
    values = [run.one_step() for _ in range(3)]
    assert all(value == value for step in values for value in step.values())  # no NaN
    assert all(v.dtype == torch.float32 and v.isfinite().all() for v in run.finished().state_dict().values())
