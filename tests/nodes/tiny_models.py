"""Random models small enough for tests: right in form, meaningless in content."""

import copy
from pathlib import Path

import numpy as np
import torch

from gan_inversion.core.directions import save_direction
from gan_inversion.core.discriminator import Discriminator, DiscriminatorConfig
from gan_inversion.core.editing import Direction
from gan_inversion.core.encoder_config import EncoderConfig
from gan_inversion.core.encoders import Encoder
from gan_inversion.core.generator import Generator, GeneratorConfig
from gan_inversion.core.reganie import Reganie, ReganieConfig
from gan_inversion.model_registry import save_model

RESOLUTION, W_DIM, NUM_WS = 32, 16, 8
FILES = {"portraits": "tiny-generator.safetensors", "portraits-e4e": "tiny-e4e.safetensors"}
FILES["portraits-smile"] = "tiny-smile.safetensors"
DISCRIMINATOR = "tiny-discriminator.safetensors"
REGANIE = "tiny-reganie.safetensors"
CLIP_SIDE = 240  # pixels


def write_tiny_models(folder: Path) -> None:
    """A generator, its discriminator, an e4e encoder, a rectifier and a direction that stand in for the bundled ones."""
    torch.manual_seed(0)
    generator = Generator(GeneratorConfig(RESOLUTION, (8, 8, 8, 8), z_dim=16, w_dim=W_DIM, mapping_layers=2))
    generator.mapping.w_avg.copy_(generator.estimate_w_avg(1000))
    encoder = Encoder(
        EncoderConfig(
            "Encoder4Editing", num_ws=NUM_WS, w_dim=W_DIM, input_size=(32, 32), stem=8, widths=(8, 16, 32),
            units=(1, 1, 1), style_channels=16, se_reduction=8,
        )
    )  # fmt: skip
    encoder.set_latent_avg(generator.w_avg)
    save_model(generator, folder / FILES["portraits"])
    save_model(Discriminator(DiscriminatorConfig(RESOLUTION, (8, 8, 8, 8))), folder / DISCRIMINATOR)
    save_model(encoder, folder / FILES["portraits-e4e"])
    smile = Direction("smile", torch.randn(1, W_DIM), limits=(-2.0, 2.0))
    save_direction(folder / FILES["portraits-smile"], smile)
    rectifier = Reganie(ReganieConfig(RESOLUTION, (4, 6, 8), 5, (8,), 7, 1, (8, 6)))
    save_model(rectifier, folder / REGANIE, {"generator": FILES["portraits"]})


def write_clip(path: Path) -> None:
    """A video of three frames, 10 a second: the astronaut, nobody, the astronaut."""
    import cv2
    from skimage import data

    face = cv2.cvtColor(data.astronaut()[:CLIP_SIDE, 100 : 100 + CLIP_SIDE], cv2.COLOR_RGB2BGR)
    nobody = np.tile(np.linspace(0, 255, CLIP_SIDE, dtype=np.uint8)[:, None, None], (1, CLIP_SIDE, 3))
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 10.0, (CLIP_SIDE, CLIP_SIDE))
    for frame in (face, nobody, face):
        writer.write(frame)
    writer.release()


def with_tiny_models(workflow: dict) -> dict:
    """The workflow with the bundled models replaced by the tiny ones, its photograph by photo.png, its video by clip.mp4."""
    workflow = copy.deepcopy(workflow)
    for node in workflow.values():
        for name, value in node["inputs"].items():
            if isinstance(value, str) and value in FILES:
                node["inputs"][name] = FILES[value]
        if node["class_type"] == "LoadImage":
            node["inputs"]["image"] = "photo.png"
        if node["class_type"] == "LoadVideo":
            node["inputs"]["file"] = "clip.mp4"
        if node["class_type"] == "GANInversionTuneGenerator":
            node["inputs"]["discriminator"] = DISCRIMINATOR
    return workflow


def every_node() -> dict:
    """A workflow that runs every node of the pack but Load Inversion, on photo.png."""
    own = {
        "g": ("LoadStyleGAN", {"model": "portraits"}),
        "e": ("LoadEncoder", {"model": "portraits-e4e"}),
        "align": ("AlignFace", {"image": ["photo", 0], "generator": ["g", 0]}),
        "encode": ("Encode", {"image": ["align", 0], "encoder": ["e", 0], "generator": ["g", 0], "crop": ["align", 1]}),
        "project": ("Project", {"image": ["align", 0], "generator": ["g", 0], "start": ["encode", 0], "steps": 10}),
        "samm": ("SAMMAlign", {"inversion": ["project", 0], "steps": 2}),
        "predict": ("PredictInvertibility", {"inversion": ["project", 0], "mask": ["region", 0], "steps": 2}),
        "regions": ("MultilayerInvert", {"inversion": ["samm", 0], "latent_map": ["predict", 0], "steps": 2}),
        "dhr": ("DHRRefine", {"inversion": ["regions", 0], "mask": ["region", 0], "merge": "intersect", "steps": 2}),
        "tune": ("TuneGenerator", {"inversion": ["dhr", 0], "steps": 2}),
        "smile": ("LoadDirection", {"direction": "portraits-smile"}),
        "sefa": ("DiscoverDirections", {"generator": ["g", 0]}),
        "first": ("ApplyDirection", {"inversion": ["tune", 0], "direction": ["smile", 0], "strength": 0.5}),
        "second": ("ApplyDirection", {"inversion": ["first", 0], "direction": ["sefa", 0], "strength": -0.5}),
        "rectify": ("ReGANIERectify", {"inversion": ["second", 0]}),
        "render": ("Render", {"inversion": ["rectify", 0]}),
        "blend": ("Blend", {"source": ["align", 0], "image": ["render", 0], "mask": ["region", 0]}),
        "paste": ("PasteBack", {"photo": ["photo", 0], "edited": ["blend", 0], "crop": ["align", 1]}),
        "compare": ("Compare", {"before": ["align", 0], "after": ["render", 0], "mask": ["region", 0]}),
        "sample": ("Sample", {"generator": ["g", 0], "seed": 3}),
        "mix": ("MixStyles", {"inversion": ["encode", 0], "style": ["sample", 0], "first_layer": 4}),
        "sweep": ("DirectionSweep", {"inversion": ["mix", 0], "direction": ["smile", 0], "steps": 2, "cell": 64}),
        "file": ("SaveInversion", {"inversion": ["tune", 0]}),
    }
    workflow = {key: {"class_type": f"GANInversion{kind}", "inputs": inputs} for key, (kind, inputs) in own.items()}
    size = {"value": 1.0, "width": RESOLUTION, "height": RESOLUTION}
    workflow |= {
        "photo": {"class_type": "LoadImage", "inputs": {"image": "photo.png"}},
        "region": {"class_type": "SolidMask", "inputs": size},
        "save": {"class_type": "SaveImage", "inputs": {"images": ["paste", 0], "filename_prefix": "every"}},
        "grid": {"class_type": "PreviewImage", "inputs": {"images": ["sweep", 0]}},
        "name": {"class_type": "PreviewAny", "inputs": {"source": ["file", 0]}},
    }
    return with_tiny_models(workflow)


def reload_inversion(file: str) -> dict:
    """A workflow that draws a saved inversion."""
    return with_tiny_models(
        {
            "g": {"class_type": "GANInversionLoadStyleGAN", "inputs": {"model": "portraits"}},
            "load": {"class_type": "GANInversionLoadInversion", "inputs": {"file": file, "generator": ["g", 0]}},
            "render": {"class_type": "GANInversionRender", "inputs": {"inversion": ["load", 0]}},
            "save": {"class_type": "SaveImage", "inputs": {"images": ["render", 0], "filename_prefix": "again"}},
        }
    )
