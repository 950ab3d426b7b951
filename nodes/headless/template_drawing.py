"""Draws workflow templates: one compact description each, written as an editor file and as its API twin."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from . import schemas
from .workflow_files import Workflow

REGISTRY_NAME = "gan-inversion"  # [project] name: saved workflows name the pack by it

_COLUMN, _WIDTH, _GAP = 400, 330, 70  # pixels on the editor's canvas
_TITLE_BAR, _SOCKET_ROW, _WIDGET_ROW, _TEXT_BOX, _PICTURE, _PLAYER = 30, 22, 26, 110, 220, 330
_MARGIN = 8
_GROUP_MARGIN, _GROUP_TITLE = 20, 50
_GROUP_COLOURS = ("#3f789e", "#3f7e5a", "#8a6d3b", "#7a4f8a", "#8a4f4f")
_OWN_PREFIX = "GANInversion"
_OPTIONAL = 7  # the hollow circle of an optional socket
_TEXT_SHOWN, _NOTE_LINE, _NOTE_CHARACTERS = 130, 12, 60
_SHOWS_PICTURES = {
    *("LoadImage", "SaveImage", "PreviewImage"),
    # While they run, and the editor leaves the last one there.
    *(f"GANInversion{name}" for name in ("DHRRefine", "MultilayerInvert", "Project", "SAMMAlign", "TuneGenerator")),
}
_SHOWS_VIDEOS = {"LoadVideo", "SaveVideo"}
_HAS_BUTTON = {"LoadImage", "LoadVideo"}  # for choosing a file; the editor adds it

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
class Shown:
    """One picture of a thumbnail."""

    node: int
    caption: str = ""
    slot: int | None = None  # the node's output it comes from; None: what an output node shows first
    index: int = 0  # in a batch
    part: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)  # left, top, right, bottom of what is cut out


@dataclass(frozen=True)
class Template:
    """A workflow to start from."""

    name: str
    note: str  # Markdown
    steps: Mapping[int, Step]
    groups: Sequence[Group]
    thumbnail: Sequence[Shown] = ()  # empty: see `thumbnails`
    columns: int = 0  # of the thumbnail; 0: all in one row


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
            **({"widget": {"name": name}} if schemas.is_widget(socket) else {}),
        }
        for name, socket in sockets.items()
        if not schemas.is_widget(socket) or name in step.links
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
    height = _MARGIN + _SOCKET_ROW * max(bare, len(schemas.outputs_of(cls)))
    for socket in sockets:
        if schemas.is_widget(socket):
            tall = getattr(socket, "multiline", False)
            height += _TEXT_BOX if tall else _WIDGET_ROW * (1 + len(schemas.widget_slots(socket)))
    if step.kind == "PreviewAny":
        height += _TEXT_SHOWN
    if step.kind in _HAS_BUTTON:
        height += _WIDGET_ROW
    if step.kind in _SHOWS_VIDEOS:
        return height + _PLAYER
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
