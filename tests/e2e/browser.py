"""ComfyUI's page in a headless Chromium, as a user sees and presses it.

Drives an installed Chromium through playwright (`pip install playwright`; its own browsers are not needed).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .server import Server

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
SCREENSHOTS = os.environ.get("GAN_INVERSION_SCREENSHOTS")
START_MS, RUN_MS, SHORT_MS = 180_000, 180_000, 20_000
VIEW = {"width": 2560, "height": 1300} if SCREENSHOTS else {"width": 1600, "height": 900}
_OPTIONS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)  # fmt: skip
_SETTINGS = {
    "Comfy.TutorialCompleted": True,  # else a welcome covers the page
    "Comfy.Minimap.Visible": False,
    "LiteGraph.Canvas.MaximumFps": 10,  # a canvas that is drawn without a graphics card takes a whole core
    "LiteGraph.Canvas.MinFontSizeForLOD": 0,  # texts are drawn at every zoom
    "LiteGraph.Canvas.LowQualityRenderingZoomThreshold": 0,  # the same in older versions
}
# What every start of ComfyUI writes, whatever packs are installed: files that need not exist, hosts out of reach.
_NOT_OURS = re.compile(
    r"user\.css|/userdata|/en\.md|api\.comfy\.org|Content Security Policy|ERR_NAME_NOT_RESOLVED|ERR_FAILED|huggingface\.co"
    r"|ComfyApp graph accessed before initialization"
)
_MOVING_PICTURES = re.compile(r"/templates/.*\.(webp|mp4)$")  # of ComfyUI's own templates: dozens, all animated
_DIALOGS = "[role=dialog], [role=alertdialog], .comfy-modal, .p-toast-message-error, [data-testid=error-overlay]"
_READY = "() => window.app?.extensionManager && window.LiteGraph?.registered_node_types?.GANInversionRender"
# Notes everything that the server tells the page, with the time since "Run" was pressed.
_LISTEN = """() => {
  window.told = []; window.shownWhileRunning = {}
  const api = app.api, note = (kind, data) => window.told.push([kind, data, performance.now()])
  for (const kind of ['execution_start', 'execution_cached', 'executing', 'progress', 'executed',
                      'execution_success', 'execution_error', 'execution_interrupted'])
    api.addEventListener(kind, e => note(kind, e.detail))
  for (const kind of ['b_preview', 'b_preview_with_metadata'])
    api.addEventListener(kind, e => note('preview', e.detail?.nodeId ?? e.detail?.displayNodeId ?? null))
  setInterval(() => { for (const n of app.graph._nodes)
    if (n.imgs?.length && n.imgs[0].naturalWidth) window.shownWhileRunning[n.id] = true }, 100)
}"""
_ENDED = (
    """() => window.told.some(t => ['execution_success', 'execution_error', 'execution_interrupted'].includes(t[0]))"""
)
_SHOWN = """() => app.graph._nodes.filter(n => ['SaveImage', 'PreviewImage'].includes(n.type))
  .map(n => [n.id, (n.imgs ?? []).map(i => [i.complete ? i.naturalWidth : 0, i.src])])"""
_BOXES = """() => (app.canvas.draw(true, true), app.canvas.draw(true, true), app.graph._nodes.map(n => {
  const [x, y, w, h] = n.boundingRect ?? n.getBounding()
  return {title: n.title, type: n.type, box: [x, y, x + w, y + h], size: [...n.size], needed: [...n.computeSize()]}
}))"""  # drawn first: that is when a node grows around a picture
_FIT = """() => {
  const boxes = [...app.graph._nodes, ...app.graph._groups].map(n => n.boundingRect ?? n._bounding ?? n.getBounding())
  if (!boxes.length) return
  const left = Math.min(...boxes.map(b => b[0])), top = Math.min(...boxes.map(b => b[1]))
  const right = Math.max(...boxes.map(b => b[0] + b[2])), bottom = Math.max(...boxes.map(b => b[1] + b[3]))
  const page = app.canvas.canvas.getBoundingClientRect(), bars = [100, 130], margin = 40, ds = app.canvas.ds
  const room = [page.width - bars[0] - 2 * margin, page.height - bars[1] - 2 * margin]
  ds.scale = Math.min(1, room[0] / (right - left), room[1] / (bottom - top))
  ds.offset[0] = (bars[0] + margin + (room[0] - (right - left) * ds.scale) / 2) / ds.scale - left
  ds.offset[1] = (bars[1] + margin + (room[1] - (bottom - top) * ds.scale) / 2) / ds.scale - top
  app.canvas.setDirty(true, true)
}"""


@dataclass
class Run:
    """What the page was told of one run."""

    ended: str
    executed: set[str] = field(default_factory=set)
    cached: set[str] = field(default_factory=set)
    progress: list[tuple[str, int, int]] = field(default_factory=list)  # node id, value, of
    previews: int = 0
    shown_meanwhile: set[str] = field(default_factory=set)  # ids of nodes that showed a picture before the end
    seconds: float = 0.0  # from "Run" to the last picture


class Editor:
    """The editor's page."""

    def __init__(self, server: Server, page: Any, pack: str) -> None:
        self.server, self.page, self.pack = server, page, pack
        self.language = ""
        self._messages: list[str] = []
        page.on("console", self._note)
        page.on("pageerror", lambda error: self._messages.append(f"uncaught: {error}"))

    def speak(self, language: str) -> None:
        """The page in a language, loaded again only where it is another one now."""
        if language == self.language:
            return
        self.settings({"Comfy.Locale": language, "Comfy.RightSidePanel.IsOpen": False})
        self.page.goto(f"http://127.0.0.1:{self.server.port}", wait_until="domcontentloaded")
        self.page.wait_for_function(_READY, timeout=START_MS)
        self.page.wait_for_timeout(1000)  # the workflow that ComfyUI opens by itself
        self.page.evaluate(_LISTEN)
        self.language = language

    def settings(self, settings: dict[str, Any]) -> None:
        """Changes what the server keeps of the user's settings; the page reads them when it is loaded."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.server.port}/api/settings", json.dumps(settings).encode(),
            {"Content-Type": "application/json"},
        )  # fmt: skip
        urllib.request.urlopen(request, timeout=60).close()

    def open(self, workflow: dict[str, Any] | str) -> None:
        """Opens a template of ours by name, or a workflow in the editor's format."""
        if isinstance(workflow, str):
            workflow = self.server.json(f"/api/workflow_templates/{self.pack}/{workflow}.json")
        self._messages.clear()
        self.page.evaluate(
            """async w => {
              const tabs = app.extensionManager.workflow
              await app.loadGraphData(w, true, true, null)
              for (const tab of [...tabs.openWorkflows]) if (tab !== tabs.activeWorkflow) await tabs.closeWorkflow(tab) }""",
            workflow,
        )
        self.page.wait_for_timeout(600)  # dialogs about missing nodes and models come a moment later
        self.fit()

    def fit(self) -> None:
        """Fits the view to everything, without selecting anything."""
        self.page.evaluate(_FIT)
        self.page.wait_for_timeout(300)

    def command(self, name: str) -> None:
        """Runs a command of the editor's menus."""
        self.page.evaluate("name => app.extensionManager.command.execute(name)", name)

    def errors(self) -> list[str]:
        """Errors of the console since the workflow was opened, without those of every start."""
        return [message for message in self._messages if not _NOT_OURS.search(message)]

    def dialogs(self) -> list[str]:
        """Texts of the dialogs and error notices in view."""
        return [box.inner_text() for box in self.page.locator(_DIALOGS).all() if box.is_visible()]

    def press(self, locator: Any) -> None:
        """Presses a button as soon as it is there, also while the page still moves."""
        locator.first.wait_for()
        locator.first.evaluate("button => button.click()")

    def close_dialogs(self) -> None:
        """Closes them."""
        button = self.page.get_by_test_id("error-overlay-dismiss")
        if button.count() and button.first.is_visible():
            self.press(button)
        for _ in range(3):
            if not self.dialogs():
                return
            self.page.keyboard.press("Escape")
            self.page.wait_for_timeout(300)

    def serialised(self) -> dict[str, Any]:
        """The workflow as the editor would save it."""
        return self.page.evaluate("() => app.graph.serialize()")

    def prompt(self) -> dict[str, Any]:
        """The workflow as the editor would send it to the server."""
        return self.page.evaluate("async () => (await app.graphToPrompt()).output")

    def boxes(self) -> list[dict[str, Any]]:
        """Where the nodes are, title bars included, and the size that their widgets need."""
        return self.page.evaluate(_BOXES)

    def cut_off(self) -> list[str]:
        """Texts, in notes and reports, that are taller than their boxes."""
        return self.page.evaluate("""() => [...document.querySelectorAll('.dom-widget')].filter(e => e.checkVisibility())
          .flatMap(e => [e, ...e.querySelectorAll('*')]).filter(e => e.clientHeight > 40
            && !e.matches('.comfy-markdown textarea') && e.scrollHeight > e.clientHeight + 4)
            .map(e => (e.value ?? e.innerText).slice(0, 60)
              + ` ... needs ${e.scrollHeight} px, has ${e.clientHeight}`)""")

    def set_widget(self, kind: str, name: str, value: Any) -> None:
        """Changes a widget of the first node of a class, without the mouse."""
        self.page.evaluate(
            """([kind, name, value]) => { const w = app.graph._nodes.find(n => n.type === kind)
            .widgets.find(w => w.name === name); w.value = value; w.callback?.(value) }""",
            [kind, name, value],
        )

    def widget(self, kind: str, name: str) -> dict[str, Any]:
        """Value, kind and place on the page of a widget of the first node of a class."""
        return self.page.evaluate(
            """([kind, name]) => {
              const n = app.graph._nodes.find(n => n.type === kind), w = n.widgets.find(w => w.name === name)
              const box = app.canvas.canvas.getBoundingClientRect()
              const at = (x, y) => { const p = app.canvas.ds.convertOffsetToCanvas([n.pos[0] + x, n.pos[1] + y])
                                     return [p[0] + box.left, p[1] + box.top] }
              const margin = 15, y = w.y + (w.computedHeight ?? 20) / 2
              return {value: w.value, type: w.type, label: w.label ?? w.name, min: w.options.min, max: w.options.max,
                      left: at(margin, y), right: at(n.size[0] - margin, y)} }""",
            [kind, name],
        )

    def drag(self, kind: str, name: str, value: float) -> None:
        """Moves a slider by the mouse."""
        found = self.widget(kind, name)
        (left, y), (right, _) = found["left"], found["right"]
        start, end = (
            left + (right - left) * (x - found["min"]) / (found["max"] - found["min"]) for x in (found["value"], value)
        )
        mouse = self.page.mouse
        mouse.move(start, y)
        mouse.down()
        mouse.move((start + end) / 2, y)
        mouse.move(end, y)
        mouse.up()
        self.page.wait_for_timeout(200)

    def click_title(self, kind: str) -> None:
        """Selects the first node of a class by a click on its title, and brings it into view."""
        self.page.evaluate(
            """kind => { const n = app.graph._nodes.find(n => n.type === kind), ds = app.canvas.ds
              ds.scale = 1; ds.offset[0] = 700 - n.pos[0]; ds.offset[1] = 400 - n.pos[1]; app.canvas.setDirty(true, true) }""",
            kind,
        )
        self.page.wait_for_timeout(400)
        x, y = self.page.evaluate(
            """kind => { const n = app.graph._nodes.find(n => n.type === kind), b = app.canvas.canvas.getBoundingClientRect()
              const p = app.canvas.ds.convertOffsetToCanvas([n.pos[0] + 60, n.pos[1] - 15])
              return [p[0] + b.left, p[1] + b.top] }""",
            kind,
        )
        self.page.mouse.click(x, y)
        self.page.wait_for_timeout(500)

    def press_run(self) -> None:
        """The blue button."""
        self.page.evaluate(
            "() => { window.told = []; window.shownWhileRunning = {}; window.pressed = performance.now() }"
        )
        button = self.page.get_by_test_id("queue-button")
        inner = button.locator("button")
        self.press(inner if inner.count() else button)

    def run(self) -> Run:
        """Presses the button and waits for the end and for the pictures in the output nodes."""
        before = {source for _, pictures in self.page.evaluate(_SHOWN) for _, source in pictures}
        self.press_run()
        self.page.wait_for_function(_ENDED, timeout=RUN_MS)
        told = self.page.evaluate("() => window.told")
        meanwhile = set(self.page.evaluate("() => Object.keys(window.shownWhileRunning)"))
        run = Run(told[-1][0] if told[-1][0].startswith("execution_") else "", shown_meanwhile=meanwhile)
        for kind, data, _ in told:
            if kind == "executing" and data is not None:
                run.executed.add(str(data["node"] if isinstance(data, dict) else data))
            elif kind == "execution_cached":
                run.cached |= set(map(str, data["nodes"]))
            elif kind == "progress":
                run.progress.append((str(data["node"]), data["value"], data["max"]))
            elif kind == "preview":
                run.previews += 1
            if kind in ("execution_success", "execution_error", "execution_interrupted"):
                run.ended = kind
        if run.ended == "execution_success":
            self._wait_for_pictures(before if run.executed - run.cached else set())
        run.seconds = self.page.evaluate("() => (performance.now() - window.pressed) / 1000")
        return run

    def pictures(self) -> dict[str, list[tuple[int, str]]]:
        """Width and address of what each output node shows."""
        return {str(node): [tuple(picture) for picture in found] for node, found in self.page.evaluate(_SHOWN)}

    def screenshot(self, name: str) -> None:
        """Keeps a picture of the page where the user asked for them."""
        if SCREENSHOTS:
            version = "".join(map(str, self.server.version))
            Path(SCREENSHOTS).mkdir(parents=True, exist_ok=True)
            self.page.screenshot(path=Path(SCREENSHOTS) / f"{version}-{name}.png")

    def _wait_for_pictures(self, before: set[str]) -> None:
        self.page.wait_for_function(
            f"""before => {{ const all = ({_SHOWN})()
              return all.length && all.every(([, found]) => found.length && found.every(([width]) => width > 0))
                && (!before.length || all.some(([, found]) => found.some(([, source]) => !before.includes(source)))) }}""",
            arg=sorted(before), timeout=SHORT_MS, polling=20,
        )  # fmt: skip

    def _note(self, message: Any) -> None:
        if message.type == "error":
            self._messages.append(f"{message.text} ({message.location.get('url')})")


@contextlib.contextmanager
def opened(server: Server, pack: str) -> Iterator[Editor]:
    """The editor of a server, in English."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, headless=True, args=list(_OPTIONS))
        try:
            page = browser.new_context(viewport=VIEW).new_page()
            page.set_default_timeout(SHORT_MS)
            page.route(_MOVING_PICTURES, lambda route: route.abort())
            editor = Editor(server, page, pack)
            editor.settings(_SETTINGS)
            editor.speak("en")
            yield editor
        finally:
            browser.close()
