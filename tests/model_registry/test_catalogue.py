"""The catalogue's data, its folders, and what it says of the files on this machine."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import re
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import pytest
from safetensors import safe_open

from gan_inversion.core.errors import CorruptFileError, InvalidInputError, ModelNotFoundError
from gan_inversion.model_registry import catalogue
from gan_inversion.model_registry.catalogue import (
    BundledSource,
    CatalogueEntry,
    HubSource,
    ManualSource,
    UrlSource,
    find,
    format_table,
    load_catalogue,
    locate,
    model_dirs,
    parse_catalogue,
    register_model_dir,
    status,
)

PROJECT = Path(catalogue.__file__).resolve().parents[1]
SHARED = Path(os.environ.get("GAN_INVERSION_SHARED") or PROJECT.parent / "shared")
RAW = json.loads((PROJECT / "model_registry" / "catalogue.json").read_text(encoding="utf-8"))


@pytest.fixture(autouse=True)
def _own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("GAN_INVERSION_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(catalogue, "_registered", [])


@pytest.fixture
def entry() -> CatalogueEntry:
    return CatalogueEntry(
        id="net-a",
        title="Net A",
        kind="direction",
        source=HubSource("a/b", "net.pt"),
        file_name="net.pt",
        licence="MIT",
        licence_text="MIT License.",
        non_commercial=False,
        size=4,
        sha256=hashlib.sha256(b"good").hexdigest(),
    )


def _place(name: str, content: bytes) -> Path:
    folder = model_dirs("direction")[0]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)
    return folder / name


def test_ids_and_final_names_are_unique():
    entries = load_catalogue()
    assert len(entries) > 100
    assert len({e.id for e in entries}) == len(entries)
    assert len({e.file_name.lower() for e in entries}) == len(entries)


def test_every_entry_is_complete_and_well_formed():
    for e in load_catalogue():
        assert e.licence and e.licence_text and e.title and e.kind in catalogue.KINDS
        assert e.sha256 is None or re.fullmatch("[0-9a-f]{64}", e.sha256)
        assert e.size is None or e.size > 0
        assert e.grade in ("A", "B") or isinstance(e.source, BundledSource)
        match e.source:
            case HubSource(repo, file, revision):
                assert re.fullmatch(r"[\w.-]+/[\w.-]+", repo) and file and not file.startswith("/")
                assert revision is None or re.fullmatch("[0-9a-f]{40}", revision)
            case UrlSource(url):
                assert url.startswith("https://") and e.sha256 and e.size
                assert "github" not in url or re.search(r"/[0-9a-f]{40}/", url), "not pinned to a commit"
            case ManualSource():
                assert e.manual_url and e.manual_url.startswith("https://")


def test_a_hash_belongs_to_one_file():
    by_hash: dict[str, set[int | None]] = {}
    for e in load_catalogue():
        if e.sha256:
            by_hash.setdefault(e.sha256, set()).add(e.size)
    assert all(len(sizes) == 1 for sizes in by_hash.values())


def test_everything_made_from_stylegan_is_marked_non_commercial():
    ours = [e for e in load_catalogue() if not isinstance(e.source, BundledSource)]
    assert all(e.non_commercial for e in ours if e.kind in ("generator", "encoder", "refinement", "invertibility"))


@pytest.mark.parametrize(
    ("model_id", "kind", "architecture", "size"),
    [
        ("stylegan2-ffhq-1024", "generator", "stylegan2", 132_717_355),
        ("e4e-ffhq", "encoder", "e4e", 1_201_649_680),
        ("psp-ffhq", "encoder", "psp", 1_201_515_631),
        ("restyle-e4e-ffhq", "encoder", "restyle-e4e", None),
        ("sam-invertibility-ffhq", "invertibility", "sam-invertibility", None),
        ("yunet", "detector", "yunet", 232_589),
        ("interfacegan-ffhq-smile", "direction", "interfacegan", 2_808),
    ],
)
def test_the_essential_models_are_there(model_id, kind, architecture, size):
    e = find(model_id)
    assert (e.kind, e.architecture, e.size) == (kind, architecture, size)


def test_sizes_and_hashes_are_those_of_the_real_files():
    data = SHARED / "data"
    if not data.is_dir():
        pytest.skip(f"no real files at {data}")
    known = {hashlib.sha256(p.read_bytes()).hexdigest(): p.stat().st_size for p in data.glob("**/*") if _is_model(p)}
    checked = 0
    for e in load_catalogue():
        if (isinstance(e.source, UrlSource) and "githubusercontent" in e.source.url) or e.id == "yunet":
            assert known[e.sha256] == e.size, e.id
            checked += 1
    assert checked > 45


def _is_model(path: Path) -> bool:
    return path.is_file() and ("directions" in path.parts or "nets" in path.parts)


def test_find_suggests_near_ids():
    with pytest.raises(ModelNotFoundError, match="stylegan2-ffhq-1024"):
        find("stylegan2-ffhq1024")
    with pytest.raises(ModelNotFoundError, match="gan-inversion models"):
        find("?")


def test_entries_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        find("e4e-ffhq").size = 1


def test_a_file_name_shared_by_two_entries_becomes_the_id():
    e = find("stylegan2-ffhq-1024")
    assert (e.original_name, e.file_name) == ("stylegan2-ffhq-config-f.pt", "stylegan2-ffhq-1024.pt")
    assert find("e4e-car").file_name == "e4e_cars_encode.pt"
    assert find("interfacegan-ffhq-age").file_name == "interfacegan-ffhq-age.pt"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"id": "Bad Id"}, "id"),
        ({"kind": "thing"}, "kind"),
        ({"sha256": "abc"}, "sha256"),
        ({"bytes": -1}, "bytes"),
        ({"licence": ""}, "licence"),
        ({"licence": "Own"}, "licence"),
        ({"colour": "red"}, "colour"),
        ({"source": {"repo": "no-owner", "file": "x", "revision": None}}, "source"),
        ({"source": {"repo": "a/b", "file": "x", "revision": "main"}}, "source"),
        ({"source": {"bundled": "../x.pt"}}, "source"),
        ({"source": {"url": "http://a/b.pt"}}, "source"),
        ({"source": {"url": "https://a/b.pt"}, "sha256": None}, "source"),
        ({"source": {"manual": "x.pt"}, "manual_url": None}, "manual_url"),
        ({"source": None}, "source"),
    ],
)
def test_a_wrong_field_is_named(change, field):
    row = {**copy.deepcopy(RAW["models"][0]), **change}
    with pytest.raises(CorruptFileError, match=f"field {field}"):
        parse_catalogue({**RAW, "models": [row]})


def test_a_repeated_id_is_refused():
    row = RAW["models"][0]
    with pytest.raises(CorruptFileError, match="more than once"):
        parse_catalogue({**RAW, "models": [row, row]})


def test_a_bundled_entry_may_state_its_own_licence(tmp_path, monkeypatch):
    row = {
        "id": "ours", "title": "Ours", "kind": "generator", "source": {"bundled": "ours.safetensors"},
        "licence": "CC BY 4.0", "non_commercial": False, "bytes": 4, "sha256": hashlib.sha256(b"good").hexdigest(),
    }  # fmt: skip
    (bundled,) = parse_catalogue({**RAW, "models": [row]})
    monkeypatch.setattr(catalogue, "_BUNDLED_DIR", tmp_path)
    assert status(entries=[bundled])[0].state == "missing"
    (tmp_path / "ours.safetensors").write_bytes(b"good")
    assert (status(entries=[bundled])[0].state, bundled.licence) == ("bundled", "CC BY 4.0")


def test_folders_are_searched_in_the_order_of_registration(tmp_path):
    cache = tmp_path / "home" / "models"
    assert model_dirs() == model_dirs("direction") == [cache]
    register_model_dir(None, tmp_path / "any")
    register_model_dir("direction", lambda: [tmp_path / "one", tmp_path / "two"])
    register_model_dir(None, tmp_path / "any")
    assert model_dirs("direction") == [tmp_path / "one", tmp_path / "two", tmp_path / "any", cache]
    assert model_dirs("generator") == [tmp_path / "any", cache]
    with pytest.raises(InvalidInputError, match="thing"):
        register_model_dir("thing", tmp_path)


def test_the_cache_folder_follows_the_platform(monkeypatch, tmp_path):
    monkeypatch.delenv("GAN_INVERSION_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("sys.platform", "linux")
    assert catalogue.cache_dir() == tmp_path / "gan-inversion"


@pytest.mark.parametrize(("content", "state"), [(b"good", "present"), (b"evil", "damaged"), (b"go", "damaged")])
def test_status_checks_size_and_hash(entry, content, state):
    path = _place("net.pt", content)
    (record,) = status(entries=[entry])
    assert (record.state, record.path, record.size) == (state, path, len(content))


def test_status_of_absent_files(entry):
    manual = replace(entry, source=ManualSource("net.pt"), manual_url="https://x.org")
    assert [r.state for r in status(entries=[entry, manual])] == ["missing", "manual"]


def test_a_later_folder_with_a_good_file_beats_an_earlier_damaged_one(entry, tmp_path):
    good = _place("net.pt", b"good")
    register_model_dir("direction", tmp_path / "first")
    _place("net.pt", b"evil")
    assert locate(entry) == (good, None)


def test_the_original_name_is_accepted_only_with_the_right_content(entry):
    renamed = replace(entry, file_name="net-a.pt")
    path = _place("net.pt", b"evil")
    assert locate(renamed) == (None, None)
    path.write_bytes(b"good")
    assert locate(renamed) == (path, None)


def test_a_changed_file_is_hashed_again(entry):
    path = _place("net.pt", b"good")
    assert locate(entry) == (path, None)
    path.write_bytes(b"evil")
    os.utime(path, ns=(1, 1))
    assert "sha256" in (locate(entry)[1] or "")


def test_the_table_shows_state_size_and_licence(entry):
    _place("net.pt", b"good")
    table = format_table(status(entries=[entry, find("e4e-ffhq")]))
    lines = table.splitlines()
    assert lines[0].split() == ["STATE", "ID", "SIZE", "LICENCE", "MODEL"]
    assert lines[1].split() == ["present", "net-a", "4", "B", "MIT", "Net", "A"]
    assert "missing" in lines[2] and "1.2 GB" in lines[2] and "non-commercial" in lines[2]
    assert str(model_dirs()[0]) in table


def test_bundled_weights_stay_small_and_say_where_they_come_from():
    files = sorted(catalogue._BUNDLED_DIR.glob("*.safetensors"))
    assert sum(file.stat().st_size for file in files) <= 60 * 2**20
    assert (catalogue._BUNDLED_DIR / "portraits.safetensors").stat().st_size <= 20 * 2**20
    listed = {entry.source.file for entry in load_catalogue() if isinstance(entry.source, catalogue.BundledSource)}
    assert {file.name for file in files} == listed
    for file in files:
        with safe_open(file, "pt") as content:
            text = " ".join((content.metadata() or {}).values())
        assert "figshare" in text and "5047666" in text and "CC" in text, (
            f"{file.name} lacks the credit line or the licence"
        )
