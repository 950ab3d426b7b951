"""Completes the help pages that ComfyUI shows for a node: prose is written by hand, lists come from the schemas.

`python -m gan_inversion.nodes.headless.help_pages` rewrites what stands between the two marks of every page, and nothing
else. English is web/docs/NODE.md, which the editor also shows in languages without a page of their own; Chinese is
web/docs/NODE/zh.md, whose lists come from locales/zh. Pictures are found relative to web/docs in either.

For a new node: run `...headless.locales`, add the texts it names to locales/zh, write both pages after those of another node
(prose, headings, the two marks), add a picture to help_pictures.py where one helps, run that and this.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from .. import all_nodes
from . import schemas
from .locales import Definitions, english, translated

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "web" / "docs"
BEGIN, END = "<!-- begin: written by help_pages.py -->", "<!-- end -->"

_OWN_TYPES = "GANINVERSION_"
_ENDLESS = 2**31  # limits from here on are those of the number format

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Language:
    """The words of a page that every node's has."""

    code: str
    headings: tuple[str, ...]  # in the order of a page
    inputs: str  # heads of the lists
    outputs: str
    kinds: Mapping[str, str]  # of widgets; sockets keep their names
    switch: tuple[str, str]  # off, on
    span: str  # of numbers
    optional: str
    default: str
    joint: str

    def page(self, node_id: str) -> Path:
        """Where a node's page lies below web/docs."""
        return Path(f"{node_id}.md") if self.code == "en" else Path(node_id) / f"{self.code}.md"


LANGUAGES = (
    Language(
        code="en",
        headings=("When to use it", "Inputs and outputs", "Tips", "Paper"),
        inputs="Inputs",
        outputs="Outputs",
        kinds={"INT": "whole number", "FLOAT": "number", "STRING": "text", "BOOLEAN": "on or off", "COMBO": "choice"},
        switch=("off", "on"),
        span="{} to {}",
        optional="optional",
        default="default {}",
        joint="; ",
    ),
    Language(
        code="zh",
        headings=("何时使用", "输入与输出", "提示", "论文"),
        inputs="输入",
        outputs="输出",
        kinds={"INT": "整数", "FLOAT": "小数", "STRING": "文本", "BOOLEAN": "开关", "COMBO": "选项"},
        switch=("关", "开"),
        span="{} 至 {}",
        optional="可选",
        default="默认 {}",
        joint="；",
    ),
)


def missing_pages(docs: Path = DOCS) -> list[str]:
    """Pages that nodes of the pack lack, relative to web/docs."""
    return [
        str(language.page(node_id))
        for node_id in all_nodes()
        for language in LANGUAGES
        if not (docs / language.page(node_id)).is_file()
    ]


def completed(text: str, node_id: str, language: Language) -> str:
    """A page with its title and its lists of inputs and outputs as the schema has them.

    Raises ValueError for a page without the two marks or one of the headings, or where the language lacks the node.
    """
    place = language.page(node_id)
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{place}: expected the lines {BEGIN!r} and {END!r}, one after the other.")
    found = re.findall(r"^## (.+)$", text, re.MULTILINE)
    if found != list(language.headings):
        raise ValueError(f"{place}: headings {found}, expected {list(language.headings)}.")
    words = _definitions(language).get(node_id)
    if words is None:
        raise ValueError(f"{place}: locales/{language.code}/nodeDefs.json has no entry for this node, write it first.")
    head = re.sub(r"\A(# [^\n]*\n)?", lambda _: f"# {words['display_name']}\n", head, count=1)
    return f"{head}{begin}\n\n{_lists(node_id, words, language)}\n{end}{tail}"


def write_all(docs: Path = DOCS) -> list[Path]:
    """Completes every page there is and returns the paths; names what is missing in the log."""
    for name in missing_pages(docs):
        logger.warning("%s is missing: write it after the page of another node.", name)
    written = []
    for node_id in all_nodes():
        for language in LANGUAGES:
            path = docs / language.page(node_id)
            if path.is_file():
                text = completed(path.read_text(encoding="utf-8"), node_id, language)
                path.write_text(text, encoding="utf-8")
                written.append(path)
    return written


@lru_cache
def _definitions(language: Language) -> Definitions:
    return english() if language.code == "en" else translated(language.code)


def _lists(node_id: str, words: Definitions, language: Language) -> str:
    """Inputs and outputs. Lists, since the editor's side bar is too narrow for tables."""
    node = all_nodes()[node_id]
    inputs = [
        _entry(key, words["inputs"][key], _accepts(socket, language), language)
        for key, socket in schemas.inputs_of(node).items()
    ]
    outputs = [
        _entry(output.display_name, own, _kind(schemas.type_of(output), language), language)
        for output, own in zip(schemas.outputs_of(node), words["outputs"].values(), strict=True)
    ]
    return f"**{language.inputs}**\n\n{''.join(inputs)}\n**{language.outputs}**\n\n{''.join(outputs)}"


def _entry(key: str, words: Mapping[str, str], accepts: str, language: Language) -> str:
    known = words["name"] == key or accepts.partition(language.joint)[0] == key
    facts = accepts if known else key + language.joint + accepts
    tooltip = words["tooltip"].replace("\n", " ")
    return f"- **{words['name']}** ({facts}): {tooltip}\n"


def _kind(name: str, language: Language) -> str:
    """What the reader calls a type of value."""
    return language.kinds.get(name, name.removeprefix(_OWN_TYPES).lower().replace("_", " "))


def _accepts(socket: Any, language: Language) -> str:
    """Kind, range and default of an input. Choices are left to the node: many are files of the machine."""
    words = [_kind(schemas.type_of(socket), language)]
    if not schemas.is_widget(socket):
        return language.joint.join([*words, language.optional] if socket.optional else words)
    low, high = getattr(socket, "min", None), getattr(socket, "max", None)
    if low is not None and high is not None and high < _ENDLESS:
        words[0] += " " + language.span.format(f"{low:g}", f"{high:g}")
    default = getattr(socket, "default", None)
    if isinstance(default, bool):
        default = language.switch[default]
    if default not in (None, ""):
        words.append(language.default.format(f"{default:g}" if isinstance(default, float) else default))
    return language.joint.join(words)


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s")
    write_all()
