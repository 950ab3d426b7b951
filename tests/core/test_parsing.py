"""Face parsing: the official numbers, sizes, names of classes in any order, colours, refusals."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from gan_inversion.core import parsing
from gan_inversion.core.errors import InvalidInputError, NotFiniteError, UnsupportedModelError
from gan_inversion.core.parsing import (
    CELEBM_CLASSES,
    CLASSES,
    LAPA_CLASSES,
    FaceParser,
    FaceParserConfig,
    Parsing,
    class_probability,
    colour_map,
    face_segments,
    parse,
)
from gan_inversion.core.skeleton import skeleton

from ..parity.encoder_parity import seeded_state
from ..parity.face_parser_parity import FIXTURE, FIXTURE_STEP, case_image

SLIM = FaceParserConfig((4, 6, 8, 10), context=5, fusion=8, head=7, auxiliary_head=3, size=48)


def random_parser(config: FaceParserConfig = SLIM, seed: int = 0) -> FaceParser:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        parser = FaceParser(config).eval().requires_grad_(False)
        for name, tensor in parser.named_buffers():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
            elif name.endswith("running_mean"):
                tensor.normal_(0.0, 0.2)
        return parser


def images(height: int = 48, width: int = 48, batch: int = 2, seed: int = 1) -> torch.Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def random_parsing(classes: tuple[str, ...] = CLASSES, seed: int = 3) -> Parsing:
    logits = 3 * torch.randn(2, len(classes), 5, 7, generator=torch.Generator().manual_seed(seed))
    return Parsing(logits.softmax(dim=1), classes)


# The network


def test_logits_are_those_of_the_official_code():
    with skeleton():
        parser = FaceParser()
    shapes = {name: tuple(tensor.shape) for name, tensor in parser.state_dict().items()}
    parser.load_state_dict(seeded_state(shapes), assign=True)
    found = parser.eval().requires_grad_(False)(case_image(FIXTURE), size=FIXTURE["size"])
    with np.load(Path(__file__).parents[1] / "fixtures" / "parsing" / "bisenet.npz") as stored:
        expected = torch.from_numpy(stored["logits"])
    assert expected.std() > 1
    torch.testing.assert_close(found[:, :, ::FIXTURE_STEP, ::FIXTURE_STEP], expected, atol=1e-4, rtol=0)


def test_the_default_configuration_is_that_of_the_published_file():
    with skeleton():
        shapes = {name: tuple(tensor.shape) for name, tensor in FaceParser().state_dict().items()}
    assert {name.split(".")[0] for name in shapes} == {"cp", "ffm", "conv_out", "conv_out16", "conv_out32"}
    assert shapes["cp.resnet.conv1.weight"] == (64, 3, 7, 7)
    assert shapes["cp.resnet.layer2.0.downsample.0.weight"] == (128, 64, 1, 1)
    assert "cp.resnet.layer1.0.downsample.0.weight" not in shapes
    assert shapes["cp.arm32.conv.conv.weight"] == (128, 512, 3, 3)
    assert shapes["cp.arm32.bn_atten.running_var"] == (128,)
    assert shapes["ffm.convblk.conv.weight"] == (256, 256, 1, 1)
    assert shapes["ffm.conv1.weight"] == (64, 256, 1, 1)
    assert shapes["conv_out.conv_out.weight"] == (19, 256, 1, 1)
    assert shapes["conv_out32.conv.conv.weight"] == (64, 128, 3, 3)
    size = sum(8 if name.endswith("tracked") else 4 * int(np.prod(shape)) for name, shape in shapes.items())
    assert 0 < 53_289_463 - size < 200_000  # bytes of 79999_iter.pth; the rest is the container


@pytest.mark.parametrize(("height", "width"), [(48, 48), (31, 70), (5, 9), (120, 64)])
def test_logits_have_the_size_of_the_image(height, width):
    assert random_parser()(images(height, width)).shape == (2, 19, height, width)
    assert random_parser()(images(height, width), size=(17, 33)).shape == (2, 19, height, width)


def test_the_image_is_resized_to_the_configured_size_and_no_more():
    parser, image = random_parser(), images(96, 72)
    small = torch.nn.functional.interpolate(image, size=(48, 48), mode="bilinear", antialias=True)
    logits = parser(small)
    assert parser(image).sub(parser(image, size=48)).abs().max() == 0
    torch.testing.assert_close(
        parser(image), torch.nn.functional.interpolate(logits, size=(96, 72), mode="bilinear", align_corners=False)
    )
    assert (parser(image) - parser(image, size=(96, 72))).abs().mean() > 0.01  # the working size matters


def test_logits_lie_on_the_pixels_that_they_belong_to():
    ramp = torch.linspace(0, 1, 6).expand(1, 1, 6, 6)
    working, picture = torch.zeros(1, 3, 48, 48), torch.zeros(1, 3, 48, 96)
    columns = parsing._at_size(ramp, working, working)[0, 0, 20]
    torch.testing.assert_close(columns, torch.arange(48) / 47)  # corners on corners
    columns = parsing._at_size(ramp, working, picture)[0, 0, 20]
    torch.testing.assert_close(columns, (((torch.arange(96) + 0.5) / 2 - 0.5) / 47).clamp(0, 1))  # centres on centres


def test_pictures_of_a_batch_do_not_see_each_other_and_gradients_reach_them():
    parser, image = random_parser(), images()
    torch.testing.assert_close(parser(image)[1:], parser(image[1:]))
    image.requires_grad_(True)
    parser(image)[0, 3].sum().backward()
    assert image.grad is not None and image.grad[0].abs().sum() > 0 and image.grad[1].abs().sum() == 0


def test_the_auxiliary_heads_learn_and_the_main_one_is_the_same():
    parser, image = random_parser().requires_grad_(True).train(), images(batch=3)
    outputs = parser.all_logits(image)
    assert [tuple(output.shape) for output in outputs] == [(3, 19, 48, 48)] * 3
    sum(output.logsumexp(dim=1).mean() for output in outputs).backward()
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in parser.parameters())
    parser.eval()
    torch.testing.assert_close(parser.all_logits(image)[0], parser(image))


@pytest.mark.parametrize(
    "config",
    [
        FaceParserConfig(),
        SLIM,
        FaceParserConfig((3, 3, 3, 3), 9, 4, 2, 5, LAPA_CLASSES, 64),
        FaceParserConfig((8, 4, 2, 1), 1, 16, 1, 1, ("a", "b")),
    ],
)
def test_configurations_are_recovered_from_shapes(config):
    with skeleton():
        tensors = FaceParser(config).state_dict()
    assert FaceParserConfig.from_state_dict(tensors, list(config.classes), config.size) == config


def test_states_that_are_no_face_parser_are_refused():
    tensors = random_parser().state_dict()
    with pytest.raises(UnsupportedModelError, match="19 classes, and 11 names"):
        FaceParserConfig.from_state_dict(tensors, LAPA_CLASSES)
    tensors["cp.conv_avg.conv.weight"] = torch.zeros(4)
    with pytest.raises(UnsupportedModelError, match="without a convolution cp.conv_avg.conv.weight"):
        FaceParserConfig.from_state_dict(tensors)
    del tensors["cp.resnet.layer3.0.conv1.weight"]
    with pytest.raises(UnsupportedModelError, match=r"without a convolution cp.resnet.layer3.0.conv1.weight"):
        FaceParserConfig.from_state_dict(tensors)


@pytest.mark.parametrize(
    "changes",
    [{"stages": (4, 4, 4)}, {"fusion": 6}, {"head": 0}, {"size": 0}, {"classes": ("a", "a")}, {"classes": "skin"}],
)
def test_impossible_configurations_are_refused(changes):
    with pytest.raises(InvalidInputError, match=r"expected (four stages|a tuple of different names)"):
        FaceParserConfig(**changes)


def test_images_that_are_none_are_refused():
    parser = random_parser()
    for bad in (torch.zeros(3, 8, 8), torch.zeros(1, 4, 8, 8), torch.zeros(1, 3, 0, 8), torch.zeros(1, 3, 8, 8).int()):
        with pytest.raises(InvalidInputError):
            parse(parser, bad)
        with pytest.raises(InvalidInputError):
            parser(bad)
    with pytest.raises(NotFiniteError):
        parser(torch.full((1, 3, 8, 8), torch.nan))
    with pytest.raises(InvalidInputError):
        parser(images(), size=0)


# Names


def test_the_order_is_that_of_the_checkpoint():
    numbered = {0: "background", 1: "skin", 6: "glasses", 9: "earring", 10: "nose", 11: "mouth", 14: "neck"}
    numbered |= {12: "upper-lip", 13: "lower-lip", 15: "necklace", 16: "cloth", 17: "hair", 18: "hat"}
    assert len(CLASSES) == 19 and {index: CLASSES[index] for index in numbered} == numbered
    sides = {2: "left-brow", 3: "right-brow", 4: "left-eye", 5: "right-eye", 7: "left-ear", 8: "right-ear"}
    assert {index: CLASSES[index] for index in sides} == sides
    assert set(CELEBM_CLASSES) == set(CLASSES) and set(LAPA_CLASSES) < set(CLASSES)
    assert (CELEBM_CLASSES[14], CELEBM_CLASSES[3], LAPA_CLASSES[10]) == ("hair", "cloth", "hair")


def test_parse_gives_probabilities_of_clipped_pictures():
    parser, image = random_parser(), images(40, 56).requires_grad_(True)
    found = parse(parser, image)
    assert found.classes == CLASSES and found.probabilities.shape == (2, 19, 40, 56)
    assert not found.probabilities.requires_grad
    torch.testing.assert_close(found.probabilities, parser(image.detach()).softmax(dim=1))
    torch.testing.assert_close(found.probabilities.sum(dim=1), torch.ones(2, 40, 56))
    torch.testing.assert_close(
        parse(parser, 3 * images()).probabilities, parse(parser, (3 * images()).clamp(-1, 1)).probabilities
    )


def test_probabilities_are_added_by_name():
    found = random_parsing()
    p = found.probabilities
    torch.testing.assert_close(found.of("hair"), p[:, 17:18])
    torch.testing.assert_close(found.of("glasses", "hat", "glasses"), p[:, 6:7] + p[:, 18:19])
    torch.testing.assert_close(class_probability(p, ["skin", "nose"]), p[:, 1:2] + p[:, 10:11])
    torch.testing.assert_close(class_probability(p, "skin"), p[:, 1:2])
    everything = found.of(*CLASSES)
    assert everything.shape == (2, 1, 5, 7) and everything.max() <= 1 and everything.min() > 0.999


def test_a_parsing_in_another_order_is_asked_the_same_way():
    ours, indices = random_parsing(), [CLASSES.index(name) for name in CELEBM_CLASSES]
    theirs = Parsing(ours.probabilities[:, indices], CELEBM_CLASSES)
    for names in (("hair",), ("left-eye", "right-eye"), ("background", "cloth", "hat", "earring", "necklace")):
        torch.testing.assert_close(theirs.of(*names), ours.of(*names))
    a, b = ours.dominant(), theirs.dominant()
    assert a.dtype == torch.long and a.shape == (2, 5, 7) and not torch.equal(a, b)
    assert [ours.name_of(i) for i in a.flatten().tolist()] == [theirs.name_of(i) for i in b.flatten().tolist()]
    assert torch.equal(colour_map(ours), colour_map(theirs))


def test_absent_names_are_ignored_only_when_told_to():
    found = random_parsing(LAPA_CLASSES)
    with pytest.raises(InvalidInputError, match="Asked for the class 'hat': expected some of background, skin"):
        found.of("hair", "hat")
    torch.testing.assert_close(found.of("hair", "hat", ignore_absent=True), found.probabilities[:, 10:])
    assert found.of("hat", ignore_absent=True).abs().max() == 0
    with pytest.raises(InvalidInputError, match="Asked for the class 'hairs'"):  # a slip of the pen, no absent class
        found.of("hairs", ignore_absent=True)


def test_wrong_questions_are_refused():
    found = random_parsing()
    with pytest.raises(InvalidInputError, match="no class at all"):
        found.of()
    for index in (-1, 19):
        with pytest.raises(InvalidInputError, match="0 to 18"):
            found.name_of(index)
    for probabilities, classes in (
        (torch.zeros(1, 11, 4, 4), CLASSES),
        (torch.zeros(19, 4, 4), CLASSES),
        (torch.zeros(1, 2, 4, 4), ("hair", "hair")),
    ):
        with pytest.raises(InvalidInputError):
            Parsing(probabilities, classes)
    with pytest.raises(InvalidInputError, match="one channel for each of"):
        class_probability(torch.zeros(1, 11, 4, 4), ["hair"])


def test_any_network_with_class_names_can_parse():
    class Halves:
        classes = ("background", "hair")

        def __init__(self, shrink: int = 1) -> None:
            self.shrink = shrink

        def __call__(self, image: torch.Tensor) -> torch.Tensor:
            left = torch.where(torch.arange(image.shape[3]) < image.shape[3] // 2, 5.0, -5.0)
            logits = torch.stack([left, -left]).expand(len(image), image.shape[2], 2, image.shape[3]).transpose(1, 2)
            return logits[..., :: self.shrink]

    found = parse(Halves(), images(8, 10))
    assert [found.name_of(int(i)) for i in found.dominant()[1, 3]] == ["background"] * 5 + ["hair"] * 5
    with pytest.raises(InvalidInputError, match=r"Halves made logits \(2, 2, 8, 5\)"):
        parse(Halves(shrink=2), images(8, 10))


def test_parts_of_a_face_are_one_segment_whatever_the_order_of_the_classes():
    # adobe-research/sam_inversion merges these numbers of 79999_iter.pth.
    merged = {1, 2, 3, 4, 5, 7, 8, 10, 11, 12, 13, 14}
    every = Parsing(torch.eye(19)[None, :, None, :])
    labels = face_segments(every)[0, 0].tolist()
    assert labels == [1 if index in merged else index for index in range(19)]
    celebm = face_segments(Parsing(torch.eye(19)[None, :, None, :], CELEBM_CLASSES))
    assert celebm.dtype == torch.int64 and celebm.shape == (1, 1, 19)
    named = {CELEBM_CLASSES[i] for i, label in enumerate(celebm[0, 0].tolist()) if label != i}
    assert {*named, CELEBM_CLASSES[1]} == {CLASSES[index] for index in merged}
    hair = face_segments(Parsing(torch.eye(2)[None, :, None, :], ("hair", "hat")))
    assert hair[0, 0].tolist() == [0, 1]


# Colours


def test_classes_have_colours_that_can_be_told_apart():
    every = Parsing(torch.eye(19)[None, :, None, :], CLASSES)  # one pixel of each class
    colours = colour_map(every)
    assert colours.shape == (1, 3, 1, 19) and colours.min() >= -1 and colours.max() <= 1
    distances = [(a - b).norm() for a, b in itertools.combinations(colours[0, :, 0].T, 2)]
    assert min(distances) > 0.45
    assert set(parsing._PALETTE) == set(CLASSES)


def test_a_class_outside_the_palette_has_a_colour_too():
    probabilities = torch.tensor([[0.9, 0.1, 0.0], [0.1, 0.8, 0.0], [0.0, 0.1, 1.0]])[None, :, None]
    pixels = colour_map(Parsing(probabilities, ("hair", "beard", "tattoo")))[0, :, 0].T
    torch.testing.assert_close(pixels[0], torch.tensor(parsing._PALETTE["hair"]) / 127.5 - 1)
    assert len({tuple(pixel.tolist()) for pixel in pixels}) == 3
