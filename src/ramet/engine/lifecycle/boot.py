"""Cold starts: a new instance, a stopped one, a fork whose guest rebooted."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Final, NamedTuple
from uuid import uuid4

import anyio
import msgspec

from ramet.disk.volumes import make_disk, unshare_disk, uppermost
from ramet.drivers.interface import Ability, Driver
from ramet.engine.agent.identity import verify_identity
from ramet.engine.agent.main_process import start_main, trust_authorities
from ramet.engine.context import Context
from ramet.engine.drivers import Choice, choose
from ramet.engine.lifecycle.jobs import job
from ramet.engine.lifecycle.mounts import require_mountable, require_mounted, with_mounts
from ramet.engine.lifecycle.removal import destroy, drop_capture
from ramet.engine.lifecycle.roots import Container, disk_sizes, link_bases, require_bases, with_root
from ramet.engine.vmm.record import booted_vmm, console_bytes
from ramet.errors import GuestError, RametError, UsageError, VmmError
from ramet.images.image import Image
from ramet.model.boot import Boot
from ramet.model.disks import NewDisk
from ramet.model.lifecycle import Move, State
from ramet.model.names import check_name, invent_name, new_id
from ramet.model.record import Guest, Machine, Record
from ramet.paths import (
    INITRAMFS_FILE,
    KERNEL_FILE,
    MEM_FILE,
    ORIGIN_FILE,
)
from ramet.system import cgroups, owners, process_limit, processes, threads
from ramet.system.clock import now
from ramet.system.files import filesystem_errors
from ramet.system.kvm_kernels import Trial, note_trial
from ramet.system.share import link_or_copy
from ramet.units import MIB, format_bytes

READY_LIMIT_S = 90.0
TRIAL_LIMIT_S = 20.0
"""Time for a kernel of which it is unknown whether KVM runs it: a good kernel takes a second or two."""
_SMALLEST_MIB: dict[Guest, int] = {"linux": 96, "bare-metal": 32}
_SMALLEST_CONTAINER_MIB = 128
"""Of a guest of a container image, whose kernel has more modules: 96 MiB leave 25 to its programs."""


COLD: Final = Boot(how="cold", detail="a cold boot was asked for")


class Wanted(NamedTuple):
    """The wishes of a user for a new instance.

    With `container`, `image` boots a guest whose root is that container image, and whose main process is
    started, unless it is idle. `name` is invented unless given.
    """

    image: Image
    memory_bytes: int
    cpus: int = 1
    name: str | None = None
    driver_name: str = "auto"
    disks: tuple[NewDisk, ...] = ()
    labels: Mapping[str, str] = MappingProxyType({})
    auto_remove: bool = False
    container: Container | None = None


Make = Callable[[Context, Wanted, Choice], Awaitable[Record]]
"""Makes an instance with the chosen driver; on a failure nothing of it is left."""


async def create(context: Context, wanted: Wanted, make: Make | None = None) -> Record:
    """Make an instance, by a cold boot unless `make` is given; it is this process's until it is detached.

    Returned when its guest has answered and has its identity. On a failure nothing of it is left. If it is
    unknown whether KVM runs its kernel, the boot is the trial: a failure is remembered, and the driver is
    chosen again with that knowledge.
    """
    image = wanted.image
    smallest_mib = _SMALLEST_MIB[image.guest] if wanted.container is None else _SMALLEST_CONTAINER_MIB
    _require_sizes(smallest_mib, wanted.memory_bytes, wanted.cpus)
    require_mountable(image, wanted.disks)
    make = make or boot_new
    failed: list[Trial] = []
    while (choice := await choose(context, wanted.driver_name, image, failed=failed)).is_trial:
        note = partial(
            note_trial,
            context.cache,
            driver=choice.driver.name,
            kernel_version=image.kernel_version,
            kernel_digest=image.kernel_digest,
        )
        try:
            record = await make(context, wanted, choice)
        except (VmmError, GuestError) as error:
            failed.append(note(runs=False, detail=f"when it was tried, {_without_name(error)[:200]}"))
        else:
            note(runs=True, detail="its guest answered")
            return record
    return await make(context, wanted, choice)


def machine_of(wanted: Wanted, choice: Choice) -> Machine:
    """Return the machine that is wanted. Raises `UsageError` when the chosen driver can't have it."""
    driver, container = choice.driver, wanted.container
    if wanted.cpus > driver.most_cpus:
        raise UsageError(
            f"{wanted.cpus} virtual CPUs can't be: {driver.name} gives a guest {driver.most_cpus} at most",
            hint="ask for fewer, or for another driver",
        )
    machine = driver.machine(
        accelerator=choice.accelerator,
        memory_bytes=wanted.memory_bytes,
        cpus=wanted.cpus,
        guest=wanted.image.guest,
        disk_bytes=tuple(disk.size_bytes for disk in wanted.disks)
        + (disk_sizes(container) if container is not None else ())
        or ((wanted.image.disk_bytes,) if wanted.image.disk_bytes else ()),
    )
    has_generation_id = wanted.image.generation_id and Ability.GIVES_GENERATION_ID in driver.abilities
    machine = msgspec.structs.replace(machine, vmgenid=has_generation_id)
    if container is None:
        return with_mounts(machine, wanted.disks)
    data, root = machine.disks[: len(wanted.disks)], machine.disks[len(wanted.disks) :]
    machine = with_mounts(msgspec.structs.replace(machine, disks=data), wanted.disks)
    return with_root(machine, root[0] if root else None, container)


def reserve(context: Context, wanted: Wanted, choice: Choice, machine: Machine) -> Record:
    """Make the record of a new instance, whose directory doesn't exist yet. Raises `NameTakenError`."""
    image, container = wanted.image, wanted.container
    record = Record(
        id=new_id(),
        name=check_name(wanted.name) if wanted.name is not None else invent_name(context.store.names()),
        state=State.CREATED,
        driver=choice.driver.name,
        image=image.name if container is None else container.image.name,
        image_digest=None if container is None else container.image.digest,
        main=None if container is None else container.main,
        machine=machine,
        kernel_version=image.kernel_version,
        parent=None,
        generation=1,
        machine_id=uuid4().hex,
        created_at=now(),
        labels=dict(wanted.labels),
        auto_remove=wanted.auto_remove,
        owner=owners.owner(context.home.root),
    )
    context.store.add([record])
    return record


async def boot_new(context: Context, wanted: Wanted, choice: Choice) -> Record:
    """Make an instance by a cold boot. On a failure nothing of it is left."""
    record = reserve(context, wanted, choice, machine_of(wanted, choice))
    try:
        launched = await launch_new(context, record, wanted, choice)
        return await begin(context, launched, Move.BOOT, COLD)
    except BaseException:
        with anyio.CancelScope(shield=True):
            await destroy(context, record)
        raise


async def launch_new(
    context: Context, record: Record, wanted: Wanted, choice: Choice, *, generation: int | None = None
) -> Record:
    """Boot the guest of a new record in a new directory. Otherwise as `launch`."""
    directory = context.directory(record)
    with filesystem_errors("make", directory):
        directory.mkdir(mode=0o700)
    link_or_copy(wanted.image.kernel, directory / KERNEL_FILE)
    if wanted.image.initramfs is not None:
        link_or_copy(wanted.image.initramfs, directory / INITRAMFS_FILE)
    if wanted.container is not None:
        await threads.run(link_bases, directory, wanted.container.image)
    for disk in record.machine.disks:
        await threads.run(make_disk, directory, disk)
    limit_s = TRIAL_LIMIT_S if choice.is_trial else READY_LIMIT_S
    return await launch(context, record, choice.driver, limit_s, generation=generation)


def _without_name(error: RametError) -> str:
    """Return the error's message without the name of the instance, which no longer exists."""
    return error.message.partition(": ")[2] or error.message


async def start(context: Context, record: Record) -> Record:
    """Start a stopped instance cold: disks and identity kept, memory new.

    Raises `WrongStateError` in any other state.
    """
    async with job(context, record, "start") as stopped:
        return await _start(context, stopped)


async def restart(context: Context, gone: Record) -> Record:
    """Start cold an instance whose guest rebooted and took its VMM with it, unless another process has.

    `gone` is its record with that VMM.
    """
    async with job(context, gone, "start") as record:
        return record if record.vmm is not None else await _start(context, record)


async def _start(context: Context, record: Record) -> Record:
    record.moved(Move.START)
    await threads.run(require_bases, context.directory(record), record)
    driver = context.driver(record.driver)
    await driver.version()
    launched = await launch(context, record, driver, READY_LIMIT_S)
    return await begin(context, launched, Move.START, Boot(how="cold", detail="it was started again"))


async def launch(
    context: Context, record: Record, driver: Driver, limit_s: float, *, generation: int | None = None
) -> Record:
    """Boot an instance's guest, and give it its identity. Its main process isn't started.

    `generation` is told to the guest in place of the record's. Returns the record with the VMM and the
    machine that it has, which the store doesn't have yet. Raises `VmmError`, `GuestError`; no VMM is left
    then.
    """
    directory = context.directory(record)
    with filesystem_errors("make the mem-file in", directory):
        # A vmstate fits the memory that it was saved with, which is about to go.
        drop_capture(directory)
        (directory / ORIGIN_FILE).unlink(missing_ok=True)
        if Ability.BOOTS_ON_MEM_FILE in driver.abilities:
            _new_mem_file(directory, record.machine.memory_bytes)
    machine = driver.for_cold_start(record.machine)
    machine = await threads.run(_open_disks, directory, machine)
    console_start = console_bytes(directory)
    with process_limit.named():
        vmm = await driver.boot(directory, machine)
    try:
        running = booted_vmm(driver, directory, machine, vmm, console_start=console_start)
        introduced = record if generation is None else msgspec.structs.replace(record, generation=generation)
        try:
            await verify_identity(context, introduced, vmm.process, limit_s=limit_s)
        except VmmError:
            require_mounted(directory, record)
            raise
    except BaseException:
        with anyio.CancelScope(shield=True):
            await vmm.kill()
        raise
    return msgspec.structs.replace(record, machine=machine, vmm=running)


async def begin(context: Context, launched: Record, move: Move, how: Boot) -> Record:
    """Start the main process of an instance whose guest lives, and record that it runs.

    `launched` has its VMM, which is ended when this fails.
    """
    assert launched.vmm is not None
    process = launched.vmm.process
    try:
        main = await trust_authorities(context, launched, process)
        await start_main(context, msgspec.structs.replace(launched, main=main), process)
        return context.store.change(
            launched.id,
            lambda row: msgspec.structs.replace(
                row.moved(move, vmm=launched.vmm),
                machine=launched.machine,
                main=main,
                exit_code=None,
                boot=how,
            ),
        )
    except BaseException:
        with anyio.CancelScope(shield=True):
            await processes.kill(process)
        raise


def _open_disks(directory: Path, machine: Machine) -> Machine:
    """Return the machine with writable disks: a disk whose file a snapshot shares gets another file."""
    disks = []
    for disk in machine.disks:
        disk = uppermost(directory, disk)
        path = directory / disk.file
        if path.stat().st_nlink > 1:
            disk = unshare_disk(directory, disk)
        (directory / disk.file).chmod(0o600)  # a capture that was begun and not finished had closed it
        disks.append(disk)
    return msgspec.structs.replace(machine, disks=tuple(disks))


def _new_mem_file(directory: Path, size_bytes: int) -> None:
    """Make an all-hole mem-file under a new inode: other instances may share the old file (I1)."""
    temporary = directory / f".tmp-{MEM_FILE}"
    temporary.unlink(missing_ok=True)
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.truncate(fd, size_bytes)
    finally:
        os.close(fd)
    temporary.rename(directory / MEM_FILE)


def _require_sizes(smallest_mib: int, memory_bytes: int, cpus: int) -> None:
    if memory_bytes < smallest_mib * MIB:
        raise UsageError(
            f"{format_bytes(memory_bytes)} is less than a guest needs",
            hint=f"give it at least {smallest_mib}M",
        )
    host = cgroups.memory()
    if memory_bytes > host.total_bytes:
        most = format_bytes(host.total_bytes)
        if host.limited_by is None:
            raise UsageError(
                f"{format_bytes(memory_bytes)} is more than this machine has ({most})", hint="ask for less"
            )
        # The kernel would end the VMM, or this process, as soon as the guest has used so much.
        raise UsageError(
            f"{format_bytes(memory_bytes)} is more than this machine has for this process: its memory cgroup"
            f" {host.limited_by} allows {most}",
            hint="ask for less, or raise that cgroup's limit (a container's `--memory`, a unit's MemoryMax=)",
        )
    if not 1 <= cpus <= 64:
        raise UsageError(f"{cpus} virtual CPUs can't be", hint="give it 1 to 64")
