"""Proxies, certificates, challenges, and the map of httpx2's errors."""

from __future__ import annotations

import http.server
import os
import select
import socket
import socketserver
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from ramet.errors import RegistryError, UnavailableError, UsageError
from ramet.oci.answers import Limits, body, mapped
from ramet.oci.auth import parse_challenges
from ramet.oci.doctor import registries_finding
from ramet.oci.settings import Settings, endpoints, is_loopback, proxy_for
from ramet.oci.transport import Transport
from ramet.system.doctor import Finding


def _kinds(kind: type[Exception]) -> Iterator[type[Exception]]:
    yield kind
    for below in kind.__subclasses__():
        yield from _kinds(below)


@pytest.mark.parametrize("kind", [*_kinds(httpx2.HTTPError), httpx2.InvalidURL, OSError, ssl.SSLError])
@pytest.mark.parametrize("inside", [False, True])
def test_each_error_of_httpx2_is_a_registry_error_that_names_the_server(
    kind: type[Exception], inside: bool
) -> None:
    error = kind.__new__(kind)
    error.args = ("why \x1b[31m",)
    made = mapped(error, "host:5000", inside=inside)
    assert isinstance(made, RegistryError)
    assert "host:5000" in made.message
    assert "\x1b" not in made.message


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ('Basic realm="a, b"', [("basic", {"realm": "a, b"})]),
        (
            'Bearer realm="https://x/t",service="s",scope="repository:a:pull,push"',
            [("bearer", {"realm": "https://x/t", "service": "s", "scope": "repository:a:pull,push"})],
        ),
        (
            'Negotiate, Basic realm=x, charset="UTF-8"',
            [("negotiate", {}), ("basic", {"realm": "x", "charset": "UTF-8"})],
        ),
        (r'Basic realm="a\"b"', [("basic", {"realm": 'a"b'})]),
        ("", []),
        ('="', []),
        ('Bearer realm="never closed', [("bearer", {})]),
        ("," * 100_000, []),
    ],
)
def test_challenges(header: str, expected: list[tuple[str, dict[str, str]]]) -> None:
    assert [(c.scheme, c.parameters) for c in parse_challenges(header)] == expected


@pytest.mark.parametrize(
    ("no_proxy", "host", "port", "direct"),
    [
        ("", "r.example.com", 443, False),
        ("*", "r.example.com", 443, True),
        ("example.com", "r.example.com", 443, True),
        (".example.com", "example.com", 443, False),
        ("example.com", "notexample.com", 443, False),
        ("10.0.0.0/8, x", "10.1.2.3", 443, True),
        ("r.example.com:5000", "r.example.com", 443, False),
        ("r.example.com:5000", "r.example.com", 5000, True),
        ("", "localhost", 5000, True),
        ("", "127.0.0.9", 5000, True),
        ("", "::1", 5000, True),
        ("fd00::/8", "fd00::5", 443, True),
    ],
)
def test_proxies(monkeypatch: pytest.MonkeyPatch, no_proxy: str, host: str, port: int, direct: bool) -> None:
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTPS_PROXY", "proxy.example:3128")
    monkeypatch.setenv("NO_PROXY", no_proxy)
    assert proxy_for("https", host, port) == (None if direct else "http://proxy.example:3128")


def test_plain_http_only_for_loopback_or_when_asked() -> None:
    settings = Settings(plain=frozenset({"r.example:5000"}))
    assert endpoints("r.example", settings)[0].schemes == ("https",)
    assert endpoints("r.example:5000", settings)[0].schemes == ("http",)
    assert endpoints("127.0.0.1:5000", settings)[0].schemes == ("https", "http")
    assert [e.authority for e in endpoints("docker.io", settings)] == ["registry-1.docker.io"]
    assert not is_loopback("localhost.example.com")


@pytest.mark.parametrize(
    "named", ["10.0.0.1:5000", "http://10.0.0.1:5000", "a.example, http://10.0.0.1:5000/"]
)
def test_registries_without_tls_are_named_with_or_without_a_scheme(
    monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    monkeypatch.setenv("RAMET_PLAIN_REGISTRIES", named)
    assert endpoints("10.0.0.1:5000", Settings.from_environment())[0].schemes == ("http",)


@pytest.mark.parametrize("named", ["https://a.example", "a.example/team", "http://"])
def test_what_is_no_registry_without_tls_is_refused(monkeypatch: pytest.MonkeyPatch, named: str) -> None:
    monkeypatch.setenv("RAMET_PLAIN_REGISTRIES", named)
    with pytest.raises(UsageError, match="no registry without TLS"):
        Settings.from_environment()


def _openssl(*words: str, cwd: Path) -> None:
    subprocess.run(("openssl", *words), cwd=cwd, check=True, capture_output=True, timeout=30)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A private authority, `ca.pem`, and a server's `server.pem` and `server.key` of it."""
    where = tmp_path_factory.mktemp("tls")
    ec = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    try:
        _openssl(
            "req",
            "-x509",
            *ec,
            "-keyout",
            "ca.key",
            "-out",
            "ca.pem",
            "-days",
            "2",
            "-subj",
            "/CN=ca",
            cwd=where,
        )
    except FileNotFoundError:
        pytest.skip("no openssl here to make certificates with")
    _openssl("req", *ec, "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=server", cwd=where)
    (where / "ext").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost,DNS:r.example\n")
    _openssl(
        *("x509", "-req", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"),
        *("-days", "2", "-extfile", "ext", "-out", "server.pem"),
        cwd=where,
    )
    return where


class _Hello(http.server.BaseHTTPRequestHandler):
    timeout = 5

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"hello")


@contextmanager
def _https(certificates: Path) -> Iterator[int]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "server.pem", certificates / "server.key")
    with http.server.HTTPServer(("127.0.0.1", 0), _Hello) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


async def _fetched(url: str, settings: Settings) -> bytes | None:
    transport = Transport(settings, Limits(connect_s=5, silence_s=5))
    try:
        async with transport.ask("GET", url, headers={}) as response:
            return await body(response, most_bytes=100)
    finally:
        await transport.close()


@pytest.mark.anyio
async def test_a_private_authority_is_trusted_when_it_is_named(certificates: Path) -> None:
    with _https(certificates) as port:
        url = f"https://127.0.0.1:{port}/"
        assert await _fetched(url, Settings(authority=certificates / "ca.pem")) == b"hello"
        with pytest.raises(RegistryError, match="doesn't trust") as raised:
            await _fetched(url, Settings())
        assert "RAMET_REGISTRY_CA" in str(raised.value.hint)


class _Proxy(socketserver.StreamRequestHandler):
    """Answers a CONNECT to whatever host with a tunnel to the server on loopback. Bounded by its timeout."""

    timeout = 5

    def handle(self) -> None:
        asked = self.rfile.readline(1000).decode()
        while self.rfile.readline(1000).strip():
            pass
        self.server.asked.append(asked)  # type: ignore[attr-defined]
        self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
        with socket.create_connection(("127.0.0.1", self.server.target), timeout=5) as there:  # type: ignore[attr-defined]
            ends = {self.connection: there, there: self.connection}
            while ready := select.select(list(ends), [], [], 5)[0]:
                for end in ready:
                    if not (data := end.recv(65536)):
                        return
                    ends[end].sendall(data)


@pytest.mark.anyio
async def test_https_goes_through_the_proxy(certificates: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("https_proxy", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with _https(certificates) as port, socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Proxy) as proxy:
        proxy.daemon_threads = True
        proxy.target, proxy.asked = port, []  # type: ignore[attr-defined]
        thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.server_address[1]}")
            settings = Settings(authority=certificates / "ca.pem")
            assert await _fetched("https://r.example/", settings) == b"hello"
            assert proxy.asked == ["CONNECT r.example:443 HTTP/1.1\r\n"]  # type: ignore[attr-defined]
        finally:
            proxy.shutdown()
            thread.join()


@pytest.mark.anyio
@pytest.mark.parametrize("proxy", ["socks5://me:secret@127.0.0.1:1", "http://", "ftp://x", "http://h:port"])
async def test_what_is_no_proxy_is_named_without_its_password(
    monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    for name in ("https_proxy", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    with pytest.raises(UnavailableError, match="no HTTP proxy") as raised:
        await _fetched("https://r.example/", Settings())
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    "code",
    [
        "import ramet; ramet.Host",
        "import ramet.oci.pull, ramet.oci.push, ramet.images.library.obtain",
        "import sys; sys.argv = ['ramet', 'ps']; from ramet.cli.main import main; main()",
    ],
)
def test_nobody_who_pulls_nothing_imports_the_http_library(code: str, tmp_path: Path) -> None:
    program = (
        f"import atexit, sys\natexit.register(lambda: print([m for m in ('httpx2', 'truststore')"
        f" if m in sys.modules]))\n{code}\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "RAMET_HOME": str(tmp_path / "home")},
        check=True,
    )
    assert ran.stdout.splitlines()[-1] == "[]"


def test_doctor_tells_the_settings_in_effect_without_passwords(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "DOCKER_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert registries_finding() == Finding("registries", True, "no proxy; no logins")
    monkeypatch.setenv("HTTPS_PROXY", "http://me:secret@proxy.example:3128")
    monkeypatch.setenv("RAMET_REGISTRY_MIRROR", "https://mirror.example")
    monkeypatch.setenv("RAMET_PLAIN_REGISTRIES", "b.example,a.example")
    (tmp_path / ".docker").mkdir()
    (tmp_path / ".docker" / "config.json").write_text("{}")
    assert registries_finding().found == (
        "through http://proxy.example:3128; Docker Hub's mirror https://mirror.example;"
        f" without TLS: a.example, b.example; logins in {tmp_path}/.docker/config.json"
    )
    monkeypatch.setenv("RAMET_REGISTRY_CA", str(tmp_path / "none.pem"))
    found = registries_finding()
    assert found.ok is None
    assert "none.pem, which can't be read: No such file" in found.found
    monkeypatch.setenv("RAMET_REGISTRY_MIRROR", "ftp://x")
    assert registries_finding().ok is None
