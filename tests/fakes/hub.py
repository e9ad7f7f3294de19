"""A small Hugging Face hub on loopback: model information, redirects to a content server, ranges, faults on demand."""

import hashlib
import json
import socket
import struct
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit

LARGE = 256  # bytes; larger files are kept "in LFS", with a SHA-256
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class FakeRepository:
    """A repository.

    Attributes:
        files: Path to content.
        commit: The main branch's.
        gated: Answers 403 GatedRepo without the token "hf_good".
        licence: In the model card.
        configs: In the card of a data set.
    """

    files: dict[str, bytes]
    commit: str = COMMIT
    gated: bool = False
    licence: str = "apache-2.0"
    configs: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class FakeHub:
    """The server; use it as a context manager.

    Attributes:
        repositories: ``org/repo`` to what it holds; a data set is ``datasets/org/name``.
        requests: Method, path and Range header of every request, in their order.
        cuts: Path to the numbers of bytes after which its next downloads break off (one entry each).
        resets: Whether a cut is a TCP reset instead of a quiet close.
        corrupt: Paths that are served with a wrong first byte.
        ignore_ranges: Answer every Range with the whole file.
        status: Answer everything with this error instead.
        gate: Cleared, it holds every download back.
    """

    repositories: dict[str, FakeRepository] = field(default_factory=dict)
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    cuts: dict[str, list[int]] = field(default_factory=dict)
    resets: bool = False
    corrupt: set[str] = field(default_factory=set)
    ignore_ranges: bool = False
    status: int = 0
    gate: threading.Event = field(default_factory=threading.Event)
    url: str = ""

    def __post_init__(self) -> None:
        self.gate.set()

    def __enter__(self) -> "FakeHub":
        hub = self

        class Handler(_Handler):
            fake = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.gate.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def downloads(self) -> list[tuple[str, str]]:
        """Path and Range header of each request for a file's content."""
        return [
            (path, ranged) for method, path, ranged in self.requests if method == "GET" and path.startswith("/cdn/")
        ]


class _Handler(BaseHTTPRequestHandler):
    fake: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name in the base class
        """Keep the test's output clean."""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        assert self.headers["User-Agent"].startswith(("localllm/", "unknown/")), "it tells what is installed here"
        self.fake.requests.append((self.command, path, self.headers.get("Range", "")))
        if self.fake.status:
            return self._error(self.fake.status, "", "out of order")
        parts = path.strip("/").split("/")
        kept = parts[2:] if parts[:2] == ["api", "models"] else parts[1:] if parts[0] in ("api", "cdn") else parts
        n_name = 3 if kept[0] == "datasets" else 2
        name, rest = "/".join(kept[:n_name]), kept[n_name:]
        repository = self.fake.repositories.get(name)
        if repository is None:
            # The real hub does not tell a missing repository from a private one.
            return self._error(401, "RepoNotFound", "Repository not found")
        if repository.gated and parts[0] != "cdn" and self.headers.get("Authorization") != "Bearer hf_good":
            return self._error(403, "GatedRepo", "Access to this model is restricted")
        if parts[0] == "api":
            return self._information(name, repository, rest)
        if parts[0] == "cdn":
            return self._content("/".join(rest), repository.files["/".join(rest)])
        return self._resolve(name, repository, rest[1], "/".join(rest[2:]))

    def _information(self, name: str, repository: FakeRepository, rest: list[str]) -> None:
        if rest and rest[1] not in ("main", "v1", repository.commit):
            return self._error(404, "RevisionNotFound", "Invalid rev id")
        siblings = []
        for path, content in repository.files.items():
            sibling: dict[str, Any] = {"rfilename": path, "size": len(content), "blobId": _git_sha1(content)}
            if len(content) > LARGE:
                sha256 = hashlib.sha256(content).hexdigest()
                sibling["lfs"] = {"sha256": sha256, "size": len(content), "pointerSize": 134}
            siblings.append(sibling)
        record = {"id": name, "sha": repository.commit, "siblings": siblings, "tags": [], "private": False,
                  "cardData": {"license": repository.licence, "configs": repository.configs}}  # fmt: skip
        data = json.dumps(record).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
        return None

    def _resolve(self, name: str, repository: FakeRepository, revision: str, path: str) -> None:
        if revision not in ("main", repository.commit):
            return self._error(404, "RevisionNotFound", "Invalid rev id")
        if path not in repository.files:
            return self._error(404, "EntryNotFound", "Entry not found")
        content = repository.files[path]
        self.send_response(302)
        # Another host, as the real hub's content network is: tokens must not follow.
        self.send_header("Location", f"{self.fake.url.replace('127.0.0.1', 'localhost')}/cdn/{name}/{path}")
        self.send_header("X-Repo-Commit", repository.commit)
        self.send_header("X-Linked-Size", str(len(content)))
        self.send_header("X-Linked-Etag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("Content-Length", "0")
        self.end_headers()
        return None

    def _content(self, path: str, content: bytes) -> None:
        assert "Authorization" not in self.headers
        self.fake.gate.wait(30)
        if path in self.fake.corrupt:
            content = bytes([content[0] ^ 0xFF]) + content[1:]
        start = 0
        ranged = self.headers.get("Range", "")
        if ranged and not self.fake.ignore_ranges:
            start = int(ranged.removeprefix("bytes=").rstrip("-"))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if self.command == "HEAD":
            return
        cuts = self.fake.cuts.get(path)
        if not cuts:
            self.wfile.write(content[start:])
            return
        self.wfile.write(content[start : start + cuts.pop(0)])
        self.wfile.flush()
        self.close_connection = True
        if self.fake.resets:
            # A linger of zero seconds makes the close a reset.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        else:
            self.connection.shutdown(socket.SHUT_RDWR)

    def _error(self, status: int, code: str, message: str) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", message)
        self.send_header("Content-Length", "0")
        self.end_headers()


def _git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
