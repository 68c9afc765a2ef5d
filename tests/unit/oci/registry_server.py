"""A registry on loopback: the pulling half of the distribution API, with faults to choose.

Bounded: it answers at most `MOST_REQUESTS`, only on 127.0.0.1, and ends with its block.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

MOST_REQUESTS = 500
OCI = "application/vnd.oci.image"


def digest_of(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


@dataclass
class Registry:
    """What the server has, how it behaves, and what it was asked."""

    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    basic: str | None = None
    """USER:PASSWORD that the registry wants."""
    tokens: bool = False
    """Whether it wants tokens, from its own /token."""
    token_user: str | None = None
    token_life_s: float = 300
    token_uses: int = 1000
    """A token is refused after as many requests."""
    cut_after: int = 0
    """Each answer with a blob is cut after as many bytes."""
    cuts: int = 0
    """As many answers are cut."""
    ignore_range: bool = False
    busy: int = 0
    """As many answers are 429."""
    redirect_to: str | None = None
    """Blobs are at this server."""
    no_post: bool = False
    """Its token server knows GET alone."""
    drip: float = 0
    """Blobs come 100 bytes at a time, with as many seconds between."""
    location: str | None = None
    """All blobs are there, whatever that is."""
    realm: str | None = None
    """Its token server is there."""
    html: bool = False
    loop: bool = False
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    issued: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)
    address: str = ""

    def add_blob(self, content: bytes) -> dict[str, Any]:
        self.blobs[digest_of(content)] = content
        return {"digest": digest_of(content), "size": len(content)}

    def add_image(
        self, *layers: bytes, tag: str | None = "latest", architecture: str = "amd64"
    ) -> dict[str, Any]:
        config = {
            "architecture": architecture,
            "os": "linux",
            "config": {"Cmd": ["true"], "Env": None},
            "rootfs": {"type": "layers", "diff_ids": [digest_of(layer) for layer in layers]},
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": f"{OCI}.manifest.v1+json",
            "config": {"mediaType": f"{OCI}.config.v1+json", **self.add_blob(json.dumps(config).encode())},
            "layers": [{"mediaType": f"{OCI}.layer.v1.tar", **self.add_blob(layer)} for layer in layers],
        }
        return self.add_manifest(manifest, tag)

    def add_manifest(self, manifest: dict[str, Any], tag: str | None) -> dict[str, Any]:
        content = json.dumps(manifest).encode()
        stored = (manifest["mediaType"], content)
        self.manifests[digest_of(content)] = stored
        if tag is not None:
            self.manifests[tag] = stored
        return {"mediaType": manifest["mediaType"], "digest": digest_of(content), "size": len(content)}

    def asked(self, part: str) -> list[dict[str, str]]:
        """The headers of the requests whose paths contain `part`."""
        return [headers for path, headers in self.requests if part in path]


@contextmanager
def serving(registry: Registry) -> Iterator[Registry]:
    class Handler(_Handler):
        state = registry

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        registry.address = f"127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield registry
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    state: Registry
    timeout = 10
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        state = self.state
        with state.lock:
            state.requests.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
            is_busy = state.busy > 0 and len(state.requests) <= MOST_REQUESTS
            state.busy -= is_busy
        path = urlsplit(self.path).path
        if len(state.requests) > MOST_REQUESTS:
            self._send(503, b"")
        elif path == "/token":
            self._give_token()
        elif is_busy:
            self._send(429, b"", {"Retry-After": "0"})
        elif state.html:
            self._send(200, b"<html>Log in</html>", {"Content-Type": "text/html"})
        elif state.loop:
            self._send(307, b"", {"Location": self.path})
        elif self._is_welcome():
            self._give(path)

    do_POST = do_GET

    def _is_welcome(self) -> bool:
        state, given = self.state, self.headers.get("Authorization", "")
        if state.basic is not None:
            if given == "Basic " + base64.b64encode(state.basic.encode()).decode():
                return True
            self._refuse('Basic realm="r"')
            return False
        if state.tokens:
            token = given.removeprefix("Bearer ")
            with state.lock:
                if state.issued[token] > 0:
                    state.issued[token] -= 1
                    return True
            realm = state.realm or f"http://{state.address}/token"
            self._refuse(f'Bearer realm="{realm}",service="s, t",scope="repository:team/x:pull"')
            return False
        return True

    def _give_token(self) -> None:
        state, given = self.state, self.headers.get("Authorization", "")
        form = parse_qs(self.rfile.read(int(self.headers.get("Content-Length", 0))).decode())
        if self.command == "POST" and state.no_post:
            self._send(405, b"")
            return
        if state.token_user is not None:
            wanted = "Basic " + base64.b64encode(state.token_user.encode()).decode()
            if given != wanted and form.get("refresh_token") != [state.token_user]:
                self._send(401, b'{"errors":[{"code":"UNAUTHORIZED","message":"wrong password"}]}')
                return
        with state.lock:
            token = f"token-{len(state.issued)}"
            state.issued[token] = state.token_uses
        self._send(200, json.dumps({"token": token, "expires_in": state.token_life_s}).encode())

    def _give(self, path: str) -> None:
        state = self.state
        kind, _, name = path.removeprefix("/v2/").rpartition("/")
        if kind.endswith("/manifests") and name in state.manifests:
            media_type, content = state.manifests[name]
            self._send(200, content, {"Content-Type": media_type})
        elif kind.endswith("/blobs") and state.location is not None:
            self._send(307, b"", {"Location": state.location})
        elif kind.endswith("/blobs") and state.redirect_to is not None:
            self._send(307, b"", {"Location": f"http://{state.redirect_to}{path}"})
        elif kind.endswith("/blobs") and name in state.blobs:
            self._give_blob(state.blobs[name])
        else:
            self._send(404, b'{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}')

    def _give_blob(self, content: bytes) -> None:
        start = 0
        if (wanted := self.headers.get("Range")) and not self.state.ignore_range:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                self._send(416, b"", {"Content-Range": f"bytes */{len(content)}"})
                return
        headers = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if start else {}
        with self.state.lock:
            is_cut = self.state.cuts > 0 and self.state.cut_after < len(content) - start
            self.state.cuts -= is_cut
        most = self.state.cut_after if is_cut else len(content)
        self._send(206 if start else 200, content[start:], headers, most=most)

    def _refuse(self, challenge: str) -> None:
        self._send(401, b'{"errors":[{"code":"UNAUTHORIZED"}]}', {"WWW-Authenticate": challenge})

    def _send(
        self, status: int, content: bytes, headers: dict[str, str] | None = None, *, most: int = -1
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.state.drip and len(content) > 1000:
            for at in range(0, len(content), 100):
                self.wfile.write(content[at : at + 100])
                self.wfile.flush()
                time.sleep(self.state.drip)
        else:
            self.wfile.write(content if most < 0 else content[:most])
        if 0 <= most < len(content):
            self.close_connection = True
