"""The boundary: whatever a public call is given, it is done or refused with an error of ramet's, and leaves
nothing.
"""

from __future__ import annotations

import inspect
import io
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import anyio
import msgspec
import pytest

import ramet
import ramet.sync
from ramet.api.handles import VM, Snapshot
from ramet.errors import RametError, UsageError
from ramet.guest.feeding import read_all
from ramet.model.lifecycle import State
from ramet.model.snapshot import SnapshotRecord
from ramet.paths import Home
from ramet.store.records import Store
from tests.unit.api.surface import Call, Rude, calls, hostile
from tests.unit.store.test_records import record

_SNAPSHOT = SnapshotRecord(
    id="0123456789ab",
    name="base",
    source="ba9876543210",
    source_name="gone",
    created_at="2026-01-01T00:00:00Z",
    labels={},
    maker=None,
)


@pytest.mark.parametrize("call", calls(), ids=str)
def test_every_parameter_has_a_check_that_raises_nothing_but_usage_errors(call: Call) -> None:
    checks = call.function.checks if call.parameters() else {}
    for parameter in call.parameters():
        for value in hostile():
            error = _refusal(checks[parameter.name], value, f"{parameter.name} of {call.name}")
            if error is not None:
                assert any(word in error.message for word in (parameter.name, "size", "signal"))
                assert len(str(error)) < 1000, "a large value isn't repeated"


def _refusal(check: Callable[[Any, str], Any], value: Any, what: str) -> UsageError | None:
    try:
        check(value, what)
    except UsageError as error:
        return error
    except Exception as error:
        raise AssertionError(f"{what} = {type(value).__name__}: {error!r}") from error
    return None


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with a stopped instance and a snapshot, of which there are the rows and nothing else."""
    monkeypatch.chdir(tmp_path)  # where relative paths of exports go
    place = Home(tmp_path / "home")
    place.make()
    store = Store(place.database)
    stopped = msgspec.structs.replace(record("box"), state=State.STOPPED)
    store.add([stopped])
    store.snapshots.add([_SNAPSHOT])
    store.close()
    place.instance(stopped.id).mkdir()
    place.snapshot(_SNAPSHOT.id).mkdir()
    return place.root


def _subject(host: ramet.Host, kind: str) -> Any:
    context = host._opened
    vm = VM(context, context.store.all()[0])
    match kind:
        case "Host":
            return host
        case "VM":
            return vm
        case "Snapshot":
            return Snapshot(context, _SNAPSHOT)
        case _:
            return ramet.Forks([vm], _nothing, context.calls, read_all)


async def _nothing(vms: object) -> None: ...


def _words(call: Call) -> dict[str, Any]:
    """What lets a call get past its other arguments, and no farther than this home goes."""
    needed = {
        "reference": "box",
        "image": "127.0.0.1:1/nosuch",
        "file": "nosuch/file",
        "disk": "nosuch",
        "size": "1G",
        "source": "nosuch/file",
        "target": "127.0.0.1:1/nosuch",
    }
    return {
        parameter.name: needed[parameter.name] for parameter in call.parameters() if parameter.name in needed
    }


@pytest.mark.anyio
@pytest.mark.parametrize(
    "call",
    [call for call in calls() if call.kind != "Process" and call.name not in {"__init__", "remove", "start"}],
    ids=str,
)
async def test_hostile_values_are_refused_and_leave_nothing(call: Call, home: Path) -> None:
    """The calls themselves: nothing but errors of ramet's comes out, and the home is as it was."""
    async with ramet.Host(home) as host:
        before = host._opened.store.rows(), host._opened.store.snapshots.rows()
        for parameter in call.parameters():
            for value in hostile():
                if parameter.name == "file" and isinstance(value, str) and value == "-":
                    continue  # a standard stream of the tests
                subject = _subject(host, call.kind)
                method = getattr(subject, call.name)
                given = _words(call)
                try:
                    with anyio.fail_after(20):
                        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
                            await _done(method(value, **given))
                        else:
                            await _done(method(**{**given, parameter.name: value}))
                except RametError:
                    pass  # refused
                except Exception as error:
                    raise AssertionError(f"{parameter.name} = {type(value).__name__}: {error!r}") from error
        assert (host._opened.store.rows(), host._opened.store.snapshots.rows()) == before
        assert sorted(path.name for path in home.parent.iterdir()) == ["home"]


async def _done(result: Any) -> None:
    if hasattr(result, "__aiter__"):
        async for _ in result:
            return
    elif hasattr(result, "__aenter__"):
        async with result:
            return
    elif isinstance(result, Awaitable):
        await result


@pytest.mark.parametrize("value", [*hostile(), ""], ids=lambda value: type(value).__name__)
def test_a_host_is_made_or_refused(value: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("home", "accel", "warm"):
        for module in (ramet, ramet.sync):
            try:
                module.Host(**{name: value})
            except UsageError:
                pass  # refused
    assert list(tmp_path.iterdir()) == []


def test_the_same_through_plain_code(home: Path) -> None:
    with ramet.sync.Host(home) as host:
        for given in ({"labels": {"attempt": 1}}, {"disks": "1G"}, {"cpus": True}, {"name": 3}):
            with pytest.raises(UsageError, match=f"{next(iter(given))} of run"):
                host.run(**given)
        vm = host.get("box")
        with pytest.raises(UsageError, match=r'argument 2 of exec: int 1; .*write "1"'):
            vm.exec("sleep", 1)  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="stdin of process"), vm.process("true", stdin=b"x"):  # type: ignore[arg-type]
            raise AssertionError
        with pytest.raises(UsageError, match="count of fork"):
            vm.fork("2")  # type: ignore[arg-type]


@pytest.mark.anyio
async def test_handles_of_a_left_host_say_so(home: Path) -> None:
    async with ramet.Host(home) as host:
        subjects = [(_subject(host, kind), kind) for kind in ("VM", "Snapshot", "Forks", "Host")]
        call_made = subjects[0][0].fork()
    for subject, kind in subjects:
        for call in calls():
            if call.kind != kind or call.name == "__init__":
                continue
            arguments = [
                ("true" if parameter.name == "argv" else "box")
                for parameter in call.parameters()
                if parameter.default is parameter.empty
            ]
            with pytest.raises(UsageError, match=r"left|isn't open") as caught:
                await _done(getattr(subject, call.name)(*arguments))
            assert "open" in str(caught.value)
    with pytest.raises(UsageError, match="left"):
        await call_made
    with pytest.raises(UsageError):
        _ = subjects[0][0].receipt


def test_handles_of_a_left_plain_host_say_so(home: Path) -> None:
    with ramet.sync.Host(home) as host:
        vm, snapshot = host.get("box"), host.snapshot("base")
    for subject, kind in ((vm, "VM"), (snapshot, "Snapshot"), (host, "Host")):
        for call in calls(ramet.sync):
            if call.kind != kind or call.name == "__init__":
                continue
            arguments = [
                ("true" if parameter.name == "argv" else "box")
                for parameter in call.parameters()
                if parameter.default is parameter.empty
            ]
            with pytest.raises(UsageError, match=r"left|isn't open"):
                result = getattr(subject, call.name)(*arguments)
                if hasattr(result, "__enter__"):
                    result.__enter__()
                else:
                    next(result)
    assert (vm.name, snapshot.name) == ("box", "base")


@pytest.mark.vm
@pytest.mark.anyio
async def test_commands_take_what_subprocess_takes(warm: ramet.VM, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content\xff" * 30_000)
    async with warm.fork() as (vm,):
        assert (await vm.exec("echo", Path("/a"), b"b\xff", "c")).stdout == b"/a b\xff c\n"
        assert (await vm.exec("pwd", cwd=Path("/tmp"))).text == "/tmp\n"
        assert (await vm.exec("sh", "-c", "echo $P", env={"P": Path("/tmp")})).text == "/tmp\n"
        assert (await vm.exec("id", "-u", user=0)).text == "0\n"
        with (tmp_path / "file").open("rb") as opened:
            assert (await vm.exec("wc", "-c", stdin=opened)).text.strip() == str(8 * 30_000)
        assert (await vm.exec("cat", stdin=io.StringIO("é"))).text == "é"
        for given in (bytearray(b"x"), memoryview(b"x"), "x"):
            assert (await vm.exec("cat", stdin=cast(Any, given))).stdout == b"x"
        async with await anyio.open_file(tmp_path / "file", "rb") as later:
            assert (await vm.exec("wc", "-c", stdin=later)).text.strip() == str(8 * 30_000)
        with pytest.raises(UsageError, match="closed file"):
            await vm.exec("cat", stdin=opened)
        with pytest.raises(UsageError, match="neither bytes nor text"):
            await vm.exec("cat", stdin=cast(Any, _Numbers()))
        with pytest.raises(UsageError, match="stdin of exec"):
            await vm.exec("cat", stdin=cast(Any, Rude()))
        reading, writing = os.pipe()
        with os.fdopen(reading, "rb") as pipe, os.fdopen(writing, "wb", 0) as feeder:
            feeder.write(b"first")
            with pytest.raises(ramet.ExecTimeoutError):
                await vm.exec("cat", stdin=pipe, timeout=0.5)
            assert (await vm.exec("true", stdin=b"")).ok
        async with vm.process("cat", stdin=True) as process:
            await process.write("text")
            await process.signal("TERM")
            status = await process.wait()
        assert status.signal == 15
        for value in (float("inf"), float("nan"), 0, -1, 1e308, True, "soon"):
            with pytest.raises(UsageError, match="timeout of exec"):
                await vm.exec("true", timeout=value)  # type: ignore[arg-type]


class _Numbers:
    def read(self, size: int) -> int:
        return size


@pytest.mark.anyio
async def test_a_pool_is_not_waited_for_with_a_wait_of_0(tmp_path: Path) -> None:
    async with ramet.Host(home=tmp_path / "home") as host:
        for wait in (None, 0, 0.0, 0.01):
            assert (await host.pool(wait=wait)).entries == []
        with pytest.raises(UsageError, match="wait of pool"):
            await host.pool(wait=-1)
