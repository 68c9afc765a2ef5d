"""Verbs that change the state of instances: stop, start, pause, resume, standby, restore, rewind, rm,
template, keep, wait.

Given several references, one failure doesn't stop the rest (I7): exit code 6 when some failed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, NamedTuple, NoReturn, TypeVar

import typer

from ramet.cli import calling, output, references
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
        float, typer.Option(metavar="S", help="Seconds to wait for the guest before its VMM is ended.")
    ] = 10.0,
    json: Json = False,
) -> None:
    """Power instances off. Disks are kept, memory is gone."""
    _each(wanted, lambda vm: vm.stop(timeout=timeout), json=json)


def start(wanted: References, json: Json = False) -> None:
    """Start stopped instances cold."""
    _each(wanted, lambda vm: vm.start(), json=json)


def pause(wanted: References, json: Json = False) -> None:
    """Stop the virtual CPUs of instances; their memory stays."""
    _each(wanted, lambda vm: vm.pause(), json=json)


def resume(wanted: References, json: Json = False) -> None:
    """Let paused instances go on."""
    _each(wanted, lambda vm: vm.resume(), json=json)


def standby(wanted: References, json: Json = False) -> None:
    """Capture instances and end their VMMs: no memory is used until `restore`. Connections to them end."""
    _each(wanted, lambda vm: vm.standby(), json=json)


def restore(wanted: References, json: Json = False) -> None:
    """Bring instances back from standby."""
    _each(wanted, lambda vm: vm.restore(), json=json)


def rewind(
    reference: Reference,
    snapshot: Annotated[
        str | None,
        typer.Argument(
            metavar="[SNAPSHOT]", help="One of its own; the youngest unless given.", show_default=False
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Take an instance back to a snapshot of itself: memory and disks. What has happened since is lost."""

    async def body(host: Host) -> None:
        vm = await references.instance(host, reference)
        with output.working(f"rewinding {vm.name}", quiet=json):
            await vm.rewind(snapshot)
        await _show(vm, json=json)

    calling.with_host(body, json=json)


def template(reference: Reference, json: Json = False) -> None:
    """Make an instance a template: its VMM ends, its memory stays for forks. Final: it is never started or
    restored again. (Not a build recipe.)
    """

    async def body(host: Host) -> None:
        with output.working(f"freezing {reference}", quiet=json):
            vm = await (await references.instance(host, reference)).template()
        await _show(vm, json=json)

    calling.with_host(body, json=json)


def keep(reference: Reference, json: Json = False) -> None:
    """Keep one fork of a family and remove its siblings."""

    async def body(host: Host) -> None:
        await _show(await (await host.get(reference)).keep(), json=json)

    calling.with_host(body, json=json)


def wait(reference: Reference, json: Json = False) -> None:
    """Wait until an instance doesn't run any more, and print the state that it is then in."""

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
            output.say(after.state)

    calling.with_host(body, json=json)


def remove(
    wanted: References,
    force: Annotated[
        bool, typer.Option("--force", "-f", help="Also those that run, and those that can't be read.")
    ] = False,
    lost: Annotated[
        bool,
        typer.Option(
            "--lost", help="Also those of a machine or a container that is gone for good and can't be seen."
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Remove instances. Their forks don't notice."""

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
    """The error for whoever wants to remove a record that can't be read, and hasn't said so twice."""
    return UnreadableError(
        f"the record of {reference} can't be read: it isn't known whether its guest still runs",
        hint=f"`{verb} -f {reference}` ends what runs for it and removes its files for good",
    )


class Removal(NamedTuple):
    """One thing that is to be removed: its name, and how; that gives its id."""

    name: str
    act: Callable[[], Awaitable[str]]


async def remove_each(
    host: Host,
    wanted: list[str],
    find: Callable[[Host, str], Awaitable[Removal]],
    *,
    json: bool,
) -> int:
    """Remove each thing that `find` gives for a reference. The exit code."""
    from ramet.model.documents import PartlyRemoved
    from ramet.model.schema import Removed

    async def act(removal: Removal) -> str:
        return await removal.act()

    def told(removal: Removal) -> str:
        return removal.name

    outcomes, failures = await _act_on_each(host, wanted, find, act, None if json else told)
    removed = [outcome for outcome in outcomes if isinstance(outcome, str)]
    code = _code(failures, len(wanted))
    if json and failures:
        output.emit(PartlyRemoved(removed=removed, failed=failures))
    elif json:
        output.emit(Removed(removed=removed))
    return code


def _each(wanted: list[str], act: Callable[[VM], Awaitable[Instance | None]], *, json: bool) -> NoReturn:
    """Do the same to each instance; print an INSTANCE, or an array when several were asked for.

    What an act says of the instance that it gives back, such as that it had to be killed, people are told.
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
            host, wanted, references.instance, one, None if json else told
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
) -> tuple[list[T | Failure], list[Failure]]:
    """What `act` gave for what `find` found, or what became of it instead, in order; and the failures.

    A line of what was done, `label`, that can't be written stops none of the others, and is no failure of
    what was done: unless there are failures, its `OSError` is raised when all is done.
    """
    from ramet.model.documents import Failure

    outcomes: list[T | Failure] = []
    failures: list[Failure] = []
    unwritten: OSError | None = None
    for reference in wanted:
        try:
            target = await find(host, reference)
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
    """Tell about the failures, and the exit code that they mean together."""
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
