"""Debian with Python as an image of four layers with whatever layers can have: its guest sees it as written.

A private authority is trusted by Debian's programs; and Debian's systemd is refused as the main process.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import subprocess
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trustme

import ramet
from ramet.errors import ExecError
from ramet.model.container import ImageConfig
from tests.side_by_side import tell
from tests.support.container_guest import DIR, LINK
from tests.support.debian_images import debian_image, debian_layer
from tests.unit.images.layer_tars import Member, member, tar
from tests.unit.images.test_erofs import ACL

pytestmark = [pytest.mark.vm, pytest.mark.anyio, pytest.mark.deep, pytest.mark.timeout(600)]

HARD, FIFO, CHAR, BLOCK = tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE
MOST = 1 << 31
"""A uid with all of Linux's bits but the last."""
NET_RAW = bytes.fromhex("01000002 00200000 00000000 00000000 00000000")
"""`cap_net_raw+ep`, as `security.capability` has it."""
SPARSE = {0: b"begin", 40_000_000: b"middle", 99_999_990: b"the end..."}
LONG = "/".join(["d" * 200] * 5)


def program(name: str) -> bytes:
    """A program of Debian, from the image's lowest layer."""
    with tarfile.open(debian_layer()) as layer:
        file = layer.extractfile(f"./usr/bin/{name}")
        assert file is not None
        return file.read()


def lower() -> list[Member]:
    script = b"#!/bin/sh\necho old\n"
    attributes = {
        b"user.k": b"\0\xff\n=",
        b"user.empty": b"",
        b"user.large": b"\xfe" * 3000,
        b"trusted.t": b"t",
    }
    return [
        member("n", DIR, mode=0o755, mtime="1700000000.25"),
        member("n/setuid", data=program("id"), mode=0o4755, owner=(1234, 5678)),
        member("n/capable", data=program("cat"), mode=0o755, xattrs={b"security.capability": NET_RAW}),
        member("n/owned", owner=(MOST, MOST), mode=0o640),
        member("n/char", CHAR, device=(5, 300), mode=0o620),
        member("n/null", CHAR, device=(1, 3), mode=0o666),
        member("n/block", BLOCK, device=(4095, 0xFFFFF), mode=0o660),
        member("n/pipe", FIFO, mode=0o622),
        member("n/sticky", DIR, mode=0o1777),
        member("n/setgid", DIR, mode=0o2775, owner=(0, 50)),
        member("n/acl", data=b"acl", mode=0o674, xattrs={b"system.posix_acl_access": ACL}),
        member("n/acls", DIR, mode=0o755, xattrs={b"system.posix_acl_default": ACL}),
        member("n/attributes", data=b"attributes", xattrs=attributes),
        member("n/hard", HARD, link="n/attributes"),
        member("n/old", data=b"old", mtime="-1.5"),
        member("n/future", data=b"new", mtime="4102444800.123456789"),
        member(b"n/names/\xff\xfe", data=b"bytes"),
        member("n/names/new\nline\\", data=b"newline"),
        member("n/names/" + "l" * 255, data=b"long"),
        member(f"n/names/{LONG}/file", data=b"deep"),
        member("n/link", LINK, link="../" * 1000 + "nowhere"),
        member("n/gone/a/b", data=b"gone"),
        member("n/kept-by-its-link", data=b"kept"),
        member("n/marker-first/old", data=b"old"),
        member("n/marker-last/old", data=b"old"),
        member("n/to-directory", data=b"file"),
        member("n/to-file/x", data=b"x"),
        member("n/file-again", data=b"first"),
        member("n/directory-again/x", data=b"x"),
        member("n/device-0-0", data=b"to be hidden by overlayfs's own whiteout"),
        member("usr/bin/old-tool", data=script, mode=0o755),
        member("usr/bin/kept-tool", data=script, mode=0o755),
    ]


def middle() -> list[Member]:
    overlay = {b"trusted.overlay.opaque": b"y", b"trusted.overlay.redirect": b"/etc", b"user.seen": b"1"}
    return [
        member("n/.wh.never-there"),
        member("nowhere/.wh.at-all"),
        member("n/.wh.gone"),
        member("n/link-to-kept", HARD, link="n/kept-by-its-link"),
        member("n/.wh.kept-by-its-link"),
        member("n/marker-first/.wh..wh..opq"),
        member("n/marker-first/new", data=b"new"),
        member("n/marker-last/new", data=b"new"),
        member("n/marker-last/.wh..wh..opq"),
        member("n/to-directory", DIR, mode=0o700),
        member("n/to-directory/x", data=b"x"),
        member("n/to-file", data=b"file"),
        member("n/file-again", DIR, mode=0o755),
        member("n/file-again/y", data=b"y"),
        member("n/directory-again", data=b"file"),
        member("n/device-0-0", CHAR),
        member("n/overlay", DIR, mode=0o755, xattrs=overlay),
        member("n/overlay/x", data=b"x"),
        member("n/into-debian", HARD, link="bin/cat"),
        member("bin/new-tool", data=b"#!/bin/sh\necho new\n", mode=0o755),
        member("bin/.wh.old-tool"),
        member("bin/tool-link", HARD, link="bin/kept-tool"),
    ]


def upper(directory: Path) -> bytes:
    """A layer that GNU tar begins, with a sparse member, and Python ends."""
    with (directory / "sparse").open("wb") as file:
        for place, data in SPARSE.items():
            file.seek(place)
            file.write(data)
    packed = directory / "layer.tar"
    words = ("--sparse", "--format=posix", "--owner=0", "--group=0", "--mode=600", "--transform=s,^,n/,")
    subprocess.run(
        ["tar", "-C", directory, *words, "-cf", packed, "sparse"], check=True, timeout=60, capture_output=True
    )
    assert packed.stat().st_size < 100_000
    members = [
        member("n/gone", DIR, mode=0o750),
        member("n/gone/anew", data=b"anew"),
        member("n/.wh.file-again"),
        member("n/file-again", data=b"last"),
        member("n/directory-again", DIR, mode=0o755),
        member("n/directory-again/z", data=b"z"),
    ]
    with tarfile.open(
        packed, "a", format=tarfile.PAX_FORMAT, encoding="utf-8", errors="surrogateescape"
    ) as layer:
        for info, data in members:
            layer.addfile(info, io.BytesIO(data))
    return packed.read_bytes()


SEEN = """
import hashlib, json, os, sys
def facts(path):
    found = os.lstat(path)
    said = {"mode": oct(found.st_mode), "uid": found.st_uid, "gid": found.st_gid}
    said |= {"time": found.st_mtime_ns, "inode": found.st_ino, "links": found.st_nlink}
    kind = found.st_mode >> 12
    if kind == 0o10:
        with open(path, "rb") as file:
            said["content"] = hashlib.file_digest(file, "md5").hexdigest()
        said["size"] = found.st_size
    elif kind == 0o12:
        said["link"] = os.readlink(path).decode()
    elif kind in (0o2, 0o6):
        said["device"] = [os.major(found.st_rdev), os.minor(found.st_rdev)]
    if kind != 0o12:
        said["xattrs"] = {name: os.getxattr(path, name).hex() for name in os.listxattr(path)}
    return said
tree = {}
os.chdir(b"/n")
for directory, below, files in os.walk(b"."):
    for name in [b"."] * (directory == b".") + below + files:
        path = os.path.normpath(os.path.join(directory, name))
        tree[path.decode("utf-8", "surrogateescape").replace("/" + "d" * 200, "/D")] = facts(path)
tools = {name: facts(b"/usr/bin/" + name.encode()) for name in ("cat", "kept-tool", "tool-link")}
json.dump({"tree": tree, "tools": tools}, sys.stdout)
"""

WHOLE = """
import hashlib, json, ssl, sqlite3, zlib
wrong = total = 0
for package in ("libpython3-stdlib:amd64", "python3-minimal", "libpython3.11-stdlib:amd64", "libc6:amd64"):
    for line in open(f"/var/lib/dpkg/info/{package}.md5sums"):
        digest, name = line.rstrip("\\n").split(None, 1)
        if name.startswith(("usr/share/doc/", "usr/share/man/", "usr/share/locale/")):
            continue
        total += 1
        wrong += hashlib.md5(open("/" + name, "rb").read()).hexdigest() != digest
print(sqlite3.connect(":memory:").execute("SELECT 6 * 7").fetchone()[0], total, wrong)
"""

TLS = """
import socket, ssl, sys, threading
def client_of(certificate):
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        def serve():
            try:
                with server.wrap_socket(listener.accept()[0], server_side=True) as there:
                    there.sendall(b"hello")
            except OSError:
                pass
        threading.Thread(target=serve).start()
        try:
            with socket.create_connection(listener.getsockname()) as plain:
                with ssl.create_default_context().wrap_socket(plain, server_hostname="localhost") as stream:
                    return stream.recv(5).decode()
        except ssl.SSLCertVerificationError as error:
            return error.verify_message
for file in sys.argv[1:]:
    print(client_of(file))
"""


def content(data: bytes) -> dict[str, Any]:
    return {"content": hashlib.md5(data).hexdigest(), "size": len(data)}


def sparse_content() -> dict[str, Any]:
    size = max(place + len(data) for place, data in SPARSE.items())
    whole = bytearray(size)
    for place, data in SPARSE.items():
        whole[place : place + len(data)] = data
    return content(bytes(whole))


def expected() -> dict[str, dict[str, Any]]:
    """The facts of each path below /n that the layers leave, as far as they say something."""

    def file(mode: int = 0o644, uid: int = 0, gid: int = 0, **more: Any) -> dict[str, Any]:
        return {"mode": oct(0o100000 | mode), "uid": uid, "gid": gid, "xattrs": {}, **more}

    def directory(mode: int = 0o755, gid: int = 0, **more: Any) -> dict[str, Any]:
        return {"mode": oct(0o40000 | mode), "uid": 0, "gid": gid, "xattrs": {}, **more}

    attributes = {
        "user.k": "00ff0a3d", "user.empty": "", "user.large": "fe" * 3000, "trusted.t": "74",
    }  # fmt: skip
    return {
        ".": directory(time=1_700_000_000_250_000_000),
        "setuid": file(0o4755, 1234, 5678, **content(program("id"))),
        "capable": file(0o755, **content(program("cat")), xattrs={"security.capability": NET_RAW.hex()}),
        "owned": file(0o640, MOST, MOST),
        "char": {"mode": oct(0o20620), "device": [5, 300]},
        "null": {"mode": oct(0o20666), "device": [1, 3]},
        "block": {"mode": oct(0o60660), "device": [4095, 0xFFFFF]},
        "pipe": {"mode": oct(0o10622)},
        "sticky": directory(0o1777),
        "setgid": directory(0o2775, 50),
        "acl": file(0o674, xattrs={"system.posix_acl_access": ACL.hex()}),
        "acls": directory(xattrs={"system.posix_acl_default": ACL.hex()}),
        "attributes": file(links=2, **content(b"attributes"), xattrs=attributes),
        "hard": file(links=2, **content(b"attributes"), xattrs=attributes),
        "old": file(time=-1_500_000_000),
        "future": file(time=4_102_444_800_123_456_789),
        "names": directory(),
        "names/\udcff\udcfe": file(**content(b"bytes")),
        "names/new\nline\\": file(**content(b"newline")),
        "names/" + "l" * 255: file(**content(b"long")),
        **{"names" + "/D" * depth: directory() for depth in range(1, 6)},
        "names/D/D/D/D/D/file": file(**content(b"deep")),
        "link": {"mode": oct(0o120777), "link": "../" * 1000 + "nowhere"},
        "gone": directory(0o750),
        "gone/anew": file(**content(b"anew")),
        "link-to-kept": file(**content(b"kept"), links=1),
        "marker-first": directory(),
        "marker-first/new": file(**content(b"new")),
        "marker-last": directory(),
        "marker-last/new": file(**content(b"new")),
        "to-directory": directory(0o700),
        "to-directory/x": file(**content(b"x")),
        "to-file": file(**content(b"file")),
        "file-again": file(**content(b"last")),
        "directory-again": directory(),
        "directory-again/z": file(**content(b"z")),
        "overlay": directory(xattrs={"user.seen": "31"}),
        "overlay/x": file(**content(b"x")),
        "into-debian": file(0o755, **content(program("cat")), links=2),
        "sparse": file(0o600, **sparse_content()),
    }


@pytest.fixture
async def host(home: Path) -> AsyncIterator[ramet.Host]:
    """An open Host on a home of the test's own."""
    async with ramet.Host(home) as opened:
        yield opened


async def out(vm: ramet.VM, *words: str, user: str | None = None, stdin: bytes | None = None) -> str:
    return (await vm.exec(*words, user=user, stdin=stdin, check=True, timeout=120)).text.strip()


def chain(authority: trustme.CA, path: Path) -> bytes:
    """A certificate for localhost and its key, in one file."""
    issued = authority.issue_cert("localhost")
    issued.private_key_and_cert_chain_pem.write_to_path(str(path))
    return path.read_bytes()


async def test_four_layers_and_a_private_authority(host: ramet.Host, tmp_path: Path) -> None:
    layers = [tar(lower()), gzip.compress(tar(middle())), upper(tmp_path)]
    image = await debian_image(host.home, ImageConfig(cmd=("sleep", "infinity")), above=layers)
    assert image.record.dropped_devices == 1
    assert image.record.dropped_xattrs >= 2  # Debian's own layer has ACLs as text, of systemd's journal
    trusted, other = trustme.CA(), trustme.CA()
    trusted.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    vm = await host.run("debian", name="source", memory="256M", ca=[tmp_path / "ca.pem"])

    # Each entry is as the last layer that says something of it left it.
    seen = json.loads(await out(vm, "python3", "-c", SEEN))
    tree, tools = seen["tree"], seen["tools"]
    wanted = expected()
    assert set(tree) == set(wanted)
    wrong = {
        name: {
            key: (tree[name].get(key), value) for key, value in facts.items() if tree[name].get(key) != value
        }
        for name, facts in wanted.items()
    }
    assert {name: facts for name, facts in wrong.items() if facts} == {}
    assert tree["hard"]["inode"] == tree["attributes"]["inode"]
    assert tree["into-debian"]["inode"] == tools["cat"]["inode"]
    assert tools["tool-link"]["inode"] == tools["kept-tool"]["inode"]

    # They do what they are for.
    assert await out(vm, "/n/setuid", "-u", user="1000") == "1234"
    status = await out(vm, "/n/capable", "/proc/self/status", user="1000")
    assert "CapEff:\t0000000000002000" in status
    assert await out(
        vm, "sh", "-c", "echo x > /n/null; new-tool; tool-link; command -v old-tool || echo none"
    ) == ("new\nold\nnone")
    found, total, broken = (await out(vm, "python3", "-c", WHOLE)).split()
    assert (found, broken) == ("42", "0")
    assert int(total) > 500

    # A server with a certificate of the authority that the guest was given is believed, another isn't.
    for name, authority in (("good", trusted), ("bad", other)):
        await out(vm, "sh", "-c", f"cat > /root/{name}", stdin=chain(authority, tmp_path / name))
    unknown = "unable to get local issuer certificate"
    asked = ("python3", "-c", TLS, "/root/good", "/root/bad")
    assert (await out(vm, *asked)).split("\n") == ["hello", unknown]
    # Also without the variables that name the bundle: Debian's own places have it.
    assert (await out(vm, "env", "-u", "SSL_CERT_FILE", *asked)).split("\n") == ["hello", unknown]
    assert await out(vm, "openssl", "verify", "/root/good") == "/root/good: OK"
    assert not (await vm.exec("openssl", "verify", "/root/bad")).ok

    # A fork sees the same, inodes included, and trusts the same.
    (fork,) = await vm.fork(1, require_shared=True)
    await vm.remove(force=True)
    assert json.loads(await out(fork, "python3", "-c", SEEN)) == seen
    assert (await out(fork, *asked)).split("\n") == ["hello", unknown]
    tell(f"Debian of four layers: {len(tree)} entries as written, {total} files of its packages unchanged")


async def test_systemd_is_no_main_process(host: ramet.Host) -> None:
    """Debian's own, which `/sbin/init` is a link to. Nothing of the instance is left."""
    await debian_image(host.home, ImageConfig(cmd=("/sbin/init",)))
    with pytest.raises(ExecError, match=r"/sbin/init is systemd, which has to be process 1 of its machine"):
        await host.run("debian", memory="192M")
    assert await host.list(everything=True) == []
