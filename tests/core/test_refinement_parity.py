"""DHR's refinement and PTI against numbers that the official code gave (tests/parity writes them)."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from gan_inversion.core.generator import Generator, GeneratorConfig
from gan_inversion.core.inversion import Inversion
from gan_inversion.model_registry.layouts import rosinality_generator

from ..parity import dhr_parity, pti_parity
from ..parity.invertibility_parity import seeded_image
from ..parity.multilayer_parity import values

pytest.importorskip("lpips", reason="LPIPS needs the packages lpips and torchvision")
FOLDER = Path(__file__).parents[1] / "fixtures" / "refinement"


def stored(name):
    with np.load(FOLDER / f"{name}.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def distance():
    return dhr_parity.our_lpips("alex")


def inversion_with(state, resolution):
    channels = tuple(state[f"synthesis.b{4 << k}.conv1.bias"].shape[0] for k in range(resolution.bit_length() - 2))
    generator = Generator(GeneratorConfig(resolution, channels))
    generator.load_state_dict(state, strict=False)
    image = seeded_image(1, (resolution, resolution))
    return Inversion(image, dhr_parity.code(resolution), generator.eval().requires_grad_(False))


def check_weights(live, official, inversion, names):
    """All but a few of the weights, whose gradient is almost zero, went where the official ones went."""
    base = dict(inversion.generator.synthesis.named_parameters())
    for name in names:
        wanted = torch.from_numpy(official[f"tuned {name}"]) - base[name].detach()
        away = (live[name][0] - wanted).abs()
        assert float(wanted.abs().max()) > 1e-4  # it was tuned
        assert float((away > 0.01 * wanted.abs().max()).double().mean()) <= 0.02, name


def test_dhr_learns_weights_and_features_as_the_official_code_does(distance):
    official, case = stored("dhr"), dhr_parity.FIXTURE
    shapes = json.loads(str(official["shapes"]))
    made = {k: dhr_parity.generator_values(k, shape) for k, shape in shapes.items() if not k.endswith("kernel")}
    inversion = inversion_with(rosinality_generator(made), case["resolution"])
    ours, live, refined = dhr_parity.our_refine(inversion, distance, case)
    wanted = dhr_parity.official_pairs(official, case)
    assert [len(pair) for pair in wanted] == [2, 2, 2, 1, 1]  # the weights rest after three steps
    assert dhr_parity.worst_ratio(ours, wanted) <= dhr_parity.TOLERANCE
    assert wanted[-1][0] < 0.8 * wanted[0][0]  # something was learnt
    check_weights(live, official, inversion, dhr_parity.KEPT)
    features = live["features"][:, ::8]
    assert float((features - torch.from_numpy(official["features"])).abs().flatten().quantile(0.99)) < 1e-3
    assert refined.steps == (case["steps"],)


def test_pti_and_its_regulariser_are_the_official_ones(distance):
    official, case = stored("pti"), pti_parity.FIXTURE
    shapes = {k: tuple(v.shape) for k, v in narrow(case).state_dict().items()}
    inversion = inversion_with({k: values(k, shape, True) for k, shape in shapes.items()}, case["resolution"])
    ours, terms, live, refined = pti_parity.our_tuning(inversion, distance, case)
    wanted = [[square + lpips, total] for total, square, lpips in official["losses"].tolist()]
    assert dhr_parity.worst_ratio(ours, wanted) <= pti_parity.TOLERANCE
    assert terms[0] < 1e-9 < terms[1]
    assert terms[1:] == pytest.approx(official["regulariser"][1:].tolist(), rel=1e-3)
    check_weights(live, official, inversion, pti_parity.KEPT)
    assert refined.steps == (case["steps"],)


def narrow(case):
    config = GeneratorConfig.official(case["resolution"], case["channel_base"], case["channel_max"])
    with torch.device("meta"):
        return Generator(config)
