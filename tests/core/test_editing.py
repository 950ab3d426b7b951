"""Directions and edits: what a slider does to a code."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from gan_inversion.core.editing import Coordinate, Direction, Edit
from gan_inversion.core.errors import GeneratorMismatchError, InvalidInputError
from gan_inversion.core.generator import Generator, GeneratorConfig
from gan_inversion.core.inversion import Inversion, render

CONFIG = GeneratorConfig(32, (16, 16, 16, 8), 32, 32, 2)
ROWS, WIDTH = CONFIG.num_ws, CONFIG.w_dim


@pytest.fixture(scope="module")
def generator() -> Generator:
    torch.manual_seed(0)
    return Generator(CONFIG).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def inversion(generator) -> Inversion:
    w_plus = generator.broadcast(generator.mapping(torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(1))))
    return Inversion(generator.synthesis(w_plus), w_plus, generator)


def random_direction(seed: int, rows: int = 1, **kwargs) -> Direction:
    offset = torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(seed))
    return Direction(f"d{seed}", offset, **kwargs)


def codes(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, ROWS, WIDTH, generator=torch.Generator().manual_seed(9))


def test_strength_times_unit_is_added_with_its_sign():
    direction = random_direction(1, unit=0.5)
    w_plus = codes()
    moved = Edit.of(direction, 3.0).apply(w_plus)
    torch.testing.assert_close(moved - w_plus, (1.5 * direction.offset).expand_as(w_plus))
    along = ((moved - w_plus) * direction.offset).sum(-1)
    assert (along > 0).all(), "a positive strength moves along the direction, not against it"
    assert (((Edit.of(direction, -3.0).apply(w_plus) - w_plus) * direction.offset).sum(-1) < 0).all()


def test_a_w_plus_direction_moves_each_row_by_its_own_offset():
    direction = random_direction(2, rows=ROWS)
    delta = direction.delta(codes(), 2.0)
    torch.testing.assert_close(delta, (2 * direction.offset).expand(2, -1, -1))


@pytest.mark.parametrize("rows", [1, ROWS])
def test_only_rows_of_the_layer_range_move(rows):
    direction = random_direction(3, rows=rows, layers=(2, 5))
    own = direction.delta(codes(), 1.0)
    assert own[:, 2:5].abs().amin(dim=(0, 2)).gt(0).all()
    assert own[:, :2].eq(0).all() and own[:, 5:].eq(0).all()
    given = direction.delta(codes(), 1.0, layers=(0, 1))
    assert given[:, 0].ne(0).any() and given[:, 1:].eq(0).all()
    torch.testing.assert_close(given[:, 0], direction.offset[:1].expand(2, -1))


def test_a_range_past_the_last_row_ends_there():
    assert random_direction(3, layers=(6, 18)).delta(codes(), 1.0)[:, 6:].ne(0).any(dim=-1).all()


@pytest.mark.parametrize("layers", [(3, 3), (4, 2), (-1, 2)])
def test_an_empty_range_is_refused(layers):
    with pytest.raises(InvalidInputError, match="Layer range"):
        random_direction(3).delta(codes(), 1.0, layers=layers)


def test_each_image_takes_its_own_strength():
    direction = random_direction(4)
    strengths = torch.tensor([0.0, 1.0, -2.0])
    expected = strengths.view(3, 1, 1) * direction.offset.expand(3, ROWS, -1)
    torch.testing.assert_close(direction.delta(codes(3), strengths), expected)


def test_several_edits_equal_the_sum_of_their_deltas_in_any_order():
    a, b = random_direction(5, unit=2.0, layers=(0, 4)), random_direction(6, rows=ROWS)
    w_plus = codes()
    expected = w_plus + a.delta(w_plus, 1.5) + b.delta(w_plus, -0.5)
    torch.testing.assert_close((Edit.of(a, 1.5) + Edit.of(b, -0.5)).apply(w_plus), expected)
    torch.testing.assert_close((Edit.of(b, -0.5) + Edit.of(a, 1.5)).apply(w_plus), expected)


def test_absolute_directions_also_combine_from_the_unedited_code():
    basis = torch.linalg.qr(torch.randn(WIDTH, 2, generator=torch.Generator().manual_seed(3))).Q.T
    a, b = (Direction("x", basis[i : i + 1], coordinate=Coordinate(torch.zeros(WIDTH), 1.0)) for i in range(2))
    moved = (Edit.of(a, 1.0) + Edit.of(b, 2.0)).apply(codes())
    reached = moved[:, 0] @ basis.T
    torch.testing.assert_close(reached, torch.tensor([[1.0, 2.0]]).expand(2, -1), atol=1e-5, rtol=0)


def test_an_absolute_direction_sets_the_coordinate_as_encoder4editing_does():
    generator = torch.Generator().manual_seed(4)
    comp = torch.nn.functional.normalize(torch.randn(1, WIDTH, generator=generator))
    mean, std = torch.randn(WIDTH, generator=generator), 1.7
    direction = Direction("pc", comp * std, layers=(1, 3), coordinate=Coordinate(mean, std))
    w_plus = codes()
    delta = direction.delta(w_plus, 4.0)
    coordinate = ((w_plus[:, 0] - mean) * comp).sum(-1, keepdim=True) / std  # row 0, whatever rows are edited
    expected = torch.zeros_like(w_plus)
    expected[:, 1:3] = ((4.0 - coordinate) * comp * std)[:, None]
    torch.testing.assert_close(delta, expected)
    everywhere = Edit.of(direction, 4.0, layers=(0, ROWS)).apply(w_plus)
    torch.testing.assert_close(((everywhere[:, 0] - mean) * comp).sum(-1) / std, torch.full((2,), 4.0))
    doubled = dataclasses.replace(direction, unit=2.0)
    torch.testing.assert_close(doubled.delta(w_plus, 2.0), delta)


@pytest.mark.parametrize(("rows", "width"), [(1, WIDTH + 1), (ROWS + 2, WIDTH), (2, WIDTH)])
def test_a_direction_of_another_generator_is_refused(rows, width):
    with pytest.raises(GeneratorMismatchError, match=rf"\[{rows}, {width}\].*\[{ROWS}, {WIDTH}\].*another generator"):
        Direction("foreign", torch.ones(rows, width)).delta(codes(), 1.0)


@pytest.mark.parametrize("offset", [None, torch.ones(WIDTH), torch.ones(1, 1, WIDTH)])
def test_a_direction_needs_an_offset_of_rows(offset):
    with pytest.raises(InvalidInputError, match="'bad'"):
        Direction("bad", offset)


def test_scaled_edits_are_proportional():
    edit = Edit.of(random_direction(7), 2.0) + Edit.of(random_direction(8), torch.tensor([1.0, -1.0]))
    torch.testing.assert_close(edit.scaled(0.5).apply(codes()) - codes(), (edit.apply(codes()) - codes()) / 2)


def test_style_offsets_add_up_over_terms_and_follow_each_images_strength(generator):
    layer = generator.synthesis.style_names[3]
    a = Direction("a", style={layer: torch.arange(16.0)}, unit=2.0)
    b = Direction("b", style={layer: torch.ones(16), "b4.conv1": torch.ones(16)})
    offsets = (Edit.of(a, torch.tensor([1.0, -1.0])) + Edit.of(b, 3.0)).style_offsets()
    assert set(offsets) == {layer, "b4.conv1"}
    torch.testing.assert_close(offsets[layer], torch.stack((2 * torch.arange(16.0) + 3, 3 - 2 * torch.arange(16.0))))
    assert Edit.of(a).apply(codes()).equal(codes()), "a style direction leaves w_plus alone"


def test_a_style_edit_changes_the_picture_as_the_same_style_code_does(generator, inversion):
    layer = generator.synthesis.style_names[4]
    offset = torch.randn(16, generator=torch.Generator().manual_seed(5))
    drawn = render(inversion, Edit.of(Direction("s", style={layer: offset}), 2.0))
    styles = generator.synthesis.styles(inversion.w_plus)
    styles[4] = styles[4] + 2 * offset
    torch.testing.assert_close(drawn, generator.synthesis(inversion.w_plus, styles=styles))
    assert not torch.allclose(drawn, render(inversion))


def test_strengths_per_image_draw_what_single_strengths_draw(inversion):
    direction = random_direction(11)
    together = render(inversion, Edit.of(direction, torch.tensor([0.0, 0.7, -1.2])))
    for index, strength in enumerate((0.0, 0.7, -1.2)):
        alone = render(inversion[index], Edit.of(direction, strength))
        torch.testing.assert_close(together[index : index + 1], alone, atol=1e-5, rtol=1e-5)


def test_moving_a_slider_draws_once_and_runs_nothing_else(generator, inversion):
    calls = {"synthesis": 0, "mapping": 0}
    before = inversion.w_plus.clone()
    handles = [
        getattr(generator, part).register_forward_hook(lambda *_, part=part: calls.update({part: calls[part] + 1}))
        for part in calls
    ]
    try:
        drawn = [render(inversion, Edit.of(random_direction(12), strength)) for strength in (-1.0, 0.5, 2.0)]
    finally:
        for handle in handles:
            handle.remove()
    assert calls == {"synthesis": 3, "mapping": 0}
    assert inversion.w_plus.equal(before)
    assert not torch.allclose(drawn[0], drawn[1])
