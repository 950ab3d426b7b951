"""Downloads of catalogue files: on demand, resumable, interruptible, verified, never partial under the final name.

`huggingface_hub` does the transfer: its metadata call resolves a file (endpoint, token, redirects, errors) and its
`http_get` streams it, for plain addresses too. Its `hf_hub_download` is not used: the 2.x releases throw a partial file
away when a transfer fails, and the older ones report no progress. The functions used here are the same since 0.34.
"""

from __future__ import annotations

import contextlib
import errno
import inspect
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote, urlsplit

from ..core.errors import DownloadError
from .catalogue import (
    BundledSource,
    CatalogueEntry,
    HubSource,
    ManualSource,
    UrlSource,
    check_file,
    find,
    locate,
    model_dirs,
    readable_size,
    remember_verified,
)

logger = logging.getLogger(__name__)

Progress = Callable[[int, "int | None"], None]
_LOCK_POLL_SECONDS = 0.2
_TRUE = {"1", "on", "yes", "true"}
_SHA256 = re.compile(r"[0-9a-f]{64}")
# Class names, because the client's HTTP library differs by release (requests, httpx, httpx2).
_CONNECTION_ERRORS = {"ConnectError", "ConnectionError", "ConnectTimeout", "ProxyError", "SSLError", "MaxRetryError"}
_BROKEN_TRANSFERS = {
    "ReadTimeout", "ReadError", "RemoteProtocolError", "ChunkedEncodingError", "ContentDecodingError", "TimeoutError",
}  # fmt: skip


@dataclass(frozen=True)
class _Remote:
    """Where the bytes come from and what they must be; without a `tag` a partial file cannot be recognised again."""

    url: str
    headers: dict[str, str]
    size: int | None
    sha256: str | None
    tag: str | None


class _StoppedByCaller(BaseException):
    """Carries an exception of the caller's callbacks past every handler here and in the client."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(error)
        self.error = error


def fetch(
    entry_or_id: CatalogueEntry | str,
    *,
    progress: Progress | None = None,
    check_interrupt: Callable[[], None] | None = None,
    accept_licence: Callable[[CatalogueEntry], bool] | None = None,
) -> Path:
    """Path of the entry's verified file, downloading it first if it is not on this machine.

    A file that is already there is returned without touching the network. Downloads go to the first folder of
    `model_dirs(entry.kind)`; a partial one waits in a hidden folder beside the final name and is continued next time.

    progress: called with (bytes done, total bytes or None) during the transfer; without it the Hub client draws a bar.
    check_interrupt: called before and during the transfer; whatever it raises ends the transfer and reaches the caller.
    accept_licence: asked before the first download of a non-commercial model, False refuses it; the licence is logged
        as a warning in any case.
    Raises ModelNotFoundError for an unknown id, DownloadError with everything needed to place the file by hand.
    """
    entry = find(entry_or_id) if isinstance(entry_or_id, str) else entry_or_id
    stop_check = _guarded(check_interrupt)
    try:
        path, problem = locate(entry, check_interrupt=stop_check)
        if path is not None and problem is None:
            return path
        folder = model_dirs(entry.kind)[0]
        if isinstance(entry.source, BundledSource):
            found = f"{path}: {problem}" if path else f"{entry.source.file} is missing from the package"
            raise DownloadError(f"The bundled model {entry.id} cannot be used: {found}. Reinstall the package.")
        if isinstance(entry.source, ManualSource):
            raise _failure(entry, folder, f"{path}: {problem}" if path else "its host gives it to people, not programs")
        if _offline():
            raise _failure(entry, folder, "HF_HUB_OFFLINE is set, so nothing is downloaded")
        if entry.non_commercial:
            logger.warning("Licence of %s: %s. %s", entry.id, entry.licence, entry.licence_text)
            if accept_licence is not None and not accept_licence(entry):
                raise _failure(entry, folder, f"its licence was not accepted ({entry.licence})")
        if path is not None:
            logger.warning("%s is not the file of the catalogue (%s): downloading it", path, problem)
        return _download(entry, folder, _guarded(progress), stop_check)
    except _StoppedByCaller as stopped:
        raise stopped.error from None


def _download(
    entry: CatalogueEntry, folder: Path, progress: Progress | None, check_interrupt: Callable[[], None] | None
) -> Path:
    work, final = folder / f".download-{entry.id}", folder / entry.file_name
    try:
        work.mkdir(parents=True, exist_ok=True)
        with _locked(work / "lock", check_interrupt):
            # Another process may have finished the same file while this one waited for the lock.
            path, problem = locate(entry, check_interrupt=check_interrupt)
            if path is not None and problem is None:
                return path
            partial = _transfer(entry, folder, work, progress, check_interrupt)
            if final.exists():
                # It failed its check, yet it may be the user's own file of that name: keep it.
                os.replace(final, _unused_name(final))
            os.replace(partial, final)
            if entry.sha256 is not None:
                remember_verified(final, entry.sha256)
    except DownloadError:
        raise
    except Exception as error:
        kept = max((file.stat().st_size for file in work.glob("*.partial")), default=0)
        note = f" ({readable_size(kept)} are kept, the next attempt continues there)" if kept else ""
        raise _failure(entry, folder, _cause(error, entry) + note) from error
    shutil.rmtree(work, ignore_errors=True)
    logger.info("Downloaded %s to %s", entry.id, final)
    return final


def _transfer(
    entry: CatalogueEntry,
    folder: Path,
    work: Path,
    progress: Progress | None,
    check_interrupt: Callable[[], None] | None,
) -> Path:
    """Bring the whole, verified file into `work`: continue a partial one, start over once if that turns out wrong."""
    if check_interrupt is not None:
        check_interrupt()
    remote = _resolve(entry, folder)
    partial = work / f"{remote.tag or 'unnamed'}.partial"
    for other in work.glob("*.partial"):
        if other != partial or remote.tag is None:
            other.unlink()
    while True:
        resumed = partial.stat().st_size if partial.is_file() else 0
        free = shutil.disk_usage(work).free
        if remote.size is not None and free < remote.size - resumed:
            raise OSError(errno.ENOSPC, f"{readable_size(remote.size - resumed)} needed, {readable_size(free)} free")
        try:
            _stream(remote, partial, progress, check_interrupt)
            problem = check_file(
                partial, remote.size, remote.sha256, keep_record=False, check_interrupt=check_interrupt
            )
        except OSError:
            # Older clients append a whole file to the partial one when a server ignores the range they ask for.
            if not resumed or remote.size is None or partial.stat().st_size <= remote.size:
                raise
            problem = "the server sent more than the missing part"
        if problem is None:
            return partial
        partial.unlink()
        if not resumed:
            raise _failure(entry, folder, f"the downloaded file is not the expected one: {problem}")
        logger.warning("%s: the continued download is wrong (%s), starting over", entry.id, problem)


class _Sink:
    """The file that the client writes to: reports and may stop after each chunk, in every release of the client."""

    def __init__(
        self, file: BinaryIO, size: int | None, progress: Progress | None, check_interrupt: Callable[[], None] | None
    ) -> None:
        self._file, self._size, self._progress, self._check_interrupt = file, size, progress, check_interrupt

    def write(self, data: bytes) -> int:
        """Write one chunk, then report the bytes done so far."""
        written = self._file.write(data)
        if self._progress is not None:
            self._progress(self._file.tell(), self._size)
        if self._check_interrupt is not None:
            self._check_interrupt()
        return written

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


class _NoBar:
    """Stands in for the client's progress bar when the caller shows progress itself."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __enter__(self) -> _NoBar:
        return self

    def __exit__(self, *args: object) -> None:
        pass

    def update(self, n: float | None = 1) -> None:
        """Do nothing."""


def _stream(
    remote: _Remote, partial: Path, progress: Progress | None, check_interrupt: Callable[[], None] | None
) -> None:
    """Append the missing part of the file to `partial`."""
    from huggingface_hub.file_download import http_get

    resumed = partial.stat().st_size if partial.is_file() else 0
    if remote.size is not None and resumed > remote.size:
        partial.unlink()
        resumed = 0
    options: dict[str, Any] = {}
    if progress is not None and "tqdm_class" in inspect.signature(http_get).parameters:
        options["tqdm_class"] = _NoBar
    # Not append mode: the client rewinds and truncates when a server ignores the range it asks for.
    with partial.open("r+b" if resumed else "wb") as file:
        file.seek(0, os.SEEK_END)
        sink: Any = _Sink(file, remote.size, progress, check_interrupt)
        http_get(
            remote.url, sink, resume_size=resumed, headers=remote.headers, expected_size=remote.size,
            displayed_filename=remote.url.rsplit("/", 1)[-1], **options,
        )  # fmt: skip


def _resolve(entry: CatalogueEntry, folder: Path) -> _Remote:
    """Ask where the file is. A Hub copy whose size or hash is not the catalogue's is refused before its download."""
    # The bytes as they are: a compressed answer could neither be continued nor measured.
    plain = {"Accept-Encoding": "identity"}
    if isinstance(entry.source, UrlSource):
        return _Remote(entry.source.url, plain, entry.size, entry.sha256, entry.sha256)
    from huggingface_hub import get_hf_file_metadata
    from huggingface_hub.errors import RevisionNotFoundError
    from huggingface_hub.utils import build_hf_headers

    url = _hub_url(entry)
    try:
        found = get_hf_file_metadata(url)
    except RevisionNotFoundError:
        if entry.sha256 is None or url == _hub_url(entry, "main"):
            raise
        logger.warning("%s: the pinned commit is gone, trying the newest; its sha256 is still checked", entry.id)
        url = _hub_url(entry, "main")
        found = get_hf_file_metadata(url)
    if found.commit_hash is None or found.etag is None:
        raise _failure(entry, folder, f"{urlsplit(url).netloc} does not answer like a Hugging Face Hub")
    published = found.etag if _SHA256.fullmatch(found.etag) else None
    for what, theirs, ours in (("size", found.size, entry.size), ("sha256", published, entry.sha256)):
        if theirs is not None and ours is not None and theirs != ours:
            raise _failure(entry, folder, f"the Hub's file is not the expected one: {what} {theirs}, expected {ours}")
    sha256 = entry.sha256 or published
    tag = sha256 or re.sub(r"\W", "_", found.etag)
    return _Remote(url, {**build_hf_headers(), **plain}, entry.size or found.size, sha256, tag)


def _hub_url(entry: CatalogueEntry, revision: str | None = None) -> str:
    """Address of a Hub file, on the mirror that HF_ENDPOINT names if it is set."""
    assert isinstance(entry.source, HubSource)
    revision = revision or entry.source.revision or "main"
    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"
    return f"{endpoint}/{entry.source.repo}/resolve/{revision}/{quote(entry.source.file)}"


@contextlib.contextmanager
def _locked(path: Path, check_interrupt: Callable[[], None] | None) -> Iterator[None]:
    """Hold a lock between processes, so that two downloads of one file do not write into each other."""
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    while True:
        try:
            lock.acquire(timeout=_LOCK_POLL_SECONDS)
            break
        except Timeout:
            if check_interrupt is not None:
                check_interrupt()
        except NotImplementedError:
            # Some network file systems have no locks; the hash check still catches a mixed-up file.
            break
    try:
        yield
    finally:
        lock.release()


def _guarded(callback: Callable[..., None] | None) -> Callable[..., None] | None:
    if callback is None:
        return None

    def call(*args: Any) -> None:
        try:
            callback(*args)
        except BaseException as error:
            raise _StoppedByCaller(error) from error

    return call


def _offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").lower() in _TRUE


def _unused_name(path: Path) -> Path:
    candidates = [path.with_name(f"{path.name}.replaced{number or ''}") for number in range(1000)]
    return next(candidate for candidate in candidates if not candidate.exists())


def _cause(error: Exception, entry: CatalogueEntry) -> str:
    """One sentence on why a transfer failed, from whatever the client or the file system raised."""
    names = {kind.__name__ for kind in type(error).__mro__}
    code = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, ImportError):
        return f"the Python package {error.name or 'huggingface_hub'} is needed (pip install 'huggingface-hub>=0.34')"
    if "OfflineModeIsEnabled" in names:
        return "HF_HUB_OFFLINE is set, so nothing is downloaded"
    if "GatedRepoError" in names:
        return f"the repository is gated (HTTP {code}): accept its terms on its page and set HF_TOKEN"
    if "RepositoryNotFoundError" in names:
        return f"the repository does not exist or is private (HTTP {code}); a private one needs HF_TOKEN"
    if "RevisionNotFoundError" in names:
        return f"the repository has no such revision (HTTP {code})"
    if "EntryNotFoundError" in names or code == 404:
        return f"the file is not there (HTTP {code or 404})"
    if code is not None:
        return f"the server answered HTTP {code}"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"the disk is full: {error.strerror}"
    if isinstance(error, PermissionError) or getattr(error, "errno", None) == errno.EROFS:
        return f"the folder cannot be written ({error})"
    if "Consistency check failed" in str(error):
        return f"the transfer was truncated ({str(error).splitlines()[0]})"
    if names & _CONNECTION_ERRORS:
        host = urlsplit(_hub_url(entry) if isinstance(entry.source, HubSource) else str(_address(entry))).netloc
        return f"no connection to {host} ({error}); offline, or behind a firewall? HF_ENDPOINT can name a mirror"
    if names & _BROKEN_TRANSFERS:
        return f"the connection broke during the transfer ({error})"
    return f"{type(error).__name__}: {error}"


def _address(entry: CatalogueEntry) -> str | None:
    if isinstance(entry.source, HubSource):
        return _hub_url(entry)
    return entry.source.url if isinstance(entry.source, UrlSource) else entry.manual_url


def _failure(entry: CatalogueEntry, folder: Path, cause: str) -> DownloadError:
    """The one error of this module: why it failed, and how to place the file by hand."""
    source = entry.source
    facts: list[tuple[str, object]] = []
    if isinstance(source, HubSource):
        revision = f" (revision {source.revision})" if source.revision else ""
        facts.append(("repository", source.repo + revision))
    facts += [
        ("file", source.file if isinstance(source, HubSource) else entry.original_name),
        ("address", _address(entry)),
        ("size", f"{entry.size:,} bytes" if entry.size else "not published"),
        ("sha256", entry.sha256 or "not published"),
        ("folder", folder),
        ("save as", entry.file_name),
        ("licence", entry.licence),
    ]
    others = [*([entry.manual_url] if entry.manual_url and entry.manual_url != _address(entry) else []), *entry.also_at]
    facts += [("also at", other) for other in others]
    action = "cannot be downloaded here" if isinstance(source, ManualSource) else "could not be downloaded"
    lines = [f"{entry.id} ({entry.title}) {action}: {cause}.", "To place it by hand:"]
    return DownloadError("\n".join(lines + [f"  {label:<10} {value}" for label, value in facts]))
