"""The command line of the SAMM trainer."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from .common import add_common_arguments
from .samm_settings import OFFICIAL_STYLE, SammTraining, paper_settings


def make_parser(description: str) -> argparse.ArgumentParser:
    """Of `gan-inversion train samm`; options of the settings that are not given are None."""
    parser = argparse.ArgumentParser(prog="gan-inversion train samm", description=description)
    add_common_arguments(parser, portraits_required=False)
    none, own = "; 'none' leaves that loss out", SammTraining()
    parser.add_argument("--images", type=Path, help="folder of aligned pictures of your own, in place of --portraits")
    parser.add_argument("--no-mirror", action="store_true", help="--images: the pictures must not be mirrored")
    parser.add_argument(
        "--no-cache",
        action="store_true",
        help="--images: read each picture when it is drawn (slower), in place of one array of 3 bytes per pixel on disk",
    )
    parser.add_argument(
        "--paper", action="store_true", help="the original training's settings; the options below change single ones"
    )
    parser.add_argument(
        "--dry-run",
        type=int,
        nargs="?",
        const=2,
        metavar="STEPS",
        help="measure steps at 1024 px with random weights and pictures, and write the figures to --out as JSON",
    )
    parser.add_argument("--generator", default="portraits", help="file or catalogue id")
    parser.add_argument("--encoder", default="portraits-e4e", help="file or catalogue id, of that generator")
    parser.add_argument("--perceptual", default="portraits-perceptual", help="trunk, file or id" + none)
    identity = parser.add_mutually_exclusive_group()
    identity.add_argument("--identity", help="file or id" + none + " (default: portraits-identity)")
    identity.add_argument(
        "--arcface", type=Path, metavar="FILE", help="model_ir_se50.pth: the original's identity loss"
    )
    parser.add_argument(
        "--discriminator",
        help="file or id, or 'new' for random weights" + none + " (default: new with --images or --paper, else none)",
    )
    vgg = parser.add_mutually_exclusive_group()
    vgg.add_argument("--lpips", action="store_true", help="LPIPS on VGG16 in place of the perceptual trunk")
    vgg.add_argument("--vgg19", type=Path, metavar="FILE", help="torchvision's weights: the original's losses on VGG19")
    parser.add_argument("--mask-steps", type=int, help=f"default {own.mask_steps}; --images, --paper: 0")
    parser.add_argument("--image-steps", type=int, help=f"default {own.image_steps}; --paper: 1800000")
    parser.add_argument(
        "--iterations",
        type=int,
        nargs=2,
        metavar=("LEAST", "GREATEST"),
        help="of Algorithm 1, drawn for each step (default {} {}; --paper: 2 2)".format(*own.iterations),
    )
    parser.add_argument("--learning-rate", type=float, help=f"of the mask steps (default {own.learning_rate})")
    parser.add_argument("--image-learning-rate", type=float, help=f"default {own.image_learning_rate}; --paper: 2e-5")
    parser.add_argument(
        "--deformation", type=float, help=f"of the faces, in widths (default {own.deformation}; --images, --paper: 0)"
    )
    parser.add_argument(
        "--occluded-share",
        type=float,
        help=f"of the pictures: objects drawn on them (default {own.occluded_share}; --images, --paper: 0)",
    )
    parser.add_argument(
        "--mask", type=float, help=f"weight of the drawn objects' exact masks (default {own.mask}; --paper: 0)"
    )
    parser.add_argument("--adversarial-start", type=int, metavar="STEP")
    parser.add_argument("--level-every", type=int, help="steps from level to level")
    return parser


def settings_from(options: argparse.Namespace) -> SammTraining:
    """The paper's or ours, for photographs or morphs, with what the command line says."""
    settings = paper_settings() if options.paper else SammTraining()
    if options.images is not None:
        settings = dataclasses.replace(
            settings, mask_steps=0, deformation=0.0, occluded_share=0.0, clean_pictures=False
        )
    elif options.paper:
        settings = dataclasses.replace(settings, clean_pictures=True)  # morphs
    if options.vgg19 is not None:
        settings = dataclasses.replace(settings, style=OFFICIAL_STYLE)
    names = (
        *("mask_steps", "image_steps", "batch", "iterations", "learning_rate", "image_learning_rate", "deformation"),
        *("occluded_share", "mask", "adversarial_start", "level_every"),
    )
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    if "level_every" in given:
        given["level_starts"] = ()
    return dataclasses.replace(settings, **given)
