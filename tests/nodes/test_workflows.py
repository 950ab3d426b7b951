import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import gan_inversion
from gan_inversion.core.inversion import FeatureWarp, PixelBlend, WeightOffset
from gan_inversion.nodes import all_nodes
from gan_inversion.nodes.headless import schemas, template_drawing, templates
from gan_inversion.nodes.headless.core_video import VideoFile
from gan_inversion.nodes.headless.runner import Runner
from gan_inversion.nodes.headless.workflow_files import read_workflow

from .tiny_models import (
    CLIP_SIDE,
    RESOLUTION,
    every_node,
    reload_inversion,
    with_tiny_models,
    write_clip,
    write_tiny_models,
)

FOLDER = Path(gan_inversion.__file__).resolve().parent / "workflows"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))
_TITLE = 30  # height of a node's title bar, above its position


def test_files_are_what_the_descriptions_give(tmp_path):
    written = templates.write_all(tmp_path)
    assert {path.relative_to(tmp_path) for path in written} == {p.relative_to(FOLDER) for p in FOLDER.rglob("*.json")}
    for path in written:
        assert path.read_text() == (FOLDER / path.relative_to(tmp_path)).read_text(), (
            "run python -m gan_inversion.nodes.headless.templates"
        )


@pytest.mark.parametrize("name", NAMES)
def test_editor_file_and_api_twin_are_one_workflow(name):
    twin = json.loads((FOLDER / "api" / f"{name}.json").read_text())
    assert read_workflow(FOLDER / f"{name}.json") == twin


@pytest.mark.parametrize("name", NAMES)
def test_every_template_has_a_thumbnail(name):
    with Image.open(FOLDER / f"{name}.jpg") as picture:
        assert picture.format == "JPEG" and picture.width == 640
        assert len(picture.convert("L").resize((32, 32)).getcolors()) > 20, "an empty picture"


@pytest.mark.parametrize("name", NAMES)
def test_every_widget_value_fits_its_schema(name):
    for node in json.loads((FOLDER / "api" / f"{name}.json").read_text()).values():
        sockets = schemas.inputs_of(schemas.known_nodes()[node["class_type"]])
        assert node["inputs"].keys() <= sockets.keys()
        for key, value in node["inputs"].items():
            # Names of models and pictures depend on the machine.
            if not isinstance(value, list) and key not in ("model", "direction", "image", "file"):
                assert schemas.coerce(sockets[key], value) == value
                assert schemas.problem_with(sockets[key], value) is None


@pytest.mark.parametrize("name", NAMES)
def test_editor_file_is_consistent(name):
    ui = json.loads((FOLDER / f"{name}.json").read_text())
    nodes = {node["id"]: node for node in ui["nodes"]}
    assert len(nodes) == len(ui["nodes"]) and ui["last_node_id"] == max(nodes)
    assert any(node["type"] == "MarkdownNote" for node in ui["nodes"])
    for link_id, source, slot, target, place, kind in ui["links"]:
        output, socket = nodes[source]["outputs"][slot], nodes[target]["inputs"][place]
        assert link_id in output["links"] and socket["link"] == link_id
        assert output["type"] == kind and schemas.types_match(kind, socket["type"])
        assert nodes[source]["pos"][0] < nodes[target]["pos"][0] or nodes[source]["pos"][1] < nodes[target]["pos"][1]
    ends = [link for node in ui["nodes"] for output in node["outputs"] for link in output["links"] or ()]
    assert sorted(ends) == sorted(link[0] for link in ui["links"]) and ui["last_link_id"] == max(ends)


@pytest.mark.parametrize("described", templates.TEMPLATES, ids=lambda one: one.name)
def test_thumbnails_show_what_the_template_puts_out(described):
    for one in described.thumbnail:
        shown = one if isinstance(one, template_drawing.Shown) else template_drawing.Shown(one)
        node = schemas.known_nodes()[described.steps[shown.node].kind]
        if shown.slot is None:
            assert described.steps[shown.node].kind in ("PreviewImage", "SaveImage")
        else:
            assert schemas.type_of(schemas.outputs_of(node)[shown.slot]) == "IMAGE"
    assert len(described.thumbnail) % max(1, described.columns) == 0


def overlap(a, b):
    return a[0] < b[0] + b[2] and b[0] < a[0] + a[2] and a[1] < b[1] + b[3] and b[1] < a[1] + a[3]


@pytest.mark.parametrize("name", NAMES)
def test_nothing_overlaps_on_the_canvas(name):
    ui = json.loads((FOLDER / f"{name}.json").read_text())
    boxes = [(*n["pos"], *n["size"]) for n in ui["nodes"]]
    boxes = [(x, y - _TITLE, width, height + _TITLE) for x, y, width, height in boxes]
    groups = [group["bounding"] for group in ui["groups"]]
    for kind in (boxes, groups):
        assert not [(a, b) for i, a in enumerate(kind) for b in kind[:i] if overlap(a, b)]
    for box in boxes:
        around = [g for g in groups if overlap(box, g)]
        assert len(around) <= 1
        for g in around:
            assert (
                g[0] <= box[0] and box[0] + box[2] <= g[0] + g[2] and g[1] <= box[1] and box[1] + box[3] <= g[1] + g[3]
            )


@pytest.fixture
def runner(tmp_path, monkeypatch):
    from skimage import data

    torch.set_num_threads(1)
    monkeypatch.setenv("GAN_INVERSION_HOME", str(tmp_path / "home"))
    write_tiny_models(tmp_path / "home" / "models")
    Image.fromarray(data.astronaut()).save(tmp_path / "photo.png")
    return Runner(input_dir=tmp_path, output_dir=tmp_path / "out")


def by_class(workflow, counts):
    return {workflow[node_id]["class_type"].removeprefix("GANInversion"): n for node_id, n in counts.items()}


def test_moving_the_slider_runs_neither_detector_nor_encoder(runner, tmp_path):
    workflow = with_tiny_models(read_workflow(FOLDER / "api" / "edit_portrait.json"))
    first = runner.run(workflow)
    assert set(first.executions.values()) == {1}
    slider = next(node for node in workflow.values() if node["class_type"] == "GANInversionApplyDirection")
    slider["inputs"]["strength"] = 2.0
    second = by_class(workflow, runner.run(workflow).executions)
    again = {name for name, count in second.items() if count}
    assert again == {"ApplyDirection", "Render", "PasteBack", "SaveImage", "PreviewImage"}
    total = by_class(workflow, runner.executions)
    assert total["Encode"] == total["AlignFace"] == total["LoadEncoder"] == total["LoadStyleGAN"] == 1


def test_photograph_outside_the_crop_is_untouched(runner, tmp_path):
    workflow = with_tiny_models(read_workflow(FOLDER / "api" / "edit_portrait.json"))
    result = runner.run(workflow)
    before, after = np.asarray(Image.open(tmp_path / "photo.png")), np.asarray(Image.open(result.images[0]))
    paste = next(i for i, node in workflow.items() if node["class_type"] == "GANInversionPasteBack")
    outside = result.results[paste][1][0].numpy() == 0
    assert before.shape == after.shape and outside.mean() > 0.3 and (before != after).any()
    assert np.array_equal(before[outside], after[outside])


def test_sweep_template_draws_a_grid(runner):
    workflow = with_tiny_models(read_workflow(FOLDER / "api" / "direction_sweep.json"))
    result = runner.run(workflow)
    sweep = next(i for i, node in workflow.items() if node["class_type"] == "GANInversionDirectionSweep")
    grid, frames, labels = result.results[sweep]
    assert frames.shape == (5, RESOLUTION, RESOLUTION, 3) and len(result.images) == 1
    assert Image.open(result.images[0]).size == (grid.shape[2], grid.shape[1]) and labels.startswith("Columns: ")


REFINING = {"dhr_refine": None, "tune_pti": "PTI", "tune_near_perfect": "near-perfect"}  # template -> method


@pytest.mark.parametrize("name", REFINING)
def test_sliders_of_refining_templates_run_no_refinement(runner, name):
    workflow = with_tiny_models(read_workflow(FOLDER / "api" / f"{name}.json"))
    (refining,) = (node for node in workflow.values() if node["class_type"].endswith(("DHRRefine", "TuneGenerator")))
    assert refining["inputs"].get("method") == REFINING[name]
    refining["inputs"]["steps"] = 2
    first = runner.run(workflow)
    assert len(first.images) == 1 and set(first.executions.values()) == {1}
    assert all(template.thumbnail or template.name not in REFINING for template in templates.TEMPLATES)
    sliders = [node for node in workflow.values() if node["class_type"] == "GANInversionApplyDirection"]
    assert len(sliders) == 2 and sliders[0]["inputs"]["strength"] == sliders[1]["inputs"]["strength"]
    for slider in sliders:
        slider["inputs"]["strength"] = 0.25
    second = by_class(workflow, runner.run(workflow).executions)
    assert {kind for kind, count in second.items() if count} == {
        "ApplyDirection",
        "Render",
        "SaveImage",
        "PreviewImage",
    }


def test_three_methods_are_in_one_inversion_and_sliders_run_none_of_them(runner):
    workflow = with_tiny_models(read_workflow(FOLDER / "api" / "combine_methods.json"))
    methods = [i for i, n in workflow.items() if n["class_type"].endswith(("Project", "SAMMAlign", "TuneGenerator"))]
    for node_id in methods:
        workflow[node_id]["inputs"]["steps"] = 2
    result = runner.run(workflow)
    assert len(methods) == 3 and all(result.executions[node_id] for node_id in methods)
    first, last = (result.results[node_id][0].inversion for node_id in (methods[0], methods[-1]))
    assert not first.modulations
    assert {type(one) for one in last.modulations} == {FeatureWarp, PixelBlend, WeightOffset}
    for node in workflow.values():
        if node["class_type"] == "GANInversionApplyDirection":
            node["inputs"]["strength"] = 0.25
    second = by_class(workflow, runner.run(workflow).executions)
    again = {kind for kind, count in second.items() if count}
    assert again == {"ApplyDirection", "Render", "PasteBack", "SaveImage", "PreviewImage"}


def test_frames_without_a_face_pass_through_the_video_template(runner, tmp_path):
    write_clip(tmp_path / "clip.mp4")
    workflow = with_tiny_models(read_workflow(FOLDER / "api" / "video_frames.json"))
    result = runner.run(workflow)
    parts, report, paste = (
        result.results[next(i for i, node in workflow.items() if node["class_type"] == kind)][slot]
        for kind, slot in (("GetVideoComponents", 0), ("GANInversionAlignFace", 3), ("GANInversionPasteBack", 0))
    )
    assert [line.endswith("no face found, passed through") for line in report.splitlines()[:3]] == [False, True, False]
    assert parts.shape == paste.shape == (3, CLIP_SIDE, CLIP_SIDE, 3)
    assert [torch.equal(a, b) for a, b in zip(parts, paste, strict=True)] == [False, True, False]
    (path,) = result.images
    saved = VideoFile(path)
    assert path.suffix == ".mp4" and len(list(saved.frames())) == 3 and saved.fps == pytest.approx(10.0)


def test_styles_are_mixed_without_a_photograph(runner):
    workflow = with_tiny_models(read_workflow(FOLDER / "api" / "sample_and_mix.json"))
    result = runner.run(workflow)
    assert not {"LoadImage", "GANInversionLoadEncoder"} & {node["class_type"] for node in workflow.values()}
    faces, *mixed = (
        result.results[node_id][0].inversion.w_plus
        for kind in ("GANInversionSample", "GANInversionMixStyles")
        for node_id, node in workflow.items()
        if node["class_type"] == kind and node["inputs"].get("count") != 1
    )
    assert len(result.images) == 12 and faces.shape[0] == 4
    shape, colours, half = ((codes != faces).any(-1).any(0) for codes in mixed)
    assert not (shape & colours).any() and (shape | colours).all() and half.all()


def test_every_node_runs(runner):
    workflow = every_node()
    result = runner.run(workflow)
    kinds = {workflow[node_id]["class_type"] for node_id, count in result.executions.items() if count}
    assert set(all_nodes()) - kinds == {"GANInversionLoadInversion"}
    (name,) = result.outputs["name"]["text"]
    again = runner.run(reload_inversion(name))
    assert torch.equal(again.results["render"][0], result.results["tune"][1])
