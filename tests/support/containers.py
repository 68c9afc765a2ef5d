"""Container images for tests, made of busybox and nothing else, and instances of them."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path

import anyio

import ramet
from ramet.engine.lifecycle import boot
from ramet.engine.lifecycle.roots import Container
from ramet.engine.lifecycle.watch import watch
from ramet.guest.agent_binary import agent_path
from ramet.images.container import container_boot_image
from ramet.images.library.library import Library
from ramet.images.library.records import ContainerImage, Layer, Material
from ramet.images.linux import find_busybox
from ramet.memory.integrity import digest
from ramet.model.container import ImageConfig, main_process
from ramet.model.disks import parse_disks
from ramet.model.rootfs import parse_rootfs
from ramet.units import MIB, parse_size

APPLETS = "cat dd df echo env grep head id kill ln ls md5sum mkdir ps pwd reboot rm sh sleep sync test touch"
LARGE = b"".join(number.to_bytes(4, "little") * 1024 for number in range(17 * MIB // 4096))
"""The content of `/large`, in a layer of its own: large enough to be a device that images share."""
_PASSWD = b"root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001:App:/home/app:/bin/sh\n"
_GROUP = b"root:x:0:\napp:x:1001:\nextra:x:1002:app\n"


def tar(files: Mapping[str, bytes], links: Mapping[str, str] | None = None) -> bytes:
    """A layer with those files, and symbolic links."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode, entry.mtime = len(content), 0o755, 1_700_000_000
            archive.addfile(entry, io.BytesIO(content))
        for name, target in (links or {}).items():
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            archive.addfile(entry)
    return out.getvalue()


@cache
def layers() -> tuple[bytes, ...]:
    """Busybox with users, and a layer with a large file."""
    links = {f"bin/{name}": "busybox" for name in APPLETS.split()}
    files = {"bin/busybox": find_busybox().read_bytes(), "etc/passwd": _PASSWD, "etc/group": _GROUP}
    return tar(files, links), tar({"large": LARGE})


async def add_image(home: Path, config: ImageConfig, name: str = "tiny") -> ContainerImage:
    """Put an image of those layers into a home's library."""
    library = Library(home / "images", part_digest=digest)
    material = Material(
        config,
        [
            Layer(f"layer {number}", None, partial(list, (content,)), len(content))
            for number, content in enumerate(layers())
        ],
        None,
        "a test",
    )
    return await library.add(material, name=name, is_local=True)


async def run(
    host: ramet.Host,
    image: ContainerImage,
    *command: str,
    name: str | None = None,
    memory: str = "128M",
    driver: str = "qemu",
    disks: Sequence[str] = (),
    rootfs: str = "disk",
    auto_remove: bool = False,
    is_idle: bool = False,
    env: Mapping[str, str] | None = None,
    user: str | None = None,
    workdir: str | None = None,
    stop_signal: str | None = None,
) -> ramet.VM:
    """Boot an instance of a container image."""
    context = host._opened
    main = main_process(
        image.config,
        image.name,
        command=command,
        env=env,
        user=user,
        workdir=workdir,
        stop_signal=stop_signal,
        is_idle=is_idle,
    )
    wanted = boot.Wanted(
        await anyio.to_thread.run_sync(container_boot_image, agent_path),
        parse_size(memory),
        name=name,
        driver_name=driver,
        disks=parse_disks(disks),
        auto_remove=auto_remove,
        container=Container(image, main, parse_rootfs(rootfs)),
    )
    record = await boot.create(context, wanted)
    context.ours.add(record.id)
    watch(context, record)
    return ramet.VM(context, record)
