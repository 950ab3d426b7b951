"""Directions read off a linear embedding: what is asked for changes, the rest stays, and limits are measured."""

import pytest
import torch

from gan_inversion.core.generator import Generator, GeneratorConfig
from gan_inversion.core.training import directions
from gan_inversion.core.training.generator import CodeEmbedding
from gan_inversion.core.training.morphs import MARGIN, MIRRORED, MorphModel


@pytest.fixture(scope="module")
def crowd():
    """Thirty people whose skin and hair are flat patches of known lightness."""
    count, size = 30, 100
    random = torch.Generator().manual_seed(0)
    skin, hair = torch.rand(2, count, generator=random) * 200 + 20
    textures = torch.full((count, 4, size, size), 255, dtype=torch.uint8)
    edge = int((0.25 + MARGIN) / (1 + 2 * MARGIN) * size)
    textures[:, :3, :edge] = hair[:, None, None, None].byte()
    textures[:, :3, edge:] = skin[:, None, None, None].byte()
    people = [f"set/{index:02d}" for index in range(count - 1)] + ["set/00" + MIRRORED]
    zeros = torch.zeros(count, 2, 96, 96)
    bank = MorphModel(textures, zeros, torch.rand(4, 2), torch.zeros(count, 4, 2), people, ["neutral"] * count)
    return bank, skin.byte().float() / 255, hair.byte().float() / 255


@pytest.fixture(scope="module")
def portraits(tmp_path_factory, crowd):
    folder = tmp_path_factory.mktemp("portraits")
    rows = ["set,id,split,age,gender,ethnicity"]
    for index in range(29):
        age = "unknown" if index == 3 else 20 + index
        rows.append(f"set,{index:02d},train,{age},{'female' if index % 2 else 'male'},x")
    (folder / "info.csv").write_text("\n".join(rows))
    return folder


def test_tones_are_those_of_skin_and_hair(crowd):
    bank, skin, hair = crowd
    tones = directions.measured_tones(bank)
    order = [bank.people.index(person) for person in bank.person_ids]
    torch.testing.assert_close(tones, torch.stack((skin[order], hair[order]), dim=1))


def test_attributes_follow_the_people(crowd, portraits):
    bank, *_ = crowd
    attributes = directions.people_attributes(bank, portraits)
    row = bank.person_ids.index("set/07")
    assert attributes["age"][row] == 27 and attributes["feminine"][row] == 1
    mirrored, person = bank.person_ids.index("set/00" + MIRRORED), bank.person_ids.index("set/00")
    assert attributes["age"][mirrored] == attributes["age"][person]
    assert torch.isfinite(attributes["age"]).all()  # an unknown age is the mean


def test_one_attribute_changes_and_the_others_stay(crowd, portraits):
    bank, *_ = crowd
    attributes = directions.people_attributes(bank, portraits)
    table = torch.stack(list(attributes.values()), dim=1)
    for column, step in enumerate((15.0, 1.0, 0.2, -0.1)):
        code = directions.attribute_code(bank, table, column, step)
        weights = code[bank.neutral_of]
        expected = torch.zeros(4)
        expected[column] = step
        torch.testing.assert_close(weights @ table, expected, atol=1e-3, rtol=1e-3)
        assert abs(weights.sum()) < 1e-5
        assert torch.equal(code[bank.entries :][: bank.entries], code[: bank.entries])


def test_components_are_orthogonal_to_what_is_known(crowd):
    bank, *_ = crowd
    with torch.random.fork_rng():
        torch.manual_seed(0)
        embedding = CodeEmbedding(bank.code_dim, 16)
        known = torch.randn(3, 16)
    found = directions.leading_components(bank, embedding, known, 4)
    torch.testing.assert_close(found @ known.t(), torch.zeros(4, 3), atol=1e-4, rtol=0)
    lengths = found.norm(dim=1)
    assert (lengths[:-1] >= lengths[1:]).all() and lengths[-1] > 0


def test_reach_is_the_range_of_the_training_pictures():
    random = torch.Generator().manual_seed(0)
    w = torch.randn(4000, 6, generator=random)
    w[:, 0] = torch.rand(4000, generator=random) * 2 - 1  # uniform in -1 .. 1
    w[:, 1] += 3 * w[:, 0]  # moves with the first, which its own coordinate must not see
    step = torch.tensor([1.25, 3.75, 0, 0, 0, 0])
    assert directions.natural_reach(step, w) == pytest.approx(1.6, abs=0.1)
    assert directions.natural_reach(2 * step, w) == pytest.approx(0.8, abs=0.1)
    assert directions.natural_reach(0.01 * step, w) == 2.0 and directions.natural_reach(100 * step, w) == 0.5


def test_every_direction_names_its_generator(crowd, portraits):
    bank, *_ = crowd
    with torch.random.fork_rng():
        torch.manual_seed(0)
        generator = Generator(GeneratorConfig(16, (8, 8, 8), 8, 8, 2))
        embedding = CodeEmbedding(bank.code_dim, 8)
    bank_with_smile = MorphModel(
        bank.textures, bank.fields, bank.mean_points, bank.point_offsets,
        ["set/01", "set/01", *bank.people[2:]], ["neutral", "smiling", *bank.expressions[2:]],
    )  # fmt: skip
    made = directions.portrait_directions(bank_with_smile, embedding, portraits, generator)
    assert [direction.name for direction in made][:5] == ["smile", "age", "feminine", "skin-tone", "hair-colour"]
    assert len({direction.generator_id for direction in made}) == 1 and made[0].generator_id
    assert all(direction.limits[0] <= -0.5 and direction.limits[1] >= 0.5 for direction in made)
    named = directions.portrait_directions(bank_with_smile, embedding, portraits, generator, components={"hair": -2})
    assert named[-1].name == "hair" and made[-3].name == "people-2"
    torch.testing.assert_close(named[-1].offset, -made[-3].offset)
    assert all(torch.isfinite(direction.offset).all() and direction.offset.abs().sum() > 0 for direction in made)
