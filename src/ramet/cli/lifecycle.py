"""Verbs that change the state of instances, and `wait`.

stop, start, pause, resume, standby, restore, rewind, rm, template, keep.

With several references, the failure of one doesn't stop the others (I7). The exit code is 6 when some failed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, NamedTuple, NoReturn, TypeVar

import typer

from ramet.cli import calling, output, references
from ramet.cli.completion import complete_own_snapshot
from ramet.cli.options import Json, Reference, References
from ramet.errors import NotFoundError, PartlyFailedError, RametError, UnreadableError

if TYPE_CHECKING:
    from ramet.api.handles import VM
    from ramet.api.host import Host
    from ramet.model.documents import Failure
    from ramet.model.schema import Instance

F = TypeVar("F")
T = TypeVar("T")


def stop(
    wanted: References,
    timeout: Annotated[
        float, typer.Option(metavar="S", help="The seconds to wait for the guest before its VMM is killed.")
    ] = 10.0,
    json: Json = False,
) -> None:
    """Power instances off.

    Disks are kept; memory is lost.
    """
    _each(wanted, lambda vm: vm.stop(timeout=timeout), "stopping", json=json)


def start(wanted: References, json: Json = False) -> None:
    """Boot stopped instances.

    An instance keeps its identity and its disks; its memory is new.
    """
    _each(wanted, lambda vm: vm.start(), "booting", json=json)


def pause(wanted: References, json: Json = False) -> None:
    """Pause instances.

    Their virtual CPUs stop; their memory stays in RAM.
    """
    _each(wanted, lambda vm: vm.pause(), "pausing", json=json)


def resume(wanted: References, json: Json = False) -> None:
    """Resume paused instances."""
    _each(wanted, lambda vm: vm.resume(), "resuming", json=json)


def standby(wanted: References, json: Json = False) -> None:
    """Put instances into standby.

    The memory is written to a file and the VMM ends, so the instance uses no RAM until `ramet restore`.
    Connections to the guest end.
    """
    _each(wanted, lambda vm: vm.standby(), "capturing", json=json)


def restore(wanted: References, json: Json = False) -> None:
    """Restore instances from standby."""
    _each(wanted, lambda vm: vm.restore(), "restoring", json=json)


def rewind(
    reference: Reference,
    snapshot: Annotated[
        str | None,
        typer.Argument(
            metavar="[SNAPSHOT]",
            autocompletion=complete_own_snapshot,
            help="A snapshot of the instance; the latest unless given.",
            show_default=False,
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Return an instance to one of its snapshots.

    Memory and disks become what they were at the snapshot. Everything that happened since is lost.
    """

    async def body(host: Host) -> None:
        from ramet.cli.progress import working

        vm = await references.instance(host, reference)
        with working(f"rewinding {vm.name}", quiet=json):
            await vm.rewind(snapshot)
        await _show(vm, json=json)

    calling.with_host(body, json=json)


def template(reference: Reference, json: Json = False) -> None:
    """Make an instance a template for forks.

    The VMM ends and the memory is kept. This is final: a template is never started or restored again.
    (Not a build recipe.)
    """

    async def body(host: Host) -> None:
        from ramet.cli.progress import working

        with working(f"capturing {reference}", quiet=json):
            vm = await (await references.instance(host, reference)).template()
        await _show(vm, json=json)

    calling.with_host(body, json=json)


def keep(reference: Reference, json: Json = False) -> None:
    """Keep one fork and remove its siblings.

    Siblings are the other forks of the same source, made by any process.
    """

    async def body(host: Host) -> None:
        from ramet.cli.progress import working

        vm = await host.get(reference)
        with working(f"removing the siblings of {vm.name}", quiet=json):
            kept = await vm.keep()
        await _show(kept, json=json)

    calling.with_host(body, json=json)


def wait(reference: Reference, json: Json = False) -> None:
    """Wait until an instance stops, and print its state.

    Of an instance of a container image the exit code of its main process is printed instead.
    """

    async def body(host: Host) -> None:
        import msgspec

        from ramet.model.lifecycle import State

        vm = await host.get(reference)
        before = await vm.info()
        try:
            await vm.wait()
            after = await vm.info()
        except NotFoundError:
            after = msgspec.structs.replace(before, state=State.REMOVED, pid=None)
        if json:
            output.emit(after)
        else:
            output.say(after.state if after.exit_code is None else str(after.exit_code))

    calling.with_host(body, json=json)


def remove(
    wanted: References,
    force: Annotated[
        bool,
        typer.Option("--force", "-f", help="Remove running instances too, and records that can't be read."),
    ] = False,
    lost: Annotated[
        bool,
        typer.Option("--lost", help="Remove instances of a machine or a container that no longer exists."),
    ] = False,
    json: Json = False,
) -> None:
    """Remove instances.

    Forks of a removed instance keep running.
    """

    async def body(host: Host) -> int:
        async def find(host: Host, reference: str) -> Removal:
            try:
                vm = await references.instance(host, reference, instead="ramet snapshot rm")
            except UnreadableError:
                if not force:
                    raise forced(reference, "ramet rm") from None
                return Removal(reference, lambda: host.remove_unreadable(reference))

            async def remove_it() -> str:
                await vm.remove(force=force, lost=lost)
                return vm.id

            return Removal(vm.name, remove_it)

        return await remove_each(host, wanted, find, json=json)

    calling.with_host(body, json=json)


def forced(reference: str, verb: str) -> UnreadableError:
    """Return the error for the removal of a record that can't be read, without --force."""
    return UnreadableError(
        f"the record of {reference} can't be read: it isn't known whether its guest still runs",
        hint=f"`{verb} -f {reference}` ends its VMM and deletes its files for good",
    )


class Removal(NamedTuple):
    """Something to remove: its name, and the step that removes it and returns its id."""

    name: str
    act: Callable[[], Awaitable[str]]


async def remove_each(
    host: Host,
    wanted: list[str],
    find: Callable[[Host, str], Awaitable[Removal]],
    *,
    json: bool,
) -> int:
    """Remove what `find` returns for each reference, and return the exit code."""
    from ramet.model.documents import PartlyRemoved
    from ramet.model.schema import Removed

    async def act(removal: Removal) -> str:
        return await removal.act()

    def told(removal: Removal) -> str:
        return removal.name

    outcomes, failures = await _act_on_each(host, wanted, find, act, None if json else told, "removing")
    removed = [outcome for outcome in outcomes if isinstance(outcome, str)]
    code = _code(failures, len(wanted))
    if json and failures:
        output.emit(PartlyRemoved(removed=removed, failed=failures))
    elif json:
        output.emit(Removed(removed=removed))
    return code


def _each(
    wanted: list[str], act: Callable[[VM], Awaitable[Instance | None]], doing: str, *, json: bool
) -> NoReturn:
    """Do the same to each instance, then print an INSTANCE, or an array if there are several references.

    The reason in an instance that `act` returns, such as that its VMM was killed, goes to standard error.
    """

    async def body(host: Host) -> int:
        async def one(vm: VM) -> Instance:
            after = await act(vm)
            if after is not None and after.reason is not None:
                output.warn(f"ramet: {vm.name}: {after.reason}")
            return after or await vm.info()

        def told(vm: VM) -> str:
            return vm.name

        outcomes, failures = await _act_on_each(
            host, wanted, references.instance, one, None if json else told, doing
        )
        code = _code(failures, len(wanted))
        if json:
            output.emit(outcomes if len(wanted) > 1 else outcomes[0])
        return code

    calling.with_host(body, json=json)


async def _act_on_each(
    host: Host,
    wanted: list[str],
    find: Callable[[Host, str], Awaitable[F]],
    act: Callable[[F], Awaitable[T]],
    label: Callable[[F], str] | None,
    doing: str,
) -> tuple[list[T | Failure], list[Failure]]:
    """Act on each reference; return the outcomes, in order, and the failures among them.

    An outcome is the result of `act`, or a failure. A `label` that can't be written stops no other reference
    and is no failure: unless there are failures, its `OSError` is raised at the end. `doing` is shown
    meanwhile; without `label`, nothing is.
    """
    from ramet.cli.progress import working
    from ramet.model.documents import Failure

    outcomes: list[T | Failure] = []
    failures: list[Failure] = []
    unwritten: OSError | None = None
    for number, reference in enumerate(wanted, start=1):
        place = f" ({number} of {len(wanted)})" if len(wanted) > 1 else ""
        try:
            target = await find(host, reference)
            with working(f"{doing} {reference}{place}", quiet=label is None):
                outcomes.append(await act(target))
            if label is not None and unwritten is None:
                try:
                    output.say(label(target))
                except OSError as error:
                    unwritten = error  # raised below
        except (RametError, OSError) as error:
            if len(wanted) == 1:
                raise
            failures.append(Failure(reference=reference, error=calling.error_shape(error)))
            outcomes.append(failures[-1])
    if unwritten is not None and not failures:
        raise unwritten
    return outcomes, failures


def _code(failures: list[Failure], asked: int) -> int:
    """Report the failures, and return the exit code for all of them."""
    for failure in failures:
        calling.tell(failure.error)
    if not failures:
        return 0
    codes = {calling.exit_code_of(failure.error.code) for failure in failures}
    if len(failures) < asked:
        return PartlyFailedError.exit_code
    return codes.pop() if len(codes) == 1 else RametError.exit_code


async def _show(vm: VM, *, json: bool) -> None:
    if json:
        output.emit(await vm.info())
    else:
        output.say(vm.name)
