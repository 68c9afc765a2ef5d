"""The run of a verb: an event loop, an open Host, signals, and errors turned into exit codes.

The first SIGINT, SIGTERM or SIGHUP cancels the verb. Its effects are undone, shielded from further signals,
and the exit code is 128 + the signal's number. A further signal is answered with a line.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from ramet.cli import output
from ramet.errors import RametError

if TYPE_CHECKING:
    import asyncio

    import anyio

    from ramet.api.host import Host
    from ramet.model.schema import ErrorShape

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_OWN_TROUBLE = 125
"""The exit code for errors in ramet itself, in verbs that return a guest's exit code, as with Docker."""
BROKEN_PIPE = 128 + signal.SIGPIPE
_receivers: list[Callable[[int], Awaitable[None]]] = []
_sent: set[asyncio.Task[None]] = set()
"""Signals on their way: the event loop keeps no reference to a task."""


def with_host(
    body: Callable[[Host], Awaitable[int | None]],
    *,
    json: bool,
    accel: str = "auto",
    in_guest: bool | Callable[[Exception], bool] = False,
    warm: int = 0,
    serves: bool = False,
) -> NoReturn:
    """Run a verb with the user's home open, and exit with its exit code (none: 0).

    With `in_guest`, that is a guest's; a function says so of an error. A verb that `serves` runs until a
    signal comes, and then exits with 0.
    """

    async def opened(scope: anyio.CancelScope) -> int | None:
        from ramet.api.host import Host

        # A signal doesn't cancel the Host: it kills a command in a guest over its connection.
        async with Host(accel=accel, warm=warm) as host:
            with scope:
                return await body(host)
        return None

    _leave(opened, json=json, in_guest=in_guest, serves=serves)


def call(body: Callable[[], Awaitable[int | None]], *, json: bool) -> NoReturn:
    """Run a verb that doesn't need the user's home, and exit with its exit code."""

    async def cancellable(scope: anyio.CancelScope) -> int | None:
        with scope:
            return await body()
        return None

    _leave(cancellable, json=json, in_guest=False)


def _leave(
    work: Callable[[anyio.CancelScope], Awaitable[int | None]],
    *,
    json: bool,
    in_guest: bool | Callable[[Exception], bool],
    serves: bool = False,
) -> NoReturn:
    """Run `work` and exit, as `with_host` says."""
    import anyio

    caught: list[int] = []
    try:
        code = anyio.run(_unless_signalled, work, caught)
    except output.Interrupted:
        code = None  # `caught` has the signal
    except BrokenPipeError:
        output.silence()
        code = BROKEN_PIPE
    except Exception as error:
        is_guests = in_guest(error) if callable(in_guest) else in_guest
        code = report(error, json=json and not caught, in_guest=is_guests)
    if caught and not (serves and not code):
        if json:
            _emit_interruption(caught[0])
        code = 128 + caught[0]
    raise typer.Exit(code or 0)


async def _unless_signalled(
    work: Callable[[anyio.CancelScope], Awaitable[int | None]], caught: list[int]
) -> int | None:
    """Await `work` with a scope that the first signal cancels; the signal is then in `caught`."""
    import asyncio

    import anyio

    loop = asyncio.get_running_loop()
    loop.set_exception_handler(_on_loop_error)
    scope = anyio.CancelScope()
    # A signal that is ignored stays so, as under nohup(1).
    heard = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    over = False

    raised: list[int] = []

    def on_signal(number: int) -> None:
        if over or (raised and raised.pop()):
            return
        if not caught and _receivers:
            _sent.add(task := loop.create_task(_send(_receivers.pop(), number)))
            task.add_done_callback(_sent.discard)
            return
        if caught:
            output.warn("ramet: still cleaning up; the cleanup can't be skipped")
            return
        caught.append(number)
        scope.cancel()

    def at_once(number: int, _frame: object) -> None:
        # Python calls this before the loop, which isn't running while a document waits for its reader.
        if output.is_waiting() and not over and not caught:
            caught.append(number)
            raised.append(number)
            raise output.Interrupted

    for number in heard:
        loop.add_signal_handler(number, on_signal, number)
        signal.signal(number, at_once)
    try:
        code = await work(scope)
        if not scope.cancelled_caught:
            caught.clear()  # the verb had completed: its results stay, and the exit code says so
        return code
    except BaseExceptionGroup as group:
        raise _plainest(group) from group
    finally:
        # A completed verb can't be interrupted any more: exit code 130 would mean that nothing was made.
        over = True
        for number in heard:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_IGN)


@contextmanager
def signals_go_to(receiver: Callable[[int], Awaitable[None]]) -> Iterator[None]:
    """Inside the block, give the first signal to `receiver`. The next one cancels the verb, as ever."""
    _receivers.append(receiver)
    try:
        yield
    finally:
        if receiver in _receivers:
            _receivers.remove(receiver)


async def _send(receiver: Callable[[int], Awaitable[None]], number: int) -> None:
    try:
        await receiver(number)
    except RametError:
        pass  # the guest is gone, and so is what the signal was to end: the verb finds out


def _on_loop_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Handle an error in a callback as asyncio does, except for a harmless one.

    If a read of anyio's is cancelled in the same turn of the loop in which its socket becomes readable, the
    second of the two callbacks finds the future done.
    """
    import asyncio

    if not isinstance(context.get("exception"), asyncio.InvalidStateError):
        loop.default_exception_handler(context)


def _plainest(group: BaseExceptionGroup[Any]) -> BaseException:
    """Return the most telling exception of a group: a task group wraps the exceptions of its tasks."""
    leaves = list(_leaves(group))
    for kind in (output.Interrupted, BrokenPipeError, RametError, Exception):
        for leaf in leaves:
            if isinstance(leaf, kind):
                return leaf
    return leaves[0]


def _leaves(group: BaseExceptionGroup[Any]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


def report(error: Exception, *, json: bool, in_guest: bool = False) -> int:
    """Report an error to people and programs, and return its exit code."""
    if isinstance(error, (OSError, RametError)):
        from ramet.api.program import explained

        error = explained(error)
    shape = error_shape(error)
    tell(shape)
    if json:
        _emit_error(shape)
    if os.environ.get("RAMET_DEBUG") == "1":
        import traceback

        traceback.print_exception(error)
    code = error.exit_code if isinstance(error, RametError) else RametError.exit_code
    return max(code, _OWN_TROUBLE) if in_guest and code != 124 else code


def _emit_error(shape: ErrorShape) -> None:
    """Write the JSON document of an error. A failure to write it doesn't change the exit code."""
    try:
        output.emit({"error": shape})
    except BrokenPipeError:
        pass  # it has no reader
    except OSError as unwritable:
        tell(error_shape(unwritable))


def tell(error: ErrorShape, *, about: str | None = None) -> None:
    """Write an error and its hint to standard error, with the name of what the error is `about` once."""
    prefix = f"{about}: " if about and not error.message.startswith(f"{about}: ") else ""
    output.warn(f"ramet: {prefix}{error.message}")
    if error.hint:
        output.warn(f"hint: {error.hint}")


def error_shape(error: Exception) -> ErrorShape:
    """Return the shape of an error. An error outside ramet's tree is internal."""
    from ramet.model import failures

    return failures.error_shape(error, internal=True)


def exit_code_of(code: str) -> int:
    """Return the exit code of the error class with that `code`."""
    kinds = [RametError]
    for kind in kinds:
        if kind.code == code:
            return kind.exit_code
        kinds.extend(kind.__subclasses__())
    return RametError.exit_code


def _emit_interruption(number: int) -> None:
    from ramet.model.schema import ErrorShape

    name = signal.Signals(number).name
    _emit_error(ErrorShape(code="interrupted", message=f"interrupted by {name}"))
