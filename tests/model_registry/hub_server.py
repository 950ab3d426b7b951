"""A small Hub-like server on loopback: /OWNER/NAME/resolve/REVISION/FILE redirects to a second server, the "CDN".

Answers like huggingface.co as far as a client can tell: commit, ETag and size headers of the linked file, a redirect to
another host for the bytes, ranges, error codes in headers. Faults are switched on per test.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Request:
    host: str
    method: str
    path: str
    headers: dict[str, str]


@dataclass
class HubServer:
    files: dict[str, bytes] = field(default_factory=dict)  # "owner/name/file" on the hub, "/path" for plain addresses
    requests: list[Request] = field(default_factory=list)
    errors: dict[str, tuple[int, str]] = field(default_factory=dict)  # same keys -> HTTP status, X-Error-Code
    served_instead: dict[str, bytes] = field(default_factory=dict)  # the CDN sends other bytes than the hub announces
    unknown_revisions: set[str] = field(default_factory=set)
    truncate_to: int | None = None  # a well-formed answer with too few bytes
    cut_after: int | None = None  # close the connection after so many bytes of the next answer
    ignore_ranges: bool = False
    is_hub: bool = True  # False: no hub headers, as behind a captive portal
    endpoint: str = ""
    cdn: str = ""

    def sent(self, host: str, method: str = "GET") -> list[Request]:
        return [request for request in self.requests if (request.host, request.method) == (host, method)]


@contextmanager
def running_hub() -> Iterator[HubServer]:
    hub = HubServer()
    hub_http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub, "hub"))
    cdn_http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub, "cdn"))
    hub.endpoint = f"http://127.0.0.1:{hub_http.server_address[1]}"
    hub.cdn = f"http://127.0.0.1:{cdn_http.server_address[1]}"
    servers = (hub_http, cdn_http)
    for server in servers:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield hub
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()


def _handler(hub: HubServer, host: str) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            self._answer()

        def log_message(self, *args: object) -> None:
            pass

        def _answer(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            hub.requests.append(Request(host, self.command, self.path, headers))
            if host == "hub":
                self._resolve()
            else:
                self._send_bytes()

        def _resolve(self) -> None:
            repository, _, rest = self.path.lstrip("/").partition("/resolve/")
            revision, _, name = rest.partition("/")
            key = f"{repository}/{name}"
            if not hub.is_hub:
                self._send(200, {}, b"<html>please log in</html>")
            elif key in hub.errors:
                status, code = hub.errors[key]
                self._send(status, {"X-Error-Code": code, "X-Error-Message": code}, b"")
            elif revision in hub.unknown_revisions:
                self._send(404, {"X-Error-Code": "RevisionNotFound"}, b"")
            elif key not in hub.files:
                known = any(file.startswith(repository + "/") for file in hub.files)
                code = "EntryNotFound" if known else "RepoNotFound"
                self._send(404 if known else 401, {"X-Error-Code": code, "X-Repo-Commit": COMMIT}, b"")
            else:
                digest = hashlib.sha256(hub.files[key]).hexdigest()
                self._send(
                    302,
                    {
                        "Location": f"{hub.cdn}/{key}",
                        "X-Repo-Commit": COMMIT,
                        "X-Linked-ETag": f'"{digest}"',
                        "X-Linked-Size": str(len(hub.files[key])),
                        "ETag": '"0123-of-the-redirect"',
                    },
                    b"",
                )

        def _send_bytes(self) -> None:
            key = self.path.lstrip("/") if self.path.lstrip("/") in hub.files else self.path
            body = hub.served_instead.get(key, hub.files.get(key))
            if body is None:
                return self._send(404, {}, b"no such file")
            headers = {"ETag": f'"{hashlib.sha256(body).hexdigest()}"', "Accept-Ranges": "bytes"}
            status, start, total = 200, 0, len(body)
            wanted = self.headers.get("Range")
            if wanted and not hub.ignore_ranges:
                start = int(wanted.removeprefix("bytes=").split("-")[0])
                status = 206
                headers["Content-Range"] = f"bytes {start}-{total - 1}/{total}"
            body = body[start:]
            if hub.truncate_to is not None:
                body = body[: hub.truncate_to]
            self._send(status, headers, body)

        def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "HEAD":
                return
            if body and hub.cut_after is not None:
                body, hub.cut_after = body[: hub.cut_after], None
                self.close_connection = True
            try:
                self.wfile.write(body)
            except OSError:
                self.close_connection = True

    return Handler
