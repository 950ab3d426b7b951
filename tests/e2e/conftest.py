"""The pack inside the real ComfyUI server; one server serves all tests of this folder.

Needs a ComfyUI work tree and a Python that can run it:
    COMFYUI_DIR=/path/to/ComfyUI COMFYUI_PYTHON=/path/to/venv/bin/python pytest tests/e2e

The tests in test_browser.py press the buttons of ComfyUI's page; they also need Chromium and the extra `browser`:
    apt install chromium fonts-wqy-zenhei && pip install -e ".[browser]"
CHROMIUM=/path/to/chromium names a browser that is not on the PATH; GAN_INVERSION_SCREENSHOTS=folder keeps pictures of
the page. Without the browser they are left out: pytest tests/e2e -k "not browser" does the same by hand.
"""

import json
import warnings
from pathlib import Path

import pytest
import torch
from PIL import Image

import gan_inversion
from gan_inversion.core.directions import save_direction
from gan_inversion.core.editing import Direction
from gan_inversion.core.generator import Generator, GeneratorConfig
from gan_inversion.model_registry import catalogue, save_model

from ..nodes.tiny_models import with_tiny_models, write_clip, write_tiny_models
from .server import DIR, FOLDERS, PYTHON, started

MISSING = "NOT TESTED INSIDE COMFYUI: set COMFYUI_DIR (a work tree) and COMFYUI_PYTHON (a Python that runs it)"
ROOT = Path(gan_inversion.__file__).resolve().parent
ODD_NAME = "GAN-inversion.main-2"  # users name the folder, not we
ELSEWHERE = "elsewhere/generator.safetensors"  # in a model folder of the user's own
CORRUPT, WIDE = "page.pt", "wide-direction.safetensors"
# Another pack that came first, shares our model folder and hands over core's own set of suffixes.
NEIGHBOUR = """import folder_paths
folders, _ = folder_paths.folder_names_and_paths.get("stylegan", ([], set()))
folder_paths.folder_names_and_paths["stylegan"] = (folders, folder_paths.supported_pt_extensions)
"""

if not (DIR and PYTHON):
    warnings.warn(MISSING, stacklevel=1)


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """A server with the pack, tiny models in two places, a photograph, and a neighbour."""
    if not (DIR and PYTHON):
        pytest.skip(MISSING)
    base = tmp_path_factory.mktemp("comfyui")
    for name in FOLDERS:
        (base / name).mkdir()
    (base / "custom_nodes" / ODD_NAME).symlink_to(ROOT)
    neighbour = base / "custom_nodes" / "neighbour"
    neighbour.mkdir()
    (neighbour / "prestartup_script.py").write_text(NEIGHBOUR)
    (neighbour / "__init__.py").write_text("NODE_CLASS_MAPPINGS = {}\n")
    from skimage import data

    Image.fromarray(data.astronaut()).save(base / "input" / "photo.png")
    write_clip(base / "input" / "clip.mp4")
    models = base / "models" / "stylegan"
    write_tiny_models(models)
    (models / CORRUPT).write_text("<!DOCTYPE html><html><body>Quota exceeded</body></html>")
    save_direction(models / WIDE, Direction("wide", torch.ones(1, 512), limits=(-1.0, 1.0)))
    theirs = base / "their models" / "gan"
    other = Generator(GeneratorConfig(32, (8, 8, 8, 8), z_dim=16, w_dim=16, mapping_layers=2))
    save_model(other, theirs / ELSEWHERE)
    paths = base / "extra_model_paths.yaml"
    paths.write_text(f'theirs:\n  base_path: "{base}/their models"\n  stylegan: gan\n')
    environment = {"HF_HUB_OFFLINE": "1", "GAN_INVERSION_HOME": str(base / "home")}
    with started(base, "--extra-model-paths-config", str(paths), environment=environment) as server:
        yield server


@pytest.fixture(params=["bundled", "tiny"])
def template(request):
    """Reads a template, with its own models or with tiny random ones; the photograph is photo.png."""

    def read(name: str) -> dict:
        workflow = json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text())
        if request.param == "tiny":
            workflow = with_tiny_models(workflow)
            real = [entry.id for entry in models_of(workflow)]
            if real:
                pytest.skip(f"no tiny models stand in for {', '.join(real)}")
            return workflow
        missing = [entry.id for entry in models_of(workflow) if catalogue.locate(entry)[0] is None]
        if missing:
            pytest.skip(f"models missing: {', '.join(missing)}")
        for node in workflow.values():
            if node["class_type"] == "LoadImage":
                node["inputs"]["image"] = "photo.png"
            if node["class_type"] == "LoadVideo":
                node["inputs"]["file"] = "clip.mp4"
        return workflow

    return read


def models_of(workflow: dict) -> list[catalogue.CatalogueEntry]:
    """Catalogue entries that a workflow loads."""
    known = {entry.id: entry for entry in catalogue.load_catalogue()}
    values = [value for node in workflow.values() for value in node["inputs"].values() if isinstance(value, str)]
    return [known[value] for value in values if value in known]
