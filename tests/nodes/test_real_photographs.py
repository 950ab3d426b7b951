"""The main job on real photographs: edited inside the crop, bit-identical outside."""

import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gan_inversion.core.alignment import footprint_mask
from gan_inversion.nodes.headless.runner import Runner
from gan_inversion.nodes.headless.templates import WORKFLOWS
from gan_inversion.nodes.headless.workflow_files import read_workflow, with_values

SHARED = Path(os.environ.get("GAN_INVERSION_SHARED", Path(__file__).resolve().parents[2].parent / "shared")) / "data"
PHOTOGRAPHS = (
    "photos/nasa/astronaut.png",
    "photos/us_government/obama2.jpg",
    "portraits/neutral/003.jpg",
    "portraits/canada/113m.jpg",
)


def edit(photograph: Path, output: Path):
    changes = [f"LoadImage.image={photograph.name}"]
    workflow = with_values(read_workflow(WORKFLOWS / "api" / "edit_portrait.json"), changes)
    result = Runner(input_dir=photograph.parent, output_dir=output).run(workflow)
    by_kind = {workflow[node]["class_type"]: values for node, values in result.results.items()}
    with Image.open(photograph) as opened:
        before = np.asarray(opened.convert("RGB"))
    (path,) = result.images
    with Image.open(path) as opened:
        after = np.asarray(opened.convert("RGB"))
    return before, after, by_kind["GANInversionAlignFace"]


def check(before, after, align_outputs):
    (crop,) = next(value for value in align_outputs if hasattr(value, "crops")).crops
    assert crop is not None, "no face found"
    inside = footprint_mask(crop)[0, 0].numpy() > 0
    assert before.shape == after.shape
    assert np.array_equal(before[~inside], after[~inside])
    assert np.abs(before[inside].astype(int) - after[inside]).mean() > 0.2


def test_astronaut_that_comes_with_scikit_image(tmp_path):
    from skimage import data

    photograph = tmp_path / "astronaut.png"
    Image.fromarray(data.astronaut()).save(photograph)
    with torch.inference_mode():
        check(*edit(photograph, tmp_path / "out"))


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_photographs_it_was_not_made_on(name, tmp_path):
    photograph = SHARED / name
    if not photograph.is_file():
        warnings.warn(f"{photograph} is absent: not tested on it", stacklevel=1)
        pytest.skip(f"{photograph} is absent")
    check(*edit(photograph, tmp_path / "out"))
