"""Downloads with the real huggingface_hub client against a Hub-like server on loopback."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import huggingface_hub.constants
import pytest

from gan_inversion.core.errors import DownloadError, ModelNotFoundError
from gan_inversion.model_registry import catalogue, hub

from .hub_server import COMMIT, HubServer, running_hub

REPOSITORY = "someone/some-model"
BODY = random.Random(7).randbytes(300_000)
CHUNK = 32_768
KEY = f"{REPOSITORY}/folder/net.pt"


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("GAN_INVERSION_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", CHUNK)
    monkeypatch.setattr(catalogue, "_registered", [])
    with running_hub() as running:
        running.files[KEY] = BODY
        monkeypatch.setenv("HF_ENDPOINT", running.endpoint)
        yield running


@pytest.fixture
def entry() -> catalogue.CatalogueEntry:
    return catalogue.CatalogueEntry(
        id="some-net",
        title="A net",
        kind="generator",
        source=catalogue.HubSource(REPOSITORY, "folder/net.pt", COMMIT),
        file_name="net.pt",
        licence="MIT",
        licence_text="MIT License.",
        non_commercial=False,
        size=len(BODY),
        sha256=hashlib.sha256(BODY).hexdigest(),
    )


def _url_entry(entry: catalogue.CatalogueEntry, server: HubServer) -> catalogue.CatalogueEntry:
    server.files["/plain/net.pt"] = BODY
    return replace(entry, source=catalogue.UrlSource(f"{server.cdn}/plain/net.pt"))


def _folder() -> Path:
    return catalogue.model_dirs()[0]


def _visible_files() -> list[str]:
    return sorted(path.name for path in _folder().iterdir() if not path.name.startswith("."))


class _Interrupted(Exception):
    pass


class _StopAfter:
    """Raises at the check number `calls`."""

    def __init__(self, calls: int) -> None:
        self.left = calls

    def __call__(self) -> None:
        self.left -= 1
        if self.left <= 0:
            raise _Interrupted("stop")


def _interrupt(entry: catalogue.CatalogueEntry) -> None:
    with pytest.raises(_Interrupted):
        hub.fetch(entry, check_interrupt=_StopAfter(4))


def test_a_hub_file_arrives_through_the_redirect_with_progress(server, entry):
    seen = []
    path = hub.fetch(entry, progress=lambda done, total: seen.append((done, total)))
    assert path == _folder() / "net.pt"
    assert path.read_bytes() == BODY
    assert seen[-1] == (len(BODY), len(BODY))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen) and len(seen) > 3
    assert [p.name for p in _folder().iterdir()] == ["net.pt"]
    assert server.sent("hub", "HEAD")[0].path == f"/{REPOSITORY}/resolve/{COMMIT}/folder/net.pt"
    assert len(server.sent("cdn")) == 1


def test_the_token_goes_to_the_hub_and_not_to_the_cdn(server, entry):
    hub.fetch(entry)
    assert all(request.headers["authorization"] == "Bearer hf_secret" for request in server.sent("hub"))
    assert all("authorization" not in request.headers for request in server.sent("cdn"))


def test_a_present_file_makes_no_request_and_is_hashed_once(server, entry, monkeypatch):
    first = hub.fetch(entry)
    server.requests.clear()
    monkeypatch.setattr(catalogue, "sha256_of", lambda *_: pytest.fail("hashed again"))
    assert hub.fetch(entry) == first
    assert not server.requests


def test_a_file_the_user_placed_is_hashed_once_and_used(server, entry):
    _folder().mkdir(parents=True)
    (_folder() / "net.pt").write_bytes(BODY)
    assert hub.fetch(entry) == _folder() / "net.pt"
    assert not server.requests
    record = json.loads((catalogue.cache_dir() / "verified.json").read_text())
    assert record[str((_folder() / "net.pt").resolve())][2] == entry.sha256


def test_a_damaged_file_is_downloaded_again_and_kept_aside(server, entry):
    _folder().mkdir(parents=True)
    (_folder() / "net.pt").write_bytes(BODY[:-1] + b"?")
    assert hub.fetch(entry).read_bytes() == BODY
    assert (_folder() / "net.pt.replaced").read_bytes() == BODY[:-1] + b"?"


def test_a_cut_connection_is_continued_where_it_broke(server, entry):
    server.cut_after = 200_000
    try:
        path = hub.fetch(entry)
    except DownloadError as error:
        # Clients before 1.0 give up at once; the next call continues.
        assert "next attempt continues" in str(error)
        path = hub.fetch(entry)
    assert path.read_bytes() == BODY
    first, second = server.sent("cdn")
    assert "range" not in first.headers
    start = int(second.headers["range"].removeprefix("bytes=").rstrip("-"))
    assert 0 < start <= 200_000


def test_an_interrupt_leaves_no_final_file_and_the_next_call_resumes(server, entry):
    _interrupt(entry)
    assert _visible_files() == []
    partial = next(_folder().glob(".download-some-net/*.partial"))
    kept = partial.stat().st_size
    assert 0 < kept < len(BODY) and BODY.startswith(partial.read_bytes())
    seen = []
    assert hub.fetch(entry, progress=lambda done, _: seen.append(done)).read_bytes() == BODY
    assert server.sent("cdn")[-1].headers["range"] == f"bytes={kept}-"
    assert seen[0] > kept
    assert [p.name for p in _folder().iterdir()] == ["net.pt"]


def test_an_exception_of_the_progress_callback_reaches_the_caller(server, entry):
    def fail(done: int, total: int | None) -> None:
        raise _Interrupted("from progress")

    with pytest.raises(_Interrupted, match="from progress"):
        hub.fetch(entry, progress=fail)
    assert _visible_files() == []


def test_a_spoiled_partial_file_is_found_out_and_the_download_starts_over(server, entry):
    _interrupt(entry)
    partial = next(_folder().glob(".download-some-net/*.partial"))
    partial.write_bytes(bytes(partial.stat().st_size))
    assert hub.fetch(entry).read_bytes() == BODY


def test_a_server_without_ranges_is_read_from_the_start(server, entry):
    _interrupt(entry)
    server.ignore_ranges = True
    assert hub.fetch(entry).read_bytes() == BODY


@pytest.mark.parametrize("plain", [False, True], ids=["hub", "url"])
def test_wrong_bytes_never_get_the_final_name(server, entry, plain):
    if plain:
        entry = _url_entry(entry, server)
    wrong = bytes(len(BODY))
    server.served_instead["/plain/net.pt" if plain else KEY] = wrong
    with pytest.raises(DownloadError) as caught:
        hub.fetch(entry)
    assert f"sha256 is {hashlib.sha256(wrong).hexdigest()}, expected {entry.sha256}" in str(caught.value)
    assert _visible_files() == [] and not list(_folder().glob(".download-*/*.partial"))


def test_a_hub_copy_with_another_hash_is_refused_before_its_download(server, entry):
    server.files[KEY] = bytes(len(BODY))
    with pytest.raises(DownloadError, match=f"expected {entry.sha256}"):
        hub.fetch(entry)
    assert not server.sent("cdn")


@pytest.mark.parametrize("plain", [False, True], ids=["hub", "url"])
def test_a_truncated_body_is_an_error_and_is_continued_later(server, entry, plain):
    if plain:
        entry = _url_entry(entry, server)
    server.truncate_to = 100_000
    with pytest.raises(DownloadError, match="truncated.*100.0 kB are kept"):
        hub.fetch(entry)
    assert _visible_files() == []
    server.truncate_to = None
    assert hub.fetch(entry).read_bytes() == BODY
    assert server.sent("cdn")[-1].headers["range"] == "bytes=100000-"


def test_the_message_holds_all_that_is_needed_to_place_the_file_by_hand(server, entry):
    server.files = {f"{REPOSITORY}/other.pt": b"x"}
    with pytest.raises(DownloadError) as caught:
        hub.fetch(replace(entry, manual_url="https://example.org/net", also_at=("Hub a/b : c.pt",)))
    message = str(caught.value)
    for part in (
        "the file is not there (HTTP 404)", REPOSITORY, "folder/net.pt", "300,000 bytes", entry.sha256, str(_folder()),
        "save as    net.pt", "https://example.org/net", "Hub a/b : c.pt", COMMIT,
    ):  # fmt: skip
        assert part in message


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (403, "GatedRepo", "gated.*HF_TOKEN"),
        (401, "RepoNotFound", "does not exist or is private"),
        (404, "RevisionNotFound", "no such revision"),
        (500, "", "HTTP 500"),
    ],
)
def test_each_refusal_of_the_hub_is_named(server, entry, status, code, expected):
    server.errors[KEY] = (status, code)
    with pytest.raises(DownloadError, match=expected):
        hub.fetch(replace(entry, sha256=None))


def test_a_vanished_pinned_commit_falls_back_to_the_newest_because_the_hash_decides(server, entry):
    server.unknown_revisions.add(COMMIT)
    assert hub.fetch(entry).read_bytes() == BODY
    assert "/resolve/main/" in server.sent("hub")[-1].path


def test_a_page_that_is_no_hub_is_not_taken_for_weights(server, entry):
    server.is_hub = False
    with pytest.raises(DownloadError, match="does not answer like a Hugging Face Hub"):
        hub.fetch(entry)


def test_no_network_names_the_host(server, entry, monkeypatch):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
    with pytest.raises(DownloadError, match=f"no connection to 127.0.0.1:{port}"):
        hub.fetch(entry)


def test_offline_mode_sends_nothing(server, entry, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DownloadError, match="HF_HUB_OFFLINE is set"):
        hub.fetch(entry)
    assert not server.requests


def test_the_hash_that_the_hub_publishes_is_used_where_the_catalogue_has_none(server, entry):
    unknown = replace(entry, size=None, sha256=None)
    server.served_instead[KEY] = bytes(len(BODY))
    with pytest.raises(DownloadError, match="sha256"):
        hub.fetch(unknown)
    server.served_instead.clear()
    assert hub.fetch(unknown).read_bytes() == BODY


def test_a_plain_address_needs_no_hub_and_gets_no_token(server, entry):
    path = hub.fetch(_url_entry(entry, server))
    assert path.read_bytes() == BODY
    assert not server.sent("hub")
    assert "authorization" not in server.sent("cdn")[0].headers


def test_a_plain_download_resumes_too(server, entry):
    plain = _url_entry(entry, server)
    _interrupt(plain)
    assert hub.fetch(plain).read_bytes() == BODY
    assert "range" in server.sent("cdn")[-1].headers


def test_a_non_commercial_licence_is_shown_once_and_can_be_refused(server, entry, caplog):
    entry = replace(entry, licence="NC", licence_text="Research only, no commercial use.", non_commercial=True)
    with caplog.at_level(logging.WARNING), pytest.raises(DownloadError, match="licence was not accepted"):
        hub.fetch(entry, accept_licence=lambda _: False)
    assert "Research only, no commercial use." in caplog.text
    assert not server.requests
    hub.fetch(entry, accept_licence=lambda _: True)
    caplog.clear()
    hub.fetch(entry)
    assert not caplog.records


def test_a_manual_file_is_never_requested(server, entry):
    manual = replace(entry, source=catalogue.ManualSource("net.pt"), manual_url="https://drive.example/x")
    with pytest.raises(DownloadError, match="(?s)people, not programs.*https://drive.example/x"):
        hub.fetch(manual)
    assert not server.requests
    _folder().mkdir(parents=True)
    (_folder() / "net.pt").write_bytes(BODY)
    assert hub.fetch(manual) == _folder() / "net.pt"


def test_downloads_go_to_the_first_registered_folder(server, entry, tmp_path):
    catalogue.register_model_dir("generator", tmp_path / "models" / "stylegan")
    assert hub.fetch(entry) == tmp_path / "models" / "stylegan" / "net.pt"


def test_an_unknown_id_names_near_ones():
    with pytest.raises(ModelNotFoundError, match="e4e-ffhq"):
        hub.fetch("e4e-fhq")


def test_a_fresh_process_downloads_through_the_environment(server, entry, tmp_path):
    code = (
        "import sys, gan_inversion.model_registry.hub as hub\n"
        "assert 'huggingface_hub' not in sys.modules, 'imported too early'\n"
        "from gan_inversion.model_registry.catalogue import CatalogueEntry, HubSource\n"
        f"print(hub.fetch({entry!r}))\n"
    )
    environment = {**os.environ, "HF_HUB_DISABLE_XET": "0"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).read_bytes() == BODY
