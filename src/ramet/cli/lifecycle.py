"""Verbs that change the state of instances: stop, start, pause, resume, restore, rm, template, keep, wait.

Given several references, one failure doesn't stop the rest (I7): exit code 6 when some failed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, NoReturn, TypeVar

import typer

from ramet.cli import calling, output
from ramet.cli.options import Json, Reference, References
from ramet.errors import NotFoundError, PartlyFailedError, RametError

if TYPE_CHECKING:
    from ramet.cli.shapes import Failure
    from ramet.engine.host import Host
    from ramet.engine.vm import VM

T = TypeVar("T")


def stop(
    references: References,
    timeout: Annotated[
        float, typer.Option(metavar="S", min=0, help="Seconds to wait for the guest before its VMM is ended.")
    ] = 10.0,
    json: Json = False,
) -> None:
    """Power instances off. Disks are kept, memory is gone."""
    _each(references, lambda vm: vm.stop(timeout=timeout), json=json)


def start(references: References, json: Json = False) -> None:
    """Start stopped instances cold."""
    _each(references, lambda vm: vm.start(), json=json)


def pause(references: References, json: Json = False) -> None:
    """Stop the virtual CPUs of instances; their memory stays."""
    _each(references, lambda vm: vm.pause(), json=json)


def resume(references: References, json: Json = False) -> None:
    """Let paused instances go on."""
    _each(references, lambda vm: vm.resume(), json=json)


def restore(references: References, json: Json = False) -> None:
    """Bring instances back from standby."""
    _each(references, lambda vm: vm.restore(), json=json)


def template(reference: Reference, json: Json = False) -> None:
    """Make an instance a template: its VMM ends, its memory stays for forks. Final. (Not a build recipe.)"""

    async def body(host: Host) -> None:
        with output.working(f"freezing {reference}", quiet=json):
            vm = await (await host.get(reference)).template()
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
    references: References,
    force: Annotated[bool, typer.Option("--force", "-f", help="Also those that run.")] = False,
    json: Json = False,
) -> None:
    """Remove instances. Their forks don't notice."""

    async def body(host: Host) -> int:
        from ramet.cli.shapes import PartlyRemoved
        from ramet.model.shapes import Removed

        async def one(vm: VM) -> str:
            await vm.remove(force=force)
            if not json:
                output.say(vm.name)
            return vm.id

        removed, failures = await _attempt_each(host, references, one)
        code = _code(failures, len(references))
        if json and failures:
            output.emit(PartlyRemoved(removed=removed, failed=failures))
        elif json:
            output.emit(Removed(removed=removed))
        return code

    calling.with_host(body, json=json)


def _each(references: list[str], act: Callable[[VM], Awaitable[None]], *, json: bool) -> NoReturn:
    """Do the same to each instance; print an INSTANCE, or an array when several were asked for."""

    async def body(host: Host) -> int:
        async def one(vm: VM) -> None:
            await act(vm)
            if not json:
                output.say(vm.name)

        _, failures = await _attempt_each(host, references, one)
        code = _code(failures, len(references))
        if json:
            failed = {failure.reference: failure for failure in failures}
            shown = [
                failed.get(reference) or await (await host.get(reference)).info() for reference in references
            ]
            output.emit(shown if len(references) > 1 else shown[0])
        return code

    calling.with_host(body, json=json)


async def _attempt_each(
    host: Host, references: list[str], act: Callable[[VM], Awaitable[T]]
) -> tuple[list[T], list[Failure]]:
    """What `act` gave for each reference where it succeeded, and what became of the others."""
    from ramet.cli.shapes import Failure

    done: list[T] = []
    failures: list[Failure] = []
    for reference in references:
        try:
            done.append(await act(await host.get(reference)))
        except (RametError, OSError) as error:
            if len(references) == 1:
                raise
            failures.append(Failure(reference=reference, error=calling.error_shape(error)))
    return done, failures


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
