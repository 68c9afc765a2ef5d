"""Debian's docker-registry on loopback, with a configuration of the tests' own, and what stands around it.

Never its own configuration or service: those listen on every address. A token server signs with a
certificate that the registry was told of; a proxy cuts connections and counts bytes.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import socket
import socketserver
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.x509.oid import NameOID

from ramet import config

USER, PASSWORD = "ann", "open sesame"
_BCRYPT = "$2b$04$MVd8HAb/LSAhPgBD6QWKSuMsi3sgEZAtu7OF1EtRopJ4THiDb7Efi"
_TOOLS = config.tools_directory()
"""Found before a test moves the home."""
_LEEWAY_S = 60
"""A token is good for as long after its end (docker-registry's `Leeway`)."""


def program() -> str:
    """The registry: on PATH, or where `make setup` puts it. Skips the test without it."""
    found = shutil.which("docker-registry") or str(_TOOLS / "docker-registry")
    if not os.access(found, os.X_OK):
        pytest.skip("docker-registry isn't here (Debian's package; tools/get_docker_registry.py fetches it)")
    return found


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


@contextmanager
def running(
    directory: Path, *, auth: dict[str, Any] | None = None, tls: dict[str, str] | None = None
) -> Iterator[str]:
    """Run a registry that keeps its content in `directory`. Yields HOST:PORT."""
    executable = program()
    port = free_port()
    directory.mkdir(exist_ok=True)
    document: dict[str, Any] = {
        "version": "0.1",
        "log": {"level": "error", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(directory / "content")}},
        "http": {"addr": f"127.0.0.1:{port}", "secret": "test"},
    }
    if tls is not None:
        document["http"]["tls"] = tls
    if auth is not None:
        document["auth"] = auth
    configuration = directory / "registry.yml"
    configuration.write_text(json.dumps(document))
    log = directory / "log"
    with log.open("wb") as output:
        registry = subprocess.Popen([executable, "serve", configuration], stdout=output, stderr=output)
    try:
        end = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                if registry.poll() is not None or time.monotonic() > end:
                    raise AssertionError(f"docker-registry didn't start: {log.read_text()}") from None
                time.sleep(0.01)
        yield f"127.0.0.1:{port}"
    finally:
        registry.kill()
        registry.wait()


def write_certificates(authority: trustme.CA, directory: Path) -> dict[str, str]:
    """Write a certificate for 127.0.0.1 and its key; returns the registry's `tls`."""
    made = authority.issue_cert("127.0.0.1", "localhost")
    directory.mkdir(exist_ok=True)
    made.private_key_pem.write_to_path(str(directory / "key.pem"))
    (directory / "certificate.pem").write_bytes(b"".join(blob.bytes() for blob in made.cert_chain_pems))
    return {"certificate": str(directory / "certificate.pem"), "key": str(directory / "key.pem")}


def passwords(directory: Path) -> dict[str, Any]:
    """The registry's `auth` with a password file."""
    (directory / "htpasswd").write_text(f"{USER}:{_BCRYPT}\n")
    return {"htpasswd": {"realm": "tests", "path": str(directory / "htpasswd")}}


class TokenServer:
    """Signs tokens (Docker Registry, "Token Authentication Implementation"), for pulls to anybody."""

    def __init__(self, directory: Path) -> None:
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tokens")])
        now = time.time()
        made = (
            x509.CertificateBuilder(name, name, self._key.public_key(), x509.random_serial_number())
            .not_valid_before(_date(now - 3600))
            .not_valid_after(_date(now + 86400))
            .sign(self._key, hashes.SHA256())
        )
        self._certificate = base64.b64encode(made.public_bytes(serialization.Encoding.DER)).decode()
        self.bundle = directory / "tokens.pem"
        self.bundle.write_bytes(made.public_bytes(serialization.Encoding.PEM))
        self.asked: list[list[str]] = []
        """The scopes of each request."""
        self.address = ""

    def auth(self) -> dict[str, Any]:
        """The registry's `auth`."""
        realm = f"https://{self.address}/token"
        bundle = str(self.bundle)
        return {"token": {"realm": realm, "service": "tests", "issuer": "tests", "rootcertbundle": bundle}}

    def token(self, scopes: list[str], *, life_s: float = 300, may_push: bool = False) -> str:
        """Sign a token. A `life_s` below zero makes one that has ended."""
        access = []
        for scope in scopes:
            kind, name, actions = scope.split(":")
            allowed = [action for action in actions.split(",") if action == "pull" or may_push]
            access.append({"type": kind, "name": name, "actions": allowed})
        now = time.time()
        ends = now + life_s - (_LEEWAY_S if life_s < 0 else 0)
        claims: dict[str, Any] = {"iss": "tests", "aud": "tests", "sub": "", "jti": "1", "access": access}
        claims |= {"iat": int(now - 200), "nbf": int(now - 200), "exp": int(ends)}
        head = {"typ": "JWT", "alg": "RS256", "x5c": [self._certificate]}
        signed = ".".join(_unpadded(json.dumps(part).encode()) for part in (head, claims))
        signature = self._key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256())
        return f"{signed}.{_unpadded(signature)}"

    @contextmanager
    def serving(self, tls: dict[str, str]) -> Iterator[None]:
        """Answer on loopback, with TLS."""
        outer = self

        class Handler(BaseHTTPRequestHandler):
            timeout = 10

            def log_message(self, format: str, *args: object) -> None:
                pass

            def do_GET(self) -> None:
                scopes = parse_qs(urlsplit(self.path).query).get("scope", [])
                outer.asked.append(scopes)
                given = self.headers.get("Authorization")
                right = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
                if given is not None and given != f"Basic {right}":
                    self._send(401, {"errors": [{"code": "UNAUTHORIZED", "message": "wrong password"}]})
                    return
                token = outer.token(scopes, may_push=given is not None)
                self._send(200, {"token": token, "expires_in": 300})

            def do_POST(self) -> None:
                self._send(405, {})

            def _send(self, status: int, document: dict[str, Any]) -> None:
                content = json.dumps(document).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tls["certificate"], tls["key"])
        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            server.daemon_threads = True
            server.socket = context.wrap_socket(server.socket, server_side=True)
            self.address = f"127.0.0.1:{server.server_address[1]}"
            with _served(server):
                yield


class CuttingProxy:
    """Passes TCP connections to a server, counts bytes, and cuts the first `cuts` that reach a number."""

    def __init__(self, target: str, *, cuts: int = 0, down: int = 1 << 40, up: int = 1 << 40) -> None:
        self.target = ("127.0.0.1", int(target.rpartition(":")[2]))
        self.cuts = cuts
        self.most = {"down": down, "up": up}
        self.passed = {"down": 0, "up": 0}
        self.made_cuts = 0
        self.connections = 0
        self.lock = threading.Lock()

    @contextmanager
    def serving(self) -> Iterator[str]:
        outer = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                outer.carry(self.request)

        with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
            server.daemon_threads = True
            with _served(server):
                yield f"127.0.0.1:{server.server_address[1]}"

    def carry(self, client: socket.socket) -> None:
        """Carry one connection to its end, or to its cut."""
        count = {"down": 0, "up": 0}
        with self.lock:
            self.connections += 1
        try:
            with socket.create_connection(self.target, timeout=10) as there:
                ends = {client: (there, "up"), there: (client, "down")}
                while ready := select.select(list(ends), [], [], 10)[0]:
                    for end in ready:
                        other, way = ends[end]
                        if not (data := end.recv(65536)):
                            return
                        with self.lock:
                            left = self.most[way] - count[way]
                            is_cut = self.made_cuts < self.cuts and left <= len(data)
                            data = data[:left] if is_cut else data
                            self.passed[way] += len(data)
                            self.made_cuts += is_cut
                        other.sendall(data)
                        if is_cut:
                            return
                        count[way] += len(data)
        except OSError:
            return  # one of both has gone


@contextmanager
def _served(server: socketserver.BaseServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()


def _unpadded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _date(seconds: float) -> Any:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(seconds, UTC)
