import json
import logging
import time

import numpy as np
import pytest
import torch
from PIL import Image

from gan_inversion.core.errors import CorruptFileError, InvalidInputError, ModelNotFoundError, NoFaceError
from gan_inversion.nodes.headless import cli
from gan_inversion.nodes.headless import stand_in as io
from gan_inversion.nodes.headless.core_nodes import core_nodes
from gan_inversion.nodes.headless.runner import NodeFailedError, Runner
from gan_inversion.nodes.headless.workflow_files import WorkflowError, read_workflow, ui_to_api, with_values

Thing = io.Custom("TOY_THING")


class Make(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="Make",
            display_name="Make a Thing",
            inputs=[
                io.Int.Input("count", default=3, min=1, max=10),
                io.Float.Input("size", default=1.0, min=0.0, max=2.0),
                io.Combo.Input("colour", options=["red", "blue"]),
                io.Boolean.Input("shiny", default=False),
                io.String.Input("name", default="", optional=True),
                io.Int.Input("seed", default=0, control_after_generate=True, optional=True),
            ],
            outputs=[Thing.Output(display_name="thing"), io.String.Output(display_name="words")],
        )

    @classmethod
    def execute(cls, count, size, colour, shiny, name="", seed=0):
        if name == "no face":
            raise NoFaceError("No face in image 1.")
        if name == "bug":
            raise TypeError("unexpected thing")
        return io.NodeOutput(
            {"count": count, "size": size}, f"{count} {colour} {shiny} {torch.is_inference_mode_enabled()}"
        )


class Change(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="Change",
            display_name="Change",
            inputs=[Thing.Input("thing"), io.Float.Input("strength", default=1.0, min=-5, max=5)],
            outputs=[io.String.Output(display_name="words")],
        )

    @classmethod
    async def execute(cls, thing, strength):
        return io.NodeOutput(f"{thing['count']} at {strength}")

    @classmethod
    def validate_inputs(cls, strength):
        return True if strength != 4.5 else "strength 4.5 is not allowed here"


class Restless(io.ComfyNode):
    stamp = 0.0

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="Restless",
            inputs=[Thing.Input("thing"), io.String.Input("path", default="")],
            outputs=[io.String.Output(display_name="words")],
        )

    @classmethod
    def fingerprint_inputs(cls, path):
        return cls.stamp

    @classmethod
    def execute(cls, thing, path):
        return io.NodeOutput(path)


class Show(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="Show",
            display_name="Show",
            inputs=[io.String.Input("words", force_input=True)],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, words):
        return io.NodeOutput(ui=io.PreviewText(f"{cls.hidden.unique_id}: {words}"))


NODES = {cls.define_schema().node_id: cls for cls in (Make, Change, Restless, Show)} | core_nodes()


def workflow(**changes):
    """make (1) -> change (2) -> show (3); make's words -> show (4); node 5 leads nowhere."""
    make = {"count": 2, "size": 0.5, "colour": "blue", "shiny": True}
    flow = {
        "1": {"class_type": "Make", "inputs": make, "_meta": {"title": "First"}},
        "2": {"class_type": "Change", "inputs": {"thing": ["1", 0], "strength": 1.5}},
        "3": {"class_type": "Show", "inputs": {"words": ["2", 0]}},
        "4": {"class_type": "Show", "inputs": {"words": ["1", 1]}},
        "5": {"class_type": "Make", "inputs": {"count": 10**6}},
    }
    for place, value in changes.items():
        _, node, name = place.split("_", 2)
        flow[node]["inputs"][name] = value
    return flow


@pytest.fixture
def runner(tmp_path):
    (tmp_path / "in").mkdir()
    return Runner(input_dir=tmp_path / "in", output_dir=tmp_path / "out", nodes=NODES)


def test_runs_only_what_outputs_need_in_inference_mode(runner):
    seen = []
    runner.on_node = lambda *what: seen.append(what)
    result = runner.run(workflow())
    assert result.outputs["3"]["text"] == ("3: 2 at 1.5",)
    assert result.outputs["4"]["text"] == ("4: 2 blue True True",)
    assert result.executions == {"1": 1, "2": 1, "3": 1, "4": 1}
    assert seen == [("First", 0, 4), ("Change", 1, 4), ("Show", 2, 4), ("Show", 3, 4)]
    assert result.results["1"][0] == {"count": 2, "size": 0.5}


def test_only_what_changed_runs_again(runner):
    runner.run(workflow())
    assert set(runner.run(workflow()).executions.values()) == {0}
    again = runner.run(workflow(at_2_strength=2))
    assert again.executions == {"1": 0, "2": 1, "3": 1, "4": 0}
    assert again.outputs["3"]["text"] == ("3: 2 at 2.0",) and again.outputs["4"]["text"] == ("4: 2 blue True True",)
    assert runner.run(workflow(at_1_shiny=False)).executions == {"1": 1, "2": 1, "3": 1, "4": 1}
    assert dict(runner.executions) == {"1": 2, "2": 3, "3": 3, "4": 2}


def test_equal_nodes_share_a_result_but_output_nodes_do_not(runner):
    flow = workflow()
    flow["5"] = json.loads(json.dumps(flow["1"]))
    flow["6"] = {"class_type": "Show", "inputs": {"words": ["5", 1]}}
    result = runner.run(flow)
    assert result.executions["1"] + result.executions["5"] == 1
    assert result.outputs["6"]["text"] == ("6: 2 blue True True",)


def test_fingerprint_decides(runner, monkeypatch):
    flow = workflow()
    flow["2"] = {"class_type": "Restless", "inputs": {"thing": ["1", 0], "path": "a"}}
    assert runner.run(flow).executions["2"] == 1
    assert runner.run(flow).executions["2"] == 0
    monkeypatch.setattr(Restless, "stamp", 1.0)
    assert runner.run(flow).executions["2"] == 1
    monkeypatch.setattr(Restless, "stamp", float("nan"))
    assert [runner.run(flow).executions["2"] for _ in range(2)] == [1, 1]
    assert runner.executions["1"] == 1


MADE = 'Node 1 "First" (Make): input'


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"at_1_count": 0}, f"{MADE} 'count': found 0, expected a whole number from 1 to 10."),
        ({"at_1_count": "many"}, f"{MADE} 'count': found 'many', expected a whole number from 1 to 10."),
        ({"at_1_size": 2.5}, f"{MADE} 'size': found 2.5, expected a number from 0.0 to 2.0."),
        ({"at_1_size": float("nan")}, f"{MADE} 'size': found nan, expected a number from 0.0 to 2.0."),
        ({"at_1_colour": "green"}, f"{MADE} 'colour': found 'green', expected one of 'red', 'blue'."),
        ({"at_1_count": ["9", 0]}, "'count': found a link to node 9, which does not exist, expected a whole number"),
        ({"at_1_count": ["2"]}, "'count': found ['2'], expected a value or a link [node id, output slot]."),
        ({"at_2_thing": ["1", 5]}, 'found a link to output 5 of Node 1 "First" (Make), which has 2 output(s)'),
        ({"at_2_thing": ["1", 1]}, "input 'thing': found STRING from Node 1 \"First\" (Make), expected TOY_THING."),
        ({"at_2_thing": 7}, "input 'thing': found 7, expected a link to an output of type TOY_THING."),
        ({"at_2_strength": 4.5}, "Node 2 \"Change\" (Change): input 'strength': strength 4.5 is not allowed here"),
        ({"at_1_name": ["2", 0]}, "depends on its own output ("),
    ],
)
def test_refusals_name_node_input_and_expectation(runner, changes, message):
    with pytest.raises(WorkflowError) as caught:
        runner.run(workflow(**changes))
    assert message in str(caught.value)
    assert not runner.executions


def test_own_check_of_a_node_replaces_the_range_check(runner):
    assert runner.run(workflow(at_2_strength=50)).outputs["3"]["text"] == ("3: 2 at 50.0",)


def test_missing_unknown_and_absent(runner, caplog):
    flow = workflow()
    del flow["1"]["inputs"]["count"], flow["2"]["inputs"]["thing"]
    with pytest.raises(WorkflowError) as caught:
        runner.run(flow)
    assert set(caught.value.problems) == {
        f"{MADE} 'count' is missing, expected a whole number from 1 to 10.",
        "Node 2 \"Change\" (Change): input 'thing' is missing, expected a link to an output of type TOY_THING.",
    }
    assert "1 more problem" in str(caught.value)
    with pytest.raises(WorkflowError, match="Node 2: found class 'Chanje', expected a known node. Did you mean Change"):
        runner.run({**workflow(), "2": {"class_type": "Chanje", "inputs": {}}})
    with pytest.raises(WorkflowError, match="no output node"):
        runner.run({"1": workflow()["1"]})
    with caplog.at_level(logging.WARNING):
        runner.run(workflow(at_1_colur="red"))
    assert "no input 'colur'" in caplog.text


def test_errors_of_nodes_keep_their_class_and_name_the_node(runner):
    with pytest.raises(NoFaceError, match=r'^Node 1 "First" \(Make\): No face in image 1\.$'):
        runner.run(workflow(at_1_name="no face"))
    with pytest.raises(
        NodeFailedError, match=r'^Node 1 "First" \(Make\) failed: TypeError: unexpected thing$'
    ) as caught:
        runner.run(workflow(at_1_name="bug"))
    assert isinstance(caught.value.__cause__, TypeError)
    assert runner.run(workflow()).executions["1"] == 1


def test_long_chains_do_not_exhaust_the_stack(runner):
    flow = {"0": {"class_type": "SolidMask", "inputs": {"value": 0.25, "width": 4, "height": 3}}}
    for index in range(1, 1501):
        flow[str(index)] = {"class_type": "InvertMask", "inputs": {"mask": [str(index - 1), 0]}}
    flow["end"] = {"class_type": "MaskToImage", "inputs": {"mask": ["1500", 0]}}
    flow["save"] = {"class_type": "PreviewImage", "inputs": {"images": ["end", 0]}}
    assert runner.run(flow).results["end"][0].mean() == pytest.approx(0.25)


# Core nodes.


def picture_workflow(name="a.png", prefix="sub/pic_%width%"):
    return {
        "1": {"class_type": "LoadImage", "inputs": {"image": name}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": prefix}},
    }


def test_pictures_survive_load_and_save_bit_for_bit(runner):
    pixels = np.arange(16 * 16 * 3, dtype=np.int64).reshape(16, 16, 3).astype(np.uint8)
    Image.fromarray(pixels).save(runner.input_dir / "a.png")
    flow = picture_workflow()
    result = runner.run(flow)
    assert result.images == (runner.output_dir / "sub/pic_16_00001_.png",)
    saved = Image.open(result.images[0])
    assert np.array_equal(np.asarray(saved), pixels) and json.loads(saved.info["prompt"]) == flow
    image, mask = result.results["1"]
    assert image.shape == (1, 16, 16, 3) and mask.shape == (1, 64, 64) and not mask.any()
    # The file's content counts, not its name; a new file never replaces an old one.
    Image.fromarray(255 - pixels).save(runner.input_dir / "a.png")
    assert runner.run(flow).images[0].name == "pic_16_00002_.png"


def test_transparency_becomes_a_mask_and_exif_turns_the_picture(runner):
    rgba = np.zeros((4, 6, 4), np.uint8)
    rgba[:, :3] = (200, 100, 50, 255)
    rgba[:, 3:, 3] = 51
    Image.fromarray(rgba).save(runner.input_dir / "a.png")
    image, mask = runner.run(picture_workflow()).results["1"]
    assert mask.shape == (1, 4, 6) and mask[0, 0, 0] == 0 and mask[0, 0, 5] == pytest.approx(0.8)
    assert torch.allclose(image[0, 0, 0], torch.tensor([200, 100, 50]) / 255)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(rgba[..., :3]).save(runner.input_dir / "b.jpg", exif=exif)
    image, _ = runner.run(picture_workflow("b.jpg")).results["1"]
    assert image.shape == (1, 6, 4, 3)
    flow = picture_workflow() | {
        "3": {"class_type": "LoadImageMask", "inputs": {"image": "a.png", "channel": "alpha"}},
        "4": {"class_type": "LoadImageMask", "inputs": {"image": "a.png", "channel": "green"}},
        "5": {"class_type": "MaskComposite", "inputs": {
            "destination": ["3", 0], "source": ["4", 0], "x": 0, "y": 0, "operation": "add"}},
        "6": {"class_type": "MaskToImage", "inputs": {"mask": ["5", 0]}},
        "7": {"class_type": "PreviewImage", "inputs": {"images": ["6", 0]}},
    }  # fmt: skip
    results = runner.run(flow).results
    assert torch.equal(results["3"][0], mask)
    assert results["4"][0][0, 0].tolist() == pytest.approx([100 / 255] * 3 + [0] * 3)


def loaded(runner, picture, name="a.png", **options):
    picture.save(runner.input_dir / name, **options)
    return runner.run(picture_workflow(name)).results["1"]


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_grey_of_16_bits_keeps_its_depth(runner, name):
    grey = np.array([[0, 1, 32768, 65535]], np.uint16)
    image, mask = loaded(runner, Image.fromarray(grey), name)
    assert torch.allclose(image[0, 0, :, 1], torch.tensor([0, 1, 32768, 65535]) / 65535, atol=1e-7)
    assert image.shape == (1, 1, 4, 3) and image.dtype == torch.float32 and mask.shape == (1, 64, 64)


def test_float_grey_is_taken_from_0_to_1(runner):
    image, _ = loaded(runner, Image.fromarray(np.array([[-1, 0.25, 1, 7]], np.float32)), "a.tif")
    assert image[0, 0, :, 2].tolist() == [0, 0.25, 1, 1]


def test_palette_pictures_have_a_mask_of_their_size(runner):
    picture = Image.new("P", (6, 4), 1)
    picture.putpalette([0, 0, 0, 255, 128, 0])
    image, mask = loaded(runner, picture)
    assert image.shape == (1, 4, 6, 3) and mask.shape == (1, 4, 6) and not mask.any()
    _, mask = loaded(runner, picture, transparency=1)
    assert mask.shape == (1, 4, 6) and mask.min() == 1
    _, mask = loaded(runner, Image.new("RGB", (6, 4), "red"), transparency=(255, 0, 0))
    assert mask.shape == (1, 4, 6) and mask.min() == 1
    frames = [Image.new("RGB", (6, 4), colour) for colour in ("red", "green", "blue")]
    image, mask = loaded(runner, frames[0], "a.gif", save_all=True, append_images=frames[1:])
    assert image.shape == (3, 4, 6, 3) and mask.shape == (3, 4, 6) and not mask.any()


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "missing.png"])
def test_pictures_come_from_the_input_folder_only(runner, name):
    with pytest.raises(WorkflowError, match="leads outside the input folder|does not exist"):
        runner.run(picture_workflow(name))


def test_bad_pictures_and_prefixes(runner):
    (runner.input_dir / "a.png").write_text("<!DOCTYPE html>")
    with pytest.raises(CorruptFileError, match=r"Node 1 .*a\.png: not a readable picture"):
        runner.run(picture_workflow())
    Image.new("RGB", (8, 8)).save(runner.input_dir / "a.png")
    with pytest.raises(InvalidInputError, match="leads outside the output folder"):
        runner.run(picture_workflow(prefix="../../away"))


def mask_result(runner, kind, **inputs):
    flow = {
        "2": {"class_type": kind, "inputs": {"mask": ["1", 0], **inputs}},
        "3": {"class_type": "MaskToImage", "inputs": {"mask": ["2", 0]}},
        "4": {"class_type": "PreviewImage", "inputs": {"images": ["3", 0]}},
    }
    one = {"Dot": type("Dot", (io.ComfyNode,), {
        "define_schema": classmethod(lambda cls: io.Schema("Dot", outputs=[io.Mask.Output()])),
        "execute": classmethod(lambda cls: io.NodeOutput(DOT)),
    })}  # fmt: skip
    runner.nodes = {**NODES, **one}
    return runner.run({"1": {"class_type": "Dot", "inputs": {}}, **flow}).results["2"][0]


DOT = torch.zeros(1, 7, 9)
DOT[0, 3, 4] = 1


def test_grow_and_feather(runner):
    assert mask_result(runner, "GrowMask", expand=2, tapered_corners=True).sum() == 13
    assert mask_result(runner, "GrowMask", expand=1, tapered_corners=False).sum() == 9
    assert mask_result(runner, "GrowMask", expand=-1, tapered_corners=True).sum() == 0
    faded = mask_result(runner, "FeatherMask", left=8, top=0, right=0, bottom=8)
    assert faded[0, 3, 4] == pytest.approx(5 / 8 * 4 / 7)


@pytest.mark.parametrize("method", ["nearest-exact", "bilinear", "area", "bicubic", "lanczos"])
def test_scale(runner, method):
    Image.fromarray(np.full((20, 40, 3), 100, np.uint8)).save(runner.input_dir / "a.png")
    flow = picture_workflow()
    scale = {"image": ["1", 0], "upscale_method": method, "width": 10, "height": 10, "crop": "center"}
    flow["3"] = {"class_type": "ImageScale", "inputs": scale}
    flow["2"]["inputs"]["images"] = ["3", 0]
    scaled = runner.run(flow).results["3"][0]
    assert scaled.shape == (1, 10, 10, 3) and torch.allclose(scaled, torch.tensor(100 / 255), atol=1e-3)
    scale["width"] = 0
    assert runner.run(flow).results["3"][0].shape == (1, 10, 20, 3)


# Workflow files.


def test_values_from_the_command_line():
    flow = workflow()
    changed = with_values(
        flow, ["First.count=7", "1.shiny=off", "1.name=a=b.c", "change.strength=-2", "1.colour=red"], NODES
    )
    assert changed["1"]["inputs"] == {"count": 7, "size": 0.5, "colour": "red", "shiny": False, "name": "a=b.c"}
    assert changed["2"]["inputs"]["strength"] == -2.0
    assert flow == workflow()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1.count", "expected NODE.INPUT=VALUE"),
        ("count=3", "expected NODE.INPUT=VALUE"),
        ("1.cuont=3", "has no input 'cuont', expected one of count, size"),
        ("9.count=3", 'no node \'9\', expected an id or a title of 1 "First", 2 "Change"'),
        ("Show.words=x", "nodes 3, 4 are all called 'Show'"),
        ("1.count=3.5", "found '3.5', expected a whole number from 1 to 10"),
        ("1.shiny=perhaps", "found 'perhaps', expected true or false"),
        ("2.thing=3", "it takes a TOY_THING from another node"),
    ],
)
def test_bad_values_from_the_command_line(text, message):
    with pytest.raises(WorkflowError) as caught:
        with_values(workflow(), [text], NODES)
    assert message in str(caught.value) and repr(text) in str(caught.value)


def test_editor_files_are_turned_into_api_format():
    ui = {
        "nodes": [
            {
                "id": 1,
                "type": "Make",
                "title": "First",
                "inputs": [],
                "widgets_values": [2, 0.5, "blue", True, "x", 5, "fixed"],
            },
            {"id": 2, "type": "Change", "inputs": [{"name": "thing", "link": 1}], "widgets_values": [1.5]},
            {"id": 3, "type": "Show", "inputs": [{"name": "words", "link": 2}], "widgets_values": []},
            {"id": 4, "type": "MarkdownNote", "widgets_values": ["hello"]},
        ],
        "links": [[1, 1, 0, 2, 0, "TOY_THING"], [2, 2, 0, 3, 0, "STRING"]],
    }
    flow = ui_to_api(ui, NODES)
    assert set(flow) == {"1", "2", "3"}
    assert flow["1"]["inputs"] == {"count": 2, "size": 0.5, "colour": "blue", "shiny": True, "name": "x", "seed": 5}
    assert flow["2"]["inputs"] == {"strength": 1.5, "thing": ["1", 0]} and flow["3"]["inputs"] == {"words": ["2", 0]}
    ui["nodes"][0]["widgets_values"].append("one too many")
    with pytest.raises(WorkflowError, match=r"Node 1 \(Make\) stores 8 widget values, this version of the node has 7"):
        ui_to_api(ui, NODES)


def api(**changes):
    return {"1": {"class_type": "LoadImage", "inputs": {"image": "a.png"}, **changes},
            "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}}  # fmt: skip


def ui(*, links=([1, 1, 0, 2, 0, "IMAGE"],), second=None, **changes):
    first = {"id": 1, "type": "LoadImage", "widgets_values": ["a.png", "image"], **changes}
    second = second or {"id": 2, "type": "PreviewImage", "inputs": [{"name": "images", "link": 1}]}
    return {"nodes": [first, second], "links": list(links) if isinstance(links, tuple) else links}


def nested(levels):
    return "[" * levels + "]" * levels


MALFORMED = {
    "inputs a list": (api(inputs=["a.png"]), "Node 1: found inputs ['a.png'], expected an object"),
    "inputs a text": (api(inputs="a.png"), "Node 1: found inputs 'a.png', expected an object"),
    "class a list": (api(class_type=["LoadImage"]), "Node 1: found class_type ['LoadImage'], expected the name"),
    "class null": (api(class_type=None), "Node 1: found class_type None, expected the name"),
    "no class": ({"1": {"inputs": {}}, **{"2": api()["2"]}}, "Node 1: found class_type none, expected the name"),
    "meta a text": (api(_meta="First"), "Node 1: found _meta 'First', expected an object with a title"),
    "image a number": (api(inputs={"image": 5}), "input 'image': found 5, expected a name"),
    "image null": (api(inputs={"image": None}), "input 'image': found None, expected a name"),
    "image an object": (api(inputs={"image": {"a": 1}}), "input 'image': found {'a': 1}, expected a name"),
    "image with a null byte": (api(inputs={"image": "a\0.png"}), "cannot be a file name"),
    "image of half a character": (api(inputs={"image": "\ud800.png"}), "cannot be a file name"),
    "image of 5000 characters": (api(inputs={"image": "a" * 5000}), "does not exist"),
    "image a link to nothing": (api(inputs={"image": [[], {}]}), "expected a value or a link"),
    "unknown inputs linked anywhere": (
        api(inputs={"image": "gone.png", "more": ["9", 0], "less": ["2", "x"]}), "gone.png does not exist",
    ),
    "node a number": ({**api(), "3": 7}, "JSON, but no workflow"),
    "links as objects": (ui(links=[{"id": 1, "origin_id": 1, "origin_slot": 0}]), "Found the link {'id': 1"),
    "links an object": (ui(links={"1": [1, 1, 0, 2, 0, "IMAGE"]}), "Found links {'1': [1, 1"),
    "links too short": (ui(links=[[1, 1]]), "Found the link [1, 1], expected [id, node, output slot"),
    "link id a list": (ui(links=[[[1], 1, 0]]), "Found the link [[1], 1, 0]"),
    "dangling link": (ui(links=[]), "Node 2 (PreviewImage): input 'images' hangs on link 1, which the file"),
    "link from a node that is not there": (ui(links=[[1, 9, 0, 2, 0, "IMAGE"]]), "link to node 9, which does not exist"),
    "link of a wrong slot": (ui(links=[[1, 1, "x", 2, 0, "IMAGE"]]), "found ['1', 'x'], expected a value or a link"),
    "no type": ({"nodes": [{"id": 1}]}, "Node 1: found type none, expected the name"),
    "type a list": (ui(type=["LoadImage"]), "Node 1: found type ['LoadImage'], expected the name"),
    "no id": ({"nodes": [{"type": "LoadImage"}]}, "Entry 0 of the nodes is {'type': 'LoadImage'}, expected a node"),
    "nodes no objects": ({"nodes": [1, "a"]}, "Entry 0 of the nodes is 1, expected a node with an id"),
    "two of one id": (ui(second={"id": 1, "type": "LoadImage"}), "Two nodes of the file have the id 1"),
    "input sockets an object": (ui(inputs={"a": 1}), "Node 1 (LoadImage): found inputs {'a': 1}, expected a list"),
    "input socket without a name": (ui(inputs=[{"link": 1}]), "found the input {'link': 1}, expected one with a name"),
    "link of a socket a list": (ui(inputs=[{"name": "image", "link": [1]}]), "hangs on link [1], which the file"),
    "widget values a text": (ui(widgets_values="a.png"), "found widgets_values 'a.png', expected a list"),
    "mode a list": (ui(mode=[4], widgets_values=["gone.png", "image"]), "gone.png does not exist"),
    "nested deeply": ('{"1": ' + nested(100_000) + "}", "nested deeper than 100 levels"),
    "nested rather deeply": ('{"1": {"class_type": "LoadImage", "inputs": {"image": ' + nested(500) + "}}}", "nested"),
    "null": ("null", "JSON, but no workflow"),
}  # fmt: skip


@pytest.mark.parametrize("name", MALFORMED)
@pytest.mark.parametrize("assignments", [[], ["--set", "Load Image.image=a.png"]])
def test_malformed_workflows_end_in_one_clear_error(tmp_path, capsys, monkeypatch, name, assignments):
    content, message = MALFORMED[name]
    (tmp_path / "flow.json").write_text(content if isinstance(content, str) else json.dumps(content))
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    code = cli.main(["run", "flow.json", "--output", "out", *assignments])
    printed = capsys.readouterr()
    if assignments and code == 0:
        return  # the new value took the place of the wrong one
    assert code == 2 and not printed.out and len(printed.err.splitlines()) == 1
    assert printed.err.startswith("gan-inversion: error: ") and "unexpected" not in printed.err
    if not assignments:
        assert message in printed.err


def test_malformed_workflows_are_refused_without_a_file_too(runner):
    for bad in (api(class_type=[]), api(inputs=[]), {**api(), "3": None}):
        with pytest.raises(WorkflowError, match="Node [13]: found"):
            runner.run(bad)
        with pytest.raises(WorkflowError, match="Node [13]: found"):
            with_values(bad, ["1.image=b.png"])
    changed = with_values(api(inputs=None), ["1.image=b.png"])
    assert changed["1"]["inputs"] == {"image": "b.png"}


def test_names_of_saved_pictures_hold_the_date(runner, monkeypatch):
    monkeypatch.setattr(io.time, "localtime", lambda: time.struct_time((2031, 2, 3, 4, 5, 6, 0, 34, 0)))
    Image.new("RGB", (8, 6)).save(runner.input_dir / "a.png")
    prefix = "%year%/x/../%month%%day%_%hour%%minute%%second%_%width%x%height%"
    result = runner.run(picture_workflow(prefix=prefix))
    assert result.images == (runner.output_dir / "2031/0203_040506_8x6_00001_.png",) and result.images[0].is_file()


def test_unreadable_workflows(tmp_path):
    with pytest.raises(ModelNotFoundError, match="no such workflow file"):
        read_workflow(tmp_path / "no.json")
    for text in ("{", "[1, 2]", "{}", '{"a": 1}'):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(CorruptFileError, match=r"bad\.json"):
            read_workflow(tmp_path / "bad.json")
    (tmp_path / "good.json").write_text(json.dumps(workflow()))
    assert read_workflow(tmp_path / "good.json") == workflow()
