"""The emulated host's root filesystem: a small Debian with Python and QEMU, a kernel with an ordinary KVM.

It is made once, from the packages of the archive that this machine's apt uses, and kept in the cache under a
name made of its recipe. A machine that can't make it raises `UnavailableError`, with the reason.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final, NamedTuple

import msgspec

from ramet import config
from ramet.errors import UnavailableError
from ramet.images.bzimage import unpack_vmlinux
from ramet.images.cpio import FileTree
from ramet.images.modules import ModuleTree
from ramet.images.publish import published_directory

INSIDE: Final = Path(__file__).parent / "inside"
PACKAGES: Final = (
    "busybox-static",
    "e2fsprogs",
    "iproute2",
    "kmod",
    "procps",
    "python3",
    "qemu-system-x86",
    "qemu-utils",
    "sqlite3",
)
KERNEL: Final = "linux-image-cloud-amd64"
BOOT_MODULES: Final = ("virtio_pci", "virtio_blk", "ext4")
"""What is needed to reach the root filesystem. The rest is loaded from there, by `inside/start`."""

_SIZE: Final = "4G"  # of the filesystem; its file is all holes where nothing lies
_LIMIT_S: Final = 1800
_STEP_LIMIT_S: Final = 300
_ENVIRONMENT: Final = {"LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
_WAY: Final = "see tests/endurance/emulated_host/README.md"


class Root(msgspec.Struct, frozen=True):
    """What a host boots from. `python` is the interpreter's minor version there, `3.11`."""

    image: Path
    kernel: Path
    initramfs: Path
    python: str


class _Archive(NamedTuple):
    """A Debian archive as debootstrap wants it."""

    uri: str
    suite: str


def find_root() -> Root:
    """The root filesystem, made now if this recipe hasn't been carried out before.

    That takes a minute or two. Raises `UnavailableError` when this machine can't; nothing is left then.
    """
    _require("mkfs.ext4", "setpriv")
    target = cache() / f"root-{_key()}"
    if not target.is_dir():
        if os.geteuid() != 0:
            raise UnavailableError("only root can make the emulated host's filesystem", hint=_WAY)
        _require("debootstrap", "apt-get", "dpkg-deb", "unshare")
        print("emulated host: making its root filesystem, once, from Debian's packages", file=sys.stderr)
        with tempfile.TemporaryDirectory(prefix="making-", dir=cache()) as workshop:
            tree = Path(workshop, "root")
            _install(_archive(), tree)
            version = _add_kernel(Path(workshop), tree)
            with published_directory(target) as making:
                _fill(making, tree, version)
    python = (target / "python").read_text().strip()
    return Root(target / "root.ext4", target / "vmlinux", target / "initramfs", python)


def cache() -> Path:
    """Where emulated hosts lie."""
    directory = config.cache_directory() / "emulated-host"
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def make_filesystem(image: Path, size: str, contents: Path, *features: str) -> None:
    """An ext4 filesystem of `size` in the new file `image`, filled with what is in `contents`."""
    # Of an ordinary size for its inodes and their tables written when they are used: made in no time.
    options = ["-q", "-F", "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard,root_owner=0:0"]
    _run("mkfs.ext4", *options, *features, "-d", contents, image, size)


def _require(*tools: str) -> None:
    for tool in tools:
        if not shutil.which(tool, path=_path()):
            raise UnavailableError(f"the emulated host needs {tool}", hint="run `make setup`")


def _path() -> str:
    # An account that came by `su` may not have the directories of the administrator's programs.
    return f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"


def _key() -> str:
    """Of the recipe, which is these files, and of the release that this machine's apt installs from."""
    release = platform.freedesktop_os_release()
    recipe = [
        Path(__file__).read_bytes(),
        (INSIDE / "init").read_bytes(),
        release.get("VERSION_CODENAME", "").encode(),
    ]
    return hashlib.sha256(b"\0".join(recipe)).hexdigest()[:20]


def _archive() -> _Archive:
    """The archive from which this machine's own packages come."""
    fields = "$(ORIGIN)\t$(LABEL)\t$(ARCHITECTURE)\t$(COMPONENT)\t$(RELEASE)\t$(REPO_URI)"
    listed = _run("apt-get", "indextargets", "--format", fields, "Created-By: Packages")
    for line in listed.splitlines():
        origin, label, architecture, component, suite, uri = line.split("\t")
        if (origin, label, architecture, component) != ("Debian", "Debian", "amd64", "main"):
            continue
        if "-" not in suite:  # bookworm-updates is no whole archive
            return _Archive(uri, suite)
    raise UnavailableError(
        "the emulated host is made of Debian's packages, and apt has no list of Debian's here",
        hint="run `apt-get update`; on another distribution this can't be done",
    )


def _install(archive: _Archive, tree: Path) -> None:
    # debootstrap mounts /proc in the tree: in a namespace that goes with it, also when it is killed.
    namespace: tuple[str, ...] = ("unshare", "--mount", "--pid", "--fork", "--kill-child")
    options = ("--variant=minbase", f"--include={','.join(PACKAGES)}")
    proxy = _run("apt-config", "shell", "proxy", "Acquire::http::Proxy").strip()
    environment = {"http_proxy": proxy.split("'")[1]} if proxy else {}
    words: tuple[str | Path, ...] = (*namespace, "debootstrap", *options, archive.suite, tree, archive.uri)
    _run(*words, limit_s=_LIMIT_S, environment=environment)
    for unneeded in ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/locale"):
        shutil.rmtree(tree / unneeded, ignore_errors=True)


def _add_kernel(workshop: Path, tree: Path) -> str:
    """The newest kernel for VMs, with all its modules: those for guests, in ramet's cache, have no KVM."""
    depends = _run("apt-cache", "depends", "--important", KERNEL).split()
    names = [word for word in depends if word.startswith("linux-image-") and word != KERNEL]
    if not names:
        raise UnavailableError(f"apt knows no {KERNEL}", hint="run `apt-get update`")
    _run("apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", names[0], cwd=workshop)
    [package] = workshop.glob("*.deb")
    _run("dpkg-deb", "--extract", package, workshop / "kernel")
    [modules] = (workshop / "kernel" / "lib" / "modules").iterdir()
    (tree / "usr/lib/modules").mkdir(exist_ok=True)
    modules.rename(tree / "usr/lib/modules" / modules.name)
    _run("chroot", tree, "depmod", modules.name)
    (workshop / "kernel" / "boot" / f"vmlinuz-{modules.name}").rename(workshop / "vmlinuz")
    return modules.name


def _fill(making: Path, tree: Path, version: str) -> None:
    (making / "vmlinux").write_bytes(unpack_vmlinux((tree.parent / "vmlinuz").read_bytes()))
    (making / "initramfs").write_bytes(_initramfs(tree, version))
    (making / "python").write_text((tree / "usr/bin/python3").readlink().name.removeprefix("python") + "\n")
    for mount_point in ("ramet", "proc", "sys", "dev"):
        (tree / mount_point).mkdir(exist_ok=True)
    # Without a journal: what a host writes there goes to a temporary file that nobody reads again.
    make_filesystem(making / "root.ext4", _SIZE, tree, "-O", "^has_journal")


def _initramfs(tree: Path, version: str) -> bytes:
    """busybox, the modules on the way to the root filesystem, and `inside/init`."""
    files = FileTree()
    for directory in ("dev", "proc", "sys", "host"):
        files.directory(directory)
    files.character_device("dev/console", 5, 1)
    files.file("bin/busybox", (tree / "bin/busybox").read_bytes(), 0o755)
    files.file("init", (INSIDE / "init").read_bytes(), 0o755)
    modules = ModuleTree.from_directory(tree / "usr" / "lib" / "modules" / version).needed(BOOT_MODULES)
    for module in modules:
        files.file(f"modules/{module.name}.ko", module.data)
    files.file("modules/order", "".join(f"{module.name}\n" for module in modules))
    return files.pack()


def _run(
    *words: str | Path,
    cwd: Path | None = None,
    limit_s: float = _STEP_LIMIT_S,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """A program's standard output. `UnavailableError` with its last words when it fails or takes too long."""
    try:
        done = subprocess.run(
            words,
            cwd=cwd,
            env={**os.environ, **_ENVIRONMENT, "PATH": _path(), **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=limit_s,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnavailableError(f"the emulated host can't be made: {error}", hint=_WAY) from error
    if done.returncode != 0:
        said = " / ".join((done.stdout + done.stderr).strip().splitlines()[-4:])
        raise UnavailableError(f"the emulated host can't be made: {words[0]}: {said}", hint=_WAY)
    return done.stdout
