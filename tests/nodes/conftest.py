"""Tiny networks on disk, loaded through the nodes themselves."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from gan_inversion.core.encoders import Encoder, EncoderConfig
from gan_inversion.core.generator import Generator, GeneratorConfig
from gan_inversion.model_registry import catalogue, save_model
from gan_inversion.nodes import all_nodes
from gan_inversion.nodes.headless import stand_in

SIDE = 32
_W_DIM = 16
_SLIM = {"stem": 4, "widths": (4, 8, 12, 16), "units": (1, 1, 1, 1), "input_size": (SIDE, SIDE), "se_reduction": 2}


def _encoder(encoder_type: str, **changes) -> Encoder:
    encoder = Encoder(EncoderConfig(encoder_type=encoder_type, num_ws=8, w_dim=_W_DIM, **_SLIM, **changes))
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
    encoder.set_latent_avg(torch.randn(_W_DIM))
    return encoder.eval()


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """A model folder with two generators, an e4e and a ReStyle encoder."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    for name in ("tiny", "other"):
        generator = Generator(GeneratorConfig(SIDE, (8, 8, 8, 8), z_dim=_W_DIM, w_dim=_W_DIM, mapping_layers=2))
        generator.mapping.w_avg.copy_(generator.estimate_w_avg(200))
        save_model(generator, folder / f"{name}.safetensors")
    save_model(_encoder("Encoder4Editing"), folder / "e4e.safetensors")
    save_model(_encoder("BackboneEncoder", input_channels=6), folder / "restyle.safetensors")
    return folder


@pytest.fixture
def places(tmp_path, models, monkeypatch):
    """Own folders for models, input and output."""
    monkeypatch.setenv("GAN_INVERSION_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(catalogue, "_registered", [(None, models)])
    for name in ("in", "out"):
        (tmp_path / name).mkdir()
    with stand_in.folders(input=tmp_path / "in", output=tmp_path / "out"):
        yield tmp_path


@pytest.fixture(scope="session")
def nodes():
    return all_nodes()


@pytest.fixture
def run(nodes, places) -> Callable:
    """Executes a node by its name without the prefix, in inference mode as ComfyUI does; gives the outputs."""

    def execute(name: str, /, **inputs):
        with torch.inference_mode():
            return nodes[f"GANInversion{name}"].execute(**inputs).result

    return execute


@pytest.fixture
def generator(run, models):
    return run("LoadStyleGAN", model="tiny.safetensors")[0]


@pytest.fixture
def encoder(run, models):
    return run("LoadEncoder", model="e4e.safetensors")[0]


@pytest.fixture
def photo():
    """Two smooth pictures, IMAGE [2, 48, 40, 3]."""
    y, x = torch.meshgrid(torch.linspace(0, 1, 48), torch.linspace(0, 1, 40), indexing="ij")
    first = torch.stack((x, y, 1 - x), dim=-1)
    return torch.stack((first, 1 - first))


@pytest.fixture
def aligned():
    """Two square pictures, IMAGE [2, 32, 32, 3]."""
    return torch.rand(2, SIDE, SIDE, 3, generator=torch.Generator().manual_seed(3))
