"""Help pages and translations are complete, and are what schemas and prose give."""

import dataclasses
import json
import re
import sys
import types
from pathlib import Path

import pytest
import torch
from PIL import Image

import gan_inversion
from gan_inversion.nodes import _comfy, all_nodes
from gan_inversion.nodes.headless import help_pages, help_pictures, locales
from gan_inversion.nodes.headless.runner import Runner

ROOT = Path(gan_inversion.__file__).resolve().parent
DOCS = ROOT / "web" / "docs"
NODES = list(all_nodes())
PAGES = [(node_id, language) for node_id in NODES for language in help_pages.LANGUAGES]
ENGLISH = {**locales.english(), **locales.english_main()}
TRANSLATIONS = sorted(path.name for path in locales.LOCALES.iterdir() if path.name != "en")
SAME = {"PSNR", "SSIM", "LPIPS"}  # as they are in every language
CHINESE = re.compile(r"[\u4e00-\u9fff]")
PICTURE = re.compile(r"!\[([^]]+)\]\(([^)]+)\)")
named = pytest.mark.parametrize(("node_id", "language"), PAGES, ids=[f"{n}-{one.code}" for n, one in PAGES])


def read(node_id, language):
    path = DOCS / language.page(node_id)
    if not path.is_file():
        pytest.fail(f"missing: {path.relative_to(ROOT)}; write it after the page of another node")
    return path.read_text(encoding="utf-8")


@named
def test_page_is_what_the_generator_gives(node_id, language):
    text = read(node_id, language)
    assert help_pages.completed(text, node_id, language) == text, (
        "run python -m gan_inversion.nodes.headless.help_pages"
    )


@named
def test_page_says_something_in_its_language(node_id, language):
    text = read(node_id, language)
    before = text.partition(help_pages.BEGIN)[0]
    title, intro = before.splitlines()[0], before.splitlines()[2]
    assert title.startswith("# ") and len(intro) > (25 if language.code == "zh" else 80)
    assert bool(CHINESE.search(intro)) == (language.code == "zh")
    parts = re.split(r"^## .+$", text, flags=re.MULTILINE)[1:]
    assert all(len(part.strip()) > 1 for part in parts) and len(re.findall(r"^- ", parts[2], re.MULTILINE)) >= 2


@named
def test_pictures_of_a_page_are_there(node_id, language):
    """The editor looks for them from web/docs, also on pages in folders."""
    pictures = PICTURE.findall(read(node_id, language))
    assert [target for _, target in pictures] == (
        [f"{node_id}/{help_pictures.NAME}"]
        if node_id.removeprefix(help_pictures.PREFIX) in help_pictures.PICTURES
        else []
    )
    for _, target in pictures:
        path = DOCS / target
        assert path.stat().st_size <= help_pictures.LARGEST
        with Image.open(path) as picture:
            assert picture.format == "JPEG" and picture.width <= 1000
            assert len(picture.convert("L").resize((32, 32)).getcolors()) > 20, "an empty picture"


def test_nothing_but_pages_and_pictures_is_served():
    expected = {language.page(node_id) for node_id, language in PAGES}
    expected |= {Path(f"{help_pictures.PREFIX}{name}", help_pictures.NAME) for name in help_pictures.PICTURES}
    assert {path.relative_to(DOCS) for path in DOCS.rglob("*") if path.is_file()} == expected
    assert gan_inversion.WEB_DIRECTORY == "./web" and [path.name for path in (ROOT / "web").iterdir()] == ["docs"]


def test_missing_pages_are_named(tmp_path):
    assert help_pages.missing_pages() == []
    names = help_pages.missing_pages(tmp_path)
    assert len(names) == len(PAGES) and "GANInversionEncode.md" in names
    assert str(Path("GANInversionEncode", "zh.md")) in names


def test_a_page_without_marks_or_headings_is_refused():
    english = help_pages.LANGUAGES[0]
    text = read("GANInversionRender", english)
    with pytest.raises(ValueError, match="GANInversionRender.md: expected the lines"):
        help_pages.completed(text.replace(help_pages.END, ""), "GANInversionRender", english)
    with pytest.raises(ValueError, match="GANInversionRender.md: headings"):
        help_pages.completed(text.replace("## Tips", "## Hints"), "GANInversionRender", english)
    with pytest.raises(ValueError, match="zh/nodeDefs.json has no entry"):
        chinese = help_pages.LANGUAGES[1]
        help_pages.completed(read("GANInversionRender", chinese), "GANInversionUnknown", chinese)


def test_lists_follow_the_schema():
    english = help_pages.LANGUAGES[0]
    text = read("GANInversionBlend", english)
    for line in (
        "- **mask** (mask): Any size; 1 is selected. One mask serves a whole batch.",
        "- **grow** (on or off; default off): ",
        "- **feather** (number 0 to 256; default 8): ",
        "- **painted_mask** (mask; optional): ",
    ):
        assert line in text
    assert "- **seed** (whole number; default 0): " in read("GANInversionProject", english)
    changed = help_pages.completed(text.replace("**grow**", "**shrink**"), "GANInversionBlend", english)
    assert changed == text


def test_english_is_what_the_schemas_give(tmp_path):
    for path in locales.write_english(tmp_path):
        committed = locales.LOCALES / path.relative_to(tmp_path)
        assert path.read_text(encoding="utf-8") == committed.read_text(encoding="utf-8"), (
            "run python -m gan_inversion.nodes.headless.locales"
        )


@pytest.mark.parametrize("language", TRANSLATIONS)
def test_translation_has_the_keys_of_the_schemas(language):
    assert locales.differences(language) == []


@pytest.mark.parametrize("language", TRANSLATIONS)
def test_translation_translates(language):
    english = dict(locales.leaves(ENGLISH))
    texts = locales.translated(language) | locales.translated(language, locales.MAIN)
    for path, text in locales.leaves(texts):
        assert isinstance(text, str) and text.strip() == text != "", path
        if text not in SAME:
            assert text != english[path], path
            assert language != "zh" or CHINESE.search(text), path


@pytest.mark.parametrize("language", ["en", *TRANSLATIONS])
def test_texts_hold_nothing_that_the_editor_takes_for_syntax(language):
    texts = locales.translated(language) | locales.translated(language, locales.MAIN)
    for path, text in locales.leaves(texts):
        assert not re.search(r"[@{}|<>]", text) and "." not in path[-2], path


@pytest.mark.parametrize("language", TRANSLATIONS)
def test_numbers_of_a_translation_are_those_of_the_english(language):
    """Ranges, sizes and defaults must survive translation."""
    english, texts = dict(locales.leaves(ENGLISH)), dict(locales.leaves(locales.translated(language)))
    number = re.compile(r"(?<![\w.])\d[\d,.]*\d|(?<![\w.,])\d")
    for path, text in texts.items():
        assert set(number.findall(english[path])) <= set(number.findall(text)), path


def test_what_a_translation_lacks_is_named(tmp_path):
    for file in (locales.NODES, locales.MAIN):
        (tmp_path / "zh").mkdir(exist_ok=True)
        (tmp_path / "zh" / file).write_text(
            (locales.LOCALES / "zh" / file).read_text(encoding="utf-8"), encoding="utf-8"
        )
    path = tmp_path / "zh" / locales.NODES
    texts = json.loads(path.read_text(encoding="utf-8"))
    del texts["GANInversionRender"]["inputs"]["noise"]["tooltip"]
    texts["GANInversionRender"]["colour"] = "x"
    path.write_text(json.dumps(texts), encoding="utf-8")
    assert locales.differences("zh", tmp_path) == [
        "zh/nodeDefs.json lacks GANInversionRender.inputs.noise.tooltip",
        "zh/nodeDefs.json has GANInversionRender.colour, which no node has",
    ]


def test_pages_and_translations_are_packed():
    """.comfyignore is read like a .gitignore: a name without a leading slash would match in every folder."""
    patterns = [line.strip() for line in (ROOT / ".comfyignore").read_text().splitlines() if line.strip()]
    shipped = [path.relative_to(ROOT) for folder in ("web", "locales") for path in (ROOT / folder).rglob("*.*")]
    assert len(shipped) > 2 * len(NODES)
    for path in shipped:
        assert not [
            p for p in patterns if not p.startswith("/") and any(Path(x).match(p.rstrip("/")) for x in path.parts)
        ]
        assert not [p for p in patterns if p.strip("/") == path.parts[0]]
    packed = (ROOT / "pyproject.toml").read_text()
    globs = re.findall(r'"((?:web|locales)/[^"]+)"', packed)
    assert all(any(path.match(glob) for glob in globs) for path in shipped)


def test_every_picture_can_be_drawn(tmp_path):
    workflow = help_pictures._workflow(help_pictures.PICTURES)
    Image.new("RGB", (8, 8)).save(tmp_path / workflow["photo"]["inputs"]["image"])
    order, _ = Runner(input_dir=tmp_path).validate(workflow)
    assert set(workflow) == set(order), "nodes that no picture needs"
    assert {f"{help_pictures.PREFIX}{name}" for name in help_pictures.PICTURES} <= set(NODES)


def test_pictures_are_made_small_enough():
    noise = torch.rand(6, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    picture = help_pictures._drawn(
        help_pictures.Picture((("a", 0), ("b", 0))), {"a": (noise,), "b": (noise[:1, :, :, 0],)}
    )
    assert picture.height == 112 and picture.width == 7 * 112 + 6 * 8
    assert len(help_pictures._encoded(picture)) <= help_pictures.LARGEST
    with pytest.raises(ValueError, match="does not fit"):
        help_pictures._encoded(Image.effect_noise((700, 700), 100).convert("RGB"))


def test_pages_are_served_where_the_editor_cuts_the_folders_name(monkeypatch, tmp_path):
    served = {"gan-inversion-0.1.0": "by ComfyUI"}
    monkeypatch.setitem(sys.modules, "nodes", types.SimpleNamespace(EXTENSION_WEB_DIRS=served))
    monkeypatch.setattr(_comfy, "__file__", str(tmp_path / "gan-inversion-0.1.0" / "nodes" / "_comfy.py"))
    _comfy.register_help_pages()
    assert list(served) == ["gan-inversion-0.1.0"], "not in ComfyUI"
    monkeypatch.setattr(_comfy, "RUNNING", True)
    _comfy.register_help_pages()
    assert served.pop("gan-inversion-0") == str(tmp_path / "gan-inversion-0.1.0" / "web")
    served["gan-inversion-0"] = "another pack's"
    _comfy.register_help_pages()
    assert served == {"gan-inversion-0.1.0": "by ComfyUI", "gan-inversion-0": "another pack's"}


def test_languages_are_distinct_pages():
    assert len({language.page("X") for language in help_pages.LANGUAGES}) == len(help_pages.LANGUAGES)
    assert {language.code for language in help_pages.LANGUAGES} == {"en", *TRANSLATIONS}
    for language in help_pages.LANGUAGES:
        assert all(getattr(language, field.name) for field in dataclasses.fields(language))
