"""Sampling, style mixing, interpolation, sweeps and their pictures."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gan_inversion.core import latents
from gan_inversion.core.editing import Direction, Edit
from gan_inversion.core.errors import GeneratorMismatchError, InvalidInputError
from gan_inversion.core.generator import Generator, GeneratorConfig
from gan_inversion.core.inversion import FeatureOffset, FeatureWarp, Inversion, PixelBlend, WeightOffset, render

CONFIG = GeneratorConfig(32, (16, 16, 16, 8), 32, 32, 2)
ROWS, WIDTH = CONFIG.num_ws, CONFIG.w_dim
CLOSE = {"atol": 1e-4, "rtol": 1e-4}  # batches of another size


@pytest.fixture(scope="module")
def generator() -> Generator:
    torch.manual_seed(0)
    made = Generator(CONFIG).eval().requires_grad_(False)
    made.mapping.w_avg.copy_(made.estimate_w_avg(200))
    return made


@pytest.fixture(scope="module")
def inversion(generator) -> Inversion:
    w_plus = latents.sample(generator, [1, 2])
    return Inversion(generator.synthesis(w_plus) * 0.5, w_plus, generator)


def direction(seed: int = 0, **kwargs) -> Direction:
    return Direction(f"d{seed}", torch.randn(1, WIDTH, generator=torch.Generator().manual_seed(seed)), **kwargs)


def test_a_seed_gives_the_same_code_in_any_batch(generator):
    together = latents.sample(generator, [5, 6, 7])
    assert together.shape == (3, ROWS, WIDTH)
    assert latents.sample(generator, [7]).equal(together[2:])
    assert latents.sample(generator, 6).equal(together[1:2])
    assert not together[0].equal(together[1])
    torch.manual_seed(123)
    assert latents.sample(generator, [5]).equal(together[:1]), "the global random state plays no part"


def test_truncation_pulls_the_leading_rows_to_the_average(generator):
    full, half = latents.sample(generator, [3]), latents.sample(generator, [3], psi=0.5, cutoff=4)
    torch.testing.assert_close(half[:, :4], (full[:, :4] + generator.w_avg) / 2)
    assert half[:, 4:].equal(full[:, 4:])
    torch.testing.assert_close(latents.sample(generator, [3], psi=0.0)[0, 2], generator.w_avg)


def test_no_seed_is_refused(generator):
    with pytest.raises(InvalidInputError, match="seed"):
        latents.sample(generator, [])


def test_mixing_takes_the_named_rows_from_the_second_code():
    a, b = torch.zeros(2, ROWS, WIDTH), torch.ones(1, ROWS, WIDTH)
    assert latents.mix_styles(a, b, layers=(2, 4))[:, :, 0].tolist() == [[0, 0, 1, 1, 0, 0, 0, 0]] * 2
    assert latents.mix_styles(a, b, crossover=6)[:, :, 0].tolist() == [[0, 0, 0, 0, 0, 0, 1, 1]] * 2
    assert latents.mix_styles(a, b, crossover=6, amount=0.25)[0, :, 0].tolist() == [0] * 6 + [0.25] * 2
    assert latents.mix_styles(b, a, crossover=0).equal(a)


@pytest.mark.parametrize("choice", [{}, {"layers": (0, 2), "crossover": 1}, {"layers": (5, 3)}, {"crossover": 9}])
def test_mixing_needs_one_valid_choice_of_rows(choice):
    with pytest.raises(InvalidInputError):
        latents.mix_styles(torch.zeros(1, ROWS, WIDTH), torch.ones(1, ROWS, WIDTH), **choice)


def test_mixing_codes_of_two_generators_is_refused():
    with pytest.raises(InvalidInputError, match="one generator"):
        latents.mix_styles(torch.zeros(1, ROWS, WIDTH), torch.ones(1, ROWS + 2, WIDTH), crossover=1)


def test_linear_interpolation_has_both_ends_and_even_steps(generator):
    a, b = latents.sample(generator, [1]), latents.sample(generator, [2])
    path = latents.interpolate(a, b, 5)
    assert path[:1].equal(a) and path[-1:].equal(b)
    torch.testing.assert_close(path.diff(dim=0), ((b - a) / 4).expand(4, -1, -1), atol=1e-5, rtol=1e-5)


def test_slerp_walks_the_sphere_of_z_and_ends_at_the_samples(generator):
    a, b = latents.sample_z(generator, 1), latents.sample_z(generator, 2)
    path = latents.interpolate(a, b, 4, "slerp-z", generator=generator, psi=0.7)
    torch.testing.assert_close(path[[0, -1]], latents.sample(generator, [1, 2], psi=0.7), atol=1e-5, rtol=1e-5)
    z = latents._slerp(a, b, torch.linspace(0, 1, 4))
    torch.testing.assert_close(z.norm(dim=1), a.norm().expand(4))
    angles = torch.nn.functional.cosine_similarity(z[:-1], z[1:]).arccos()
    torch.testing.assert_close(angles, angles[:1].expand(3), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(latents._slerp(a, a, torch.tensor([0.5])), a)


def test_interpolation_says_what_it_needs(generator):
    z = latents.sample_z(generator, 1)
    for arguments, given, message in (
        ((z, z, 3, "slerp-z"), None, "generator="),
        ((z, z, 3, "linear"), None, "num_ws"),
        ((z, z, 1, "slerp-z"), generator, "at least 2"),
        ((z, z, 3, "cubic"), generator, "'cubic'"),
        ((z, -z, 3, "slerp-z"), generator, "opposite"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            latents.interpolate(*arguments, generator=given)


def test_a_sweep_has_a_row_per_photograph_and_the_plain_render_at_strength_zero(inversion):
    grid = latents.sweep(inversion, direction(), [-1, 0, 1.5])
    assert grid.images.shape == (6, 3, 32, 32)
    assert grid.column_labels == ("-1", "0", "+1.5") and grid.row_labels == ("#1 d0", "#2 d0")
    plain = render(inversion)
    for row in range(2):
        torch.testing.assert_close(grid.cell(row, 1), plain[row : row + 1], **CLOSE)
        for column, strength in ((0, -1.0), (2, 1.5)):
            expected = render(inversion[row], Edit.of(direction(), strength))
            torch.testing.assert_close(grid.cell(row, column), expected, **CLOSE)
            assert not torch.allclose(grid.cell(row, column), plain[row : row + 1], atol=1e-2)


def test_a_second_direction_makes_rows_on_top_of_the_other_sliders(inversion):
    one, others = inversion[1], Edit.of(direction(7), 0.4)
    second = {"second_direction": direction(2), "second_strengths": [-1, 0, 1]}
    grid = latents.sweep(one, direction(1), [0, 2], **second, edit=others, layers=(0, 3))
    assert grid.row_labels == ("d2 -1", "d2 0", "d2 +1") and grid.column_labels == ("d1 0", "d1 +2")
    expected = render(one, others + Edit.of(direction(2), -1.0) + Edit.of(direction(1), 2.0, (0, 3)))
    torch.testing.assert_close(grid.cell(0, 1), expected, **CLOSE)
    torch.testing.assert_close(grid.cell(1, 0), render(one, others), **CLOSE)


def test_several_directions_make_one_row_each(inversion):
    grid = latents.sweep(inversion[0], [direction(1), direction(2)], [1.0])
    assert grid.row_labels == ("d1", "d2")
    torch.testing.assert_close(grid.cell(1, 0), render(inversion[0], Edit.of(direction(2), 1.0)), **CLOSE)


def test_other_sliders_with_a_strength_per_photograph_stay_with_theirs(inversion):
    grid = latents.sweep(inversion, direction(1), [0.0], edit=Edit.of(direction(2), torch.tensor([1.0, -2.0])))
    torch.testing.assert_close(grid.cell(1, 0), render(inversion[1], Edit.of(direction(2), -2.0)), **CLOSE)


def test_the_chunk_size_changes_passes_and_not_pictures(generator, inversion):
    passes, progress = [], []
    handle = generator.synthesis.register_forward_hook(lambda module, args, out: passes.append(len(out)))
    try:
        small = latents.sweep(
            inversion[0], direction(), [-2, -1, 0, 1, 2], chunk=2, on_progress=lambda *state: progress.append(state)
        )
        assert passes == [2, 2, 1] and progress == [(2, 5), (4, 5), (5, 5)]
        passes.clear()
        large = latents.sweep(inversion[0], direction(), [-2, -1, 0, 1, 2], chunk=16)
        assert passes == [5]
    finally:
        handle.remove()
    torch.testing.assert_close(small.images, large.images, **CLOSE)


def test_a_sweep_never_runs_the_mapping_network(generator, inversion):
    calls = []
    handle = generator.mapping.register_forward_hook(lambda *_: calls.append(1))
    try:
        latents.sweep(inversion, direction(), [0, 1])
    finally:
        handle.remove()
    assert calls == []


def test_modulated_inversions_sweep_like_they_render(generator, inversion):
    draw = torch.Generator().manual_seed(3)
    mask = torch.zeros(2, 1, 16, 16)
    mask[..., :8] = 1
    name = "b8.conv0.weight"
    offset = 0.1 * torch.randn(2, *dict(generator.synthesis.named_parameters())[name].shape, generator=draw)
    pixels = torch.zeros(2, 1, 32, 32)
    pixels[..., 20:, :] = 1
    full = inversion
    for modulation in (
        FeatureOffset(16, torch.randn(2, 16, 16, 16, generator=draw), mask),
        FeatureWarp(16, 0.1 * torch.randn(2, 2, 16, 16, generator=draw), mask),
        PixelBlend(pixels),
        WeightOffset({name: offset}),
    ):
        full = full.with_modulation(modulation)
        grid = latents.sweep(full, direction(), [0, 1])
        for row in range(2):
            for column, strength in enumerate((0.0, 1.0)):
                expected = render(full[row], Edit.of(direction(), strength))
                torch.testing.assert_close(grid.cell(row, column), expected, **CLOSE)


def test_style_directions_sweep_too(generator, inversion):
    style = Direction("s", style={"b16.conv1": torch.ones(16)})
    grid = latents.sweep(inversion[0], style, [0, 3])
    torch.testing.assert_close(grid.cell(0, 1), render(inversion[0], Edit.of(style, 3.0)), **CLOSE)
    assert not torch.allclose(grid.cell(0, 0), grid.cell(0, 1))


def test_a_sweep_refuses_what_it_cannot_draw(inversion):
    for arguments, named in (
        (([], [1.0]), {}),
        ((direction(), []), {}),
        ((direction(), [1.0]), {"second_strengths": [1.0]}),
        ((direction(), [1.0]), {"second_direction": direction(1)}),
        ((direction(), [1.0]), {"chunk": 0}),
    ):
        with pytest.raises(InvalidInputError):
            latents.sweep(inversion, *arguments, **named)
    with pytest.raises(GeneratorMismatchError, match="another generator"):
        latents.sweep(inversion, Direction("foreign", torch.ones(1, 512)), [1.0])


def test_a_grid_shows_every_picture_in_its_place_and_its_labels():
    shades = torch.linspace(-0.8, 0.8, 6).view(6, 1, 1, 1).expand(6, 3, 32, 32)
    sheet = np.asarray(latents.draw_grid(shades, ["first", "second"], ["-1", "0", "+1"]))
    height, width = sheet.shape[:2]
    left, top = width - 3 * 132 - 4, height - 2 * 132 - 4
    assert left > 0 and top > 0
    for index in range(6):
        row, column = divmod(index, 3)
        centre = sheet[top + 4 + row * 132 + 64, left + 4 + column * 132 + 64]
        assert abs(int(centre[0]) - round((float(shades[index, 0, 0, 0]) + 1) * 127.5)) <= 1
    for row in range(2):
        beside = sheet[top + row * 132 : top + (row + 1) * 132, :left]
        assert (beside < 100).any(axis=-1).sum() > 20, "dark letters beside the row"
    for column in range(3):
        above = sheet[:top, left + column * 132 : left + (column + 1) * 132]
        assert (above < 100).any(axis=-1).sum() > 4, "dark letters above the column"


def test_a_grid_without_labels_is_pictures_only():
    assert latents.draw_grid(torch.zeros(4, 3, 64, 64), columns=2, cell=64).size == (2 * 68 + 4, 2 * 68 + 4)


def test_long_labels_stay_inside_their_cell():
    label = "an extremely long description of a direction " * 3
    text, font = latents._fitted(label, 14, 128)
    assert text.endswith("...") and font.getlength(text) <= 128
    latents.draw_grid(torch.zeros(1, 3, 32, 32), [label], [label])


def test_labels_that_do_not_fit_the_pictures_are_refused():
    for rows, columns in ((["a"], ["x", "y"]), (["a", "b", "c"], [])):
        with pytest.raises(InvalidInputError, match="labels"):
            latents.draw_grid(torch.zeros(4, 3, 32, 32), rows, columns, columns=2)


def test_captions_stand_below_their_picture_and_never_on_it():
    shades = torch.linspace(-0.8, 0.8, 6).view(6, 1, 1, 1).expand(6, 3, 32, 32)
    captions = ["id 0.93\nsmile +12%", "", "x" * 200, "", "one", ""]
    bare = np.asarray(latents.draw_grid(shades, ["a", "b"], ["-1", "0", "+1"]))
    sheet = np.asarray(latents.draw_grid(shades, ["a", "b"], ["-1", "0", "+1"], captions=captions))
    left, top, foot = sheet.shape[1] - 3 * 132 - 4, bare.shape[0] - 2 * 132 - 4, (sheet.shape[0] - bare.shape[0]) // 2
    assert sheet.shape[1] == bare.shape[1] and foot >= 2 * 10  # two lines
    for index, caption in enumerate(captions):
        row, column = divmod(index, 3)
        y, x = top + 4 + row * (132 + foot), left + 4 + column * 132
        assert (sheet[y : y + 128, x : x + 128] == sheet[y, x]).all(), "nothing is drawn on the picture"
        below = sheet[y + 128 : y + 128 + foot, x : x + 128]
        assert bool((below < 100).any(axis=-1).sum() > 4) == bool(caption)
        assert (sheet[y + 128 : y + 128 + foot, x + 128 : x + 131] > 200).all(), "and nothing beside it"
    with pytest.raises(InvalidInputError, match="2 captions for 6 pictures"):
        latents.draw_grid(shades, columns=3, captions=["a", "b"])


def test_a_sweep_draws_itself(inversion):
    sheet = latents.sweep(inversion[0], direction(), [-1, 0, 1]).draw()
    assert sheet.mode == "RGB" and sheet.width > 3 * 128 and sheet.height > 128
