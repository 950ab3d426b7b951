"""The texts that ComfyUI takes for each language: English from the schemas, others written by hand.

`python -m gan_inversion.nodes.headless.locales` writes locales/en and says in the log which texts other languages lack.
ComfyUI merges locales/LANGUAGE/main.json and nodeDefs.json of every pack and serves them to the editor.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .. import all_nodes
from . import schemas

LOCALES = Path(__file__).resolve().parents[2] / "locales"
NODES, MAIN = "nodeDefs.json", "main.json"

Definitions = dict[str, Any]  # nested; leaves are texts

logger = logging.getLogger(__name__)


def english() -> Definitions:
    """nodeDefs.json of the schemas: node id -> names and texts of the node, its inputs, and its outputs by number."""
    found: Definitions = {}
    for node_id, node in all_nodes().items():
        schema = schemas.schema_of(node)
        found[node_id] = {
            "display_name": schema.display_name,
            "description": schema.description,
            "inputs": {
                name: {"name": one.display_name or name, "tooltip": one.tooltip}
                for name, one in schemas.inputs_of(node).items()
            },
            "outputs": {
                str(i): {"name": one.display_name, "tooltip": one.tooltip}
                for i, one in enumerate(schemas.outputs_of(node))
            },
        }
    return found


def english_main() -> Definitions:
    """main.json of the schemas: the parts of the categories, which the editor translates one by one."""
    parts = {part: None for node in all_nodes().values() for part in schemas.schema_of(node).category.split("/")}
    return {"nodeCategories": {part: part for part in parts}}


def translated(language: str, file: str = NODES, folder: Path = LOCALES) -> Definitions:
    """A file of a language as it is committed."""
    content: Definitions = json.loads((folder / language / file).read_text(encoding="utf-8"))
    return content


def leaves(texts: Definitions, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(path of keys, text) of every text."""
    for key, value in texts.items():
        if isinstance(value, dict):
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key), value


def differences(language: str, folder: Path = LOCALES) -> list[str]:
    """What a language lacks and what it has too much, in words; empty when its keys are those of the schemas."""
    found = []
    for file, source in ((NODES, english()), (MAIN, english_main())):
        expected = {path for path, _ in leaves(source)}
        there = {path for path, _ in leaves(translated(language, file, folder))}
        found += [f"{language}/{file} lacks {'.'.join(path)}" for path in sorted(expected - there)]
        found += [f"{language}/{file} has {'.'.join(path)}, which no node has" for path in sorted(there - expected)]
    return found


def write_english(folder: Path = LOCALES) -> list[Path]:
    """Writes locales/en and returns the paths."""
    written = []
    for file, content in ((NODES, english()), (MAIN, english_main())):
        path = folder / "en" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        written.append(path)
    return written


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s")
    write_english()
    for language in sorted(path.name for path in LOCALES.iterdir() if path.is_dir() and path.name != "en"):
        for difference in differences(language):
            logger.warning(difference)
