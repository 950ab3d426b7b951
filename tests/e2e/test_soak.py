"""Fifty prompts in a row, with changing inputs, failing nodes and interrupts mixed in, over one real server.

Measures the server from outside (its resident memory) and from inside: a node of the test's own counts the tensors and
modules that are alive. Prints the figures: run with -s to see them.
"""

import copy
import json
import os
import random
import re
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gan_inversion.core.directions import save_direction
from gan_inversion.core.editing import Direction
from gan_inversion.model_registry import catalogue

from ..nodes.tiny_models import DISCRIMINATOR, FILES, with_tiny_models, write_tiny_models
from .conftest import CORRUPT, MISSING, ROOT, WIDE
from .server import DIR, FOLDERS, PYTHON, Server, started
from .workflows import core, edited, node, sampled

PROMPTS, SEED = 50, 20
INTERRUPTS, FAILURES = 9, 11  # of them
PACK = "gan inversion"
PHOTOS = ("photo.png", "turned.png", "dark.png", "small.png")
# Measured from the end of the warm-up to the end of the run: -4 MB on ComfyUI 0.33.0, 12 MB on 0.3.64, kept in fragments
# by the allocator. Three times that; a photograph kept for each prompt would be 50 times 3 MB.
GROWTH = 40  # MB of resident memory
KEPT = 2  # MB of tensors: errors that Predict Invertibility remembers of the images seen last

CENSUS = """
import gc, json, torch

class Census:
    RETURN_TYPES, FUNCTION, CATEGORY, OUTPUT_NODE = (), "count", "test", True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    @classmethod
    def IS_CHANGED(cls):
        return float("nan")

    def count(self):
        gc.collect()
        kinds = [(type(o), o) for o in gc.get_objects()]
        tensors = [o for kind, o in kinds if issubclass(kind, torch.Tensor)]
        modules = sorted(kind.__name__ for kind, o in kinds
                         if issubclass(kind, torch.nn.Module) and "PACK" in kind.__module__)
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if t.layout == torch.strided}
        found = {"tensors": len(tensors), "bytes": sum(storages.values()), "modules": modules}
        return {"ui": {"text": [json.dumps(found)]}}

NODE_CLASS_MAPPINGS = {"Census": Census}
""".replace("PACK", PACK)


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    """A server of this test's own, so that its memory is that of these prompts alone."""
    if not (DIR and PYTHON):
        pytest.skip(MISSING)
    base = tmp_path_factory.mktemp("soak")
    for name in FOLDERS:
        (base / name).mkdir()
    (base / "custom_nodes" / PACK).symlink_to(ROOT)
    (base / "custom_nodes" / "census").mkdir()
    (base / "custom_nodes" / "census" / "__init__.py").write_text(CENSUS)
    models = base / "models" / "stylegan"
    write_tiny_models(models)
    (models / CORRUPT).write_text("<!DOCTYPE html><html><body>Quota exceeded</body></html>")
    save_direction(models / WIDE, Direction("wide", torch.ones(1, 512), limits=(-1.0, 1.0)))
    _write_photos(base / "input")
    environment = {"HF_HUB_OFFLINE": "1", "GAN_INVERSION_HOME": str(base / "home")}
    with started(base, environment=environment) as server:
        yield server


def _write_photos(folder: Path) -> None:
    from skimage import data

    photo = data.astronaut()
    pixels = {"photo.png": photo, "turned.png": photo[:, ::-1], "dark.png": photo // 2, "small.png": photo[:400, :400]}
    for name in PHOTOS:
        Image.fromarray(np.ascontiguousarray(pixels[name])).save(folder / name)


# --- the prompts -----------------------------------------------------------------------------------------------------


def templates() -> list[dict]:
    """Shipped workflows of photographs that the tiny models can run."""
    found = []
    for path in sorted((ROOT / "workflows" / "api").glob("*.json")):
        workflow = with_tiny_models(json.loads(path.read_text()))
        values = [value for step in workflow.values() for value in step["inputs"].values()]
        if any(step["class_type"] == "LoadVideo" for step in workflow.values()):
            continue
        if not {entry.id for entry in catalogue.load_catalogue()} & {v for v in values if isinstance(v, str)}:
            found.append(workflow)
    return found


def varied(workflow: dict, chance: random.Random) -> dict:
    """The workflow with another photograph, other strengths and seeds, and a few steps of refinement."""
    workflow = copy.deepcopy(workflow)
    for step in workflow.values():
        inputs, kind = step["inputs"], step["class_type"].removeprefix("GANInversion")
        if kind == "LoadImage":
            inputs["image"] = chance.choice(PHOTOS)
        elif kind == "ApplyDirection":
            inputs["strength"] = round(chance.uniform(-2, 2), 3)
        elif kind in ("DHRRefine", "TuneGenerator", "SAMMAlign", "MultilayerInvert", "PredictInvertibility", "Project"):
            inputs["seed"] = chance.randrange(2**32)
            inputs["steps"] = chance.randint(1, 3)
    return workflow


def refined(kind: str, **inputs) -> dict:
    """A photograph encoded and refined by the node "slow"."""
    workflow = {key: step for key, step in edited().items() if key in ("photo", "g", "e", "align", "encode")}
    workflow["slow"] = node(kind, inversion=["encode", 0], **inputs)
    workflow["save"] = core("PreviewImage", images=["slow", 1])
    return workflow


def projected(**inputs) -> dict:
    """A photograph projected by the node "slow"."""
    workflow = {key: step for key, step in edited().items() if key in ("photo", "g", "align")}
    workflow["slow"] = node("Project", image=["align", 0], generator=["g", 0], **inputs)
    workflow["save"] = core("PreviewImage", images=["slow", 1])
    return workflow


def rectified() -> dict:
    """An edited photograph that ReGANIE rectifies."""
    workflow = edited()
    workflow["rectify"] = node("ReGANIERectify", inversion=["slider", 0])
    workflow["save"] = core("SaveImage", images=["rectify", 1], filename_prefix="rectified")
    return {key: step for key, step in workflow.items() if key not in ("render", "paste")}


def good(chance: random.Random) -> dict:
    """A prompt that succeeds."""
    kinds = [*templates(), *(edited() for _ in range(3)), projected(), rectified()]
    if chance.random() < 0.2:
        return sampled(seed=chance.randrange(2**32), psi=round(chance.uniform(0.3, 1), 2), count=chance.randint(1, 4))
    return varied(chance.choice(kinds), chance)


def with_inputs(workflow: dict, key: str, **inputs) -> dict:
    """The workflow with other inputs of one node."""
    workflow[key]["inputs"].update(inputs)
    return workflow


def failing(chance: random.Random) -> tuple[dict, str, str]:
    """A prompt that fails in one of our nodes: (workflow, that node, what the message holds)."""
    flat = {"flat": core("EmptyImage", width=64, height=64, batch_size=2, color=chance.randrange(2**24))}
    flat_refined = {**refined(chance.choice(["DHRRefine", "TuneGenerator", "SAMMAlign"]), steps=2), **flat}
    flat_refined = with_inputs(flat_refined, "encode", image=["flat", 0])
    del flat_refined["encode"]["inputs"]["crop"]
    wide = {**edited(), "wide": core("EmptyImage", width=96, height=64, batch_size=1, color=0)}
    judged = refined("TuneGenerator", method="near-perfect", steps=1, discriminator=FILES["portraits"])
    return chance.choice(
        [
            (sampled(model=CORRUPT), "g", CORRUPT),
            (sampled(model=FILES["portraits-e4e"]), "g", "Load Encoder"),
            (with_inputs(edited(), "direction", direction=WIDE), "slider", "512"),
            (with_inputs(edited(), "slider", first_layer=3, last_layer=12), "slider", "last_layer 12"),
            (with_inputs(wide, "encode", image=["wide", 0]), "encode", "Put Align Face before this node"),
            (flat_refined, "slow", "one flat colour"),
            (projected(steps=3, learning_rate=1.0, start=["encode", 0]) | _sampled_start(), "slow", "inversions"),
            (judged, "slow", ""),
        ]
    )


def _sampled_start() -> dict:
    return {"encode": node("Sample", generator=["g", 0], count=3)}


def interrupted(chance: random.Random) -> dict:
    """A prompt whose node "slow" would take minutes."""
    return chance.choice(
        [
            refined("DHRRefine", steps=2000, seed=chance.randrange(99)),
            refined("TuneGenerator", steps=5000, stop_at=0.0, seed=chance.randrange(99)),
            refined("TuneGenerator", steps=5000, method="near-perfect", discriminator=DISCRIMINATOR),
            projected(steps=5000, seed=chance.randrange(99)),
            refined("SAMMAlign", steps=2000, seed=chance.randrange(99)),
        ]
    )


# --- the measures ----------------------------------------------------------------------------------------------------


def resident(server: Server) -> float:
    """MB of memory of the server's process."""
    pages = int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def freed(server: Server) -> tuple[float, dict]:
    """Resident memory in MB and the census, after the server was told to let go of everything."""
    server.call("/free", {"unload_models": True, "free_memory": True})
    time.sleep(1.5)  # its worker does it, and collects garbage
    (text,) = server.run({"census": {"class_type": "Census", "inputs": {}}})["outputs"]["census"]["text"]
    return resident(server), json.loads(text)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the server's memory from /proc")
def test_fifty_prompts_leave_nothing_behind(server):
    chance = random.Random(SEED)
    outcomes = ["good"] * (PROMPTS - INTERRUPTS - FAILURES) + ["interrupt"] * INTERRUPTS + ["failure"] * FAILURES
    chance.shuffle(outcomes)
    reference = edited(strength=1.25)
    first = server.pictures(server.run(reference), "save")[0]
    for workflow in (
        *templates(),
        rectified(),
        projected(steps=3),
    ):  # each kind of work once: libraries load, pools fill
        server.run(varied(workflow, chance))
    before, alive_before = freed(server)

    began, errors = time.monotonic(), 0
    for place, outcome in enumerate(outcomes):
        if outcome == "good":
            server.run(good(chance))
        elif outcome == "interrupt":
            name, data = server.watch(interrupted(chance), cancel_at="slow")["events"][-1]
            assert (name, data.get("node_id")) == ("execution_interrupted", "slow"), (place, name, data)
        else:
            workflow, where, message = failing(chance)
            told = server.failure(workflow)
            assert told["node_id"] == where and message in told["exception_message"], (place, told["exception_message"])
            assert "gan_inversion" in told["exception_type"] or "core.errors" in told["exception_type"], told
            errors += 1
    seconds = time.monotonic() - began

    queue = server.json("/queue")
    assert not queue["queue_running"] and not queue["queue_pending"]
    after, alive = freed(server)
    assert (server.pictures(server.run(reference), "save")[0] == first).all()
    log = server.log()
    imported = re.search(rf"([\d.]+) seconds: .*{PACK}", log)
    print(
        f"\nImported in {imported and imported[1]} s, as ComfyUI says. "
        f"{PROMPTS} prompts in {seconds:.0f} s on ComfyUI {'.'.join(map(str, server.version))}: {FAILURES} failures, "
        f"{INTERRUPTS} interrupts. Resident {before:.0f} MB -> {after:.0f} MB. Alive: {alive_before['tensors']} -> "
        f"{alive['tensors']} tensors, {alive_before['bytes'] / 2**20:.2f} -> {alive['bytes'] / 2**20:.2f} MB, "
        f"{len(alive_before['modules'])} -> {len(alive['modules'])} modules of ours."
    )
    assert errors == FAILURES and log.count("!!! Exception during processing !!!") == FAILURES
    assert "memory leak" not in log
    assert alive["modules"] == alive_before["modules"]
    assert alive["bytes"] <= alive_before["bytes"] + KEPT * 2**20
    assert after <= before + GROWTH
