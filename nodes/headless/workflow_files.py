"""Workflow files: reading them, changing single inputs, and turning the editor's format into the API format.

API format: {node id: {"class_type", "inputs": {name: value or [node id, output slot]}, "_meta": {"title"}}}.
UI format (what the editor saves): nodes with positions, links as rows, widget values by position.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...core.errors import CorruptFileError, GANInversionError, ModelNotFoundError
from . import schemas

Workflow = dict[str, dict[str, Any]]

_NOT_RUN = {"Note", "MarkdownNote"}  # nodes that exist in the editor only
_MUTED_MODES = {2, 4}  # never, bypass


class WorkflowError(GANInversionError):
    """A workflow cannot run as it is; `problems` holds every reason found, the message the first."""

    def __init__(self, message: str, problems: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.problems = problems or (message,)


def read_workflow(path: str | Path, nodes: Mapping[str, schemas.NodeClass] | None = None) -> Workflow:
    """Reads a workflow of either format and returns it in API format.

    Raises:
        ModelNotFoundError: no such file. CorruptFileError: not JSON, or JSON that is no workflow.
        WorkflowError: an editor's file that cannot be expressed in API format.
    """
    path = Path(path)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelNotFoundError(f"{path}: no such workflow file.") from None
    except (OSError, ValueError) as error:
        raise CorruptFileError(f"{path}: not a readable workflow ({error}). Expected a JSON file.") from error
    if isinstance(data, dict) and isinstance(data.get("nodes"), list):
        return ui_to_api(data, nodes)
    if isinstance(data, dict) and isinstance(data.get("prompt"), dict):
        data = data["prompt"]
    if not isinstance(data, dict) or not data or not all(isinstance(item, dict) for item in data.values()):
        raise CorruptFileError(
            f"{path}: JSON, but no workflow. Expected the API format (in ComfyUI: Workflow, Export (API)) "
            "or a workflow saved by the editor."
        )
    return data


def ui_to_api(ui: Mapping[str, Any], nodes: Mapping[str, schemas.NodeClass] | None = None) -> Workflow:
    """Turns the editor's format into the API format.

    Raises WorkflowError where a node is unknown, muted or bypassed, or its widget values do not fit its schema.
    """
    nodes = schemas.known_nodes() if nodes is None else nodes
    links = {link[0]: link for link in ui.get("links", ())}
    workflow: Workflow = {}
    for node in ui["nodes"]:
        kind, node_id = node["type"], str(node["id"])
        if kind in _NOT_RUN:
            continue
        if node.get("mode", 0) in _MUTED_MODES:
            raise WorkflowError(f"Node {node_id} ({kind}) is muted or bypassed: export the workflow in API format.")
        if kind not in nodes:
            raise WorkflowError(unknown_node(node_id, kind, nodes))
        sockets = schemas.inputs_of(nodes[kind])
        linked = {s["name"]: links[s["link"]] for s in node.get("inputs", ()) if s.get("link") is not None}
        inputs = _widget_values(node, sockets)
        inputs.update({name: [str(link[1]), link[2]] for name, link in linked.items()})
        title = node.get("title") or schemas.schema_of(nodes[kind]).display_name or kind
        workflow[node_id] = {"class_type": kind, "inputs": inputs, "_meta": {"title": title}}
    return workflow


def _widget_values(node: Mapping[str, Any], sockets: Mapping[str, Any]) -> dict[str, Any]:
    stored = node.get("widgets_values") or []
    if isinstance(stored, dict):
        return {name: stored[name] for name, socket in sockets.items() if schemas.is_widget(socket) and name in stored}
    values, position = {}, 0
    for name, socket in sockets.items():
        if schemas.is_widget(socket) and position < len(stored):
            values[name] = stored[position]
            position += 1 + len(schemas.widget_slots(socket))
    if position != len(stored):
        raise WorkflowError(
            f"Node {node['id']} ({node['type']}) stores {len(stored)} widget values, this version of the node has "
            f"{position}: open the workflow in ComfyUI, check the node and save it again."
        )
    return values


def label(workflow: Workflow, node_id: str, nodes: Mapping[str, schemas.NodeClass] | None = None) -> str:
    """A node in words: id, title, class."""
    return f'Node {node_id} "{title_of(workflow, node_id, nodes)}" ({workflow[node_id].get("class_type")})'


def title_of(workflow: Workflow, node_id: str, nodes: Mapping[str, schemas.NodeClass] | None = None) -> str:
    """The title given in the workflow, else the node's display name, else its class."""
    node = workflow[node_id]
    title = (node.get("_meta") or {}).get("title")
    if not title:
        cls = (schemas.known_nodes() if nodes is None else nodes).get(node.get("class_type", ""))
        title = schemas.schema_of(cls).display_name if cls is not None else None
    return str(title or node.get("class_type"))


def unknown_node(node_id: str, kind: Any, nodes: Mapping[str, schemas.NodeClass]) -> str:
    """Message about a node this package does not have."""
    import difflib

    near = difflib.get_close_matches(str(kind), nodes, n=3, cutoff=0.6)
    hint = f"Did you mean {' or '.join(near)}?" if near else "Only this package's nodes and a few core nodes run here."
    return f"Node {node_id}: found class {kind!r}, expected a known node. {hint}"


def with_values(
    workflow: Workflow, assignments: list[str], nodes: Mapping[str, schemas.NodeClass] | None = None
) -> Workflow:
    """A copy of the workflow with inputs changed as `NODE.INPUT=VALUE` texts say; NODE is an id or a title.

    Raises WorkflowError naming the text that does not fit, and the choices.
    """
    nodes = schemas.known_nodes() if nodes is None else nodes
    workflow = copy.deepcopy(workflow)
    for text in assignments:
        place, equals, value = text.partition("=")
        wanted, dot, name = place.rpartition(".")
        if not equals or not dot or not wanted or not name:
            raise WorkflowError(f"--set {text!r}: expected NODE.INPUT=VALUE, for example 4.strength=1.5")
        node_id = _find(workflow, wanted, text, nodes)
        kind = workflow[node_id]["class_type"]
        if kind not in nodes:
            raise WorkflowError(unknown_node(node_id, kind, nodes))
        sockets = schemas.inputs_of(nodes[kind])
        if name not in sockets:
            raise WorkflowError(
                f"--set {text!r}: {label(workflow, node_id, nodes)} has no input {name!r}, expected one of "
                f"{', '.join(sockets) or 'none'}."
            )
        try:
            workflow[node_id].setdefault("inputs", {})[name] = schemas.parse(sockets[name], value)
        except ValueError as error:
            raise WorkflowError(
                f"--set {text!r}: {label(workflow, node_id, nodes)}, input {name!r}: {error}."
            ) from None
    return workflow


def _find(workflow: Workflow, wanted: str, text: str, nodes: Mapping[str, schemas.NodeClass]) -> str:
    if wanted in workflow:
        return wanted
    titles = {node_id: title_of(workflow, node_id, nodes) for node_id in workflow}
    for same in (lambda node_id: titles[node_id].lower(), lambda node_id: workflow[node_id]["class_type"].lower()):
        found = [node_id for node_id in workflow if same(node_id) == wanted.lower()]
        if len(found) == 1:
            return found[0]
        if found:
            raise WorkflowError(
                f"--set {text!r}: nodes {', '.join(found)} are all called {wanted!r}, name one by its id."
            )
    listed = ", ".join(f'{node_id} "{title}"' for node_id, title in titles.items())
    raise WorkflowError(f"--set {text!r}: the workflow has no node {wanted!r}, expected an id or a title of {listed}.")
