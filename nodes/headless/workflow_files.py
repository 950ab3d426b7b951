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
_DEEPEST = 100  # levels of lists and objects; workflows have a handful
_LONGEST_VALUE = 60  # characters of a value quoted in a message
_EXPORT = "If ComfyUI opens this file, export it in API format (Workflow, Export (API)) and run that."
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
    except RecursionError:
        data = None
    if data is None or _is_deeper(data, _DEEPEST):
        raise CorruptFileError(f"{path}: JSON, but no workflow: null, or values nested deeper than {_DEEPEST} levels.")
    if isinstance(data, dict) and isinstance(data.get("nodes"), list):
        return ui_to_api(data, nodes)
    if isinstance(data, dict) and isinstance(data.get("prompt"), dict):
        data = data["prompt"]
    if not isinstance(data, dict) or not data or not all(isinstance(item, dict) for item in data.values()):
        raise CorruptFileError(
            f"{path}: JSON, but no workflow. Expected the API format (in ComfyUI: Workflow, Export (API)) "
            "or a workflow saved by the editor."
        )
    check_form(data)
    return data


def _is_deeper(value: Any, levels: int) -> bool:
    """Whether lists and objects are nested deeper than so; a loop, for the answer may be yes."""
    level = [value]
    for _ in range(levels):
        level = [
            inner
            for outer in level
            if isinstance(outer, (dict, list))
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    return any(isinstance(one, (dict, list)) for one in level)


def check_form(workflow: Workflow) -> None:
    """Raises WorkflowError unless every node has a class and inputs of the right form; knows no classes."""
    problems: list[str] = []
    for node_id, node in workflow.items():
        if not isinstance(node, dict):
            problems.append(f"Node {node_id}: found {_short(node)}, expected an object with class_type and inputs.")
            continue
        if not isinstance(node.get("class_type"), str):
            found = _short(node["class_type"]) if "class_type" in node else "none"
            problems.append(f"Node {node_id}: found class_type {found}, expected the name of a node's class.")
        for field, holds in (("inputs", "names and values"), ("_meta", "a title")):
            if not isinstance(node.get(field, {}), (dict, type(None))):
                problems.append(
                    f"Node {node_id}: found {field} {_short(node[field])}, expected an object with {holds}."
                )
    if problems:
        raise WorkflowError(problems[0], tuple(problems))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}..."


def ui_to_api(ui: Mapping[str, Any], nodes: Mapping[str, schemas.NodeClass] | None = None) -> Workflow:
    """Turns the editor's format into the API format.

    Raises WorkflowError where the file is not of that form, a node is unknown, muted or bypassed, or its widget values
    do not fit its schema.
    """
    nodes = schemas.known_nodes() if nodes is None else nodes
    links = _rows(ui.get("links"))
    workflow: Workflow = {}
    for position, node in enumerate(ui["nodes"]):
        kind, node_id = _kind_and_id(node, position)
        if kind in _NOT_RUN:
            continue
        if node_id in workflow:
            raise WorkflowError(f"Two nodes of the file have the id {node_id}: save the workflow in ComfyUI again.")
        if any(node.get("mode") == muted for muted in _MUTED_MODES):
            raise WorkflowError(f"Node {node_id} ({kind}) is muted or bypassed: export the workflow in API format.")
        if kind not in nodes:
            raise WorkflowError(unknown_node(node_id, kind, nodes))
        sockets = schemas.inputs_of(nodes[kind])
        inputs = _widget_values(node, sockets)
        inputs.update(_linked(node, links))
        title = node.get("title") or schemas.schema_of(nodes[kind]).display_name or kind
        workflow[node_id] = {"class_type": kind, "inputs": inputs, "_meta": {"title": title}}
    return workflow


def _rows(links: Any) -> dict[int | str, list[Any]]:
    """Link id -> [link id, source node, source slot, ...]."""
    rows = links or []
    if not isinstance(rows, list):
        raise WorkflowError(f"Found links {_short(links)}, expected a list. {_EXPORT}")
    for row in rows:
        if not isinstance(row, list) or len(row) < 3 or not isinstance(row[0], (int, str)):
            raise WorkflowError(f"Found the link {_short(row)}, expected [id, node, output slot, ...]. {_EXPORT}")
    return {row[0]: row for row in rows}


def _kind_and_id(node: Any, position: int) -> tuple[str, str]:
    if not isinstance(node, dict) or not isinstance(node.get("id"), (int, str)):
        raise WorkflowError(f"Entry {position} of the nodes is {_short(node)}, expected a node with an id. {_EXPORT}")
    if not isinstance(node.get("type"), str):
        found = _short(node["type"]) if "type" in node else "none"
        raise WorkflowError(f"Node {node['id']}: found type {found}, expected the name of a node's class. {_EXPORT}")
    return node["type"], str(node["id"])


def _linked(node: Mapping[str, Any], links: Mapping[int | str, list[Any]]) -> dict[str, list[Any]]:
    """Input name -> [node id, output slot], for the inputs of a node that are connected."""
    found: dict[str, list[Any]] = {}
    name_of, sockets = f"Node {node['id']} ({node['type']})", node.get("inputs") or []
    if not isinstance(sockets, list):
        raise WorkflowError(f"{name_of}: found inputs {_short(sockets)}, expected a list. {_EXPORT}")
    for socket in sockets:
        if not isinstance(socket, dict) or not isinstance(socket.get("name"), str):
            raise WorkflowError(f"{name_of}: found the input {_short(socket)}, expected one with a name. {_EXPORT}")
        link = socket.get("link")
        if link is None:
            continue
        if not isinstance(link, (int, str)) or link not in links:
            raise WorkflowError(
                f"{name_of}: input {socket['name']!r} hangs on link {_short(link)}, which the file does not list: "
                "connect it again in ComfyUI, and save."
            )
        found[socket["name"]] = [str(links[link][1]), links[link][2]]
    return found


def _widget_values(node: Mapping[str, Any], sockets: Mapping[str, Any]) -> dict[str, Any]:
    stored = node.get("widgets_values") or []
    if not isinstance(stored, (dict, list)):
        raise WorkflowError(
            f"Node {node['id']} ({node['type']}): found widgets_values {_short(stored)}, expected a list. {_EXPORT}"
        )
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
    check_form(workflow)
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
            inputs = workflow[node_id].get("inputs") or {}
            workflow[node_id]["inputs"] = {**inputs, name: schemas.parse(sockets[name], value)}
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
