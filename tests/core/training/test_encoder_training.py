"""The encoder trainer: the papers' loops and losses, data with a known w, exact resumption, starts from other encoders."""

import dataclasses
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gan_inversion.core.encoders import Encoder
from gan_inversion.core.errors import GeneratorMismatchError, InvalidInputError
from gan_inversion.core.generator import Generator, GeneratorConfig
from gan_inversion.core.training import encoder as training
from gan_inversion.core.training.common import load_checkpoint, make_accelerator, step_generator
from gan_inversion.core.training.encoder import EncoderTraining, initialise_from, train
from gan_inversion.core.training.generator import CodeEmbedding, GeneratorTraining
from gan_inversion.core.training.generator import train as train_generator
from gan_inversion.core.training.latent_discriminator import LatentAdversary, LatentCodesPool

W = 16
SMALL = EncoderTraining(
    stem=8,
    widths=(16, 32, 48),
    units=(1, 1, 1),
    style_channels=16,
    code_steps=2,
    image_steps=3,
    batch=3,
    sample_share=0.4,
    iterations=2,
    pool=4,
    r1_every=2,
    warmup=3,
    discriminator_learning_rate=1e-3,
)
TYPES = tuple(training.OFFICIAL_CLASSES)


@pytest.fixture(scope="module")
def drawn(bank):
    """A generator of 32 px that draws something for each w, and its embedding."""
    torch.manual_seed(0)
    generator = Generator(GeneratorConfig(32, (16, 16, 16, 8), W, W, 2)).requires_grad_(False)
    embedding = CodeEmbedding(bank.code_dim, W)
    with torch.no_grad():
        embedding.linear.weight.mul_(4)
        generator.mapping.w_avg.copy_(embedding(bank.draw_codes(64, step_generator(0, 0))).mean(dim=0))
    return generator, embedding


def settings(encoder_type="e4e", **changes):
    return dataclasses.replace(SMALL, encoder_type=encoder_type, **changes)


def new_run(bank, drawn, chosen, **options):
    options = {"distance": None, "identity": None, "augment": None, **options}
    return training._Run(bank, *drawn, chosen, make_accelerator(), **options)


def person(image):
    return F.normalize(image[:, :, 4:28:4, 4:28:4].flatten(1), dim=1)


def patch(images, seed):
    images = images.clone()
    images[:, :, 8:16, 8:16] = torch.rand(1, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return images


def same(a, b):
    """Equal structure, equal numbers, bit for bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.parametrize("encoder_type", TYPES)
def test_a_run_that_was_stopped_ends_in_the_same_weights(bank, drawn, tmp_path, encoder_type):
    chosen = settings(encoder_type, progressive=(1, 1) if encoder_type == "e4e" else None)
    options = {"identity": person, "augment": patch}
    straight = train(bank, *drawn, tmp_path / "straight", chosen, **options)
    for stop_at in (1, 3, 4):
        train(bank, *drawn, tmp_path / "stopped", chosen, max_steps=stop_at, **options)
    resumed = train(bank, *drawn, tmp_path / "stopped", chosen, **options)
    assert same(straight.state_dict(), resumed.state_dict())
    states = [load_checkpoint(tmp_path / name / "checkpoint.pt") for name in ("straight", "stopped")]
    assert same(*states)
    assert states[0]["step"] == 5
    assert ("pool" in states[0]["adversary"]) == encoder_type.endswith("e4e")
    assert straight.config.encoder_type == training.OFFICIAL_CLASSES[encoder_type]
    assert straight.config.architecture == encoder_type
    assert not any(parameter.requires_grad for parameter in straight.parameters()) and not straight.training


NARROW_RUN = """
import sys

import torch

from gan_inversion.core.generator import Generator, GeneratorConfig
from gan_inversion.core.training.common import make_accelerator
from gan_inversion.core.training.encoder import EncoderTraining, _Run
from gan_inversion.core.training.generator import CodeEmbedding
from gan_inversion.core.training.morphs import MorphModel

torch.set_num_threads(2)
bank = MorphModel.load(sys.argv[1])
generator = Generator(GeneratorConfig(128, (4,) * 6, 16, 16, 2))
settings = EncoderTraining(
    stem=4, widths=(16, 32, 48), units=(1, 1, 1), style_channels=8, code_steps=3, image_steps=1, batch=5
)
run = _Run(bank, generator, CodeEmbedding(bank.code_dim, 16), settings, make_accelerator(), None, None, None)
for _ in range(settings.total):
    run.one_step()
print("trained")
"""


def test_two_threads_train_a_narrow_encoder(bank, tmp_path):
    """In channels last this overwrites memory and ends the process, see `_fast_layout`: so in a process of its own."""
    bank.save(tmp_path / "morphs.safetensors")
    command = [sys.executable, "-c", NARROW_RUN, str(tmp_path / "morphs.safetensors")]
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}  # else the threads are slow where others work too
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert (done.returncode, done.stdout) == (0, "trained\n"), done.stderr


@pytest.mark.parametrize("encoder_type", ["e4e", "restyle-psp"])
@pytest.mark.parametrize(("stem", "layout"), [(8, torch.contiguous_format), (16, torch.channels_last)])
def test_only_narrow_encoders_go_without_channels_last(bank, drawn, encoder_type, stem, layout):
    chosen = settings(encoder_type, stem=stem, widths=(16, 32, 48), code_steps=1)
    run = new_run(bank, drawn, chosen, augment=patch)
    seen = []
    for module in run.encoder.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.stride == (2, 2):
            module.register_forward_hook(lambda _, given, made: seen.extend((*given, made)))
    for _ in range(2):  # one of each stage
        run.one_step()
    assert len(seen) >= 8
    assert all(tensor.is_contiguous(memory_format=layout) for tensor in seen)


def learn_one_batch(run, steps=25):
    """Losses while the first step, and so its batch, is made again and again."""
    values = []
    for _ in range(steps):
        run.step = 0
        values.append(run.one_step())
    return values


@pytest.mark.parametrize("encoder_type", ["e4e", "restyle-e4e"])
def test_code_stage_finds_w(bank, drawn, encoder_type):
    run = new_run(bank, drawn, settings(encoder_type, learning_rate=3e-3, warmup=1))
    values = learn_one_batch(run)
    assert values[-1]["code"] < 0.3 * values[0]["code"]


@pytest.mark.parametrize("encoder_type", ["psp", "restyle-e4e"])
def test_image_stage_draws_the_picture(bank, drawn, encoder_type):
    chosen = settings(encoder_type, code_steps=0, image_learning_rate=3e-3, warmup=1, sample_share=1.0)
    values = learn_one_batch(new_run(bank, drawn, chosen, identity=person))
    for name in ("l2", "perceptual", "identity"):
        assert values[-1][name] < 0.7 * values[0][name]


def test_batches_are_morphs_and_samples_of_known_w(bank, drawn):
    generator, embedding = drawn
    run = new_run(bank, drawn, settings(batch=4, sample_share=0.5))
    batch = run._batch()
    codes = bank.draw_codes(4, step_generator(SMALL.seed, 0))
    torch.testing.assert_close(batch.w[:, 0], embedding(codes))
    torch.testing.assert_close(batch.image[:2], bank.render(codes[:2], 32))
    torch.testing.assert_close(batch.image[2:], generator.synthesis(generator.broadcast(embedding(codes[2:]))))
    from_z = new_run(bank, drawn, settings(batch=4, sample_share=0.5, samples_from="mapping"))._batch()
    assert torch.equal(from_z.w[:2], batch.w[:2]) and not torch.equal(from_z.w[2:], batch.w[2:])
    torch.testing.assert_close(from_z.image[2:], generator.synthesis(generator.broadcast(from_z.w[2:, 0])))


def test_augment_changes_what_is_seen_and_not_what_is_wanted(bank, drawn):
    plain = new_run(bank, drawn, settings(batch=6))._batch()
    batch = new_run(bank, drawn, settings(batch=6, occluded_share=0.5), augment=patch)._batch()
    assert torch.equal(batch.image, plain.image) and torch.equal(plain.seen, plain.image)
    changed = (batch.seen != batch.image).flatten(1).any(dim=1)
    assert 0 < changed.sum() < 6
    assert torch.equal(batch.seen[..., 16:], batch.image[..., 16:])


def test_restyle_sums_the_gradients_of_its_passes_and_draws_each_once(bank, drawn):
    generator, _ = drawn
    chosen = settings("restyle-e4e", code_steps=0, iterations=3, sample_share=0.0, clip=1e9, code=0.2)
    run = new_run(bank, drawn, chosen)
    copied = Encoder(run.encoder.config)
    copied.load_state_dict(run.encoder.state_dict())
    copied.train()
    batch, expected = run._batch(), 0.0
    codes = copied.latent_avg.expand(3, -1, -1)
    picture = generator.synthesis(codes)
    for _ in range(3):
        codes = codes + copied.encoder(torch.cat((batch.image, picture), dim=1))
        picture = generator.synthesis(codes)
        deltas = codes[:, 1:] - codes[:, :1]
        loss = (picture - batch.image).square().mean() + 0.8 * run.distance(picture, batch.image).mean()
        loss = loss + 0.2 * (codes - batch.w).square().mean() / run.spread
        loss = loss + 2e-4 * deltas.square().sum(dim=2).sqrt().sum(dim=1).mean()
        loss = loss + 0.1 * F.softplus(-run.adversary.discriminator(codes)).mean()
        loss.backward()
        codes, picture = codes.detach(), picture.detach()
        expected += loss.item() / 3
    calls = []
    hook = generator.synthesis.register_forward_hook(lambda *_: calls.append(1))
    values = run.one_step()
    hook.remove()
    assert len(calls) == 3
    assert values["loss"] == pytest.approx(expected, rel=1e-4)
    for trained, wanted in zip(run.encoder.parameters(), copied.parameters(), strict=True):
        torch.testing.assert_close(3 * trained.grad, wanted.grad, rtol=1e-3, atol=2e-5)


def test_only_the_e4e_family_has_deltas_and_a_discriminator(bank, drawn):
    names = {}
    for encoder_type in TYPES:
        names[encoder_type] = new_run(bank, drawn, settings(encoder_type, code_steps=0)).one_step().keys()
    for encoder_type, found in names.items():
        assert ({"delta_norm", "adversarial", "discriminator"} <= found) == encoder_type.endswith("e4e")
        assert ("delta_norm" in found) == encoder_type.endswith("e4e")


def test_deltas_open_one_after_another(bank, drawn, tmp_path):
    chosen = settings(image_steps=9, progressive=(2, 3))
    assert [chosen.open_deltas(step) for step in range(11)] == [0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 3]
    assert settings().open_deltas(5) is None
    image = torch.rand(2, 3, 32, 32) * 2 - 1
    found = {}
    for steps in (3, 6, 9):
        train(bank, *drawn, tmp_path / "run", dataclasses.replace(chosen, image_steps=steps - 2))
        encoder = train(
            bank, *drawn, tmp_path / "run", dataclasses.replace(chosen, image_steps=steps - 2)
        )  # is read back
        rows = encoder(image) - encoder.latent_avg
        found[steps] = (rows[:, 1:] - rows[:, :1]).abs().amax(dim=(0, 2)) > 1e-6
    assert found[3].tolist() == [False] * 7
    assert found[6].tolist() == [True] + [False] * 6
    assert found[9].tolist() == [True, True] + [False] * 5


def test_log_has_every_loss_and_the_psnr_of_each_pass(bank, drawn, tmp_path):
    train(bank, *drawn, tmp_path, settings("restyle-psp", code_steps=20, image_steps=20), identity=person)
    header, first, second = (row.split(",") for row in (tmp_path / "encoder.csv").read_text().splitlines())
    first, second = dict(zip(header, first, strict=True)), dict(zip(header, second, strict=True))
    assert first["l2"] == "nan" and float(first["code"]) > 0
    assert all(float(second[name]) > 0 for name in ("loss", "code", "l2", "perceptual", "identity", "rate"))
    held_out = (tmp_path / "held-out.csv").read_text().splitlines()
    assert held_out[0] == "step,psnr_1,psnr_2" and all(float(v) > 0 for v in held_out[1].split(","))
    assert (tmp_path / "samples-000040.png").is_file()


def encoder_of(drawn, encoder_type, seed=0, **changes):
    torch.manual_seed(seed)
    encoder = Encoder(training.encoder_config(drawn[0], settings(encoder_type, **changes))).eval()
    encoder.set_latent_avg(drawn[0].w_avg)
    return encoder


@pytest.mark.parametrize("encoder_type", TYPES)
def test_a_start_from_the_same_class_is_that_encoder(drawn, encoder_type):
    encoder, other = encoder_of(drawn, encoder_type, 1), encoder_of(drawn, encoder_type, 2)
    assert initialise_from(encoder, other, passes=5) == []
    image = torch.rand(2, 3, 32, 32) * 2 - 1
    assert torch.equal(encoder(image, drawn[0]), other(image, drawn[0]))


def test_restyle_from_e4e_reaches_its_codes_in_all_its_passes(drawn):
    restyle, e4e = encoder_of(drawn, "restyle-e4e", 1), encoder_of(drawn, "e4e", 2)
    left = initialise_from(restyle, e4e, passes=4)
    assert left and all(name.startswith("styles.") and int(name.split(".")[1]) >= 3 for name in left)
    image = torch.rand(2, 3, 32, 32) * 2 - 1
    passes = restyle(image, drawn[0], iterations=4, return_all=True)
    wanted = e4e(image)[:, :3]
    torch.testing.assert_close(passes[-1][:, :3], wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(passes[0][:, :3] * 4 - 3 * restyle.latent_avg[:3], wanted, rtol=1e-4, atol=1e-4)


def test_psp_and_e4e_start_from_each_other_where_rows_agree(drawn):
    image = torch.rand(2, 3, 32, 32) * 2 - 1
    psp, e4e = encoder_of(drawn, "psp", 1), encoder_of(drawn, "e4e", 2)
    initialise_from(psp, e4e)
    torch.testing.assert_close(psp(image)[:, :3], e4e(image)[:, :1].expand(-1, 3, -1))
    psp, e4e = encoder_of(drawn, "psp", 1), encoder_of(drawn, "e4e", 2)
    initialise_from(e4e, psp)
    torch.testing.assert_close(e4e(image)[:, 0], psp(image)[:, 0])


def test_a_start_from_another_trunk_is_refused(drawn):
    other = encoder_of(drawn, "e4e", widths=(16, 32, 64))
    with pytest.raises(InvalidInputError, match=r"another trunk \(body\.2"):
        initialise_from(encoder_of(drawn, "e4e"), other)


def test_a_run_starts_from_the_encoder_it_is_given(bank, drawn, tmp_path):
    other = encoder_of(drawn, "e4e", 3)
    chosen = settings(image_learning_rate=0.0, code_steps=0, image_steps=1)
    assert same(
        dict(train(bank, *drawn, tmp_path, chosen, start=other).named_parameters()), dict(other.named_parameters())
    )


def test_another_runs_folder_and_embedding_are_refused(bank, drawn, tmp_path):
    train(bank, *drawn, tmp_path, settings("psp"), max_steps=1)
    with pytest.raises(InvalidInputError, match="trains a psp encoder, not e4e"):
        train(bank, *drawn, tmp_path, settings())
    with pytest.raises(GeneratorMismatchError, match="w of 8 numbers"):
        train(bank, drawn[0], CodeEmbedding(bank.code_dim, 8), tmp_path, settings())
    for wrong in ({"encoder_type": "e5e"}, {"samples_from": "w"}, {"sample_share": 2.0}, {"progressive": (5, 0)}):
        with pytest.raises(InvalidInputError, match="expected"):
            dataclasses.replace(SMALL, **wrong)


def test_discriminator_tells_rows_apart_and_teaches_the_encoder():
    torch.manual_seed(0)
    adversary = LatentAdversary(8, learning_rate=3e-3, r1=0.1)
    draw = torch.Generator().manual_seed(1)
    for index in range(150):
        real, fake = torch.randn(16, 8, generator=draw), torch.randn(16, 8, generator=draw) + 2
        values = adversary.step(index, real, fake, draw, lambda: None)
    assert values["real"] > 0.7 and values["fake"] < 0.3
    rows = (torch.randn(16, 3, 8, generator=draw) + 2).requires_grad_(True)
    (slope,) = torch.autograd.grad(adversary.encoder_loss(rows), rows)
    assert (slope.mean(dim=(0, 1)) > 0).float().mean() > 0.8  # downhill is towards the real rows
    assert all(
        parameter.grad is None or not parameter.requires_grad for parameter in adversary.discriminator.parameters()
    )


def test_r1_flattens_the_discriminator():
    slopes = []
    for r1 in (0.0, 10.0):
        torch.manual_seed(0)
        adversary, draw = LatentAdversary(8, learning_rate=3e-3, r1=r1), torch.Generator().manual_seed(1)
        for index in range(100):
            real, fake = torch.randn(16, 8, generator=draw), torch.randn(16, 8, generator=draw) + 2
            adversary.step(index, real, fake, draw, lambda: None)
        at = torch.randn(64, 8, generator=draw).requires_grad_(True)
        (slope,) = torch.autograd.grad(adversary.discriminator(at).sum(), at)
        slopes.append(slope.norm(dim=1).mean())
    assert slopes[1] < 0.7 * slopes[0]


def test_pool_gives_back_earlier_codes():
    pool, draw = LatentCodesPool(4, 1), torch.Generator().manual_seed(0)
    first = torch.arange(4.0)[:, None]
    assert torch.equal(pool.query(first, draw), first)  # while it fills, codes pass through
    given = torch.cat([pool.query(torch.full((1, 1), 10.0 + k), draw) for k in range(200)])[:, 0]
    new = given == torch.arange(200) + 10.0
    assert 0.35 < new.float().mean() < 0.65
    assert (given[~new] < torch.arange(200)[~new] + 10).all()
    kept_and_given = torch.cat((given, pool.codes[:, 0])).sort().values
    assert torch.equal(kept_and_given, torch.cat((first[:, 0], torch.arange(200) + 10.0)))  # none is lost or doubled
    assert torch.equal(LatentCodesPool(0, 1).query(first, draw), first)


def test_command_trains_into_a_folder_of_its_own(bank, tmp_path):
    runs = tmp_path / "runs"
    runs.mkdir()
    bank.save(runs / "morphs.safetensors")
    small = GeneratorTraining(channels=(8, 8, 8, 8), w_dim=16, mapping_layers=2, stages=((32, 1),), batch=2)
    train_generator(bank, runs / "generator", small)
    saved = {}

    def save_model(module, path, metadata, dtype):
        saved.update(module=module, metadata=metadata, dtype=dtype)
        return path

    argv = ["--portraits", str(tmp_path), "--runs", str(runs), "--out", str(tmp_path / "e.safetensors"), "--device=cpu"]
    argv += ["--type=restyle-psp", "--code-steps=1", "--image-steps=0", "--batch=2"]
    registry = SimpleNamespace(save_model=save_model, load_model=lambda path: SimpleNamespace(module=start))
    assert training.main(argv, registry) == tmp_path / "e.safetensors"
    assert saved["module"].config.architecture == "restyle-psp" and "restyle-psp" in saved["metadata"]["title"]
    assert (runs / "restyle-psp" / "checkpoint.pt").is_file()
    start = saved["module"]
    argv += ["--type=restyle-e4e", "--code-steps=0", "--init", "start.safetensors"]
    training.main(argv, registry)
    torch.testing.assert_close(
        saved["module"].encoder.body[0].res_layer[1].weight, start.encoder.body[0].res_layer[1].weight
    )
    with pytest.raises(InvalidInputError, match="--samples-from mapping"):
        training.main([*argv, "--samples-from=mapping"], registry)
    with pytest.raises(InvalidInputError, match="START:EVERY"):
        training.main([*argv, "--progressive=5"], registry)


def test_deformed_faces_are_others_but_smoothly_so():
    line = torch.linspace(-1, 1, 64)
    images = torch.stack((line.expand(64, 64), line[:, None].expand(64, 64), torch.zeros(64, 64))).expand(4, -1, -1, -1)
    moved, again = (training.deformed(images, 0.04, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(moved, again) and moved.shape == images.shape and moved.abs().max() <= 1
    assert training.deformed(images, 0.0, torch.Generator()) is images
    assert 0.01 < (moved - images).abs().mean() < 0.2
    assert not torch.allclose(moved[0], moved[1], atol=0.02)  # each picture its own way
    steps = moved.diff(dim=3).abs().amax(), images.diff(dim=3).abs().amax()
    assert steps[0] < 3 * steps[1]  # no tears
