"""The pack in ComfyUI's editor, in a real browser.

GAN_INVERSION_SCREENSHOTS=folder keeps pictures of the page; CHROMIUM=path names the browser where it is not found.
"""

import importlib.util
import json
import re
import shutil
import subprocess
import warnings
from itertools import combinations
from pathlib import Path

import pytest
from PIL import Image

from gan_inversion.model_registry import catalogue
from gan_inversion.nodes.headless import locales

from ..nodes.tiny_models import FILES
from .browser import CHROMIUM, SCREENSHOTS, opened
from .conftest import CORRUPT, ODD_NAME, ROOT, models_of
from .server import DIR, PYTHON

MISSING = (
    "NOT TESTED IN A BROWSER: needs Chromium (on the PATH, or its path in CHROMIUM) and `pip install -e .[browser]`"
)
INSTALLED = bool(CHROMIUM and importlib.util.find_spec("playwright"))
NAMES = sorted(path.stem for path in (ROOT / "workflows").glob("*.json"))
QUICK = ("edit_portrait", "direction_sweep", "samm_blend")
EMPTY = {"last_node_id": 0, "last_link_id": 0, "nodes": [], "links": [], "groups": [], "config": {}, "version": 0.4}
SLIDER = "GANInversionApplyDirection"

if DIR and PYTHON and not INSTALLED:
    warnings.warn(MISSING, stacklevel=1)


@pytest.fixture(scope="module")
def page(server):
    """The editor, opened once."""
    if not INSTALLED:
        pytest.skip(MISSING)
    photo = server.base / "input" / "photo.png"
    for name in ("portrait.png", "gone.png"):
        shutil.copy(photo, photo.with_name(name))
    write_video(server.base / "input" / "portrait.mp4", photo)
    with opened(server, ODD_NAME) as editor:
        photo.with_name("gone.png").unlink()  # the page still lists it
        yield editor


def write_video(path: Path, photo: Path) -> None:
    """A few equal frames, by the library that comes with ComfyUI."""
    code = """if True:
        import sys, av
        from PIL import Image
        with av.open(sys.argv[1], "w") as file:
            stream = file.add_stream("h264", rate=8)
            stream.width = stream.height = 512
            stream.pix_fmt = "yuv420p"
            frame = av.VideoFrame.from_image(Image.open(sys.argv[2]).convert("RGB"))
            for packet in [*(p for _ in range(4) for p in stream.encode(frame)), *stream.encode()]:
                file.mux(packet)
    """
    subprocess.run([PYTHON, "-c", code, str(path), str(photo)], check=True, timeout=120)


@pytest.fixture
def editor(page):
    """The editor in English, without dialogs of the test before."""
    page.speak("en")
    page.close_dialogs()
    return page


def needs_models(name: str) -> dict:
    """A template in API format, or a skip where a model of it is not on this machine."""
    workflow = json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text())
    missing = [entry.id for entry in models_of(workflow) if catalogue.locate(entry)[0] is None]
    if missing:
        pytest.skip(f"models missing: {', '.join(missing)}")
    return workflow


def overlapping(boxes: list[dict]) -> list[tuple[str, str]]:
    """Titles of the nodes that lie on each other."""

    def apart(one: list[float], other: list[float]) -> bool:
        return one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]

    return [(a["title"], b["title"]) for a, b in combinations(boxes, 2) if not apart(a["box"], b["box"])]


def test_templates_are_in_the_template_browser_with_their_thumbnails(editor):
    editor.command("Comfy.BrowseTemplates")
    ours = editor.page.locator(", ".join(f"[data-testid='template-workflow-{name}']" for name in NAMES))
    for _ in range(4):  # a click on a list that is still coming is forgotten
        editor.press(editor.page.get_by_text(ODD_NAME).first)
        editor.page.wait_for_timeout(2500)
        if ours.count():
            break
    for name in NAMES:
        picture = ROOT / "workflows" / f"{name}.jpg"
        assert picture.is_file(), f"{name} has no thumbnail: ComfyUI shows one of its own"
        size = Image.open(picture).size
        editor.page.wait_for_function(
            """([name, width, height]) => {
              const cards = [...document.querySelectorAll("[data-testid^='template-workflow-']")]
              const card = cards.find(c => c.dataset.testid === `template-workflow-${name}`)
              // Cards and their pictures come as one scrolls, which a page at rest in the right place would not do.
              const turn = window.seeking = (window.seeking ?? -1) + 1, shown = card ?? cards.at(turn % 2 ? 0 : -1)
              shown?.scrollIntoView({block: ['center', 'start', 'end'][Math.floor(turn / 6) % 3]})
              const i = card?.querySelector('img')
              return i?.naturalWidth === width && i.naturalHeight === height }""",
            arg=[name, *size],
            polling=200,
        )
    editor.page.get_by_test_id(f"template-workflow-{NAMES[0]}").scroll_into_view_if_needed()
    editor.page.wait_for_timeout(500)
    editor.screenshot("template_browser")
    editor.press(editor.page.get_by_test_id("template-workflow-edit_portrait").locator("img"))
    editor.page.wait_for_function(f"() => app.graph._nodes.some(n => n.type === '{SLIDER}')")


@pytest.mark.parametrize("name", NAMES)
def test_a_template_opens_whole(editor, name):
    editor.open(name)
    editor.screenshot(f"{name}-opened")
    assert editor.dialogs() == [] and editor.errors() == []
    shipped = json.loads((ROOT / "workflows" / f"{name}.json").read_text())
    graph = editor.serialised()
    assert {node["id"]: node["type"] for node in graph["nodes"]} == {
        node["id"]: node["type"] for node in shipped["nodes"]
    }
    assert sorted(link[1:4] for link in graph["links"]) == sorted(link[1:4] for link in shipped["links"])
    boxes = editor.boxes()
    assert overlapping(boxes) == []
    assert [box["title"] for box in boxes if box["needed"][1] > box["size"][1] + 1] == [], "widgets cut off"
    assert editor.cut_off() == []
    sent = editor.prompt()
    expected = json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text())
    assert sent.keys() == expected.keys()
    for key, node in expected.items():
        assert sent[key]["class_type"] == node["class_type"]
        assert {name: sent[key]["inputs"].get(name) for name in node["inputs"]} == node["inputs"], key


@pytest.mark.parametrize("name", QUICK)
def test_a_quick_template_runs_from_the_button(editor, name):
    needs_models(name)
    editor.open(name)
    run = editor.run()
    assert run.ended == "execution_success" and editor.dialogs() == [] and editor.errors() == []
    shown = editor.pictures()
    assert shown and all(width > 0 for found in shown.values() for width, _ in found)
    editor.page.wait_for_timeout(300)
    assert editor.cut_off() == [], "reports longer than their boxes"
    editor.screenshot(f"{name}-run")
    assert overlapping(editor.boxes()) == [], "no room for the picture that a node shows while it runs"


def test_a_slow_template_shows_its_progress_and_a_picture_on_the_way(editor):
    workflow = needs_models("dhr_refine")
    (refine,) = (key for key, node in workflow.items() if node["class_type"] == "GANInversionDHRRefine")
    editor.open("dhr_refine")
    editor.set_widget("GANInversionDHRRefine", "steps", 20)
    run = editor.run()
    assert run.ended == "execution_success"
    values = [(value, of) for node, value, of in run.progress if node == refine]
    assert values == sorted(values) and len(values) > 2 and values[-1][0] == values[-1][1]
    assert run.previews and refine in run.shown_meanwhile
    editor.screenshot("dhr_refine-run")
    assert overlapping(editor.boxes()) == [], "no room for the picture that a node shows while it runs"


@pytest.mark.skipif(not SCREENSHOTS, reason="takes long; for screenshots only")
@pytest.mark.parametrize("name", sorted({*NAMES} - {*QUICK, "dhr_refine"}))
def test_a_screenshot_of_every_other_template(editor, name):
    needs_models(name)
    editor.open(name)
    run = editor.run()
    editor.page.wait_for_timeout(1000)
    editor.screenshot(f"{name}-run")
    assert run.ended == "execution_success"


def test_moving_the_slider_runs_only_what_follows(editor, capsys, record_property):
    workflow = needs_models("edit_portrait")
    editor.open("edit_portrait")
    editor.run()
    for value in (2.5, -2.0):
        before = editor.pictures()
        editor.drag(SLIDER, "strength", value)
        assert editor.widget(SLIDER, "strength")["value"] == pytest.approx(value, abs=0.2)
        run = editor.run()
        kinds = {workflow[node]["class_type"].removeprefix("GANInversion") for node in run.executed - run.cached}
        kinds.discard("PreviewAny")  # older versions send what it shows along with the workflow
        assert kinds == {"ApplyDirection", "Render", "PasteBack", "SaveImage", "PreviewImage"}
        after = editor.pictures()
        assert all(after[node] != before[node] for node in before)
        record_property("seconds from Run to picture", run.seconds)
        with capsys.disabled():
            print(f"\nslider at {value}: {run.seconds:.2f} s from Run to the new picture")


REFUSED = {
    "a model that is gone": ("GANInversionLoadStyleGAN", "model", "gone.pt", "is no catalogue id and no file in"),
    "an encoder for a generator": ("GANInversionLoadStyleGAN", "model", "portraits-e4e", "choose a generator"),
    "a photograph that is gone": ("LoadImage", "image", "gone.png", "gone.png|image for Load Image couldn't be loaded"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_wrong_choice_shows_before_anything_runs(editor, case):
    kind, widget, value, message = REFUSED[case]
    editor.open("edit_portrait")
    editor.set_widget(kind, widget, value)
    editor.press_run()
    told = read_error(editor)
    editor.screenshot("error-" + case.replace(" ", "_"))
    assert re.search(message, told)
    wrong = editor.page.evaluate("() => Object.values(app.lastNodeErrors).map(e => e.class_type)")
    assert wrong == [kind]
    assert not editor.page.evaluate("() => window.told.some(t => t[0] === 'execution_start')")


FAILS = {
    "a web page saved as a model": ("GANInversionLoadStyleGAN", CORRUPT, "GANInversionLoadStyleGAN", "is a web page"),
    "an encoder of another generator": (
        "GANInversionLoadStyleGAN", FILES["portraits"], "GANInversionEncode", "load the generator this encoder",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FAILS)
def test_a_failure_shows_on_its_node(editor, case):
    workflow = needs_models("edit_portrait")
    kind, value, where, message = FAILS[case]
    editor.open("edit_portrait")
    editor.set_widget(kind, "model", value)
    run = editor.run()
    assert run.ended == "execution_error"
    told = read_error(editor)
    editor.screenshot("error-" + case.replace(" ", "_"))
    assert message in told
    node = editor.page.evaluate("() => app.lastExecutionError.node_id")
    assert workflow[str(node)]["class_type"] == where


def read_error(editor) -> str:
    """What a user can read of an error, with the details opened where the page only gives a hint of them."""
    more = editor.page.get_by_test_id("error-overlay-see-errors")
    editor.page.wait_for_function(
        """() => [...document.querySelectorAll('[role=dialog], [data-testid=error-overlay]')]
          .some(e => e.checkVisibility())""",
    )
    text = "\n".join(editor.dialogs())
    if more.count() and more.is_visible():
        editor.press(more)
        panel = editor.page.get_by_test_id("properties-panel")
        panel.wait_for()
        for detail in panel.locator("button[aria-expanded=false][aria-controls]").all():
            editor.press(detail)
        editor.page.wait_for_timeout(500)
        text += panel.inner_text()
    return text


SEARCHES = {"smile": SLIDER, "pSp": "GANInversionLoadEncoder", "hat": "GANInversionSAMMAlign"}


@pytest.mark.parametrize("words", [*SEARCHES, "Apply Direction"])
def test_search_finds_our_nodes(editor, words):
    if words in SEARCHES and editor.server.version < (0, 4):
        pytest.skip("this version of ComfyUI searches by name only")
    kind = SEARCHES.get(words, SLIDER)
    title = locales.translated("en")[kind]["display_name"]
    editor.open(EMPTY)
    box = editor.page.locator("[role=dialog] input, .invisible-dialog-root input")
    for _ in range(3):  # a node that the mouse still carries from the test before is put down first
        editor.page.mouse.dblclick(900, 500)
        editor.page.wait_for_timeout(800)
        if any(field.is_visible() for field in box.all()):
            break
    editor.page.keyboard.type(words)
    results = editor.page.locator("[data-testid=result-item], .p-autocomplete-option, [role=option]")
    found = results.filter(has_text=title).first
    found.wait_for()
    editor.screenshot(f"search-{words.replace(' ', '_')}")
    editor.press(found)
    editor.page.wait_for_function("kind => app.graph._nodes.some(n => n.type === kind)", arg=kind)
    editor.page.wait_for_timeout(500)
    editor.page.mouse.click(900, 500)  # newer versions let the mouse carry the node until it is put down


HELPED = (SLIDER, "GANInversionAlignFace")


@pytest.mark.parametrize("kind", HELPED)
def test_the_help_page_opens_from_the_node(editor, kind):
    editor.open("edit_portrait")
    assert_help(editor, kind, f"{kind}.md")


def assert_help(editor, kind: str, page: str) -> None:
    """The help of a node shows its page, picture included."""
    for _ in range(3):
        editor.click_title(kind)
        if editor.page.get_by_test_id("info-button").count():
            break
    editor.press(editor.page.get_by_test_id("info-button"))
    content = editor.page.locator(".node-help-content")
    content.locator("img").first.wait_for()
    editor.page.wait_for_function(
        "() => [...document.querySelectorAll('.node-help-content img')].every(i => i.naturalWidth > 0)",
    )
    lines = (ROOT / "web" / "docs" / page).read_text(encoding="utf-8").splitlines()
    headings = [line.lstrip("# ") for line in lines if line.startswith("#")]
    shown = content.first.inner_text()
    assert all(heading in shown for heading in headings), shown[:500]
    editor.screenshot(f"help-{editor.language}-{kind}")


def test_names_and_help_in_chinese(page):
    page.speak("zh")
    page.close_dialogs()
    page.open("edit_portrait")
    words = locales.translated("zh")
    shown = page.page.evaluate(
        """() => Object.fromEntries(app.graph._nodes.filter(n => n.type.startsWith('GANInversion')).map(n => [n.type,
        {title: n.title, inputs: Object.fromEntries((n.inputs ?? []).map(i => [i.name, i.label ?? i.localized_name])),
         outputs: n.outputs.map(o => o.label ?? o.localized_name),
         widgets: Object.fromEntries(n.widgets.map(w => [w.name, w.label]))}]))"""
    )
    assert len(shown) > 5
    for kind, names in shown.items():
        assert names["title"] == words[kind]["display_name"]
        for name, label in {**names["inputs"], **names["widgets"]}.items():
            assert label == words[kind]["inputs"][name]["name"], (kind, name)
        assert names["outputs"] == [words[kind]["outputs"][str(i)]["name"] for i in range(len(names["outputs"]))]
    page.screenshot("zh")
    assert_help(page, SLIDER, f"{SLIDER}/zh.md")
