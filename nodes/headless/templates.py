"""Draws workflow templates: one compact description each, written as an editor file and as its API twin.

`python -m gan_inversion.nodes.headless.templates` writes every template into workflows/ and workflows/api/.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import schemas
from .workflow_files import Workflow

WORKFLOWS = Path(__file__).resolve().parents[2] / "workflows"
REGISTRY_NAME = "gan-inversion"  # [project] name: saved workflows name the pack by it

_COLUMN, _WIDTH, _GAP = 400, 330, 70  # pixels on the editor's canvas
_TITLE_BAR, _SOCKET_ROW, _WIDGET_ROW, _TEXT_BOX, _PICTURE = 30, 22, 26, 110, 260
_GROUP_MARGIN, _GROUP_TITLE = 20, 50
_GROUP_COLOURS = ("#3f789e", "#3f7e5a", "#8a6d3b", "#7a4f8a", "#8a4f4f")
_OWN_PREFIX = "GANInversion"
_OPTIONAL = 7  # the hollow circle of an optional socket
_TEXT_SHOWN, _NOTE_LINE, _NOTE_CHARACTERS = 130, 19, 56
_SHOWS_PICTURES = {"LoadImage", "SaveImage", "PreviewImage"}

Link = tuple[int, int]  # (node id, output slot)


@dataclass(frozen=True)
class Step:
    """One node: its class, the column it stands in, and what differs from a fresh node."""

    kind: str
    column: int
    values: Mapping[str, Any] = field(default_factory=dict)
    links: Mapping[str, Link] = field(default_factory=dict)
    title: str | None = None


@dataclass(frozen=True)
class Group:
    """A coloured box around nodes that belong together."""

    title: str
    members: Sequence[int]


@dataclass(frozen=True)
class Template:
    """A workflow to start from."""

    name: str
    note: str  # Markdown
    steps: Mapping[int, Step]
    groups: Sequence[Group]
    thumbnail: Sequence[int] = ()  # nodes whose pictures it shows side by side; empty: see `thumbnails`


def to_api(template: Template) -> Workflow:
    """The template in API format, every widget spelled out."""
    nodes = schemas.known_nodes()
    workflow: Workflow = {}
    for node_id, step in template.steps.items():
        sockets = schemas.inputs_of(nodes[step.kind])
        _check_names(template, node_id, step, sockets)
        inputs: dict[str, Any] = {}
        for name, socket in sockets.items():
            if name in step.links:
                inputs[name] = [str(step.links[name][0]), step.links[name][1]]
            elif schemas.is_widget(socket):
                inputs[name] = step.values.get(name, schemas.default_of(socket))
        workflow[str(node_id)] = {"class_type": step.kind, "inputs": inputs, "_meta": {"title": _title(step)}}
    return workflow


def to_ui(template: Template) -> dict[str, Any]:
    """The template as the editor saves it."""
    boxes = _layout(template)
    links: list[list[Any]] = []
    drawn: dict[int, dict[str, Any]] = {}
    for order, (node_id, step) in enumerate(template.steps.items()):
        drawn[node_id] = _drawn_node(node_id, step, boxes[node_id], order)
    for node_id, step in template.steps.items():
        for name, (source, slot) in step.links.items():
            target = next(i for i, socket in enumerate(drawn[node_id]["inputs"]) if socket["name"] == name)
            output = drawn[source]["outputs"][slot]
            links.append([len(links) + 1, source, slot, node_id, target, output["type"]])
            drawn[node_id]["inputs"][target]["link"] = links[-1][0]
            output["links"] = [*(output["links"] or []), links[-1][0]]
    note_id = max(template.steps) + 1
    return {
        "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"{REGISTRY_NAME}/{template.name}")),
        "revision": 0,
        "last_node_id": note_id,
        "last_link_id": len(links),
        "nodes": [*drawn.values(), _drawn_note(note_id, template, boxes)],
        "links": links,
        "groups": [_drawn_group(i, group, boxes) for i, group in enumerate(template.groups)],
        "config": {},
        "extra": {},
        "version": 0.4,
    }


def write_all(folder: Path = WORKFLOWS) -> list[Path]:
    """Writes every template in both formats and returns the paths."""
    written = []
    for template in TEMPLATES:
        for path, data in (
            (folder / f"{template.name}.json", to_ui(template)),
            (folder / "api" / f"{template.name}.json", to_api(template)),
        ):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
            written.append(path)
    return written


def _check_names(template: Template, node_id: int, step: Step, sockets: Mapping[str, Any]) -> None:
    unknown = (step.values.keys() | step.links.keys()) - sockets.keys()
    if unknown:
        raise KeyError(f"template {template.name}, node {node_id} ({step.kind}): no input {sorted(unknown)}")


def _title(step: Step) -> str:
    return step.title or schemas.schema_of(schemas.known_nodes()[step.kind]).display_name


def _drawn_node(node_id: int, step: Step, box: tuple[int, int, int, int], order: int) -> dict[str, Any]:
    cls = schemas.known_nodes()[step.kind]
    sockets = schemas.inputs_of(cls)
    # Widgets have sockets too, but the editor writes those down only when something is linked to them.
    inputs: list[dict[str, Any]] = [
        {
            "name": name,
            "type": schemas.type_of(socket),
            "link": None,
            **({"shape": _OPTIONAL} if socket.optional else {}),
        }
        for name, socket in sockets.items()
        if not schemas.is_widget(socket)
    ]
    values: list[Any] = []
    for name, socket in sockets.items():
        if schemas.is_widget(socket):
            values += [step.values.get(name, schemas.default_of(socket)), *schemas.widget_slots(socket)]
    pack = {"cnr_id": REGISTRY_NAME if step.kind.startswith(_OWN_PREFIX) else "comfy-core"}
    node = {
        "id": node_id,
        "type": step.kind,
        "pos": [box[0], box[1]],
        "size": [box[2], box[3]],
        "flags": {},
        "order": order,
        "mode": 0,
        "inputs": inputs,
        "outputs": [
            {"name": output.display_name or schemas.type_of(output), "type": schemas.type_of(output), "links": None}
            for output in schemas.outputs_of(cls)
        ],
        "properties": {**pack, "Node name for S&R": step.kind},
        "widgets_values": values,
    }
    if step.title:
        node["title"] = step.title
    return node


def _layout(template: Template) -> dict[int, tuple[int, int, int, int]]:
    """Node id -> (x, y, width, height): columns from left to right, each filled from the top."""
    boxes: dict[int, tuple[int, int, int, int]] = {}
    below: dict[int, int] = {}
    for node_id, step in template.steps.items():
        height = _height(step)
        y = below.get(step.column, 0)
        boxes[node_id] = (step.column * _COLUMN, y, _WIDTH, height)
        below[step.column] = y + height + _GAP
    return boxes


def _height(step: Step) -> int:
    cls = schemas.known_nodes()[step.kind]
    sockets = schemas.inputs_of(cls).values()
    bare = sum(not schemas.is_widget(socket) for socket in sockets)
    height = _TITLE_BAR + _SOCKET_ROW * max(bare, len(schemas.outputs_of(cls)))
    for socket in sockets:
        if schemas.is_widget(socket):
            tall = getattr(socket, "multiline", False)
            height += _TEXT_BOX if tall else _WIDGET_ROW * (1 + len(schemas.widget_slots(socket)))
    if step.kind == "PreviewAny":
        height += _TEXT_SHOWN
    return height + (_PICTURE if step.kind in _SHOWS_PICTURES else 0)


def _drawn_note(note_id: int, template: Template, boxes: Mapping[int, tuple[int, int, int, int]]) -> dict[str, Any]:
    lines = sum(1 + len(line) // _NOTE_CHARACTERS for line in template.note.splitlines())
    top = min(y for _, y, _, _ in boxes.values())
    left = min(x for x, _, _, _ in boxes.values())
    return {
        "id": note_id,
        "type": "MarkdownNote",
        "pos": [left - _COLUMN - 40, top],
        "size": [_WIDTH + 40, 60 + _NOTE_LINE * lines],
        "flags": {},
        "order": len(boxes),
        "mode": 0,
        "inputs": [],
        "outputs": [],
        "title": "About this workflow",
        "properties": {},
        "widgets_values": [template.note],
        "color": "#432",
        "bgcolor": "#653",
    }


def _drawn_group(index: int, group: Group, boxes: Mapping[int, tuple[int, int, int, int]]) -> dict[str, Any]:
    members = [boxes[node_id] for node_id in group.members]
    left, top = min(x for x, _, _, _ in members), min(y for _, y, _, _ in members)
    right = max(x + width for x, _, width, _ in members)
    bottom = max(y + height for _, y, _, height in members)
    # A node's position is the corner below its title bar.
    above = _TITLE_BAR + _GROUP_TITLE
    return {
        "id": index + 1,
        "title": group.title,
        "bounding": [
            left - _GROUP_MARGIN, top - above,
            right - left + 2 * _GROUP_MARGIN, bottom - top + above + _GROUP_MARGIN,
        ],
        "color": _GROUP_COLOURS[index % len(_GROUP_COLOURS)],
        "font_size": 24,
        "flags": {},
    }  # fmt: skip


_EDIT_NOTE = """\
## Edit a portrait

A photograph goes in, the edited photograph comes out at its own size.

1. **Load Image**: choose a photograph that shows a face from the front.
2. Press Run.
3. Move **strength** in *Apply Direction* and run again: only what follows the slider runs, neither the face
   detector nor the encoder.

The three models are small and come with the pack, so nothing is downloaded. For faces of other people and of higher
quality choose an FFHQ generator, a matching encoder and one of its directions in the three loaders.

*Paste Back* adds only what the edit changed, so the photograph keeps its own detail. Disconnect its *unedited* input to
paste the generator's pixels themselves."""

_SWEEP_NOTE = """\
## Direction sweep

One photograph at several strengths of a direction: the way to see what a direction does and how far it can go.

1. **Load Image**: choose a photograph that shows a face from the front.
2. Press Run: *grid* is one labelled picture, *frames* are the single pictures, in order, for an animation.

The encoder runs once. Connect a second direction to *second_direction* for a two-dimensional grid."""

_DHR_NOTE = """\
## Keep what the generator cannot draw

An inversion is the photograph as the generator can draw it: hair, clothes and background become others. *DHR Refine* brings
them back, so that the edit happens on the person who was photographed.

1. **Load Image**: choose a photograph that shows a face from the front.
2. Press Run. The refinement takes a quarter of a minute on a CPU with the models that come with the pack.
3. Compare the two edits on the right: *Plain edit* is made without refinement, *Refined edit* with it.
4. Move **strength** and run again: DHR does not run again.

What to look at: *Where it cannot draw* tints that part red, *Mask* is the same part in white. An edit changes nothing there,
so a box over mouth and cheeks, which lie at the same place in every aligned photograph, is subtracted (**merge**). For an edit
that moves other parts move the box, or paint a mask: save *Aligned photograph*, open it in a second *Load Image*, paint in
its mask editor, and connect its mask. A higher **threshold** makes the red part smaller.

For more likeness raise **steps**; with an FFHQ generator use a GPU. *bisenet-face-parsing* as **face_parser** knows the
parts of a face and finds better masks (53 MB, non-commercial)."""

_PTI_STEPS, _NEAR_PERFECT_STEPS = 150, 100  # a fraction of the usual ones: templates must run on a slow CPU

_PTI_NOTE = f"""\
## Teach the generator a photograph (PTI)

*Tune Generator* changes the generator's weights, for this photograph alone, until it draws it from the code that the encoder
found. The code stays where edits work.

1. **Load Image**: choose a photograph that shows a face from the front.
2. Press Run. The tuning takes half a minute on a CPU with the models that come with the pack.
3. Compare the two edits on the right: *Plain edit* is made without tuning, *Tuned edit* with it.
4. Move **strength** and run again: the tuning does not run again.

What to look at: whether it is the same person in *Tuned inversion*, and whether the smile is as good as in *Plain edit*.
Tuning stops here after {_PTI_STEPS} steps; the method's usual 350 come closer. If edits look broken, lower **steps** or switch
**locality** on."""

_NEAR_PERFECT_NOTE = f"""\
## Teach the generator a photograph (near-perfect inversion)

Like PTI, but the generator is tuned against its discriminator, which looks at the photograph and at random faces in turn:
that keeps the tuned generator a generator of faces.

1. **Load Image**: choose a photograph that shows a face from the front.
2. Press Run. The tuning takes up to a minute on a CPU with the models that come with the pack.
3. Compare the two edits on the right: *Plain edit* is made without tuning, *Tuned edit* with it.
4. Move **strength** and run again: the tuning does not run again.

What to look at: whether it is the same person in *Tuned inversion*, down to clothes and background, and whether eyes and
teeth of *Tuned edit* are as clean as in *Plain edit*. Tuning stops here after {_NEAR_PERFECT_STEPS} steps, while hair is still
soft; 300 come closer.

The method needs the generator's own discriminator: it comes with the pack for the bundled generator, and NVIDIA's .pkl files
hold it."""

_CANNOT_NOTE = """\
## What can the generator not draw?

Three answers side by side, each of which is a mask that other nodes take.

1. **Load Image**: choose a photograph that shows a face from the front, best with a hat, a hand or glasses.
2. Press Run. With the models that come with the pack it takes under a minute on a CPU.

- *SAM* predicts how well each part can be inverted in each latent space. Blue parts can be edited (W+), the others need
  features and stay more like the photograph the warmer their colour is. A lower **tau** keeps more.
- *SAMM* compares the generator's features with the photograph's. Red parts stay pixels of the photograph.
- *DHR* compares the photograph with a coarse inversion, superpixel by superpixel.

What to look at: they agree on what is foreign (a hat) and differ on hair and clothes. Any of the masks can be painted over:
save *Aligned photograph*, paint on it in a second *Load Image*, and connect its mask to **mask**; **merge** says what it does."""

_SAMM_NOTE = """\
## Edit behind a hat or a hand (SAMM and Blend)

*SAMM Align* finds what the generator cannot draw, keeps it as pixels of the photograph, and moves the generator's features
so that both fit together.

1. **Load Image**: choose a photograph that shows a face from the front.
2. Press Run.
3. Compare the two edits on the right: *Plain edit* is made without alignment, *Aligned edit* with it.
4. Move **strength** and run again: SAMM does not run again.

What to look at: red parts of *Mask and shifts* are kept; arrows show where features move. *Blend* sets the edited face into the
aligned photograph at the photograph's own sharpness, with the same mask: feather and grow it there, or merge a painted one.

If an edited picture shows ghosts of the photograph, raise **mask_threshold**. The network that comes with the pack belongs to
the bundled generator; for others (FFHQ) **method** *automatic* finds masks and shifts for each photograph, without a network."""

_MULTILAYER_NOTE = """\
## Each region in its own latent space (SAM)

*Predict Invertibility* finds where the codes suffice (W+). *Multilayer Invert* draws the other regions by features at the
layer that each of them needs; an edit acts on a region only behind its layer.

1. **Load Image**: choose a photograph that shows a face from the front.
2. Press Run. The inversion takes a quarter of a minute on a CPU with the models that come with the pack.
3. Compare the two edits on the right: *Plain edit* is made from the encoder's code alone, *Multilayer edit* with features.
4. Move **strength** and run again: neither the prediction nor the inversion runs again.

What to look at: hair, clothes and background come back in *Multilayer edit*, and the smile is in both. A lower **tau** gives
more of the picture to features: nearer to the photograph, less to edit. **method** *encoder (one pass)* takes no time and is
softer; *optimise* with more **steps** comes closer."""

_LOADERS = {
    1: Step("LoadImage", 0, {"image": "portrait.png"}),
    2: Step("GANInversionLoadStyleGAN", 0, {"model": "portraits"}),
    3: Step("GANInversionLoadEncoder", 0, {"model": "portraits-e4e"}),
    4: Step("GANInversionAlignFace", 1, links={"image": (1, 0), "generator": (2, 0)}),
    5: Step("PreviewAny", 1, links={"source": (4, 3)}, title="Face report"),
    6: Step(
        "GANInversionEncode", 2, links={"image": (4, 0), "encoder": (3, 0), "generator": (2, 0), "crop": (4, 1)}
    ),
    7: Step("GANInversionLoadDirection", 3, {"direction": "portraits-smile"}),
}  # fmt: skip

_REFINED = {
    **_LOADERS,
    7: Step("GANInversionLoadDirection", 5, {"direction": "portraits-smile"}),
    8: Step("PreviewImage", 2, links={"images": (4, 0)}, title="Aligned photograph"),
}
_REFINED_GROUPS = (Group("Photograph and models", (1, 2, 3)), Group("Find the face and invert it", (4, 5, 6, 8)))
_STRENGTH = 1.0


def _compared(refined: Link, word: str, *, prefix: str, first: int) -> dict[int, Step]:
    """The same edit of the plain and of the refined inversion, from node `first` on: sliders, renders, pictures."""
    slider, render, picture = first, first + 2, first + 4
    return {
        slider: Step(
            "GANInversionApplyDirection", 5, {"strength": _STRENGTH}, {"inversion": (6, 0), "direction": (7, 0)},
            title="Edit the plain inversion",
        ),
        slider + 1: Step(
            "GANInversionApplyDirection", 5, {"strength": _STRENGTH}, {"inversion": refined, "direction": (7, 0)},
            title=f"Edit the {word.lower()} inversion",
        ),
        render: Step("GANInversionRender", 6, links={"inversion": (slider, 0)}),
        render + 1: Step("GANInversionRender", 6, links={"inversion": (slider + 1, 0)}),
        picture: Step("PreviewImage", 7, links={"images": (render, 0)}, title="Plain edit"),
        picture + 1: Step(
            "SaveImage", 7, {"filename_prefix": prefix}, {"images": (render + 1, 0)}, title=f"{word} edit"
        ),
    }  # fmt: skip


def _tuning(name: str, note: str, values: Mapping[str, Any]) -> Template:
    return Template(
        name=name,
        note=note,
        steps={
            **_REFINED,
            9: Step("GANInversionTuneGenerator", 3, values, {"inversion": (6, 0)}),
            10: Step("PreviewAny", 3, links={"source": (9, 2)}, title="Tuning report"),
            11: Step("PreviewImage", 4, links={"images": (6, 1)}, title="Plain inversion"),
            12: Step("PreviewImage", 4, links={"images": (9, 1)}, title="Tuned inversion"),
            **_compared((9, 0), "Tuned", prefix=name, first=13),
        },
        groups=(
            *_REFINED_GROUPS,
            Group("Tune", (9, 10, 11, 12)),
            Group("Edit: move both sliders", (7, 13, 14)),
            Group("Draw both", (15, 16)),
            Group("Compare", (17, 18)),
        ),
        thumbnail=(8, 17, 12, 18),
    )


TEMPLATES = (
    Template(
        name="edit_portrait",
        note=_EDIT_NOTE,
        steps={
            **_LOADERS,
            8: Step("GANInversionApplyDirection", 3, {"strength": 1.0}, {"inversion": (6, 0), "direction": (7, 0)}),
            9: Step("GANInversionRender", 4, links={"inversion": (8, 0)}),
            10: Step(
                "GANInversionPasteBack", 4, {"region": "face"},
                links={"photo": (1, 0), "edited": (9, 0), "crop": (4, 1), "unedited": (9, 1)},
            ),
            11: Step("SaveImage", 5, {"filename_prefix": "edit_portrait"}, {"images": (10, 0)}),
            12: Step("PreviewImage", 5, links={"images": (9, 0)}, title="Edited crop"),
        },
        groups=(
            Group("Photograph and models", (1, 2, 3)),
            Group("Find the face and invert it", (4, 5, 6)),
            Group("Edit: move the slider", (7, 8)),
            Group("Draw and paste back", (9, 10, 11, 12)),
        ),
    ),
    Template(
        name="direction_sweep",
        note=_SWEEP_NOTE,
        steps={
            **_LOADERS,
            8: Step("GANInversionDirectionSweep", 3, {"steps": 5}, {"inversion": (6, 0), "direction": (7, 0)}),
            9: Step("SaveImage", 4, {"filename_prefix": "direction_sweep"}, {"images": (8, 0)}, title="Save the grid"),
            10: Step("PreviewImage", 4, links={"images": (8, 1)}, title="Single frames"),
        },
        groups=(
            Group("Photograph and models", (1, 2, 3)),
            Group("Find the face and invert it", (4, 5, 6)),
            Group("Sweep", (7, 8)),
            Group("Results", (9, 10)),
        ),
    ),
    Template(
        name="dhr_refine",
        note=_DHR_NOTE,
        steps={
            **_REFINED,
            20: Step("SolidMask", 3, {"value": 0.0, "width": 128, "height": 128}, title="The aligned photograph"),
            21: Step("SolidMask", 3, {"value": 1.0, "width": 56, "height": 58}, title="What a smile moves"),
            22: Step(
                "MaskComposite", 3, {"x": 36, "y": 56, "operation": "add"}, {"destination": (20, 0), "source": (21, 0)},
                title="Mouth and cheeks",
            ),
            9: Step("GANInversionDHRRefine", 3, {"merge": "subtract"}, {"inversion": (6, 0), "mask": (22, 0)}),
            10: Step("PreviewAny", 3, links={"source": (9, 4)}, title="Refinement report"),
            11: Step("PreviewImage", 4, links={"images": (9, 3)}, title="Where it cannot draw"),
            12: Step("MaskToImage", 4, links={"mask": (9, 2)}),
            13: Step("PreviewImage", 4, links={"images": (12, 0)}, title="Mask"),
            **_compared((9, 0), "Refined", prefix="dhr_refine", first=14),
        },
        groups=(
            *_REFINED_GROUPS,
            Group("Refine", (9, 10, 11, 12, 13, 20, 21, 22)),
            Group("Edit: move both sliders", (7, 14, 15)),
            Group("Draw both", (16, 17)),
            Group("Compare", (18, 19)),
        ),
        thumbnail=(8, 18, 19, 11),
    ),
    Template(
        name="what_it_cannot_draw",
        note=_CANNOT_NOTE,
        steps={
            **{k: step for k, step in _LOADERS.items() if k != 7},
            8: Step("PreviewImage", 2, links={"images": (4, 0)}, title="Aligned photograph"),
            9: Step("PreviewImage", 2, links={"images": (6, 1)}, title="Plain inversion"),
            10: Step("GANInversionPredictInvertibility", 3, links={"inversion": (6, 0)}),
            11: Step("GANInversionSAMMAlign", 3, links={"inversion": (6, 0)}),
            12: Step("GANInversionDHRRefine", 3, {"steps": 10}, {"inversion": (6, 0)}),
            13: Step("PreviewImage", 4, links={"images": (10, 3)}, title="SAM: latent spaces"),
            14: Step("PreviewImage", 4, links={"images": (11, 4)}, title="SAMM: mask and shifts"),
            15: Step("PreviewImage", 4, links={"images": (12, 3)}, title="DHR: mask"),
            16: Step("PreviewAny", 5, links={"source": (10, 4)}, title="SAM: report"),
            17: Step("PreviewAny", 5, links={"source": (11, 5)}, title="SAMM: report"),
            18: Step("PreviewAny", 5, links={"source": (12, 4)}, title="DHR: report"),
            19: Step("MaskToImage", 6, links={"mask": (10, 1)}),
            20: Step("MaskToImage", 6, links={"mask": (11, 2)}),
            21: Step("MaskToImage", 6, links={"mask": (12, 2)}),
            22: Step("SaveImage", 7, {"filename_prefix": "mask_sam"}, {"images": (19, 0)}, title="Mask of SAM"),
            23: Step("SaveImage", 7, {"filename_prefix": "mask_samm"}, {"images": (20, 0)}, title="Mask of SAMM"),
            24: Step("SaveImage", 7, {"filename_prefix": "mask_dhr"}, {"images": (21, 0)}, title="Mask of DHR"),
        },
        groups=(
            Group("Photograph and models", (1, 2, 3)),
            Group("Find the face and invert it", (4, 5, 6, 8, 9)),
            Group("Three methods", (10, 11, 12)),
            Group("What they find", (13, 14, 15, 16, 17, 18)),
            Group("Masks", (19, 20, 21, 22, 23, 24)),
        ),
        thumbnail=(8, 13, 14, 15),
    ),
    Template(
        name="samm_blend",
        note=_SAMM_NOTE,
        steps={
            **_REFINED,
            9: Step("GANInversionSAMMAlign", 3, links={"inversion": (6, 0)}),
            10: Step("PreviewAny", 3, links={"source": (9, 5)}, title="Alignment report"),
            11: Step("PreviewImage", 4, links={"images": (9, 4)}, title="Mask and shifts"),
            12: Step("PreviewImage", 4, links={"images": (9, 1)}, title="Aligned inversion"),
            **_compared((9, 0), "Aligned", prefix="samm_blend", first=13),
            19: Step(
                "GANInversionBlend", 7, {"mode": "source inside mask"},
                {"source": (4, 0), "image": (16, 0), "mask": (9, 2)},
            ),
            20: Step("PreviewImage", 8, links={"images": (19, 0)}, title="Blended into the photograph"),
        },
        groups=(
            *_REFINED_GROUPS,
            Group("Align", (9, 10, 11, 12)),
            Group("Edit: move both sliders", (7, 13, 14)),
            Group("Draw both", (15, 16)),
            Group("Compare and blend", (17, 18, 19, 20)),
        ),
        thumbnail=(8, 17, 18, 11),
    ),
    Template(
        name="multilayer_invert",
        note=_MULTILAYER_NOTE,
        steps={
            **_REFINED,
            9: Step("GANInversionPredictInvertibility", 3, links={"inversion": (6, 0)}),
            10: Step("GANInversionMultilayerInvert", 3, {"steps": 100}, {"inversion": (6, 0), "latent_map": (9, 0)}),
            11: Step("PreviewImage", 4, links={"images": (9, 3)}, title="Latent spaces"),
            12: Step("PreviewImage", 4, links={"images": (10, 1)}, title="Multilayer inversion"),
            19: Step("PreviewAny", 4, links={"source": (10, 2)}, title="Inversion report"),
            **_compared((10, 0), "Multilayer", prefix="multilayer_invert", first=13),
        },
        groups=(
            *_REFINED_GROUPS,
            Group("Predict and invert", (9, 10, 11, 12, 19)),
            Group("Edit: move both sliders", (7, 13, 14)),
            Group("Draw both", (15, 16)),
            Group("Compare", (17, 18)),
        ),
        thumbnail=(8, 11, 17, 18),
    ),
    _tuning("tune_pti", _PTI_NOTE, {"steps": _PTI_STEPS}),
    _tuning("tune_near_perfect", _NEAR_PERFECT_NOTE, {"method": "near-perfect", "steps": _NEAR_PERFECT_STEPS}),
)  # fmt: skip


if __name__ == "__main__":
    write_all()
