"""A Hugging Face hub in one thread: the few endpoints that huggingface_hub needs to list and fetch a model."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPO = "org/tiny"


class HubServer:
    """Serves one folder as ``org/tiny`` at one commit, and records what is asked of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.requests: list[tuple[str, str]] = []
        self.gated = False
        self.status = 0  # answer everything with this status
        self.ranges = True
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    def __enter__(self) -> HubServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def fetched(self, method: str = "GET") -> list[str]:
        """Names of the files that were asked for, in order."""
        asked = (re.fullmatch(r".*?/resolve/[^/]+/(.+)", path) for verb, path in self.requests if verb == method)
        return [match[1] for match in asked if match]

    def _handler(hub) -> type[BaseHTTPRequestHandler]:  # noqa: N805
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def do_HEAD(self) -> None:
                self.answer()

            def do_GET(self) -> None:
                self.answer()

            def answer(self) -> None:
                path = unquote(urlsplit(self.path).path)
                hub.requests.append((self.command, path))
                if hub.status:
                    return self.send(hub.status, b"no")
                if match := re.fullmatch(rf"/api/models/{REPO}(?:/revision/(.+))?", path):
                    return self.listing(match[1])
                if match := re.fullmatch(rf"/{REPO}/resolve/([^/]+)/(.+)", path):
                    return self.file(match[1], match[2])
                return self.send(404, b"", {"X-Error-Code": "RepoNotFound"})

            def listing(self, revision: str | None) -> None:
                if revision not in (None, "main", COMMIT):
                    return self.send(404, b"", {"X-Error-Code": "RevisionNotFound"})
                files = sorted(path for path in hub.folder.rglob("*") if path.is_file())
                siblings = [
                    {"rfilename": path.relative_to(hub.folder).as_posix(), "size": path.stat().st_size}
                    for path in files
                ]
                info = {"id": REPO, "modelId": REPO, "sha": COMMIT, "private": False, "siblings": siblings, "tags": []}
                return self.send(200, json.dumps(info).encode(), {"Content-Type": "application/json"})

            def file(self, revision: str, name: str) -> None:
                path = hub.folder / name
                if hub.gated:
                    return self.send(403, b"", {"X-Error-Code": "GatedRepo"})
                if revision not in ("main", COMMIT):
                    return self.send(404, b"", {"X-Error-Code": "RevisionNotFound"})
                if not path.is_file():
                    return self.send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
                data = path.read_bytes()
                headers = {
                    "ETag": f'"{hashlib.sha1(data).hexdigest()}"',
                    "X-Repo-Commit": COMMIT,
                    "Accept-Ranges": "bytes",
                }
                span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
                if span is None or not hub.ranges:
                    return self.send(200, data, headers)
                begin, end = int(span[1]), min(int(span[2] or len(data)), len(data) - 1)
                headers["Content-Range"] = f"bytes {begin}-{end}/{len(data)}"
                return self.send(206, data[begin : end + 1], headers)

            def send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
                self.send_response(status)
                for key, value in (headers or {}).items():
                    self.send_header(key, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

        return Handler
