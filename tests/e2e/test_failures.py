"""What the user is told when something is wrong, and that an interrupt ends a run; the server works on afterwards."""

import copy
import json

import pytest

from ..nodes.tiny_models import DISCRIMINATOR, FILES, every_node
from .conftest import CORRUPT, ELSEWHERE, WIDE
from .server import Refused
from .workflows import core, edited, node, sampled


@pytest.fixture(autouse=True)
def works_on(server):
    yield
    server.run(sampled(seed=1))


def with_inputs(workflow: dict, key: str, **inputs) -> dict:
    """The workflow with other inputs of one node."""
    workflow = copy.deepcopy(workflow)
    workflow[key]["inputs"].update(inputs)
    return workflow


REFUSED = {
    "unknown model": (sampled(model="nothing.pt"), "nothing.pt' is no catalogue id and no file in"),
    "path outside": (sampled(model="../../secrets.pt"), "leads outside the model folder"),
    "absolute path": (sampled(model="/etc/passwd"), "leads outside the model folder"),
    "an encoder's id for a generator": (sampled(model="portraits-e4e"), "is an encoder; choose a generator"),
    "wrong socket": (with_inputs(sampled(), "render", inversion=["g", 0]), "GANINVERSION_GENERATOR"),
    "too large": (sampled(psi=3.0), "psi"),
    "no inversion file": (
        {
            "g": node("LoadStyleGAN", model=FILES["portraits"]),
            "load": node("LoadInversion", file="gone.safetensors", generator=["g", 0]),
            "save": core("PreviewImage", images=["load", 2]),
        },
        "gone.safetensors: no such inversion file",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_before_anything_runs(server, case):
    workflow, message = REFUSED[case]
    with pytest.raises(Refused) as refused:
        server.queue(workflow)
    assert message in json.dumps(json.loads(str(refused.value)), ensure_ascii=False)


def _two_generators() -> dict:
    workflow = sampled()
    workflow["other"] = node("LoadStyleGAN", model=ELSEWHERE)
    workflow["theirs"] = node("Sample", generator=["other", 0])
    workflow["mix"] = node("MixStyles", inversion=["sample", 0], style=["theirs", 0])
    workflow["render"]["inputs"]["inversion"] = ["mix", 0]
    return workflow


def _wide_direction() -> dict:
    return with_inputs(edited(), "direction", direction=WIDE)


def _saved_outside() -> dict:
    workflow = sampled()
    workflow["file"] = node("SaveInversion", inversion=["sample", 0], filename_prefix="../../outside")
    return {key: workflow[key] for key in ("g", "sample", "file")}


FAILS = {
    "corrupt file": (sampled(model=CORRUPT), "g", "CorruptFileError", CORRUPT),
    "an encoder's file": (sampled(model=FILES["portraits-e4e"]), "g", "UnsupportedModelError", "Load Encoder"),
    "offline": (sampled(model="stylegan2-ffhq-1024"), "g", "DownloadError", "HF_HUB_OFFLINE"),
    "detector offline": (with_inputs(edited(), "align", detector="yunet"), "align", "DownloadError", "yunet"),
    "not aligned": (
        with_inputs(
            {**edited(), "wide": core("EmptyImage", width=96, height=64, batch_size=1, color=0)},
            "encode", image=["wide", 0],
        ), "encode", "InvalidInputError", "Put Align Face before this node",
    ),
    "two generators": (_two_generators(), "mix", "GeneratorMismatchError", "different generators"),
    "direction of another size": (_wide_direction(), "slider", "Error", "512"),
    "batches that do not fit": (
        with_inputs(
            {**edited(), "three": core("EmptyImage", width=32, height=32, batch_size=3, color=0),
             "two": core("RepeatImageBatch", image=["photo", 0], amount=2)},
            "paste", photo=["two", 0], edited=["three", 0],
        ), "paste", "InvalidInputError", "photo 2, edited 3, crop 1",
    ),
    "layers the generator has not": (
        with_inputs(edited(), "slider", first_layer=3, last_layer=12), "slider", "InvalidInputError", "last_layer 12",
    ),
    "no discriminator": (
        {
            **{key: value for key, value in sampled().items() if key in ("g", "sample")},
            "tune": node("TuneGenerator", inversion=["sample", 0], method="near-perfect", steps=1),
            "save": core("PreviewImage", images=["tune", 1]),
        }, "tune", "ModelNotFoundError", "choose the discriminator's file",
    ),
    "saved outside": (_saved_outside(), "file", "InvalidInputError", "output folder"),
}  # fmt: skip


@pytest.mark.parametrize("case", FAILS)
def test_an_error_of_ours_reaches_the_user(server, case):
    workflow, where, kind, message = FAILS[case]
    told = server.failure(workflow)
    assert told["node_id"] == where and told["exception_type"].endswith(kind), told
    assert "gan_inversion" in told["exception_type"] or "core.errors" in told["exception_type"]
    assert message in told["exception_message"], told["exception_message"]
    assert not list(server.base.glob("outside*"))


CHOICES = {  # node of a workflow -> its input
    "g": "dtype",
    "render": "noise",
    "align": "detector",
    "paste": "mask_on",
    "project": "distance",
    "blend": "merge",
    "sefa": "method",
    "sweep": "range",
    "compare": "layout",
    "dhr": "face_parser",
    "tune": "pivot",
}


def up_to(workflow: dict, key: str) -> dict:
    """One node of a workflow with all that leads to it, and an output that asks for it."""
    needed = [key]
    for name in needed:  # grows on the way
        needed += [value[0] for value in workflow[name]["inputs"].values() if isinstance(value, list)]
    return {name: workflow[name] for name in needed} | {"shown": core("PreviewAny", source=[key, 0])}


@pytest.mark.parametrize("key", CHOICES)
def test_an_unknown_choice_does_not_run(server, key):
    # ComfyUI 0.3.64 does not check choices of this kind of node, so the node itself has to.
    workflow = with_inputs(up_to(every_node(), key), key, **{CHOICES[key]: "fp8"})
    if server.version < (0, 4):
        told = server.failure(workflow)
        assert told["node_id"] == key and told["exception_type"].endswith("InvalidInputError")
        assert f"Input '{CHOICES[key]}' is 'fp8': expected one of" in told["exception_message"]
    else:
        with pytest.raises(Refused, match="fp8"):
            server.queue(workflow)


def long_runs() -> dict[str, dict]:
    """Node that takes minutes -> workflow."""
    everything = every_node()
    project = {key: everything[key] for key in ("g", "e", "photo", "align", "encode", "project")}
    project = with_inputs(project, "project", steps=5000)
    project["save"] = core("PreviewImage", images=["project", 1])
    sweep = {key: everything[key] for key in ("smile", "sefa")} | sampled(count=16)
    sweep["sweep"] = node(
        "DirectionSweep", inversion=["sample", 0], direction=["smile", 0], second_direction=["sefa", 0], steps=64,
        second_steps=16,
    )  # fmt: skip
    sweep["save"] = core("PreviewImage", images=["sweep", 0])
    refining = {key: refined(key, kind, **more) for key, (kind, more) in REFINING.items()}
    return {"project": project, "sweep": sweep, "sample": sampled(count=256), **refining}


REFINING = {
    "segmenting": ("DHRRefine", {"steps": 2000}),
    "hybrid": ("DHRRefine", {"steps": 2000, "mask": ["region", 0], "merge": "replace"}),
    "tuning": ("TuneGenerator", {"steps": 5000, "stop_at": 0.0}),
    "playing": ("TuneGenerator", {"steps": 5000, "method": "near-perfect"}),
}


def refined(key: str, kind: str, **inputs) -> dict:
    """A photograph encoded and refined by node `key`."""
    everything = every_node()
    workflow = {name: everything[name] for name in ("g", "e", "photo", "align", "encode", "region")}
    if kind == "TuneGenerator":
        inputs["discriminator"] = DISCRIMINATOR
    workflow[key] = node(kind, inversion=["encode", 0], **inputs)
    workflow["save"] = core("PreviewImage", images=[key, 1])
    return workflow


@pytest.mark.parametrize("where", ["project", "sweep", "sample", *REFINING])
def test_a_long_run_stops_at_an_interrupt(server, where):
    seen = server.watch(long_runs()[where], cancel_at=where)
    name, data = seen["events"][-1]
    assert name == "execution_interrupted" and data["node_id"] == where, (name, data)
    steps = [
        data["value"] / data["max"] for name, data in seen["events"] if name == "progress" and data["node"] == where
    ]
    assert steps[-1] < 0.9


@pytest.mark.parametrize("where", ["project", *REFINING])
def test_progress_and_previews_arrive_while_it_runs(server, where):
    everything = every_node()
    workflow = {key: everything[key] for key in ("g", "photo", "align", "project")}
    workflow["project"]["inputs"] = {"image": ["align", 0], "generator": ["g", 0], "steps": 40, "seed": 77}
    workflow["save"] = core("PreviewImage", images=["project", 1])
    if where in REFINING:
        kind, inputs = REFINING[where]
        workflow = refined(
            where, kind, **{**inputs, "steps": 120, "seed": 77}
        )  # hosts may leave out previews that come fast
    seen = server.watch(workflow)
    assert seen["events"][-1][0] == "execution_success", seen["events"][-1]
    reports = [data for name, data in seen["events"] if name == "progress" and data["node"] == where]
    steps = [data["value"] / data["max"] for data in reports]
    assert len(steps) > 5 and steps == sorted(steps) and steps[-1] == 1
    sizes = [size for node_id, size in seen["previews"] if node_id == where]
    assert len(sizes) > 2 and all(width == height <= 512 for width, height in sizes)
