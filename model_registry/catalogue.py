"""The catalogue: which models exist, where they come from, what they weigh, and which of them are on this machine.

The facts are data (`catalogue.json`, beside this file): one record per file with its source, size, sha256 and licence.
This module reads and checks them, knows the folders that are searched, and never touches the network (`hub` does).
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import json
import logging
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ..core.errors import CorruptFileError, InvalidInputError, ModelNotFoundError

logger = logging.getLogger(__name__)

KINDS = (
    "generator", "encoder", "refinement", "invertibility", "samm", "reganie", "face-parsing", "identity", "detector",
    "landmarks", "attributes", "perceptual", "metric", "direction", "mapper", "discriminator", "multilayer-encoder",
)  # fmt: skip
_CATALOGUE_FILE = Path(__file__).with_name("catalogue.json")
_BUNDLED_DIR = Path(__file__).with_name("bundled")
_FIELDS = {
    "id", "title", "kind", "architecture", "format", "domain", "resolution", "source", "bytes", "sha256", "licence",
    "non_commercial", "grade", "manual_url", "also_at", "notes",
}  # fmt: skip
_ID = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_COMMIT = re.compile(r"[0-9a-f]{40}")
# Small files are hashed whenever they are looked at; large ones only when they are about to be used.
_ALWAYS_HASH_BELOW = 16 * 2**20
_HASH_BLOCK = 4 * 2**20


@dataclass(frozen=True)
class HubSource:
    """A file in a Hugging Face Hub model repository; `revision` is a commit, or None where none is known."""

    repo: str
    file: str
    revision: str | None = None


@dataclass(frozen=True)
class UrlSource:
    """A file at a plain address whose content is pinned by size and sha256."""

    url: str


@dataclass(frozen=True)
class BundledSource:
    """A file that comes with the package, in model_registry/bundled."""

    file: str


@dataclass(frozen=True)
class ManualSource:
    """A file its host does not serve to programs (Google Drive, NVIDIA): the user fetches it from `manual_url`."""

    file: str


Source = HubSource | UrlSource | BundledSource | ManualSource


@dataclass(frozen=True)
class CatalogueEntry:
    """One model file: what it is, where it comes from, how to check it, and under which terms.

    `size` is in bytes; `size` and `sha256` are None where nobody published them. `file_name` is the name in the model
    folder: the source's own name, or the id with that suffix for directions and where several entries share the name.
    """

    id: str
    title: str
    kind: str
    source: Source
    file_name: str
    licence: str
    licence_text: str
    non_commercial: bool
    architecture: str | None = None
    format: str | None = None
    domain: str | None = None
    resolution: int | None = None
    size: int | None = None
    sha256: str | None = None
    grade: str | None = None
    manual_url: str | None = None
    also_at: tuple[str, ...] = ()
    notes: str | None = None

    @property
    def original_name(self) -> str:
        """The name the file has at its source."""
        return _original_name(self.source)


@functools.lru_cache(maxsize=1)
def load_catalogue() -> tuple[CatalogueEntry, ...]:
    """Read and check the catalogue that comes with the package (once per process).

    Raises CorruptFileError naming the entry and the field if the data file is not valid.
    """
    try:
        data = json.loads(_CATALOGUE_FILE.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CorruptFileError(f"{_CATALOGUE_FILE} cannot be read: {error}. Reinstall the package.") from error
    return parse_catalogue(data, str(_CATALOGUE_FILE))


def find(model_id: str) -> CatalogueEntry:
    """Look up one entry by its id. Raises ModelNotFoundError with the nearest ids."""
    entries = {entry.id: entry for entry in load_catalogue()}
    if model_id in entries:
        return entries[model_id]
    near = difflib.get_close_matches(str(model_id).lower(), entries, n=5, cutoff=0.5)
    hint = f"Did you mean {', '.join(near)}?" if near else "`gan-inversion models` lists every id."
    raise ModelNotFoundError(f"The catalogue has no model {model_id!r}. {hint}")


def parse_catalogue(data: dict[str, Any], name: str = "catalogue") -> tuple[CatalogueEntry, ...]:
    """Turn the catalogue's JSON object into entries; `name` is used in messages. Raises CorruptFileError."""
    if not isinstance(data, dict) or not isinstance(data.get("models"), list):
        raise CorruptFileError(f'{name}: expected an object with a list "models"')
    licences, rows = data.get("licences", {}), data["models"]
    sources = [_checked_source(row, name) for row in rows]
    shared = Counter(_original_name(source).lower() for source in sources if not isinstance(source, BundledSource))
    entries = []
    for row, source in zip(rows, sources, strict=True):
        original = _original_name(source)
        suffix = "".join(PurePosixPath(original).suffixes[-1:])
        # Direction files have names like age.pt, which say too little and could be the user's own.
        by_id = shared[original.lower()] > 1 or (row["kind"] == "direction" and not isinstance(source, BundledSource))
        file_name = row["id"] + suffix if by_id else original
        licence = licences.get(row["licence"])
        if licence is None and not isinstance(row.get("non_commercial"), bool):
            raise _invalid(name, row, "licence", f"{row['licence']!r} is not listed, so non_commercial must be given")
        entries.append(
            CatalogueEntry(
                id=row["id"],
                title=row["title"],
                kind=row["kind"],
                source=source,
                file_name=file_name,
                licence=licence["name"] if licence else row["licence"],
                licence_text=licence["text"] if licence else row["licence"],
                non_commercial=licence["non_commercial"] if licence else row["non_commercial"],
                architecture=row.get("architecture"),
                format=row.get("format"),
                domain=row.get("domain"),
                resolution=row.get("resolution"),
                size=row.get("bytes"),
                sha256=row.get("sha256"),
                grade=row.get("grade"),
                manual_url=row.get("manual_url"),
                also_at=tuple(row.get("also_at", ())),
                notes=row.get("notes"),
            )
        )
    for field, values in (("id", [e.id for e in entries]), ("file_name", [e.file_name.lower() for e in entries])):
        repeated = [value for value, count in Counter(values).items() if count > 1]
        if repeated:
            raise CorruptFileError(f"{name}: {field} {', '.join(repeated)} occurs more than once")
    return tuple(entries)


def _invalid(name: str, row: Any, field: str, problem: str) -> CorruptFileError:
    label = row.get("id", "?") if isinstance(row, dict) else row
    return CorruptFileError(f"{name}: entry {label!r}, field {field}: {problem}")


def _checked_source(row: Any, name: str) -> Source:
    """Check the fields of one row that have a fixed form, and return its source."""
    if not isinstance(row, dict) or not _ID.fullmatch(str(row.get("id"))):
        raise _invalid(name, row, "id", "expected lower-case letters and digits joined by single hyphens")
    if unknown := sorted(set(row) - _FIELDS):
        raise _invalid(name, row, unknown[0], "no such field")
    for field in ("title", "licence"):
        if not isinstance(row.get(field), str) or not row[field]:
            raise _invalid(name, row, field, "expected a text")
    if row.get("kind") not in KINDS:
        raise _invalid(name, row, "kind", f"found {row.get('kind')!r}, expected one of {', '.join(KINDS)}")
    size, digest = row.get("bytes"), row.get("sha256")
    if size is not None and (not isinstance(size, int) or size <= 0):
        raise _invalid(name, row, "bytes", f"found {size!r}, expected a positive number or null")
    if digest is not None and not _SHA256.fullmatch(str(digest)):
        raise _invalid(name, row, "sha256", f"found {digest!r}, expected 64 lower-case hex digits or null")
    source = _parse_source(row.get("source"))
    if source is None or PurePosixPath(_original_name(source)).name != _original_name(source):
        raise _invalid(name, row, "source", f"found {row.get('source')!r}, expected repo, url, manual or bundled")
    if isinstance(source, HubSource) and not _REPOSITORY.fullmatch(source.repo):
        raise _invalid(name, row, "source", f"{source.repo!r} is not a Hub repository (owner/name)")
    if isinstance(source, HubSource) and source.revision and not _COMMIT.fullmatch(source.revision):
        raise _invalid(name, row, "source", f"revision {source.revision!r} is not a full commit")
    if isinstance(source, UrlSource) and (not source.url.startswith("https://") or digest is None or size is None):
        raise _invalid(name, row, "source", "a plain address needs https, bytes and sha256")
    if isinstance(source, ManualSource) and not row.get("manual_url"):
        raise _invalid(name, row, "manual_url", "missing: nobody could find the file")
    return source


def _parse_source(value: Any) -> Source | None:
    match value:
        case {"repo": str(repo), "file": str(file), "revision": (str() | None) as revision}:
            return HubSource(repo, file, revision)
        case {"url": str(url)}:
            return UrlSource(url)
        case {"bundled": str(file)}:
            return BundledSource(file)
        case {"manual": str(file)}:
            return ManualSource(file)
    return None


def _original_name(source: Source) -> str:
    match source:
        case HubSource(file=file):
            return file.rsplit("/", 1)[-1]
        case UrlSource(url=url):
            return url.split("?", 1)[0].rsplit("/", 1)[-1]
    return source.file


# Folders: (kind or None for every kind, a folder or a function that gives folders), in order of registration.
_registered: list[tuple[str | None, Path | Callable[[], Iterable[str | os.PathLike[str]]]]] = []


def cache_dir() -> Path:
    """The package's own folder: environment variable GAN_INVERSION_HOME, or `gan-inversion` in the user's cache."""
    if home := os.environ.get("GAN_INVERSION_HOME"):
        return Path(home).expanduser()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "gan-inversion"


def register_model_dir(
    kind: str | None, path: str | os.PathLike[str] | Callable[[], Iterable[str | os.PathLike[str]]]
) -> None:
    """Search this folder for models of `kind` (None: of every kind), before the cache folder.

    `path` may be a function that returns folders: it is called at every look-up, for hosts whose folders can move.
    Folders keep the order of registration; the first one of a kind is where its downloads go.
    """
    if kind is not None and kind not in KINDS:
        raise InvalidInputError(f"Found model kind {kind!r}, expected None or one of {', '.join(KINDS)}")
    item = (kind, path if callable(path) else Path(path))
    if item not in _registered:
        _registered.append(item)


def model_dirs(kind: str | None = None) -> list[Path]:
    """The folders searched for models of `kind` (None: for every kind), first the one that downloads go to."""
    matching = [item for item in _registered if kind is None or item[0] == kind]
    general = [item for item in _registered if kind is not None and item[0] is None]
    folders: list[Path] = []
    for _, path in matching + general:
        folders += [Path(folder) for folder in path()] if callable(path) else [path]
    return list(dict.fromkeys([*folders, cache_dir() / "models"]))


@dataclass(frozen=True)
class ModelStatus:
    """What is known of one entry on this machine; `size` in bytes, of the file or else of the catalogue."""

    entry: CatalogueEntry
    state: str  # bundled | present | damaged | missing | manual
    path: Path | None
    size: int | None
    licence: str


def status(*, verify: bool = False, entries: Iterable[CatalogueEntry] | None = None) -> list[ModelStatus]:
    """State of every catalogue entry on this machine; `verify` also hashes large files not hashed before.

    States: bundled (comes with the package), present, damaged (size or sha256 is wrong), missing (can be downloaded),
    manual (missing, and only the user can fetch it).
    """
    records = []
    for entry in load_catalogue() if entries is None else entries:
        path, problem = locate(entry, verify=verify)
        if path is None:
            state = "manual" if isinstance(entry.source, ManualSource) else "missing"
        elif problem is not None:
            state = "damaged"
        else:
            state = "bundled" if isinstance(entry.source, BundledSource) else "present"
        size = entry.size if path is None else path.stat().st_size
        records.append(ModelStatus(entry, state, path, size, entry.licence))
    return records


def format_table(records: Iterable[ModelStatus]) -> str:
    """Plain-text table of status records: state, id, size, licence, title; then the folder downloads go to."""
    rows = [("STATE", "ID", "SIZE", "LICENCE", "MODEL")]
    rows += [(r.state, r.entry.id, readable_size(r.size), r.licence, r.entry.title) for r in records]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = ["  ".join([*map(str.ljust, row, widths), row[4]]) for row in rows]
    return "\n".join([*lines, "", f"Folder: {model_dirs()[0]}"])


def readable_size(size: int | None) -> str:
    """A number of bytes for people: '132.7 MB', or '?' when it is not known."""
    if size is None:
        return "?"
    for unit, step in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= step:
            return f"{size / step:.1f} {unit}"
    return f"{size} B"


def locate(
    entry: CatalogueEntry, *, verify: bool = True, check_interrupt: Callable[[], None] | None = None
) -> tuple[Path | None, str | None]:
    """Find the entry's file on this machine without touching the network.

    Returns (path, None) for a good file, (path, what is wrong) if only a damaged one is there, (None, None) otherwise.
    A file that the user placed under its original name is accepted too, when its size and sha256 fit.
    """
    if isinstance(entry.source, BundledSource):
        candidates = [_BUNDLED_DIR / entry.source.file]
    else:
        candidates = [folder / entry.file_name for folder in model_dirs(entry.kind)]
        if entry.original_name != entry.file_name and entry.sha256 and entry.size:
            candidates += [folder / entry.original_name for folder in model_dirs(entry.kind)]
    damaged: tuple[Path, str] | None = None
    for path in candidates:
        if not path.is_file():
            continue
        problem = check_file(path, entry.size, entry.sha256, verify=verify, check_interrupt=check_interrupt)
        if problem is None:
            return path, None
        if damaged is None and path.name == candidates[0].name:
            damaged = path, problem
    return damaged or (None, None)


def check_file(
    path: Path,
    size: int | None,
    sha256: str | None,
    *,
    verify: bool = True,
    keep_record: bool = True,
    check_interrupt: Callable[[], None] | None = None,
) -> str | None:
    """What is wrong with a file, or None. The size is compared each time, the sha256 once per size and time stamp.

    verify=False leaves out the sha256 of a large file that was never hashed; keep_record=False remembers nothing.
    """
    found = path.stat()
    if size is not None and found.st_size != size:
        return f"its size is {found.st_size} bytes, expected {size}"
    if sha256 is None or _read_record().get(str(path.resolve())) == [found.st_size, found.st_mtime_ns, sha256]:
        return None
    if not verify and found.st_size > _ALWAYS_HASH_BELOW:
        return None
    digest = sha256_of(path, check_interrupt)
    if digest != sha256:
        return f"its sha256 is {digest}, expected {sha256}"
    if keep_record:
        remember_verified(path, sha256)
    return None


def remember_verified(path: Path, sha256: str) -> None:
    """Note in the cache folder that this file, as it is now, has this sha256, so that it is not hashed again."""
    found = path.stat()
    record = {**_read_record(), str(path.resolve()): [found.st_size, found.st_mtime_ns, sha256]}
    target = _record_path()
    temporary = target.with_name(f"{target.name}.{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(record, indent=0), encoding="utf-8")
        os.replace(temporary, target)
    except OSError as error:
        # Only costs a second hash next time, so a cache folder that cannot be written is no reason to fail.
        logger.debug("The record of verified files %s was not written: %s", target, error)


def sha256_of(path: Path, check_interrupt: Callable[[], None] | None = None) -> str:
    """sha256 of a file in hex; `check_interrupt` is called between blocks of it and may raise to stop."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_HASH_BLOCK):
            digest.update(block)
            if check_interrupt is not None:
                check_interrupt()
    return digest.hexdigest()


def _record_path() -> Path:
    return cache_dir() / "verified.json"


def _read_record() -> dict[str, Any]:
    try:
        record = json.loads(_record_path().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}
