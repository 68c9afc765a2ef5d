"""A guest that lives in each home beside the job, and the table of what came of the jobs."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import ramet.sync
from ramet.errors import UnavailableError
from tests.platform.environments.job import STATE


@pytest.fixture
def directory(homes: Path) -> Iterator[Path]:
    """Of the test's own; whatever it had mounted there is gone by now."""
    made = Path(tempfile.mkdtemp(dir=homes, prefix="environment-"))
    yield made
    shutil.rmtree(made)


@pytest.fixture(scope="session")
def exported(homes: Path) -> Iterator[Path]:
    """A snapshot of a booted guest, as a file: importing it is a tenth of a second, booting three."""
    with tempfile.TemporaryDirectory(dir=homes) as directory:
        file = Path(directory, "witness.ramet")
        try:
            with ramet.sync.Host(Path(directory, "home")) as host:
                vm = host.run("builtin", name="witness", memory="96M")
                vm.exec("sh", "-c", f"echo {STATE} > /run/witness", check=True)
                snapshot = vm.snapshot("exported")
                snapshot.export(file)
                snapshot.remove()
        except UnavailableError as error:
            pytest.skip(f"this machine can't run the built-in guest: {error}")
        yield file


@contextmanager
def witness(home: Path, exported: Path) -> Iterator[None]:
    """A guest in `home` that belongs to this process, and one that belongs to nobody. Both have to be there
    afterwards, as they were.
    """
    with ramet.sync.Host(home) as host:
        snapshot = host.import_snapshot(exported, name="witness")
        with snapshot.fork(2, name="witness") as forks:
            forks[1].detach()
            before = [(vm.id, vm.info().pid) for vm in forks]
            try:
                yield
                for vm, known in zip(forks, before, strict=True):
                    assert (vm.id, vm.info().pid) == known
                    assert vm.info().state == "running"
                    assert vm.exec("cat", "/run/witness", check=True).text.strip() == STATE
            finally:
                forks[1].remove(force=True)
        snapshot.remove()
