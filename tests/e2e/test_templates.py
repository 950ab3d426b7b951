"""Every shipped workflow, and what runs again when something in it is changed."""

import copy

import numpy as np
import pytest

from gan_inversion.nodes.headless.core_video import VideoFile

from .conftest import ROOT
from .server import kinds_run, the
from .workflows import edited, sampled

NAMES = sorted(path.stem for path in (ROOT / "workflows" / "api").glob("*.json"))


def shortened(workflow: dict) -> dict:
    """The workflow with a few steps of refinement only; thumbnails are drawn with all of them."""
    for step in workflow.values():
        if step["class_type"].endswith(("DHRRefine", "TuneGenerator", "Project", "SAMMAlign")):
            step["inputs"]["steps"] = 4
    return workflow


def saved_frames(server, done: dict, node_id: str) -> list[np.ndarray]:
    """Pixels of the video that an output node saved."""
    (entry,) = done["outputs"][node_id]["images"]
    return list(VideoFile(server.base / "output" / entry["subfolder"] / entry["filename"]).frames())


@pytest.mark.parametrize("name", NAMES)
def test_template_runs(server, template, name):
    workflow = shortened(template(name))
    done = server.run(workflow)
    saved = {
        key: node["class_type"] for key, node in workflow.items() if node["class_type"] in ("SaveImage", "SaveVideo")
    }
    assert saved, "a template saves its result"
    for key, kind in saved.items():
        shown = saved_frames(server, done, key) if kind == "SaveVideo" else server.pictures(done, key)
        assert shown and all(pixels.std() > 10 for pixels in shown)


def test_a_video_is_edited_where_there_is_a_face(server, template):
    workflow = template("video_frames")
    done = server.run(workflow)
    (report,) = done["outputs"][next(key for key, node in workflow.items() if node["class_type"] == "PreviewAny")][
        "text"
    ]
    assert [line.partition(",")[0].endswith("no face found") for line in report.splitlines()[:3]] == [
        False,
        True,
        False,
    ]
    before = list(VideoFile(server.base / "input" / "clip.mp4").frames())
    after = saved_frames(server, done, the(workflow, "SaveVideo"))
    assert [frame.shape for frame in before] == [frame.shape for frame in after]
    changed = [np.abs(a.astype(int) - b).max() for a, b in zip(before, after, strict=True)]
    assert changed[0] > 60 and changed[2] > 60 and changed[1] < 40, "other differences are those of compression"


def test_moving_the_slider_leaves_the_encoder_alone(server, template):
    workflow = template("edit_portrait")
    first = server.run(workflow)
    changed = copy.deepcopy(workflow)
    slider = the(workflow, "GANInversionApplyDirection")
    changed[slider]["inputs"]["strength"] = workflow[slider]["inputs"]["strength"] + 0.5
    second = server.run(changed)
    assert kinds_run(changed, second) == {"ApplyDirection", "Render", "PasteBack", "SaveImage", "PreviewImage"}
    save = the(workflow, "SaveImage")
    before, after = (server.pictures(done, save)[0] for done in (first, second))
    assert before.shape == after.shape and (before != after).any()


@pytest.mark.parametrize("name", ["dhr_refine", "tune_pti", "tune_near_perfect"])
def test_moving_the_sliders_refines_nothing_again(server, template, name):
    workflow = shortened(template(name))
    first = server.run(workflow)
    changed = copy.deepcopy(workflow)
    for step in changed.values():
        if step["class_type"] == "GANInversionApplyDirection":
            step["inputs"]["strength"] += 0.5
    second = server.run(changed)
    assert kinds_run(changed, second) == {"ApplyDirection", "Render", "SaveImage", "PreviewImage"}
    save = the(workflow, "SaveImage")
    before, after = (server.pictures(done, save)[0] for done in (first, second))
    assert before.shape == after.shape and (before != after).any()


def test_the_slider_moved_back_gives_the_first_picture_again(server):
    first, away, back = (server.run(edited(strength=strength)) for strength in (1.5, -1.5, 1.5))
    assert "Encode" not in kinds_run(edited(), away) | kinds_run(edited(), back)
    one, other, again = (server.pictures(done, "save")[0] for done in (first, away, back))
    assert (one != other).any() and (one == again).all()


def test_nothing_runs_again_when_nothing_changed(server):
    workflow = edited(strength=0.7)
    server.run(workflow)
    assert not kinds_run(workflow, server.run(workflow))


def test_a_new_photograph_leaves_the_models_alone(server):
    server.run(edited())
    photo = server.base / "input" / "photo.png"
    (server.base / "input" / "turned.png").write_bytes(photo.read_bytes())
    changed = edited("turned.png")
    assert not {"LoadStyleGAN", "LoadEncoder", "LoadDirection"} & kinds_run(changed, server.run(changed))


def test_another_seed_runs_only_what_follows(server):
    first, second = (server.run(sampled(seed=seed)) for seed in (11, 12))
    assert kinds_run(sampled(), second) == {"Sample", "Render", "SaveImage"}
    assert (server.pictures(first, "save")[0] != server.pictures(second, "save")[0]).any()
    assert (server.pictures(server.run(sampled(seed=11)), "save")[0] == server.pictures(first, "save")[0]).all()
