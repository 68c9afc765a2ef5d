"""A home that others see, too: containers, other mount namespaces, other machines, forked children.

What can't be seen from here is left alone and shown so, by every command; guests live on.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

import ramet
from ramet.engine.pool import directory
from ramet.model import protocols
from ramet.model.snapshot import SnapshotRecord
from ramet.paths import Home
from ramet.system import liveness, process_ref, processes, spawn
from tests.support.namespaces import LIMIT_S, PID_NAMESPACE, PID_NAMESPACE_ALONE, json_in, ramet_in, require

pytestmark = [pytest.mark.vm, pytest.mark.anyio]

HERE: tuple[str, ...] = ()
CHANGES = [
    ["stop", "REF"],
    ["rm", "REF"],
    ["rm", "-f", "REF"],
    ["pause", "REF"],
    ["standby", "REF"],
    ["template", "REF"],
    ["snapshot", "create", "REF"],
    ["fork", "REF"],
    ["stats", "REF"],
    ["wait", "REF"],
]


async def in_thread(words: tuple[str, ...], home: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return await anyio.to_thread.run_sync(lambda: ramet_in(words, home, *command))


def one_of(words: tuple[str, ...], home: Path, name: str) -> Any:
    """What `ps -a` says of it there."""
    (found,) = [instance for instance in json_in(words, home, "ps", "-a") if instance["name"] == name]
    return found


def table_of(home: Path) -> list[tuple[str, str]]:
    with closing(sqlite3.connect(home / "ramet.db")) as connection:
        return connection.execute("SELECT id, body FROM instance ORDER BY id").fetchall()


@pytest.mark.deep
@pytest.mark.parametrize("words", [PID_NAMESPACE, PID_NAMESPACE_ALONE], ids=["own-proc", "proc-of-above"])
async def test_guests_live_on_when_a_container_opens_their_home(
    warm: ramet.VM, warm_home: Path, words: tuple[str, ...]
) -> None:
    """Owned and detached ones."""
    require(*words)
    owned, detached = await warm.fork(2)
    await detached.detach()
    before = table_of(warm_home)
    for command in (["ps", "-a"], ["tree"], ["stats"], ["pool"], ["snapshot", "ls"], ["doctor"]):
        done = await in_thread(words, warm_home, *command)
        assert done.returncode in (0, 5 if command == ["doctor"] else 0), done.stderr
    for vm in (owned, detached):
        assert (await in_thread(words, warm_home, "exec", vm.name, "echo", "there")).stdout == "there\n"
        inspected = json_in(words, warm_home, "inspect", vm.name)
        assert inspected["state"] == "running"
    assert table_of(warm_home) == before
    for vm in (owned, detached):
        assert vm.directory.is_dir()
        assert (await vm.exec("echo", "alive", check=True)).text == "alive\n"
    await detached.remove(force=True)


@pytest.mark.parametrize(
    "changes", [CHANGES[::2], pytest.param(CHANGES[1::2], marks=pytest.mark.deep)], ids=["half", "others"]
)
async def test_what_cannot_be_seen_is_shown_so_and_not_changed(
    warm: protocols.VM, warm_home: Path, changes: list[list[str]]
) -> None:
    require(*PID_NAMESPACE)
    (vm,) = await warm.fork(1)
    shown = one_of(PID_NAMESPACE, warm_home, vm.name)
    assert (shown["state"], shown["seen"]) == ("running", False)
    assert "another PID namespace" in shown["reason"]
    assert one_of(HERE, warm_home, vm.name)["seen"] is True
    assert "running (unseen)" in (await in_thread(PID_NAMESPACE, warm_home, "ps")).stdout
    before = table_of(warm_home)
    for words in changes:
        command = [vm.name if word == "REF" else word for word in words]
        done = await in_thread(PID_NAMESPACE, warm_home, *command)
        assert done.returncode == 5, (command, done)
        assert "another PID namespace" in done.stderr, (command, done)
        assert "Traceback" not in done.stderr
        assert "in the container where it was started" in done.stderr
    lost = await in_thread(PID_NAMESPACE, warm_home, "rm", "-f", "--lost", vm.name)
    assert lost.returncode == 4, lost
    assert "isn't lost" in lost.stderr
    assert table_of(warm_home) == before
    assert (await vm.exec("echo", "alive", check=True)).text == "alive\n"


async def test_a_containers_guest_is_seen_and_removed_from_outside(warm_home: Path) -> None:
    require(*PID_NAMESPACE)
    with subprocess.Popen([*PID_NAMESPACE, "sleep", "600"]) as container:
        try:
            inside = _enter(container.pid)
            made = await in_thread(inside, warm_home, "fork", "--name", "inside", "warm")
            assert made.returncode == 0, made.stderr
            shown = one_of(HERE, warm_home, "inside")
            assert (shown["state"], shown["seen"]) == ("running", True)
            usage = json_in(HERE, warm_home, "stats", "inside")
            assert usage["pss_bytes"] > 0
            assert one_of(inside, warm_home, "inside")["seen"] is True
            # A sibling doesn't see it.
            assert one_of(PID_NAMESPACE, warm_home, "inside")["seen"] is False
            assert (await in_thread(HERE, warm_home, "rm", "-f", "inside")).returncode == 0
        finally:
            container.kill()


async def test_after_a_container_has_gone_its_guests_are_known_to_be_dead(warm_home: Path) -> None:
    """Also from the next container, which never sees the first one's processes: nobody listens any more."""
    require(*PID_NAMESPACE)
    with subprocess.Popen([*PID_NAMESPACE, "sleep", "600"]) as container:
        try:
            inside = _enter(container.pid)
            made = await in_thread(inside, warm_home, "fork", "--name", "inside", "warm")
            assert made.returncode == 0, made.stderr
            assert one_of(PID_NAMESPACE, warm_home, "inside")["seen"] is False
        finally:
            container.kill()
    shown = one_of(PID_NAMESPACE, warm_home, "inside")
    assert (shown["state"], shown["seen"]) == ("failed", True)
    assert (await in_thread(PID_NAMESPACE, warm_home, "rm", "inside")).returncode == 0


def _enter(unshare_pid: int) -> tuple[str, ...]:
    """The words that run a program beside the child of that `unshare`."""
    children = Path(f"/proc/{unshare_pid}/task/{unshare_pid}/children")
    while not (found := children.read_text().split()):
        pass
    while os.readlink(f"/proc/{found[0]}/exe").endswith("unshare"):  # noqa: PTH115 - until it has executed
        pass
    return ("nsenter", "--target", found[0], "--pid", "--mount")


async def test_another_home_at_the_same_path_is_another_home(warm: protocols.VM, warm_home: Path) -> None:
    """In another mount namespace, where a tmpfs lies over it. Belonging isn't told by the text of a path."""
    require("unshare", "--mount")
    (vm,) = await warm.fork(1)
    script = 'mount -t tmpfs none "$RAMET_HOME" && exec "$@"'
    over = ("unshare", "--mount", "sh", "-c", script, "sh")
    assert json_in(over, warm_home, "ps", "-a") == []
    assert (await vm.exec("echo", "alive", check=True)).text == "alive\n"


async def test_a_home_that_was_moved_keeps_its_guests(warm_home: Path, homes: Path) -> None:
    made = await in_thread(HERE, warm_home, "fork", "--name", "mover", "warm")
    assert made.returncode == 0, made.stderr
    moved = warm_home.with_name(f"{warm_home.name} moved")
    warm_home.rename(moved)
    try:
        assert json_in(HERE, moved, "inspect", "mover")["state"] == "running"
        assert (await in_thread(HERE, moved, "exec", "mover", "echo", "there")).stdout == "there\n"
        assert (await in_thread(HERE, moved, "fork", "--name", "child", "mover")).returncode == 0
        # One that no record names is found by where it works, whatever it was told at its start.
        (pid,) = [instance["pid"] for instance in json_in(HERE, moved, "ps") if instance["name"] == "child"]
        stray = process_ref.reference(pid)
        with closing(sqlite3.connect(moved / "ramet.db")) as connection, connection:
            connection.execute("DELETE FROM instance WHERE json_extract(body, '$.name') = 'child'")
        assert (await in_thread(HERE, moved, "ps")).returncode == 0
        assert liveness.is_dead(stray)
        assert (await in_thread(HERE, moved, "rm", "-f", "mover")).returncode == 0
    finally:
        moved.rename(warm_home)


# Another machine -----------------------------------------------------------------------------------------


def rename_boot(home: Path, before: str, after: str) -> None:
    with closing(sqlite3.connect(home / "ramet.db")) as connection, connection:
        for table in ("instance", "snapshot"):
            connection.execute(f"UPDATE {table} SET body = replace(body, ?, ?)", (before, after))
    for entry in list((home / "pool").glob("*")):
        entry.rename(entry.with_name(entry.name.replace(before, after)))


@contextmanager
def another_machines(home: Path) -> Iterator[str]:
    """The home's records and the names of its pool as another machine's ramet would have written them, with
    the boot id that it then has. Put right in the end, for those that are still there.
    """
    other, ours = str(uuid.uuid4()), process_ref.boot_id()
    rename_boot(home, ours, other)
    try:
        yield other
    finally:
        rename_boot(home, other, ours)


@pytest.mark.deep
async def test_another_machines_instances_are_left_alone(warm: protocols.VM, warm_home: Path) -> None:
    """As its records say: owned ones, one that is being changed, a snapshot that is being made, a pool."""
    home, me = warm_home, process_ref.this_process()
    owned, detached, changed = await warm.fork(3)
    await detached.detach()
    named = {vm.id: vm.name for vm in (owned, detached, changed)}
    running = [process for found in spawn.spawned_below(home / "instances").values() for process in found]
    with closing(sqlite3.connect(home / "ramet.db")) as connection, connection:
        pending = json.dumps({"what": "stop", "by": msgspec.to_builtins(me)})
        connection.execute(
            "UPDATE instance SET body = json_set(body, '$.pending', json(?)) WHERE id = ?",
            (pending, changed.id),
        )
        making = SnapshotRecord(
            id="0" * 12, name=None, source=owned.id, source_name="x", created_at="2026", labels={}, maker=me
        )
        connection.execute(
            "INSERT INTO snapshot (id, body) VALUES (?, ?)", (making.id, msgspec.json.encode(making).decode())
        )
    (home / "snapshots" / making.id).mkdir()
    (home / "pool").mkdir(mode=0o700)
    taken = f"taken.{'3' * 12}.{process_ref.as_name(me)}"
    names = [
        *(directory.making(Home(home), "1" * 12), directory.ready("2" * 12, "key"), taken),
        directory.controller_name(Home(home)),
    ]
    for name in names:
        (home / "pool" / name).mkdir()
    try:
        with another_machines(home) as there:
            before, kept = table_of(home), sorted(home.glob("*/*"))

            for command in (["ps", "-a"], ["tree"], ["pool"], ["stats"], ["snapshot", "ls"], ["doctor"]):
                assert "Traceback" not in (await in_thread(HERE, home, *command)).stderr
            for name in named.values():
                shown = one_of(HERE, home, name)
                assert (shown["state"], shown["seen"]) == ("running", False)
                assert f"another machine (boot {there[:8]})" in shown["reason"]
                assert json_in(HERE, home, "inspect", name)["seen"] is False
            for words in [*CHANGES, ["exec", "REF", "true"], ["resume", "REF"]]:
                command = [detached.name if word == "REF" else word for word in words]
                done = await in_thread(HERE, home, *command)
                assert done.returncode == (125 if words[0] == "exec" else 5), (command, done)
                assert "another machine" in done.stderr, (command, done)
                assert "Traceback" not in done.stderr
            done = await in_thread(HERE, home, "rm", "-f", *named.values())
            assert done.returncode == 5, done
            assert {entry["seen"] for entry in json_in(HERE, home, "pool")["entries"]} == {False}
            (unseen,) = [
                check for check in json_in(HERE, home, "doctor")["checks"] if check["name"] == "unseen"
            ]
            assert "3 instances" in unseen["found"]
            assert "1 snapshot being made" in unseen["found"]
            assert "3 warm VMMs" in unseen["found"]
            assert table_of(home) == before
            assert sorted(home.glob("*/*")) == kept

            # Its user says that it is gone for good, and so it is.
            assert len(running) == 3
            for process in running:
                assert liveness.is_alive(process), "the guest of another machine was ended"
                await processes.kill(process)
            done = await in_thread(HERE, home, "rm", "--lost", *named.values())
            assert done.returncode == 0, done.stderr
            assert {instance["name"] for instance in json_in(HERE, home, "ps", "-a")} == {"warm"}
            assert not named.keys() & {path.name for path in (home / "instances").iterdir()}
    finally:
        with closing(sqlite3.connect(home / "ramet.db")) as connection, connection:
            connection.execute("DELETE FROM snapshot WHERE id = ?", (making.id,))
        (home / "snapshots" / making.id).rmdir()
        for entry in (home / "pool").iterdir():
            entry.rmdir()
        (home / "pool").rmdir()


async def test_after_a_restart_of_this_machine_what_ran_is_dead(warm_home: Path) -> None:
    """Its boot is in the home's database: another boot id alone doesn't say so."""
    made = await in_thread(HERE, warm_home, "fork", "--name", "before", "warm")
    assert made.returncode == 0, made.stderr
    (pid,) = [instance["pid"] for instance in json_in(HERE, warm_home, "ps") if instance["name"] == "before"]
    process = process_ref.reference(pid)
    other = str(uuid.uuid4())
    rename_boot(warm_home, process_ref.boot_id(), other)
    assert one_of(HERE, warm_home, "before")["seen"] is False
    with closing(sqlite3.connect(warm_home / "ramet.db")) as connection, connection:
        connection.execute(
            "INSERT INTO boot SELECT ?, machine_id, booted_at - 3600 FROM boot LIMIT 1", (other,)
        )
    shown = one_of(HERE, warm_home, "before")
    assert (shown["state"], shown["reason"]) == ("failed", "the host was restarted")
    assert (await in_thread(HERE, warm_home, "rm", "before")).returncode == 0
    await processes.kill(process)
    with closing(sqlite3.connect(warm_home / "ramet.db")) as connection, connection:
        connection.execute("DELETE FROM boot WHERE boot_id = ?", (other,))


# fork(2) -------------------------------------------------------------------------------------------------

_DAEMON = """
import os, sys, anyio, ramet

async def template_is_there():
    async with ramet.Host() as host:
        await host.get("warm")

async def serve():
    async with ramet.Host() as host:
        (vm,) = await (await host.get("warm")).fork(1, name="daemons")
        print(vm.id, os.getpid(), flush=True)
        await anyio.sleep(600)

anyio.run(template_is_there)
if os.fork():
    os._exit(0)
os.setsid()
anyio.run(serve)
"""


async def test_a_daemons_guest_is_its_own_and_goes_with_it(warm_home: Path) -> None:
    """fork(2) after ramet was used, the parent exits, the child has a Host."""
    daemon = subprocess.Popen(
        [sys.executable, "-c", _DAEMON],
        env={**os.environ, "RAMET_HOME": str(warm_home)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert daemon.stdout is not None
        words = (await anyio.to_thread.run_sync(daemon.stdout.readline)).split()
        child = int(words[1])
        daemon.wait(LIMIT_S)
        try:
            for _ in range(3):
                assert one_of(HERE, warm_home, "daemons")["state"] == "running"
            done = await in_thread(HERE, warm_home, "exec", "daemons", "echo", "alive")
            assert done.stdout == "alive\n", done.stderr
        finally:
            os.kill(child, signal.SIGKILL)
        with anyio.fail_after(30):
            while any(instance["name"] == "daemons" for instance in json_in(HERE, warm_home, "ps", "-a")):
                await anyio.sleep(0.1)
    finally:
        daemon.kill()
        daemon.wait()
        if daemon.stdout is not None:
            daemon.stdout.close()
