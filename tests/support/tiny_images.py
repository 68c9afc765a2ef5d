"""Container images of busybox, made here: a layer with the program and its links, and what a test adds."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import anyio.to_thread

import ramet
from ramet.api.handles import VM
from ramet.engine.lifecycle import boot
from ramet.engine.lifecycle.roots import Container
from ramet.engine.lifecycle.watch import watch
from ramet.guest.agent_binary import agent_path
from ramet.images.container import container_boot_image
from ramet.images.library.library import Library
from ramet.images.library.records import ContainerImage, Layer, Material
from ramet.images.linux import find_busybox
from ramet.memory import integrity
from ramet.model.container import ImageConfig, main_process
from ramet.model.disks import parse_disks
from ramet.model.rootfs import parse_rootfs
from ramet.units import parse_size

PROGRAMS = (
    *("sh", "cat", "cp", "dd", "df", "echo", "head", "id", "ls", "md5sum", "mkdir", "mount", "ps", "rm"),
    *("sleep", "stat", "sync", "touch", "tr"),
)


def layer(files: Mapping[str, bytes], links: Mapping[str, str] | None = None) -> bytes:
    """A tar of executable files and of symbolic links."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode, entry.mtime = len(content), 0o755, 1_700_000_000
            tar.addfile(entry, io.BytesIO(content))
        for name, target in (links or {}).items():
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            tar.addfile(entry)
    return made.getvalue()


def busybox() -> bytes:
    """The layer that all of these images begin with."""
    program = find_busybox().read_bytes()
    users = b"root:x:0:0:root:/:/bin/sh\n"
    return layer(
        {"bin/busybox": program, "etc/passwd": users}, {f"bin/{name}": "busybox" for name in PROGRAMS}
    )


async def image_of(
    host: ramet.Host, config: ImageConfig, *, layers: Iterable[bytes] = (), name: str = "tiny"
) -> ContainerImage:
    """An image of busybox and `layers` in the host's library."""
    library = Library(Path(host.home) / "images", part_digest=integrity.digest)
    parts = [
        Layer(f"layer {number}", None, lambda content=content: [content], len(content))  # type: ignore[misc]
        for number, content in enumerate([busybox(), *layers])
    ]
    return await library.add(Material(config, parts, None, "made by a test"), name=name, is_local=True)


async def run_image(
    host: ramet.Host,
    image: ContainerImage,
    *,
    name: str | None = None,
    memory: str = "160M",
    driver: str = "qemu",
    disks: tuple[str, ...] = (),
    rootfs: str = "disk",
) -> VM:
    """A guest of that image, whose main process is as the image says."""
    context = host._opened
    boot_image = await anyio.to_thread.run_sync(container_boot_image, agent_path)
    record = await boot.create(
        context,
        boot_image,
        name=name,
        memory_bytes=parse_size(memory),
        cpus=1,
        driver_name=driver,
        disks=parse_disks(disks),
        labels={},
        auto_remove=False,
        container=Container(image, main_process(image.config, image.name), parse_rootfs(rootfs)),
    )
    context.ours.add(record.id)
    watch(context, record)
    return VM(context, record)
