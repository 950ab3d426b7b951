"""Help pages and translations as the editor asks for them."""

import re
import urllib.error
import urllib.parse

import pytest

from gan_inversion.nodes import all_nodes
from gan_inversion.nodes.headless import locales

from .conftest import ODD_NAME, ROOT

DOCS = ROOT / "web" / "docs"


def looked_for(module: str) -> str:
    """Where the editor expects the pages of a node, by the `python_module` that the server tells."""
    return f"/extensions/{module.split('.')[1].split('@')[0]}/docs"


def test_pages_and_their_pictures_are_served_where_the_editor_looks(server):
    info = server.json("/object_info")
    for node_id in all_nodes():
        assert info[node_id]["python_module"] == f"custom_nodes.{ODD_NAME}"
        for place in (f"/extensions/{ODD_NAME}/docs", looked_for(info[node_id]["python_module"])):
            for page in (f"{node_id}.md", f"{node_id}/zh.md"):
                served = server.call(f"{place}/{page}")
                assert served == (DOCS / page).read_bytes()
                for picture in re.findall(r"!\[[^]]+\]\(([^)]+)\)", served.decode()):
                    assert server.call(f"{place}/{picture}")[:2] == b"\xff\xd8"


def test_a_language_without_pages_gets_the_english_ones(server):
    with pytest.raises(urllib.error.HTTPError) as caught:
        server.call(f"/extensions/{ODD_NAME}/docs/GANInversionEncode/fr.md")
    assert caught.value.code == 404


def test_no_script_comes_with_the_pages(server):
    assert not [path for path in server.json("/extensions") if urllib.parse.quote(ODD_NAME) in path]


def test_translations_are_merged(server):
    served = server.json("/i18n")
    for language in ("en", "zh"):
        texts = served[language]
        for node_id, words in locales.translated(language).items():
            assert texts["nodeDefs"][node_id] == words
        names = locales.translated(language, locales.MAIN)["nodeCategories"]
        assert names.items() <= texts["nodeCategories"].items()
    assert served["zh"]["nodeDefs"]["GANInversionRender"]["display_name"] == "渲染"
