"""Inversion, modulations and the one renderer."""

import dataclasses
import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from gan_inversion.core.alignment import CropTransform
from gan_inversion.core.editing import Direction, Edit
from gan_inversion.core.errors import (
    CorruptFileError,
    GeneratorMismatchError,
    InvalidInputError,
    ModelNotFoundError,
)
from gan_inversion.core.generator import Generator, GeneratorConfig
from gan_inversion.core.inversion import (
    FeatureOffset,
    FeatureOverride,
    FeatureWarp,
    Inversion,
    PixelBlend,
    ResidualTransfer,
    WeightOffset,
    render,
)

W_DIM = 16


@pytest.fixture(scope="module")
def generator():
    torch.manual_seed(0)
    return Generator(GeneratorConfig(32, (12, 12, 10, 8), W_DIM, W_DIM, 2)).eval().requires_grad_(False)


@pytest.fixture
def inversion(generator):
    torch.manual_seed(1)
    return Inversion(torch.rand(2, 3, 32, 32) * 2 - 1, torch.randn(2, generator.num_ws, W_DIM), generator)


@pytest.fixture
def edit():
    torch.manual_seed(2)
    return Edit.of(Direction("up", torch.randn(1, W_DIM)), 1.5, layers=(4, 8))


def all_modulations(batch=2):
    torch.manual_seed(3)
    return (
        WeightOffset(
            {"b8.conv1.weight": 0.1 * torch.randn(batch, 12, 12, 3, 3), "b16.torgb.bias": torch.ones(batch, 3)}
        ),
        FeatureOffset(16, torch.randn(batch, 10, 16, 16), torch.rand(batch, 1, 16, 16)),
        FeatureOverride(8, torch.randn(batch, 12, 8, 8), (torch.rand(batch, 1, 8, 8) > 0.5).float()),
        FeatureWarp(32, 0.1 * torch.randn(batch, 2, 32, 32), torch.rand(batch, 1, 32, 32)),
        ResidualTransfer(torch.rand(batch, 1, 32, 32), 0.5),
        PixelBlend((torch.rand(batch, 1, 32, 32) > 0.7).float()),
    )


def test_plain_render_is_the_synthesis(generator, inversion):
    torch.testing.assert_close(render(inversion), generator.synthesis(inversion.w_plus))


def test_edit_moves_the_code_and_nothing_else(generator, inversion, edit):
    before = {k: v.clone() for k, v in generator.state_dict().items()}
    code = inversion.w_plus.clone()
    expected = code.clone()
    expected[:, 4:8] += 1.5 * edit.terms[0].direction.offset
    torch.testing.assert_close(render(inversion, edit), generator.synthesis(expected))
    assert torch.equal(inversion.w_plus, code)
    assert all(torch.equal(v, generator.state_dict()[k]) for k, v in before.items())


def test_style_space_edits_reach_their_layer(generator, inversion):
    offset = torch.zeros(10)
    offset[3] = 2.0
    direction = Direction("channel", style={"b16.conv1": offset})
    styles = generator.synthesis.styles(inversion.w_plus)
    at = generator.synthesis.style_names.index("b16.conv1")
    styles[at] = styles[at] + 0.5 * offset
    expected = generator.synthesis(inversion.w_plus, styles=styles)
    torch.testing.assert_close(render(inversion, Edit.of(direction, 0.5)), expected)


def test_weight_offset_equals_a_tuned_generator(generator, inversion):
    import copy

    one = inversion[0]
    offset = 0.2 * torch.randn(12, 12, 3, 3)
    tuned = copy.deepcopy(generator)
    tuned.synthesis.b8.conv1.weight += offset
    modulated = one.with_modulation(WeightOffset({"b8.conv1.weight": offset[None]}))
    torch.testing.assert_close(render(modulated), tuned.synthesis(one.w_plus))
    torch.testing.assert_close(render(one), generator.synthesis(one.w_plus))


def test_each_image_of_a_batch_has_its_own_weights(inversion, edit):
    modulated = dataclasses.replace(inversion, modulations=all_modulations())
    together = render(modulated, edit)
    torch.testing.assert_close(together, torch.cat([render(modulated[i], edit) for i in range(2)]))
    assert not torch.allclose(together, render(inversion, edit))


def test_feature_offset_region_keeps_its_unedited_features(inversion, edit):
    """With the region everywhere, an edit of the rows before the layer changes only RGB that was drawn before it."""
    whole = torch.ones(2, 1, 16, 16)
    modulated = inversion.with_modulation(FeatureOffset(16, torch.randn(2, 10, 16, 16), whole))
    early = Edit.of(edit.terms[0].direction, 1.0, layers=(0, 4))
    seen = []
    hook = inversion.generator.synthesis.b32.conv0.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    render(modulated)
    render(modulated, early)
    hook.remove()
    torch.testing.assert_close(seen[-1], seen[0])


def test_feature_override_replaces_only_the_outside(inversion):
    inside = torch.zeros(2, 1, 8, 8)
    inside[..., :4] = 1
    features = torch.randn(2, 12, 8, 8)
    seen = []
    hook = inversion.generator.synthesis.b16.conv0.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    render(inversion)
    render(inversion.with_modulation(FeatureOverride(8, features, inside)))
    hook.remove()
    torch.testing.assert_close(seen[1][..., :4], seen[0][..., :4])
    torch.testing.assert_close(seen[1][..., 4:], features[..., 4:])


def test_warp_moves_features_the_right_way(inversion):
    """A flow of +2/r in x samples one pixel to the right, so the picture moves left."""
    flow = torch.zeros(2, 2, 32, 32)
    flow[:, 0] = 2 / 32
    x = torch.zeros(2, 1, 32, 32)
    x[..., 16, 20] = 1
    warp = FeatureWarp(32, flow, torch.ones(2, 1, 32, 32))
    moved = warp.hooks(None).after_upconv[32](x)
    assert moved[0, 0].flatten().argmax().item() in (16 * 32 + 19, 16 * 32 + 18)
    still = FeatureWarp(32, flow, torch.zeros(2, 1, 32, 32)).hooks(None).after_upconv[32](x)
    torch.testing.assert_close(still, x)


def test_residual_makes_the_unedited_render_exact(inversion, edit):
    modulated = inversion.with_modulation(ResidualTransfer(torch.ones(2, 1, 32, 32)))
    torch.testing.assert_close(render(modulated), inversion.image, atol=1e-5, rtol=1e-5)
    change = render(inversion, edit) - render(inversion)
    torch.testing.assert_close(render(modulated, edit), inversion.image + change, atol=1e-4, rtol=1e-4)


def test_blend_keeps_masked_pixels_bit_for_bit(inversion, edit):
    mask = torch.zeros(2, 1, 32, 32)
    mask[..., :10, :] = 1
    image = render(inversion.with_modulation(PixelBlend(mask)), edit)
    assert torch.equal(image[..., :10, :], inversion.image[..., :10, :])
    torch.testing.assert_close(image[..., 10:, :], render(inversion, edit)[..., 10:, :])


def test_saved_inversion_renders_identical_pixels(tmp_path, generator, inversion, edit):
    crop = CropTransform.whole_square((40, 50), 32)
    full = dataclasses.replace(inversion, modulations=all_modulations(), crops=(crop, None), info={"encoder": "e4e"})
    path = full.save(tmp_path / "one.safetensors")
    loaded = Inversion.load(path, generator)
    assert torch.equal(render(loaded), render(full))
    assert torch.equal(render(loaded, edit), render(full, edit))
    assert loaded.crops == full.crops and loaded.info == full.info
    assert [type(m) for m in loaded.modulations] == [type(m) for m in full.modulations]


def test_load_names_the_other_generator(tmp_path, inversion):
    path = inversion.save(tmp_path / "one.safetensors")
    torch.manual_seed(9)
    other = Generator(GeneratorConfig(32, (12, 12, 10, 8), W_DIM, W_DIM, 2))
    with pytest.raises(GeneratorMismatchError, match="Load the generator the inversion was made with"):
        Inversion.load(path, other)


def test_load_refuses_other_files(tmp_path, generator):
    save_file({"a": torch.zeros(1)}, tmp_path / "weights.safetensors")
    with pytest.raises(CorruptFileError, match="not a saved inversion"):
        Inversion.load(tmp_path / "weights.safetensors", generator)
    (tmp_path / "cut.safetensors").write_bytes(b"\x00" * 5)
    with pytest.raises(CorruptFileError, match="cut.safetensors"):
        Inversion.load(tmp_path / "cut.safetensors", generator)
    for name, message in {"missing.safetensors": "does not exist", ".": "is a folder"}.items():
        with pytest.raises(ModelNotFoundError, match=f"{message}: expected a saved inversion"):
            Inversion.load(tmp_path / name, generator)


@pytest.fixture
def saved(tmp_path, inversion):
    """A good file's path, header and tensors."""
    crop = CropTransform.whole_square((40, 50), 32)
    full = dataclasses.replace(inversion, modulations=all_modulations(), crops=(crop, None), info={"encoder": "e4e"})
    path = full.save(tmp_path / "one.safetensors")
    with safe_open(path, "pt") as file:
        return path, dict(file.metadata()), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def in_item(index, **changes):
    """Changes one modulation of the header: its kind, its settings, or one of its settings."""

    def change(value):
        items = json.loads(value)
        for key, new in changes.items():
            (items[index] if key in items[index] else items[index]["settings"])[key] = new
        return json.dumps(items)

    return change


def test_files_from_before_a_field_was_there_load_with_its_default(saved, inversion):
    path, metadata, tensors = saved
    items = json.loads(metadata["modulations"])
    (blend,) = (item for item in items if item["kind"] == "pixel-blend")
    assert blend["settings"].pop("made_by") == ""
    save_file(tensors, path, metadata={**metadata, "modulations": json.dumps(items)})
    loaded = Inversion.load(path, inversion.generator)
    (blend,) = (m for m in loaded.modulations if m.kind == "pixel-blend")
    assert blend.made_by == "" and [m.kind for m in loaded.modulations] == [item["kind"] for item in items]


HEADER_DAMAGE = {
    "format_version": [("one", "invalid literal"), ("99", "written by a newer version")],
    "modulations": [
        ("[1, 2", "modulations is not JSON"),
        ("{}", "modulations is a dict, expected a list"),
        ("[" * 100_000, "recursion"),
        ("[null]", r"modulations\.0 is not an object"),
        ("[]", "belongs to nothing"),
        (in_item(0, kind="no-such"), "a modulation 'no-such' unknown to this version"),
        (in_item(0, kind=["a"]), "unknown to this version"),
        (in_item(0, offsets={}), r"modulations\.0\.offsets is not a list of names"),
        (in_item(0, offsets=["b8.conv1.weight"]), r"modulations\.0\.offsets\.b16\.torgb\.bias' belongs to nothing"),
        (in_item(0, settings={}), r"modulations\.0\.offsets is missing"),
        (in_item(0, settings=[]), "is not an object with kind and settings"),
        (in_item(1, resolution="16"), r"modulations\.1\.resolution is '16', expected int"),
        (in_item(1, resolution=True), "resolution is True, expected int"),
        (in_item(4, strength=None), r"modulations\.4\.strength is None, expected float"),
        (in_item(4, strength=float("nan")), "strength is nan, expected float"),
        (in_item(4, surplus=1), "modulations.4 has an unknown field 'surplus'"),
    ],
    "crops": [("[1, null]", "crop transform is malformed"), ("[null]", "1 crop transforms for 2"), ("0", "crops is a")],
    "info": [('"text"', "info is a str, expected a dict"), ("", "info is not JSON")],
}


@pytest.mark.parametrize(
    ("field", "value", "message"), [(field, *case) for field, cases in HEADER_DAMAGE.items() for case in cases]
)
def test_a_damaged_header_is_named(saved, generator, field, value, message):
    path, metadata, tensors = saved
    metadata[field] = value(metadata[field]) if callable(value) else value
    save_file(tensors, path, metadata=metadata)
    with pytest.raises(CorruptFileError, match=r"one\.safetensors.*" + message):
        Inversion.load(path, generator)


@pytest.mark.parametrize("field", ["format_version", "generator", "resolution", "modulations", "crops", "info"])
def test_a_header_without_a_field_is_named(saved, generator, field):
    path, metadata, tensors = saved
    del metadata[field]
    save_file(tensors, path, metadata=metadata)
    with pytest.raises(CorruptFileError, match=rf"one\.safetensors: a damaged inversion \(its header lacks {field}\)"):
        Inversion.load(path, generator)


def test_every_missing_tensor_is_named(saved, generator):
    path, metadata, tensors = saved
    for name in tensors:
        save_file({key: value for key, value in tensors.items() if key != name}, path, metadata=metadata)
        with pytest.raises(CorruptFileError, match=f"the tensor '{name}' is missing"):
            Inversion.load(path, generator)


@pytest.mark.parametrize("name", ["image", "w_plus", "modulations.0.offsets.b16.torgb.bias", "modulations.3.flow"])
def test_damaged_tensors_are_named(saved, generator, name):
    path, metadata, tensors = saved
    broken = tensors[name].clone()
    broken.view(-1)[-1] = float("nan")
    for value, message in (
        (broken, f"{name} contains NaN or infinity"),
        (tensors[name].int(), f"{name} holds torch.int32"),
        (torch.tensor(1.0), f"{name}|len"),
        (torch.cat([tensors[name]] * 2)[:3], "3|shape"),
    ):
        save_file({**tensors, name: value.contiguous()}, path, metadata=metadata)
        with pytest.raises(CorruptFileError, match=rf"one\.safetensors.*({message})"):
            Inversion.load(path, generator)


def test_a_surplus_tensor_is_named(saved, generator):
    path, metadata, tensors = saved
    save_file({**tensors, "modulations.9.mask": torch.ones(1)}, path, metadata=metadata)
    with pytest.raises(CorruptFileError, match=r"'modulations\.9\.mask' belongs to nothing"):
        Inversion.load(path, generator)


def test_wrong_shapes_are_named(generator):
    with pytest.raises(InvalidInputError, match="w_plus"):
        Inversion(torch.zeros(1, 3, 32, 32), torch.zeros(1, 18, 512), generator)
    with pytest.raises(InvalidInputError, match="the generator's size"):
        Inversion(torch.zeros(1, 3, 64, 64), torch.zeros(1, generator.num_ws, W_DIM), generator)


def test_style_edit_for_another_width_is_named(inversion):
    direction = Direction("channel", style={"b16.conv1": torch.zeros(512)})
    with pytest.raises(GeneratorMismatchError, match=r"b16\.conv1 has 512 channels"):
        render(inversion, Edit.of(direction))


def test_one_residual_added_twice_counts_once_where_it_is_exact(inversion):
    whole = ResidualTransfer(torch.ones(2, 1, 32, 32))
    twice = inversion.with_modulation(whole).with_modulation(whole)
    torch.testing.assert_close(render(twice), inversion.image, atol=1e-5, rtol=1e-5)


def test_noise_of_each_image_reaches_it_also_with_weights_of_its_own(generator, inversion):
    for layer in generator.synthesis._noisy_layers():
        layer.noise_strength.fill_(0.3)
    noise = generator.synthesis.random_noise(2, torch.Generator().manual_seed(1))
    tuned = inversion.with_modulation(all_modulations()[0])
    together = render(tuned, noise=noise)
    torch.testing.assert_close(together[1:], render(tuned[1], noise=[maps[1:] for maps in noise]))
    seeded = render(tuned, noise="random", generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(seeded, together)
    for layer in generator.synthesis._noisy_layers():
        layer.noise_strength.fill_(0.0)


@pytest.mark.parametrize("strength", [float("nan"), float("inf"), torch.ones(3)])
def test_wrong_strengths_are_named(inversion, strength):
    with pytest.raises(InvalidInputError, match=r"[Ss]trength"):
        render(inversion, Edit.of(Direction("up", torch.ones(1, W_DIM)), strength))


def test_layer_range_beyond_the_rows_is_named(inversion):
    with pytest.raises(InvalidInputError, match="touches no row"):
        render(inversion, Edit.of(Direction("up", torch.ones(1, W_DIM)), 1.0, layers=(50, 60)))


@pytest.mark.parametrize("index", range(6))
def test_a_modulation_without_effect_changes_nothing(inversion, edit, index):
    idle = inversion.with_modulation(all_modulations()[index].without_effect())
    for change in (None, edit):
        expected = torch.cat([render(inversion[i], change) for i in range(2)])
        assert torch.equal(torch.cat([render(idle[i], change) for i in range(2)]), expected)


@pytest.mark.parametrize("index", range(6))
def test_modulations_are_put_together_along_the_batch(inversion, edit, index):
    parts = [m.map_tensors(lambda t, row=row: t[row : row + 1]) for row in range(2) for m in [all_modulations()[index]]]
    joined = type(parts[0]).batch(parts)
    whole = inversion.with_modulation(all_modulations()[index])
    assert torch.equal(render(inversion.with_modulation(joined), edit), render(whole, edit))
    half = inversion.with_modulation(type(parts[0]).batch([parts[0].without_effect(), parts[1]]))
    torch.testing.assert_close(render(half, edit)[:1], render(inversion[0], edit))
    torch.testing.assert_close(render(half, edit)[1:], render(whole, edit)[1:])


def test_kept_pixels_of_a_broken_photograph_stay_out_where_none_are_kept(inversion):
    image = inversion.image.clone()
    image[0] = float("nan")
    blended = dataclasses.replace(inversion, image=image).with_modulation(PixelBlend(torch.zeros(2, 1, 32, 32)))
    assert torch.equal(render(blended), render(inversion))


def test_overridden_features_may_be_float16(inversion, edit, tmp_path):
    override = all_modulations()[2]
    half = dataclasses.replace(override, features=override.features.half(), in_domain=override.in_domain.half())
    coarse = inversion.with_modulation(half)
    assert render(coarse, edit).dtype == torch.float32
    torch.testing.assert_close(
        render(coarse, edit), render(inversion.with_modulation(override), edit), atol=0.05, rtol=0
    )
    loaded = Inversion.load(coarse.save(tmp_path / "half.safetensors"), inversion.generator)
    assert loaded.modulations[0].features.dtype == torch.float16
    assert torch.equal(render(loaded, edit), render(coarse, edit))


@pytest.mark.parametrize("soft", [True, False])
def test_an_offset_does_not_jump_where_an_edit_begins(inversion, edit, soft):
    mask = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    mask = mask if soft else (mask > 0.5).float()
    offset = torch.randn(2, 10, 16, 16, generator=torch.Generator().manual_seed(2))
    modulated = inversion.with_modulation(FeatureOffset(16, offset, mask))
    still = render(modulated)
    torch.testing.assert_close(render(modulated, edit.scaled(0.0)), still, atol=1e-4, rtol=1e-4)
    steps = [(render(modulated, edit.scaled(amount)) - still).abs().mean() for amount in (1e-3, 1e-2, 1.0)]
    assert 0 < steps[0] < 0.2 * steps[1] < 0.04 * steps[2]
    assert (still - render(inversion)).abs().mean() > 0.05


def test_where_the_offset_is_soft_it_counts_once(generator, inversion):
    """An edit of the layers behind the block sees the features that the unedited picture has."""
    mask = torch.full((2, 1, 16, 16), 0.5)
    modulated = inversion.with_modulation(FeatureOffset(16, torch.ones(2, 10, 16, 16), mask))
    seen = []
    hook = generator.synthesis.b32.conv0.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    render(inversion)
    render(modulated)
    render(modulated, Edit.of(Direction("late", torch.ones(1, W_DIM)), 1.0, layers=(7, 8)))
    hook.remove()
    torch.testing.assert_close(seen[1], seen[0] + 0.5)
    torch.testing.assert_close(seen[-1], seen[0] + 0.5)
