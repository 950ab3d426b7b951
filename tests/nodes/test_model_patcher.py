"""The pack's networks under ComfyUI's own model management; needs a ComfyUI, as tests/e2e does."""

import json
import os
import subprocess
from pathlib import Path

import pytest

import gan_inversion

from .tiny_models import DISCRIMINATOR, FILES, write_tiny_models

DIR, PYTHON = os.environ.get("COMFYUI_DIR"), os.environ.get("COMFYUI_PYTHON")
ROOT = Path(gan_inversion.__file__).resolve().parent
GPU, CPU = ["cuda"], ["cpu"]


@pytest.fixture(scope="module", params=["normal", "--novram"])
def found(request, tmp_path_factory):
    if not (DIR and PYTHON):
        pytest.skip("NOT TESTED INSIDE COMFYUI: set COMFYUI_DIR and COMFYUI_PYTHON")
    models = tmp_path_factory.mktemp("models")
    write_tiny_models(models)
    files = [str(models / name) for name in (FILES["portraits"], FILES["portraits-e4e"], DISCRIMINATOR)]
    script = Path(__file__).with_name("patchers.py")
    ran = subprocess.run(
        [PYTHON, str(script), str(ROOT), *files, request.param],
        cwd=DIR, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert "memory leak" not in ran.stderr
    return json.loads(ran.stdout.split("FOUND ")[1]) | {"normal": request.param == "normal"}


def test_a_network_has_one_plain_patcher_that_knows_its_size(found):
    assert found["running"] and found["kind"] == "ModelPatcher" and found["listed"] == 2
    assert all(told == true > 0 for told, true in found["sizes"])


def test_networks_go_to_the_device_and_come_back_when_others_pushed_them_out(found):
    assert found["device"] == "cuda" and found["loaded"] == [GPU, GPU]
    assert found["pushed out"] == [CPU, CPU] and found["back"] == [GPU, GPU, CPU]
    if found["normal"]:
        assert found["loaded size"] == [size for size, _ in found["sizes"]]


def test_a_network_that_went_in_part_comes_back_whole(found):
    assert any(CPU[0] in places for places in found["partly"]) and found["whole again"] == [GPU, GPU]
    if found["normal"]:
        assert ["cpu", "cuda"] in found["partly"]


def test_out_of_memory_pushes_out_all_but_the_networks_in_use(found):
    result, neighbour = found["tries"]
    assert result == GPU and neighbour == ([GPU, CPU] if found["normal"] else [CPU, CPU])


def test_networks_of_a_single_run_leave_with_it(found):
    assert found["lent"] == [[GPU, 2, 1, CPU, 0]] * 3
    assert found["left"] == 0
