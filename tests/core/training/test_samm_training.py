"""The SAMM trainer: exact resumption, losses that fall, levels and discriminator in time, a folder's pictures, dry run."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from gan_inversion import load_model
from gan_inversion.core.discriminator import Discriminator, DiscriminatorConfig
from gan_inversion.core.encoders import Encoder, EncoderConfig
from gan_inversion.core.errors import CorruptFileError, InvalidInputError, NotFiniteError, UnsupportedModelError
from gan_inversion.core.generator import Generator, GeneratorConfig
from gan_inversion.core.skeleton import skeleton
from gan_inversion.core.training import samm as training
from gan_inversion.core.training import samm_dry_run, samm_options, vgg19
from gan_inversion.core.training.arcface import ArcFace
from gan_inversion.core.training.common import load_checkpoint, make_accelerator, save_checkpoint, step_generator
from gan_inversion.core.training.images import FolderFiles, FolderImages
from gan_inversion.core.training.samm import Judges, SammTraining, mask_cross_entropy, style_distance, train
from gan_inversion.core.training.samm_settings import paper_settings
from gan_inversion.core.training.vgg19 import LAYERS, VGG19, weighted_l1
from gan_inversion.model_registry.loading import save_model

W = 8
SMALL = SammTraining(
    mask_steps=1,
    image_steps=2,
    batch=2,
    level_every=1,
    adversarial_start=0,
    warmup=1,
    allowed_area=(0.3, 0.2, 0.2, 0.2),
    occluded_share=1.0,
    adversarial=0.5,
)


@pytest.fixture(scope="module")
def networks():
    torch.manual_seed(0)
    generator = Generator(GeneratorConfig(32, (8, 8, 8, 4), W, W, 1)).requires_grad_(False)
    config = EncoderConfig(
        num_ws=8, w_dim=W, stem=4, widths=(8, 12, 16), units=(1, 1, 1), se_reduction=4, input_size=(32, 32)
    )
    return generator, Encoder(config)


@pytest.fixture(scope="module")
def judges():
    torch.manual_seed(1)
    return Judges(
        features=lambda image: [F.avg_pool2d(image, 4)],
        identity=lambda image: F.normalize(image[:, :, ::8, ::8].flatten(1), dim=1),
        discriminator=Discriminator(DiscriminatorConfig(32, (8, 8, 8, 4))),
    )


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


def test_a_run_that_was_stopped_ends_in_the_same_weights(bank, networks, judges, tmp_path):
    settings = dataclasses.replace(SMALL, style=50.0)
    straight = train(bank, *networks, tmp_path / "straight", settings, judges=judges)
    for stop_at in (1, 2):
        train(bank, *networks, tmp_path / "stopped", settings, judges=judges, max_steps=stop_at)
    resumed = train(bank, *networks, tmp_path / "stopped", settings, judges=judges)
    assert same(straight.state_dict(), resumed.state_dict())
    states = [load_checkpoint(tmp_path / name / "checkpoint.pt") for name in ("straight", "stopped")]
    assert same(*states) and states[0]["step"] == 3
    assert not same(states[0]["adversary"]["discriminator"], judges.discriminator.state_dict())
    assert not straight.training and straight.config.resolutions == (8, 16, 32)
    rows = (tmp_path / "straight" / "held-out.csv").read_text().splitlines()
    assert rows[0] == "step,psnr,psnr_plain,mask_overlap,area,exact_area" and len(rows) == 2
    assert (tmp_path / "straight" / "samples-000003.png").is_file()


def new_run(bank, networks, settings, judges=Judges()):
    return training._Run(bank, *networks, settings, judges, make_accelerator())


def test_exact_masks_are_learned(bank, networks):
    settings = dataclasses.replace(SMALL, level_every=0, image_learning_rate=1e-2, image_steps=1000)
    run, values = new_run(bank, networks, settings), []
    for _ in range(15):
        run.step = 1  # the same batch again and again
        values.append(run.one_step())
    for name in ("loss", "mask", "binary"):
        assert values[-1][name] < 0.8 * values[0][name], name
    assert "adversarial" not in values[0] and "identity" not in values[0]


def test_mask_stage_learns_masks_without_passing_the_generator(bank, networks):
    run = new_run(bank, networks, dataclasses.replace(SMALL, level_every=0, learning_rate=1e-2, mask_steps=1000))
    batch = run._batch(run.pictures, run.random, 2)
    picture, found, merged = run._blended(run.samm, batch, 3, masks_only=True)
    assert merged.requires_grad and found.flows[8].grad_fn is not None
    (slope,) = torch.autograd.grad(found.masks[32].sum(), run.samm.feats_conv[2].weight, retain_graph=True)
    assert slope.abs().sum() > 0  # masks pass from level to level
    values = []
    for _ in range(12):
        run.step = 0
        values.append(run.one_step())
    assert values[-1]["mask"] < 0.8 * values[0]["mask"] and set(values[0]) == {"loss", "mask", "rate"}


def test_levels_and_discriminator_come_in_on_time(bank, networks, judges):
    run = new_run(bank, networks, dataclasses.replace(SMALL, adversarial_start=1), judges)
    seen = []
    blended = run._blended
    run._blended = lambda *given, **named: seen.append(blended(*given, **named)) or seen[-1]
    values = [run.one_step() for _ in range(3)]
    assert [sorted(found.masks) for _, found, _ in seen] == [[8], [8, 16], [8, 16, 32]]
    assert ["adversarial" in value for value in values] == [False, False, True]
    assert SMALL.open_levels(0) == 1 and dataclasses.replace(SMALL, level_every=0).open_levels(0) > 4


def test_flows_start_small_and_frozen_networks_stay(bank, networks):
    run = new_run(bank, networks, SMALL)
    before = {name: value.clone() for name, value in networks[0].state_dict().items()}
    batch = run._batch(run.pictures, run.random, 2)
    with torch.no_grad():
        _, found, merged = run._blended(run.samm, batch, 3)
    assert max(float(flow.abs().mean()) for flow in found.flows.values()) < 0.02
    assert merged.shape == batch.mask.shape and 0 < float(batch.mask.mean()) < 1
    run.one_step()
    assert same(before, networks[0].state_dict())
    assert not any(p.requires_grad for p in [*networks[0].parameters(), *networks[1].parameters()])


def test_losses_are_what_they_say():
    exact = torch.zeros(1, 1, 4, 4)
    exact[..., :2] = 1
    half = torch.full((1, 1, 2, 2), 0.5)
    assert float(mask_cross_entropy([half, half], exact)) == pytest.approx(0.6931, abs=1e-4)
    assert float(mask_cross_entropy([exact], exact)) < 1e-3
    a, b = torch.ones(1, 1, 2, 2), torch.full((1, 1, 2, 2), 3.0)
    assert float(style_distance([a], [b], [0.5])) == pytest.approx(4.0)  # 0.5 |1 - 9|


def test_settings_and_runs_that_do_not_fit_are_refused(bank, networks, tmp_path):
    for wrong in (
        {"occluded_share": 2.0},
        {"objects": (0, 1)},
        {"mask_steps": 0, "image_steps": 0},
        {"iterations": (3, 1)},
        {"iterations": (0, 2)},
        {"iterations": (2,)},
        {"clean_pictures": False, "occluded_share": 0.0},
        {"noise": "none"},
        {"level_starts": (20, 10)},
        {"decay_every": 5, "decay": 0.0},
    ):
        with pytest.raises(InvalidInputError):
            SammTraining(**wrong)
    with pytest.raises(InvalidInputError, match="allowed_area"):
        new_run(bank, networks, dataclasses.replace(SMALL, allowed_area=(0.3, 0.2)))
    state = new_run(bank, networks, SMALL).state()
    state["samm"] = {name: value for name, value in state["samm"].items() if "feats_conv.2" not in name}
    save_checkpoint(tmp_path / "checkpoint.pt", state)
    with pytest.raises(InvalidInputError, match="another folder"):
        train(bank, *networks, tmp_path, SMALL)


def test_the_command_writes_a_model_that_loads(bank, networks, judges, tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    bank.save(tmp_path / "runs" / "morphs.safetensors")
    known = {"G": networks[0], "E": networks[1], "D": judges.discriminator}
    registry = SimpleNamespace(load_model=lambda name: SimpleNamespace(module=known[str(name)]), save_model=save_model)
    monkeypatch.setattr(samm_options, "SammTraining", lambda: SMALL)
    written = training.main(
        [
            *("--portraits", str(tmp_path), "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "s.safetensors")),
            *("--generator", "G", "--encoder", "E", "--discriminator", "D", "--identity", "none"),
            *("--perceptual", "none", "--mask-steps", "1", "--image-steps", "0", "--device", "cpu"),
        ],
        registry,
    )
    loaded = load_model(written)
    assert loaded.architecture == "samm" and loaded.module.config.resolutions == (8, 16, 32)
    assert loaded.metadata["encoder"] == "E" and '"mask_steps": 1' in loaded.metadata["settings"]


def test_vgg19_losses_take_torchvisions_names(tmp_path):
    torch.manual_seed(0)
    widths = iter((64, 64, 128, 128, *(256,) * 4, *(512,) * 8))
    state, channels = {}, 3
    for index in (0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34):
        width = next(widths)
        state[f"features.{index}.weight"] = torch.randn(width, channels, 3, 3) * (2 / (9 * channels)) ** 0.5
        state[f"features.{index}.bias"] = torch.zeros(width)
        channels = width
    path = tmp_path / "vgg19.pth"
    torch.save({**state, "classifier.0.bias": torch.zeros(1)}, path)
    trunk = VGG19.load(path)
    image, other = torch.rand(2, 2, 3, 16, 16) * 2 - 1
    taps = trunk(image)
    assert [tuple(t.shape[1:]) for t in taps] == [(64, 16, 16), (128, 8, 8), (256, 4, 4), (512, 2, 2), (512, 1, 1)]
    assert all(float(tap.min()) < 0 for tap in taps)  # before the ReLU
    expected = sum(
        w * (a - b).abs().mean(dim=(1, 2, 3)) for w, a, b in zip(LAYERS.values(), taps, trunk(other), strict=True)
    )
    assert torch.equal(weighted_l1(taps, taps, list(LAYERS.values())), torch.zeros(2))
    torch.testing.assert_close(weighted_l1(taps, trunk(other), list(LAYERS.values())), expected)
    del state["features.34.bias"]
    with pytest.raises(UnsupportedModelError, match="vgg19"):
        VGG19(state)
    path.write_bytes(b"no weights")
    with pytest.raises(CorruptFileError):
        VGG19.load(path)


def test_iterations_are_drawn_for_each_step(bank, networks):
    run = new_run(bank, networks, dataclasses.replace(SMALL, iterations=[1, 3], mask_steps=0, image_steps=1000))
    assert run.settings.iterations == (1, 3) and run.samm.config.iterations == 2
    blended, seen = run._blended, []
    run._blended = lambda *given, **named: seen.append(given[3]) or blended(*given, **named)
    randoms = [step_generator(SMALL.seed, step, training._ITERATIONS) for step in range(20)]
    drawn = [int(torch.randint(1, 4, (), generator=random)) for random in randoms]
    for passes in (1, 2, 3):
        run.step = drawn.index(passes)
        run.one_step()
    assert seen == [1, 2, 3]
    learning_masks = new_run(bank, networks, dataclasses.replace(SMALL, iterations=[1, 3], mask_steps=1000))
    learning_masks._blended = run._blended
    for learning_masks.step in range(3):
        learning_masks.one_step()
    assert seen[3:] == [1, 1, 1]  # flows do not learn in this stage


def test_the_last_normalisations_learn_faster(bank, networks):
    moved = {}
    for factor in (1.0, 10.0):
        run = new_run(bank, networks, dataclasses.replace(SMALL, last_norm_rate=factor, warmup=0))
        before = {name: value.clone() for name, value in run.samm.state_dict().items()}
        run.one_step()
        moved[factor] = {name: (value - before[name]).abs() for name, value in run.samm.state_dict().items()}
    faster = {name for name in moved[1.0] if not torch.allclose(moved[1.0][name], moved[10.0][name])}
    assert faster and all("body.1.res_layer.4" in name or "body.1.shortcut_layer.1" in name for name in faster)
    for name in faster:
        torch.testing.assert_close(moved[10.0][name], 10 * moved[1.0][name], rtol=1e-3, atol=1e-6)


def test_a_run_on_morphs_draws_what_it_always_drew(bank, networks, tmp_path):
    """Stream 0 of each step is the codes of the morphs; checkpoints from before there were photographs go on."""
    settings = dataclasses.replace(SMALL, occluded_share=0.0, deformation=0.0)
    run = new_run(bank, networks, settings)
    run.step = 5
    batch = run._batch(run.pictures, run.random, 2)
    codes = bank.draw_codes(2, torch.Generator().manual_seed(SMALL.seed * 1_000_003 * 10_000_019 + 5))
    torch.testing.assert_close(batch.image, bank.render(codes, 32).clamp(-1, 1))
    assert batch.known is None and training._NOISE == 4 and (training._DEFORM, training._OBJECTS) == (1, 2)
    group = run.optimiser.param_groups[0]
    assert group["betas"] == (0.9, 0.99) and run.settings.noise == "const" and run.settings.flow_start == 0.1
    straight = train(bank, *networks, tmp_path / "a", SMALL, max_steps=2)
    train(bank, *networks, tmp_path / "b", SMALL, max_steps=1)
    state = load_checkpoint(tmp_path / "b" / "checkpoint.pt")
    for name in ("clean_pictures", "noise", "flow_start", "level_starts", "momentum", "decay_every", "decay"):
        del state["settings"][name]
    save_checkpoint(tmp_path / "b" / "checkpoint.pt", state)
    assert same(straight.state_dict(), train(bank, *networks, tmp_path / "b", SMALL, max_steps=2).state_dict())


@pytest.fixture
def folder(tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    random = np.random.default_rng(0)
    for index in range(12):
        Image.fromarray(random.integers(0, 256, (40, 40, 3), np.uint8)).save(pictures / f"{index:02}.png")
    return pictures


def test_a_folder_serves_in_place_of_the_morphs(folder, networks, tmp_path):
    images, held_out = FolderImages.open(folder, tmp_path, 32).split(2)
    settings = dataclasses.replace(SMALL, mask_steps=0, occluded_share=0.0, clean_pictures=False, deformation=0.0)
    run = training._Run(images, *networks, settings, Judges(), make_accelerator(), held_out)
    batch = run._batch(run.pictures, run.random, 4)
    expected = [torch.tensor(picture) / 127.5 - 1 for picture in images.array[:10]]
    expected += [picture.flip(2) for picture in expected]
    assert all(any(torch.allclose(image, other) for other in expected) for image in batch.image)
    assert not batch.mask.any() and len(batch.known) == 0
    values = run.one_step()
    assert values["mask"] == 0 and values["l2"] > 0  # nobody knows these masks
    figures = run.samples(tmp_path / "sheet.png")
    assert np.isnan(figures["mask_overlap"]) and figures["psnr"] > 0
    trained = train(images, *networks, tmp_path / "run", settings, held_out=held_out)
    assert same(trained.state_dict(), train(images, *networks, tmp_path / "run", settings).state_dict())


def test_files_give_the_pictures_of_the_array(folder, tmp_path, caplog):
    array, files = FolderImages.open(folder, tmp_path, 32), FolderFiles.open(folder, 32)
    drawn = [source.draw(6, torch.Generator().manual_seed(3)) for source in (array, files)]
    assert torch.equal(*drawn)
    rest, last = files.split(2)
    assert (len(rest), len(last), last.mirror, rest.mirror) == (10, 2, False, True)
    for path in folder.iterdir():
        path.write_bytes(b"no picture" if path.name != "03.png" else path.read_bytes())
    only = files.draw(5, torch.Generator().manual_seed(0))
    assert all(torch.equal(i, only[0]) or torch.equal(i, only[0].flip(2)) for i in only) and "left out" in caplog.text
    (tmp_path / "none").mkdir()
    with pytest.raises(InvalidInputError, match="0 readable pictures"):
        FolderFiles.open(tmp_path / "none", 32)


def test_drawn_objects_alone_are_held_against_exact_masks(folder, networks, tmp_path):
    settings = dataclasses.replace(SMALL, clean_pictures=False, occluded_share=0.5, batch=6)
    run = new_run(FolderImages.open(folder, tmp_path, 32), networks, settings)
    batch = run._batch(run.pictures, run.random, 6)
    covered = batch.mask.flatten(1).any(dim=1).nonzero()[:, 0].tolist()
    assert set(covered) <= set(batch.known.tolist()) and 0 < len(batch.known) < 6
    exact = torch.zeros(2, 1, 4, 4)
    wrong_second = torch.stack((torch.zeros(1, 4, 4), torch.ones(1, 4, 4)))
    assert float(mask_cross_entropy([wrong_second], exact, torch.tensor([0]))) < 1e-3
    assert float(mask_cross_entropy([wrong_second], exact, torch.tensor([1]))) > 5
    mask = wrong_second.clone().requires_grad_(True)
    none = mask_cross_entropy([mask], exact, torch.tensor([], dtype=torch.long))
    none.backward()
    assert float(none.detach()) == 0 and not mask.grad.any()


def test_the_papers_settings(bank, networks):
    """Numbers of the original's options file."""
    paper = paper_settings()
    weights = {
        **{"l2": 1.0, "perceptual": 1.0, "style": 50.0, "identity": 0.1, "adversarial": 0.5},
        **{"area": 5.0, "binary": 5 * 0.04, "mask": 0.0, "warp_scale": 0.08},
    }
    assert {name: getattr(paper, name) for name in weights} == pytest.approx(weights)
    assert paper.allowed_area == (0.3, 0.3, 0.2, 0.2, 0.2) and paper.iterations == (2, 2) and paper.batch == 2
    assert paper.total == 1_800_000 and paper.mask_steps == 0 and paper.occluded_share == 0 and not paper.clean_pictures
    assert [paper.open_levels(step) for step in (0, 1999, 2000, 5999, 6000, 10_000)] == [1, 1, 2, 2, 3, 4]
    rates = [paper.image_learning_rate * paper.rate_factor(step, paper.total) for step in (0, 14_999, 15_000, 30_000)]
    assert rates == pytest.approx([2e-5, 2e-5, 1.5e-5, 1.125e-5]) and paper.discriminator_learning_rate == 2e-5
    assert sum(paper.rate_factor(s, paper.total) for s in range(0, 200_000, 1000)) / 60 == pytest.approx(
        0.98, abs=0.005
    )
    assert paper.ema_decay == pytest.approx(0.99778, abs=1e-5) and paper.clip == 999
    run = new_run(bank, networks, paper_settings(allowed_area=SMALL.allowed_area, adversarial=0.0, style=0.0))
    assert run.optimiser.param_groups[0]["betas"] == (0.0, 0.99)
    last = run.samm.level(32).body.body[1].res_layer[4]
    assert (last.weight == 1).all()
    noisy = []
    blended = run._blended
    run._blended = lambda *given, **named: noisy.append(blended(*given, **named)[0]) or blended(*given, **named)
    with torch.no_grad():
        networks[0].synthesis.b32.conv1.noise_strength.fill_(1.0)
    try:
        for _ in range(2):
            run.step = 7
            before = {name: value.clone() for name, value in run.samm.state_dict().items()}
            assert "mask" not in run.one_step()
            run.samm.load_state_dict(before)
        batch = run._batch(run.pictures, lambda stream: step_generator(paper.seed, 7, stream), 2)
        stored = blended(run.samm, batch, 1, 2)[0]
        assert torch.equal(noisy[0], noisy[1]) and not torch.allclose(noisy[0], stored, atol=0.05)
    finally:
        networks[0].synthesis.b32.conv1.noise_strength.data.fill_(0.0)


def test_the_command_takes_a_folder_and_the_papers_settings(folder, networks, tmp_path, monkeypatch):
    monkeypatch.setattr(vgg19, "_WIDTHS", ((4, 2), (4, 2), (4, 4), (4, 4), (4, 4)))
    small = dataclasses.replace(SMALL, mask_steps=5)
    monkeypatch.setattr(samm_options, "SammTraining", lambda: small)
    paper = paper_settings(allowed_area=SMALL.allowed_area)
    monkeypatch.setattr(samm_options, "paper_settings", lambda: paper)
    known = {"G": networks[0], "E": networks[1]}
    registry = SimpleNamespace(load_model=lambda name: SimpleNamespace(module=known[str(name)]), save_model=save_model)
    torch.save(VGG19.random().state_dict(), tmp_path / "vgg19.pth")
    common = ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "s.safetensors"), "--device", "cpu"]
    common += ["--generator", "G", "--encoder", "E", "--images", str(folder), "--image-steps", "1"]
    for extra in ([], ["--vgg19", str(tmp_path / "vgg19.pth")]):
        with pytest.raises(SystemExit):
            training.main([*common, "--paper", *extra], registry)
    with pytest.raises(SystemExit):
        training.main([*common, "--portraits", str(tmp_path)], registry)
    paper_arguments = [*common, "--paper", "--vgg19", str(tmp_path / "vgg19.pth"), "--identity", "none"]
    loaded = load_model(training.main([*paper_arguments, "--no-cache"], registry))
    settings = json.loads(loaded.metadata["settings"])
    assert settings["image_steps"] == 1 and settings["style"] == 50 and settings["batch"] == 2
    assert loaded.metadata["data"] == "pictures of pictures" and loaded.metadata["licence"] == "unknown"
    state = load_checkpoint(tmp_path / "runs" / "samm" / "checkpoint.pt")
    assert state["adversary"]  # a new discriminator, which nothing had to be named for
    assert not (tmp_path / "runs" / "samm" / "images-32.npy").exists()
    free = samm_options.settings_from(samm_options.make_parser("").parse_args([*common, "--occluded-share", "0.5"]))
    assert (free.mask_steps, free.occluded_share, free.clean_pictures, free.deformation) == (0, 0.5, False, 0.0)


TINY = samm_dry_run.DryRunSizes(
    GeneratorConfig(32, (8, 8, 8, 4), W, W, 1),
    EncoderConfig(num_ws=8, w_dim=W, stem=4, widths=(8, 12, 16), units=(1, 1, 1), se_reduction=4, input_size=(32, 32)),
    identity_stem=16,
    identity_widths=(16, 32),
    identity_units=(1, 1),
)


def test_dry_run_takes_every_loss_through_real_steps(tmp_path, monkeypatch):
    monkeypatch.setattr(vgg19, "_WIDTHS", ((4, 2), (4, 2), (4, 4), (4, 4), (4, 4)))
    settings = paper_settings(level_starts=(), level_every=0, allowed_area=SMALL.allowed_area)
    report = samm_dry_run.dry_run(2, batch=1, sizes=TINY, settings=settings)
    assert report["batch"] == 1 and len(report["step_seconds"]) == 2 and report["resolution"] == 32
    assert report["seconds_per_step"] == report["step_seconds"][1]
    every = {"l2", "perceptual", "style", "identity", "adversarial", "area", "binary", "discriminator", "loss", "rate"}
    assert set(report["losses"]) == every
    generator = Generator(TINY.generator)
    assert report["parameters"]["generator"] == sum(p.numel() for p in generator.parameters())
    assert min(report["parameters"].values()) > 0 and report["tera_operations_per_step"] > 0
    assert min(report["step_cpu_seconds"]) > 0 and report["peak_memory_gb"] > 0
    hours = report["seconds_per_step"] * 1_800_000 / 3600
    assert report["hours"]["1800000 steps"] == pytest.approx(hours, rel=0.01)
    json.dumps(report)
    with pytest.raises(InvalidInputError):
        samm_dry_run.dry_run(0, sizes=TINY, settings=settings)
    monkeypatch.setattr(samm_dry_run, "dry_run", lambda steps, *, batch, accelerator: {"steps": steps, "batch": batch})
    out = tmp_path / "new" / "figures.json"
    text = training.main(["--dry-run", "--batch", "3", "--device", "cpu", "--out", str(out)], SimpleNamespace())
    assert json.loads(text) == json.loads(out.read_text()) == {"steps": 2, "batch": 3}


def test_dry_run_notices_a_step_that_fails(monkeypatch):
    monkeypatch.setattr(vgg19, "_WIDTHS", ((4, 2), (4, 2), (4, 4), (4, 4), (4, 4)))
    settings = paper_settings(level_starts=(), allowed_area=SMALL.allowed_area, image_learning_rate=0.0)
    with pytest.raises(NotFiniteError, match="weights moved: False"):
        samm_dry_run.dry_run(1, batch=1, sizes=TINY, settings=settings)


def test_arcface_has_the_official_names_and_crop(tmp_path):
    with skeleton():
        shapes = {name: tuple(value.shape) for name, value in ArcFace().state_dict().items()}
    assert shapes["input_layer.0.weight"] == (64, 3, 3, 3) and shapes["body.23.res_layer.3.weight"] == (512, 512, 3, 3)
    assert shapes["output_layer.0.weight"] == (512,) and shapes["output_layer.3.weight"] == (512, 512 * 7 * 7)
    assert (
        shapes["output_layer.4.running_var"] == (512,) and len({n.split(".")[1] for n in shapes if "body" in n}) == 24
    )
    torch.manual_seed(0)
    small, other = (ArcFace(16, (16, 32), (1, 1)) for _ in range(2))
    image = torch.rand(1, 3, 256, 256) * 2 - 1
    framed = image.clone()
    framed[:, :, :35], framed[:, :, -33:], framed[:, :, :, :32], framed[:, :, :, -36:] = 1, 1, 1, 1
    assert torch.equal(small(image), small(framed)) and not torch.allclose(small(image), other(image))
    assert float(small(image).norm()) == pytest.approx(1, abs=1e-5)
    weights = {name: value for name, value in small.state_dict().items() if "num_batches" not in name}
    other.load_weights(weights)
    assert torch.equal(small(image), other(image))
    with pytest.raises(UnsupportedModelError, match="ArcFace"):
        other.load_weights({"fc.weight": torch.zeros(1)})
    (tmp_path / "a.pth").write_bytes(b"no weights")
    with pytest.raises(CorruptFileError):
        ArcFace.load(tmp_path / "a.pth")


@pytest.fixture
def half_precision():
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(True)  # one precision for each process, otherwise
    yield make_accelerator("cpu", "bf16")
    AcceleratorState._reset_state(True)


def test_bfloat16_trains_and_samples(bank, networks, judges, half_precision, tmp_path):
    settings = dataclasses.replace(SMALL, iterations=(2, 2), level_every=0)
    trained = train(bank, *networks, tmp_path, settings, judges=judges, accelerator=half_precision)
    assert all(value.isfinite().all() and value.dtype == torch.float32 for value in trained.state_dict().values())
    run = training._Run(bank, *networks, settings, judges, half_precision)
    batch = run._batch(run.pictures, run.random, 2)
    with half_precision.autocast():
        _, found, merged = run._blended(run.samm, batch, 3)
    assert merged.dtype == torch.float32 and all(mask.dtype == torch.float32 for mask in found.masks.values())
