"""Runs API-format workflows without ComfyUI.

Behaves as ComfyUI does: the whole workflow is checked before anything runs; only what an output node needs is run; a
node runs again only when its inputs or anything upstream changed; everything runs in inference mode.
"""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import itertools
import json
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ...core.errors import GANInversionError
from . import schemas, stand_in
from .workflow_files import Workflow, WorkflowError, check_form, label, title_of, unknown_node

logger = logging.getLogger(__name__)

_unique = itertools.count()

OnNode = Callable[[str, int, int], None]  # (title, nodes done so far, nodes in all)


class NodeFailedError(GANInversionError):
    """A node raised something that is not an error of this package; `__cause__` is what it raised."""


@dataclass(frozen=True)
class RunResult:
    """What one run produced."""

    outputs: dict[str, dict[str, Any]]  # id of an output node -> what it shows: {"images": [...], "text": [...]}
    results: dict[str, tuple[Any, ...]]  # node id -> the values on its output slots
    executions: dict[str, int]  # node id -> how often it was executed in this run; 0 means its result was reused
    images: tuple[Path, ...]  # files written to the output folder, in the order of the output nodes
    seconds: float


@dataclass
class Runner:
    """Runs workflows and remembers results from one run to the next.

    `input_dir` holds what LoadImage reads; pictures go to `output_dir`, previews to `temp_dir`, both made when needed.
    """

    input_dir: Path = field(default_factory=Path.cwd)
    output_dir: Path = field(default_factory=lambda: Path("output"))
    temp_dir: Path | None = None  # output_dir/temp where not given
    nodes: Mapping[str, schemas.NodeClass] = field(default_factory=schemas.known_nodes)
    on_node: OnNode | None = None  # called before a node is executed
    executions: Counter[str] = field(default_factory=Counter)  # over all runs
    _cache: dict[str, Any] = field(default_factory=dict, repr=False)

    def run(self, workflow: Workflow) -> RunResult:
        """Checks a workflow, runs it and returns what its output nodes show.

        Raises:
            WorkflowError: it cannot run: unknown node, missing or wrong input, bad link, cycle, no output.
            GANInversionError: of the class a node raised, its message naming the node.
            NodeFailedError: a node failed in any other way.
        """
        started = time.monotonic()
        order, constants = self.validate(workflow)
        with self._folders():
            signatures = self._signatures(workflow, order, constants)
        # As in ComfyUI, only results that this workflow can use are kept.
        wanted = set(signatures.values())
        self._cache = {key: value for key, value in self._cache.items() if key in wanted}
        executions = dict.fromkeys(order, 0)
        results: dict[str, tuple[Any, ...]] = {}
        shown: dict[str, dict[str, Any]] = {}
        with self._folders():
            for done, node_id in enumerate(order):
                key = signatures[node_id]
                if key not in self._cache:
                    if self.on_node is not None:
                        self.on_node(title_of(workflow, node_id, self.nodes), done, len(order))
                    executions[node_id] += 1
                    self.executions[node_id] += 1
                    self._cache[key] = self._execute(workflow, node_id, constants[node_id], results)
                results[node_id], ui = self._cache[key]
                if ui:
                    shown[node_id] = ui
        return RunResult(shown, results, executions, self._images(shown), time.monotonic() - started)

    def validate(self, workflow: Workflow) -> tuple[list[str], dict[str, dict[str, Any]]]:
        """Checks everything that can be checked without running.

        Returns:
            Ids of the nodes to run, each after those it depends on, and each one's constant inputs in their own types.

        Raises:
            WorkflowError with every problem found.
        """
        check_form(workflow)
        problems = [
            unknown_node(node_id, node["class_type"], self.nodes)
            for node_id, node in workflow.items()
            if node["class_type"] not in self.nodes
        ]
        _raise(problems)
        ends = [i for i, node in workflow.items() if schemas.schema_of(self.nodes[node["class_type"]]).is_output_node]
        if not ends:
            raise WorkflowError(
                "The workflow has no output node, so there is nothing to run: add SaveImage or PreviewImage."
            )
        order = self._order(workflow, ends)
        constants: dict[str, dict[str, Any]] = {}
        with self._folders():
            for node_id in order:
                constants[node_id], found = self._check_node(workflow, node_id)
                problems += found
        _raise(problems)
        return order, constants

    def _order(self, workflow: Workflow, ends: list[str]) -> list[str]:
        """Depth first from the output nodes; iterative, for long chains are common."""
        done: dict[str, None] = {}
        for end in ends:
            path: list[str] = []
            waiting = [(end, iter(self._ancestors(workflow, end)))]
            path.append(end)
            while waiting:
                node_id, remaining = waiting[-1]
                following = next((one for one in remaining if one not in done), None)
                if following is None:
                    waiting.pop()
                    path.pop()
                    done[node_id] = None
                elif following in path:
                    cycle = " -> ".join([*path[path.index(following) :], following])
                    raise WorkflowError(
                        f"{label(workflow, following, self.nodes)} depends on its own output "
                        f"({cycle}, each taking from the next): remove one of these links."
                    )
                else:
                    waiting.append((following, iter(self._ancestors(workflow, following))))
                    path.append(following)
        return list(done)

    def _check_node(self, workflow: Workflow, node_id: str) -> tuple[dict[str, Any], list[str]]:
        """(constant inputs, problems) of one node."""
        node = workflow[node_id]
        cls = self.nodes[node["class_type"]]
        given = node.get("inputs") or {}
        name_of = label(workflow, node_id, self.nodes)
        sockets = schemas.inputs_of(cls)
        checks = getattr(cls, "validate_inputs", None)
        checked, checks_all = _parameters(checks) if checks is not None else (set(), False)
        constants: dict[str, Any] = {}
        problems: list[str] = []
        for unknown in given.keys() - sockets.keys():
            logger.warning("%s has no input %r; its value is ignored.", name_of, unknown)
        for name, socket in sockets.items():
            if name not in given:
                if not socket.optional:
                    problems.append(f"{name_of}: input {name!r} is missing, expected {schemas.describe(socket)}.")
                continue
            value = given[name]
            if isinstance(value, list):
                problem = self._check_link(workflow, socket, value)
            else:
                value = value["__value__"] if isinstance(value, dict) and "__value__" in value else value
                value, problem = _check_constant(socket, value, own_check=checks_all or name in checked)
                constants[name] = value
            if problem:
                problems.append(f"{name_of}: input {name!r}: {problem}.")
        if not problems and checks is not None:
            answer = checks(**_accepted(checks, constants))
            if answer is not True:
                names = ", ".join(repr(name) for name in constants if checks_all or name in checked)
                problems.append(f"{name_of}: input {names}: {answer or 'refused by the node'}")
        return constants, problems

    def _check_link(self, workflow: Workflow, socket: Any, link: list[Any]) -> str | None:
        wanted = schemas.describe(socket)
        if len(link) != 2 or isinstance(link[1], bool) or not isinstance(link[1], int):
            return f"found {link!r}, expected a value or a link [node id, output slot]"
        source, slot = str(link[0]), link[1]
        if source not in workflow:
            return f"found a link to node {source}, which does not exist, expected {wanted}"
        outputs = schemas.outputs_of(self.nodes[workflow[source]["class_type"]])
        if not 0 <= slot < len(outputs):
            return (
                f"found a link to output {slot} of {label(workflow, source, self.nodes)}, which has {len(outputs)} "
                f"output(s), expected {wanted}"
            )
        found, expected = schemas.type_of(outputs[slot]), schemas.type_of(socket)
        if not schemas.types_match(found, expected):
            return f"found {found} from {label(workflow, source, self.nodes)}, expected {expected}"
        return None

    def _links(self, workflow: Workflow, node_id: str) -> dict[str, tuple[str, int]]:
        """Input name -> (node id, output slot), for inputs that the node's class has."""
        inputs = workflow[node_id].get("inputs") or {}
        links = {name: value for name, value in inputs.items() if isinstance(value, list) and len(value) == 2}
        known = schemas.inputs_of(self.nodes[workflow[node_id]["class_type"]]) if links else {}
        return {name: (str(value[0]), value[1]) for name, value in links.items() if name in known}

    def _ancestors(self, workflow: Workflow, node_id: str) -> list[str]:
        # A link to a node that does not exist is reported by the checks of each node.
        return [source for source, _ in self._links(workflow, node_id).values() if source in workflow]

    def _signatures(
        self, workflow: Workflow, order: list[str], constants: Mapping[str, Mapping[str, Any]]
    ) -> dict[str, str]:
        """Node id -> digest of its class, its inputs and everything upstream: equal digests give equal results."""
        signatures: dict[str, str] = {}
        for node_id in order:
            node = workflow[node_id]
            cls = self.nodes[node["class_type"]]
            schema = schemas.schema_of(cls)
            inputs: dict[str, Any] = dict(constants[node_id])
            for name, (source, slot) in self._links(workflow, node_id).items():
                inputs[name] = ["from", signatures[source], slot]
            # Two equal output nodes both have something to show; a node that asks for its id may depend on it.
            own = schema.is_output_node or getattr(schema, "not_idempotent", False) or _wants_id(schema)
            parts = [node["class_type"], self._fingerprint(cls, constants[node_id]), node_id if own else None, inputs]
            text = json.dumps(parts, sort_keys=True, default=repr)
            signatures[node_id] = hashlib.sha256(text.encode()).hexdigest()
        return signatures

    def _fingerprint(self, cls: schemas.NodeClass, constants: Mapping[str, Any]) -> Any:
        function = getattr(cls, "fingerprint_inputs", None)
        if function is None:
            return None
        value = function(**_accepted(function, constants))
        # NaN never equals itself: such a node runs each time.
        return f"unique {next(_unique)}" if isinstance(value, float) and math.isnan(value) else value

    def _execute(
        self, workflow: Workflow, node_id: str, constants: Mapping[str, Any], results: Mapping[str, tuple[Any, ...]]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        cls = self.nodes[workflow[node_id]["class_type"]]
        inputs = dict(constants)
        inputs.update({name: results[source][slot] for name, (source, slot) in self._links(workflow, node_id).items()})
        started = time.monotonic()
        try:
            with torch.inference_mode():
                hidden = {stand_in.Hidden.unique_id: node_id, stand_in.Hidden.prompt: workflow}
                output = cls.PREPARE_CLASS_CLONE(hidden).execute(**inputs)
                if inspect.isawaitable(output):
                    output = asyncio.run(_awaited(output))
        except GANInversionError as error:
            raise type(error)(f"{label(workflow, node_id, self.nodes)}: {error}") from error
        except Exception as error:
            raise NodeFailedError(
                f"{label(workflow, node_id, self.nodes)} failed: {type(error).__name__}: {error}"
            ) from error
        logger.info("%s took %.2f s", label(workflow, node_id, self.nodes), time.monotonic() - started)
        return _unpacked(output)

    def _folders(self) -> Any:
        return stand_in.folders(input=self.input_dir, output=self.output_dir, temp=self.temp_dir)

    def _images(self, shown: Mapping[str, Mapping[str, Any]]) -> tuple[Path, ...]:
        saved = [entry for ui in shown.values() for entry in ui.get("images", ()) if entry.get("type") == "output"]
        return tuple(Path(self.output_dir) / entry["subfolder"] / entry["filename"] for entry in saved)


def _raise(problems: list[str]) -> None:
    if problems:
        more = f" ({len(problems) - 1} more problem(s) in this workflow)" if len(problems) > 1 else ""
        raise WorkflowError(problems[0] + more, tuple(problems))


def _check_constant(socket: Any, value: Any, own_check: bool) -> tuple[Any, str | None]:
    """(value in the input's type, what is wrong with it); a node that checks an input itself switches ours off."""
    if not schemas.is_widget(socket):
        return value, f"found {value!r}, expected {schemas.describe(socket)}"
    try:
        value = schemas.coerce(socket, value)
    except ValueError as error:
        return value, str(error)
    # A node checks which name it is given, not whether it is one.
    if own_check and schemas.type_of(socket) == "COMBO" and not isinstance(value, str):
        return value, f"found {value!r}, expected a name out of its list"
    return value, None if own_check else schemas.problem_with(socket, value)


def _parameters(function: Callable[..., Any]) -> tuple[set[str], bool]:
    """(names it takes, whether it takes any name)."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name for p in parameters}, any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)


def _accepted(function: Callable[..., Any], values: Mapping[str, Any]) -> dict[str, Any]:
    names, everything = _parameters(function)
    return {name: value for name, value in values.items() if everything or name in names}


def _wants_id(schema: Any) -> bool:
    return any(getattr(hidden, "value", hidden) == "UNIQUE_ID" for hidden in schema.hidden or ())


async def _awaited(output: Any) -> Any:
    return await output


def _unpacked(output: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """(values of the output slots, what the node shows)."""
    ui = output.ui
    if ui is not None and not isinstance(ui, Mapping):
        ui = ui.as_dict()
    return tuple(output.result or ()), dict(ui or {})
