"""The pack inside the real ComfyUI server.

Needs a ComfyUI work tree and a Python that can run it:
    COMFYUI_DIR=/path/to/ComfyUI COMFYUI_PYTHON=/path/to/venv/bin/python pytest tests/e2e
"""

import contextlib
import copy
import io
import json
import os
import re
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import gan_inversion
from gan_inversion.model_registry import catalogue
from gan_inversion.nodes import all_nodes
from gan_inversion.nodes.headless.runner import Runner

from ..nodes.tiny_models import FILES, every_node, reload_inversion, with_tiny_models, write_tiny_models

DIR, PYTHON = os.environ.get("COMFYUI_DIR"), os.environ.get("COMFYUI_PYTHON")
if not DIR or not PYTHON:
    reason = "NOT TESTED INSIDE COMFYUI: set COMFYUI_DIR (a work tree) and COMFYUI_PYTHON (a Python that runs it)"
    warnings.warn(reason, stacklevel=1)
    pytest.skip(reason, allow_module_level=True)

ROOT = Path(gan_inversion.__file__).resolve().parent
ODD_NAME = "GAN-inversion.main-2"  # users name the folder, not we
START_SECONDS, RUN_SECONDS = 180, 300
BAD_SIGNS = re.compile(
    r"IMPORT FAILED|Cannot import|Error while calling comfy_entrypoint|Skip .* module for custom nodes"
)
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
TINY = FILES["portraits"]


class Server:
    """A running ComfyUI and the calls the tests need."""

    def __init__(self, base: Path, port: int, process: subprocess.Popen) -> None:
        self.base, self.port, self.process = base, port, process

    def call(self, path: str, body: dict | None = None) -> bytes:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", data, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.read()

    def json(self, path: str) -> dict:
        return json.loads(self.call(path))

    def log(self) -> str:
        return COLOUR.sub("", (self.base / "server.log").read_text(errors="replace"))

    def history(self, workflow: dict) -> dict:
        """Runs a workflow to its end, good or bad."""
        try:
            answer = json.loads(self.call("/prompt", {"prompt": workflow}))
        except urllib.error.HTTPError as error:
            raise AssertionError(f"refused: {error.read().decode()}") from None
        assert not answer.get("node_errors"), answer
        end = time.monotonic() + RUN_SECONDS
        while time.monotonic() < end:
            done = self.json(f"/history/{answer['prompt_id']}").get(answer["prompt_id"])
            if done:
                return done
            time.sleep(0.1)
        raise TimeoutError(f"no end after {RUN_SECONDS} s\n{self.log()[-3000:]}")

    def run(self, workflow: dict) -> dict:
        done = self.history(workflow)
        assert done["status"]["status_str"] == "success", json.dumps(done["status"]["messages"][-1])[:3000]
        return done

    def picture(self, entry: dict) -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(self.call("/view?" + urllib.parse.urlencode(entry)))))


def cached(done: dict) -> set[str]:
    """Ids of the nodes whose results were reused."""
    return {node for name, data in done["status"]["messages"] if name == "execution_cached" for node in data["nodes"]}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    base = tmp_path_factory.mktemp("comfyui")
    for name in ("custom_nodes", "models", "input", "output", "temp", "user"):
        (base / name).mkdir()
    (base / "custom_nodes" / ODD_NAME).symlink_to(ROOT)
    from skimage import data

    Image.fromarray(data.astronaut()).save(base / "input" / "photo.png")
    models = base / "models" / "stylegan"
    write_tiny_models(models)
    (models / "page.pt").write_text("<!DOCTYPE html><html><body>Quota exceeded</body></html>")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        PYTHON,
        "main.py",
        "--cpu",
        "--listen",
        "127.0.0.1",
        "--port",
        str(port),
        "--base-directory",
        str(base),
        "--database-url",
        f"sqlite:///{base}/user/comfyui.db",
        "--disable-auto-launch",
        "--disable-api-nodes",
    ]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "GAN_INVERSION_HOME": str(base / "home")}
    with (base / "server.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=DIR, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment)
    server = Server(base, port, process)
    try:
        end = time.monotonic() + START_SECONDS
        while True:
            assert process.poll() is None and time.monotonic() < end, f"did not start\n{server.log()[-3000:]}"
            with contextlib.suppress(OSError):
                server.call("/system_stats")
                break
            time.sleep(0.2)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
        shutil.rmtree(base, ignore_errors=True)


@pytest.fixture(params=["bundled", "tiny"])
def template(request):
    """Reads a template, with its own models or with tiny random ones."""
    missing = [model_id for model_id in FILES if not _there(model_id)]
    if request.param == "bundled" and missing:
        pytest.skip(f"bundled models missing: {', '.join(missing)}")

    def read(name: str) -> dict:
        workflow = json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text())
        if request.param == "tiny":
            return with_tiny_models(workflow)
        workflow[the(workflow, "LoadImage")]["inputs"]["image"] = "photo.png"
        return workflow

    return read


def _there(model_id: str) -> bool:
    entries = [entry for entry in catalogue.load_catalogue() if entry.id == model_id]
    return bool(entries) and catalogue.locate(entries[0])[0] is not None


def the(workflow: dict, kind: str) -> str:
    return next(node_id for node_id, node in workflow.items() if node["class_type"] == kind)


def test_every_node_is_there(server):
    assert not BAD_SIGNS.search(server.log()), server.log()[-3000:]
    info = server.json("/object_info")
    missing = set(all_nodes()) - set(info)
    assert not missing
    for node_id in all_nodes():
        assert info[node_id]["description"] and info[node_id]["display_name"], node_id
        assert json.loads(server.call(f"/object_info/{node_id}")), node_id


def test_templates_are_listed_and_served(server):
    names = sorted(path.stem for path in (ROOT / "workflows").glob("*.json"))
    assert sorted(server.json("/workflow_templates")[ODD_NAME]) == names
    for name in names:
        assert server.json(f"/api/workflow_templates/{ODD_NAME}/{name}.json")["nodes"]


@pytest.mark.parametrize("name", ["edit_portrait", "direction_sweep"])
def test_template_runs(server, template, name):
    workflow = template(name)
    done = server.run(workflow)
    shown = done["outputs"][the(workflow, "SaveImage")]["images"]
    assert shown and server.picture(shown[0]).std() > 10


def test_moving_the_slider_leaves_the_encoder_alone(server, template):
    workflow = template("edit_portrait")
    first = server.run(workflow)
    changed = copy.deepcopy(workflow)
    slider = the(workflow, "GANInversionApplyDirection")
    changed[slider]["inputs"]["strength"] = workflow[slider]["inputs"]["strength"] + 0.5
    second = server.run(changed)
    untouched = {"GANInversionLoadStyleGAN", "GANInversionLoadEncoder", "GANInversionAlignFace", "GANInversionEncode"}
    reused = {changed[node]["class_type"] for node in cached(second)}
    assert untouched <= reused and "GANInversionRender" not in reused
    save = the(workflow, "SaveImage")
    before, after = (server.picture(done["outputs"][save]["images"][0]) for done in (first, second))
    assert before.shape == after.shape and (before != after).any()


def tiny_workflow(seed: int = 1) -> dict:
    return {
        "1": {"class_type": "GANInversionLoadStyleGAN", "inputs": {"model": TINY}},
        "2": {"class_type": "GANInversionSample", "inputs": {"generator": ["1", 0], "seed": seed, "count": 2}},
        "3": {"class_type": "GANInversionRender", "inputs": {"inversion": ["2", 0]}},
        "4": {"class_type": "SaveImage", "inputs": {"images": ["3", 0], "filename_prefix": "tiny"}},
    }


def test_same_pixels_as_without_comfyui(server, tmp_path, monkeypatch):
    shown = server.run(tiny_workflow())["outputs"]["4"]["images"]
    (tmp_path / "models").mkdir()
    shutil.copy(server.base / "models" / "stylegan" / TINY, tmp_path / "models")
    monkeypatch.setenv("GAN_INVERSION_HOME", str(tmp_path))
    own = Runner(input_dir=tmp_path, output_dir=tmp_path / "out").run(tiny_workflow())
    assert len(shown) == len(own.images) == 2
    for entry, path in zip(shown, own.images, strict=True):
        difference = server.picture(entry).astype(int) - np.asarray(Image.open(path)).astype(int)
        assert abs(difference).max() <= 1


def test_every_node_runs(server):
    workflow = every_node()
    shown = server.run(workflow)["outputs"]
    assert server.picture(shown["save"]["images"][0]).shape == (512, 512, 3)
    (file,) = shown["name"]["text"]
    assert (server.base / "output" / file).is_file()
    again = server.run(reload_inversion(file))["outputs"]["save"]["images"]
    assert server.picture(again[0]).shape == (32, 32, 3)


def test_an_optimisation_stops_at_an_interrupt(server):
    workflow = {key: every_node()[key] for key in ("g", "e", "photo", "align", "encode", "project")}
    workflow["project"]["inputs"]["steps"] = 2000
    workflow["save"] = {"class_type": "PreviewImage", "inputs": {"images": ["project", 1]}}
    queued = json.loads(server.call("/prompt", {"prompt": workflow}))["prompt_id"]
    end = time.monotonic() + RUN_SECONDS
    while not (done := server.json(f"/history/{queued}").get(queued)) and time.monotonic() < end:
        time.sleep(0.5)
        server.call("/interrupt", {"prompt_id": queued})
    assert done["status"]["messages"][-1][0] == "execution_interrupted", done["status"]["messages"][-1]


def test_an_error_of_ours_reaches_the_user(server):
    workflow = tiny_workflow()
    workflow["1"]["inputs"]["model"] = "page.pt"
    done = server.history(workflow)
    assert done["status"]["status_str"] == "error"
    name, data = done["status"]["messages"][-1]
    assert name == "execution_error" and data["node_id"] == "1"
    assert data["exception_type"].endswith("CorruptFileError") and "page.pt" in data["exception_message"]
