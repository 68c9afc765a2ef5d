"""Layers and a registry for benchmarks: archives as a distribution's are, and a server on loopback."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import random
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final, NamedTuple

from ramet.units import KIB, MIB

_OCI: Final = "application/vnd.oci.image"
_WORDS: Final = 4096


class LayerFile(NamedTuple):
    """A layer: its archive, plain or compressed."""

    path: Path
    diff_id: str
    digest: str
    plain_bytes: int


def make_layer(directory: Path, name: str, size_bytes: int, *, compressed: bool) -> LayerFile:
    """A layer of about that size: files from some bytes to 4 MiB, most of them small, that gzip halves."""
    draw = random.Random(name)
    words = [draw.randbytes(draw.randint(2, 12)) for _ in range(_WORDS)]
    pool = b"".join(draw.choices(words, k=MIB // 2))
    plain = hashlib.sha256()
    path = directory / f"{name}.tar{'.gz' if compressed else ''}"
    done = 0
    with path.open("wb") as file:
        out: Any = gzip.GzipFile(fileobj=file, mode="wb", compresslevel=1, mtime=0) if compressed else file

        class Hashed(io.RawIOBase):
            def writable(self) -> bool:
                return True

            def write(self, data: Any) -> int:
                nonlocal done
                plain.update(data)
                done += len(data)
                out.write(data)
                return len(data)

        with tarfile.open(fileobj=Hashed(), mode="w|") as archive:
            number = 0
            while done < size_bytes:
                info = tarfile.TarInfo(f"{name}/{number // 100}/{number}")
                info.size = min(4 * MIB, size_bytes // 8, int(draw.lognormvariate(8.3, 2.2)) + 1)
                at = draw.randrange(len(pool) - 64 * KIB)
                content = (pool[at:] + pool[:at]) * (info.size // len(pool) + 1)
                archive.addfile(info, io.BytesIO(content[: info.size]))
                number += 1
        if compressed:
            out.close()
    with path.open("rb") as written:
        digest = hashlib.file_digest(written, "sha256").hexdigest()
    return LayerFile(path, f"sha256:{plain.hexdigest()}", f"sha256:{digest}", done)


@contextmanager
def registry(layers: list[LayerFile]) -> Iterator[str]:
    """A registry with one image of these layers, whatever it is called. Yields its address."""
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
        }
    ).encode()
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": f"{_OCI}.manifest.v1+json",
            "config": {"mediaType": f"{_OCI}.config.v1+json", "digest": _sha256(config), "size": len(config)},
            "layers": [
                {
                    "mediaType": f"{_OCI}.layer.v1.tar+gzip",
                    "digest": layer.digest,
                    "size": layer.path.stat().st_size,
                }
                for layer in layers
            ],
        }
    ).encode()
    paths = {layer.digest: layer.path for layer in layers}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            wanted = self.path.rpartition("/")[2]
            self.send_response(200)
            if wanted in paths:
                self.send_header("Content-Length", str(paths[wanted].stat().st_size))
                self.end_headers()
                with paths[wanted].open("rb") as file:
                    self.wfile.flush()
                    self.connection.sendfile(file)
                return
            content = config if wanted == _sha256(config) else manifest
            self.send_header("Content-Type", f"{_OCI}.manifest.v1+json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def _sha256(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"
