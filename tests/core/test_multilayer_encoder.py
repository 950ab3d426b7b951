"""The one-pass multilayer encoder: which features it changes, what it refuses, its sizes from a file."""

import dataclasses

import pytest
import torch

from gan_inversion import load_model
from gan_inversion.core.directions import Direction
from gan_inversion.core.editing import Edit
from gan_inversion.core.errors import GeneratorMismatchError, InvalidInputError, UnsupportedModelError
from gan_inversion.core.generator import Generator, GeneratorConfig
from gan_inversion.core.inversion import FeatureOffset, Inversion, PixelBlend, RenderContext, WeightOffset, render
from gan_inversion.core.invertibility import LatentMap, feature_side
from gan_inversion.core.multilayer_encoder import (
    MultilayerEncoder,
    MultilayerEncoderConfig,
    encode_multilayer,
    features_of,
)
from gan_inversion.model_registry.loading import save_model

SPACES = ("W+", "F0", "F2", "F4")  # of a 32 px generator


@pytest.fixture(scope="module")
def generator():
    torch.manual_seed(0)
    return Generator(GeneratorConfig(32, (12, 12, 10, 8), 16, 16, 2)).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def encoder(generator):
    torch.manual_seed(1)
    config = MultilayerEncoderConfig.for_generator(generator, width=8, widest=12, units=1, domain="portraits")
    network = MultilayerEncoder(config).eval().requires_grad_(False)
    for part in network.networks.values():  # untrained ones change nothing
        torch.nn.init.normal_(part.last.weight, std=0.1)
    return network


@pytest.fixture(scope="module")
def inversion(generator):
    random = torch.Generator().manual_seed(5)
    w_plus = generator.broadcast(generator.mapping(torch.randn(2, 16, generator=random)))
    return Inversion(torch.rand(2, 3, 32, 32, generator=random) * 2 - 1, w_plus, generator)


def right_half(space, batch=1):
    index = torch.zeros(batch, 32, 32, dtype=torch.long)
    index[..., 16:] = SPACES.index(space)
    return LatentMap(SPACES, index)


def test_sizes_follow_the_generator_and_come_back_from_the_tensors(generator, encoder):
    config = encoder.config
    assert config.spaces == SPACES[1:] and config.channels == (12, 12, 10) and config.resolution == 32
    assert MultilayerEncoderConfig.from_state_dict(encoder.state_dict(), "portraits") == config
    state = {name: value for name, value in encoder.state_dict().items() if not name.endswith("stem.weight")}
    with pytest.raises(UnsupportedModelError, match="stem"):
        MultilayerEncoderConfig.from_state_dict(state)


def test_an_untrained_network_leaves_the_inversion_as_it_is(generator, inversion):
    fresh = MultilayerEncoder(MultilayerEncoderConfig.for_generator(generator, width=4, widest=4, units=1))
    found = encode_multilayer(inversion, right_half("F2"), fresh)
    torch.testing.assert_close(render(found), render(inversion))


@pytest.mark.parametrize("space", SPACES[1:])
def test_only_the_region_of_a_space_is_changed_at_its_layer(inversion, encoder, space):
    found = encode_multilayer(inversion, right_half(space), encoder)
    assert [m.resolution for m in found.modulations] == [feature_side(space)]
    region = found.modulations[0].mask
    side = feature_side(space)
    assert (
        region[..., : side // 2 - 1].max() < 0.01 and region[..., side // 2 + 1 :].min() > 0.9
    )  # Lanczos rings a little
    changed = (render(found) - render(inversion)).abs().mean(dim=(0, 1, 2))
    assert changed[20:].min() > 0
    if side == 16:  # further down the network fewer convolutions spread the change
        assert changed[:4].max() == 0


def test_the_offset_depends_on_photograph_code_and_region(inversion, encoder):
    offsets = encode_multilayer(inversion, right_half("F4"), encoder).modulations[0].offset
    other = dataclasses.replace(inversion, image=-inversion.image)
    assert not torch.allclose(offsets, encode_multilayer(other, right_half("F4"), encoder).modulations[0].offset)
    other = dataclasses.replace(inversion, w_plus=inversion.w_plus.flip(0))
    assert not torch.allclose(offsets, encode_multilayer(other, right_half("F4"), encoder).modulations[0].offset)
    everywhere = LatentMap(SPACES, torch.full((1, 32, 32), SPACES.index("F4")))
    assert not torch.allclose(offsets, encode_multilayer(inversion, everywhere, encoder).modulations[0].offset)


def test_a_batch_is_its_images_and_own_weights_are_kept(inversion, encoder):
    name = next(n for n, _ in inversion.generator.synthesis.named_parameters() if n.endswith("conv1.weight"))
    shape = inversion.generator.synthesis.get_parameter(name).shape
    offset = WeightOffset({name: 0.1 * torch.randn(2, *shape, generator=torch.Generator().manual_seed(3))})
    tuned = inversion.with_modulation(offset)
    both = encode_multilayer(tuned, right_half("F2"), encoder)
    for index in range(2):
        alone = encode_multilayer(tuned[index], right_half("F2"), encoder)
        torch.testing.assert_close(render(both)[index : index + 1], render(alone))
    plain = encode_multilayer(inversion, right_half("F2"), encoder)
    assert not torch.allclose(both.modulations[-1].offset, plain.modulations[-1].offset)


def test_older_offsets_are_replaced_and_other_modulations_stay(inversion, encoder):
    blended = inversion.with_modulation(PixelBlend(torch.zeros(2, 1, 32, 32)))
    first = encode_multilayer(blended, right_half("F4"), encoder)
    again = encode_multilayer(first, right_half("F4"), encoder)
    assert sum(isinstance(m, FeatureOffset) for m in again.modulations) == 1
    assert isinstance(again.modulations[0], PixelBlend)
    torch.testing.assert_close(again.modulations[-1].offset, first.modulations[-1].offset)
    assert again.info["spaces"] == "W+, F4"


def test_an_edit_in_front_of_a_region_s_layer_acts_outside_the_region_only(inversion, encoder):
    found = encode_multilayer(inversion, right_half("F4"), encoder)
    early = Edit.of(Direction("early", torch.ones(8, 16)), 2.0, (0, 4))
    edited: dict[str, torch.Tensor] = {}
    inversion.generator.synthesis(early.apply(found.w_plus), taps=edited)
    context = RenderContext(found, early, "const", torch.float32)
    changed = found.modulations[0].hooks(context).after_block[16](edited["block16"])
    kept = context.unedited_features("block16")
    assert (edited["block16"] - kept)[..., 11:].abs().max() > 0.01
    torch.testing.assert_close(changed[..., 11:], kept[..., 11:], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(changed[..., :4], edited["block16"][..., :4], atol=1e-4, rtol=1e-4)


def test_what_does_not_fit_is_refused(generator, inversion, encoder):
    with pytest.raises(InvalidInputError, match="3 latent map"):
        encode_multilayer(inversion, right_half("F4", 3), encoder)
    foreign = LatentMap(("W+", "F8"), torch.ones(1, 32, 32, dtype=torch.long))
    with pytest.raises(GeneratorMismatchError, match="F8"):
        encode_multilayer(inversion, foreign, encoder)
    narrow = MultilayerEncoder(dataclasses.replace(encoder.config, channels=(12, 12, 8)))
    with pytest.raises(GeneratorMismatchError, match="8 channels in F4, this generator has 10"):
        features_of(inversion, narrow.config)
    for wrong in ({"spaces": ("F2", "F0", "F4")}, {"channels": (1,)}, {"resolution": 8}, {"units": 0}):
        with pytest.raises(InvalidInputError):
            dataclasses.replace(encoder.config, **wrong)


def test_a_saved_network_loads_as_what_it_is(encoder, inversion, tmp_path):
    path = save_model(encoder, tmp_path / "m.safetensors", {})
    loaded = load_model(path)
    assert loaded.architecture == "sam-encoder" and loaded.module.config == encoder.config
    wanted = encode_multilayer(inversion, right_half("F0"), encoder)
    torch.testing.assert_close(render(encode_multilayer(inversion, right_half("F0"), loaded.module)), render(wanted))
