"""A real ComfyUI server in a process of its own, and the calls the tests need. Standard library only."""

import contextlib
import io
import json
import os
import re
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

DIR, PYTHON = os.environ.get("COMFYUI_DIR"), os.environ.get("COMFYUI_PYTHON")
START_SECONDS, RUN_SECONDS = 180, 300
FOLDERS = ("custom_nodes", "models", "input", "output", "temp", "user")
_WATCH = Path(__file__).with_name("watch.py")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class Refused(Exception):
    """ComfyUI would not run a workflow; holds its answer."""


class Server:
    """A running ComfyUI."""

    def __init__(self, base: Path, port: int, process: subprocess.Popen) -> None:
        self.base, self.port, self.process = base, port, process

    def call(self, path: str, body: dict | None = None) -> bytes:
        """What the server answers to GET, or to POST with a body."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", data, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.read()

    def json(self, path: str):
        """The same as data."""
        return json.loads(self.call(path))

    @property
    def version(self) -> tuple[int, ...]:
        """ComfyUI's own, such as (0, 3, 64)."""
        return tuple(map(int, re.findall(r"\d+", self.json("/system_stats")["system"]["comfyui_version"])[:3]))

    def options(self, node_id: str, name: str) -> list[str]:
        """What a list of a node offers now."""
        inputs = self.json(f"/object_info/{node_id}")[node_id]["input"]
        kind, *extra = {**inputs.get("required", {}), **inputs.get("optional", {})}[name]
        return kind if isinstance(kind, list) else extra[0]["options"]

    def log(self) -> str:
        """Everything the server has printed."""
        return _COLOUR.sub("", (self.base / "server.log").read_text(errors="replace"))

    def queue(self, workflow: dict) -> str:
        """Id of the workflow, which now runs. Raises Refused; a part that does not validate counts too."""
        try:
            answer = json.loads(self.call("/prompt", {"prompt": workflow}))
        except urllib.error.HTTPError as error:
            raise Refused(error.read().decode()) from None
        if answer.get("node_errors"):
            raise Refused(json.dumps(answer))
        return answer["prompt_id"]

    def end_of(self, queued: str) -> dict:
        """History entry of a workflow that came to its end, good or bad."""
        end = time.monotonic() + RUN_SECONDS
        while time.monotonic() < end:
            done = self.json(f"/history/{queued}").get(queued)
            if done:
                return done
            time.sleep(0.05)
        raise TimeoutError(f"no end after {RUN_SECONDS} s\n{self.log()[-3000:]}")

    def run(self, workflow: dict) -> dict:
        """History entry of a workflow that must succeed."""
        done = self.end_of(self.queue(workflow))
        assert done["status"]["status_str"] == "success", json.dumps(done["status"]["messages"][-1])[:3000]
        return done

    def failure(self, workflow: dict) -> dict:
        """What the user is told of a workflow that must fail while it runs."""
        name, data = self.end_of(self.queue(workflow))["status"]["messages"][-1]
        assert name == "execution_error", (name, data)
        return data

    def watch(self, workflow: dict, cancel_at: str = "") -> dict:
        """Runs a workflow as the browser does: {"events": [[type, data], ...], "previews": [[node id, [w, h]], ...]}.

        `cancel_at` is a node at whose first progress the user cancels.
        """
        command = [PYTHON, str(_WATCH), str(self.port), *([cancel_at] if cancel_at else [])]
        found = subprocess.run(
            command, input=json.dumps(workflow), capture_output=True, text=True, timeout=RUN_SECONDS, check=False
        )
        assert found.returncode == 0, found.stderr[-3000:]
        return json.loads(found.stdout)

    def picture(self, entry: dict) -> np.ndarray:
        """Pixels of a shown picture."""
        return np.asarray(Image.open(io.BytesIO(self.call("/view?" + urllib.parse.urlencode(entry)))))

    def pictures(self, done: dict, node_id: str) -> list[np.ndarray]:
        """Pixels of everything an output node shows."""
        return [self.picture(entry) for entry in done["outputs"][node_id]["images"]]


@contextlib.contextmanager
def started(base: Path, *options: str, environment: dict[str, str]) -> Iterator[Server]:
    """A server on a base folder that holds what is in FOLDERS; the folder is removed at the end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        PYTHON, "main.py", "--cpu", "--listen", "127.0.0.1", "--port", str(port), "--base-directory", str(base),
        "--database-url", f"sqlite:///{base}/user/comfyui.db", "--disable-auto-launch", "--disable-api-nodes", *options,
    ]  # fmt: skip
    with (base / "server.log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=DIR, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env={**os.environ, **environment}
        )
    server = Server(base, port, process)
    try:
        end = time.monotonic() + START_SECONDS
        while True:
            assert process.poll() is None and time.monotonic() < end, f"did not start\n{server.log()[-3000:]}"
            with contextlib.suppress(OSError):
                server.call("/system_stats")
                break
            time.sleep(0.2)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
        shutil.rmtree(base, ignore_errors=True)


def cached(done: dict) -> set[str]:
    """Ids of the nodes whose results were reused."""
    return {node for name, data in done["status"]["messages"] if name == "execution_cached" for node in data["nodes"]}


def kinds_run(workflow: dict, done: dict) -> set[str]:
    """Classes of the nodes that were executed, without our prefix."""
    return {
        node["class_type"].removeprefix("GANInversion") for key, node in workflow.items() if key not in cached(done)
    }


def the(workflow: dict, kind: str) -> str:
    """Id of the first node of a class."""
    return next(node_id for node_id, node in workflow.items() if node["class_type"] == kind)
