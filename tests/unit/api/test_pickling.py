"""Errors travel between processes and are copied; handles stay in theirs, and say so."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import ramet
import ramet.sync
from ramet.errors import FilesystemError, RametError, UsageError
from ramet.model.forks import ForkError, InstanceName


def _kinds(kind: type[RametError] = RametError) -> Iterator[type[RametError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from _kinds(child)


class _Stranger(Exception):
    """Of a library that doesn't care."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__("strange")


class _Named:
    def __init__(self, number: int) -> None:
        self.id, self.name = f"{number:012x}", f"fork-{number}"

    def __reduce__(self) -> Any:
        raise TypeError("a live handle was pickled")


def _fork_error(kind: type[ForkError[Any]] = ForkError) -> ForkError[Any]:
    errors: dict[str, Exception] = {
        "a": FilesystemError("full", hint="make room", number=28),
        "b": _Stranger(1, 2),
        "c": OSError(2, "gone"),
    }
    return kind([_Named(1), _Named(2)], errors)


def _made(kind: type[RametError]) -> list[RametError]:
    """Errors of that kind in every shape in which it can be made."""
    if issubclass(kind, ForkError):
        return [_fork_error(kind)]
    made = [kind("it failed"), kind("it failed: é \udcff\n", hint="do that"), kind("", hint="")]
    if issubclass(kind, FilesystemError):
        made.append(kind("it failed", number=28))
    noted = kind("it failed")
    noted.add_note("a note")
    noted.__cause__ = _Stranger(1, 2)
    return [*made, noted]


def _same(one: RametError, other: RametError) -> None:
    assert type(one) is type(other)
    assert str(one) == str(other)
    assert (one.message, one.hint, one.code, one.exit_code) == (
        other.message,
        other.hint,
        other.code,
        other.exit_code,
    )
    assert getattr(one, "number", None) == getattr(other, "number", None)
    assert getattr(one, "__notes__", None) == getattr(other, "__notes__", None)


@pytest.mark.parametrize("kind", sorted(set(_kinds()), key=repr))
def test_every_error_pickles_and_copies(kind: type[RametError]) -> None:
    for error in _made(kind):
        for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
            _same(error, pickle.loads(pickle.dumps(error, protocol)))
        _same(error, copy.copy(error))
        _same(error, copy.deepcopy(error))


def _raise(kind: type[RametError], number: int) -> None:
    raise _made(kind)[number]


@pytest.mark.parametrize("method", ["forkserver", pytest.param("spawn", marks=pytest.mark.slow)])
def test_errors_come_out_of_a_process_pool(method: str) -> None:
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        for kind in (FilesystemError, ForkError, ramet.sync.ForkError):
            with pytest.raises(kind) as caught:
                pool.submit(_raise, kind, 0).result(timeout=60)
            _same(caught.value, _made(kind)[0])
        assert pool.submit(pow, 2, 2).result(timeout=60) == 4, "the pool isn't broken"
    with context.Pool(1) as plain, pytest.raises(ForkError):
        plain.apply_async(_raise, (ForkError, 0)).get(timeout=60)


def test_a_fork_error_names_its_forks_and_keeps_what_failed() -> None:
    error = _fork_error()
    there = pickle.loads(pickle.dumps(error))
    assert there.forks == [InstanceName(id=vm.id, name=vm.name) for vm in error.forks]
    assert list(there.errors) == ["a", "b", "c"]
    assert (there.errors["a"].number, there.errors["a"].hint) == (28, "make room")
    assert isinstance(there.errors["b"], RametError)
    assert "_Stranger: strange" in str(there.errors["b"])
    assert isinstance(there.errors["c"], FileNotFoundError)
    assert copy.copy(error).forks == error.forks, "here they are as they were"


@pytest.mark.parametrize("module", [ramet, ramet.sync], ids=["ramet", "ramet.sync"])
def test_a_handle_says_that_it_stays(module: Any, tmp_path: Path) -> None:
    host = module.Host(tmp_path)
    vm = module.VM.__new__(module.VM)
    for handle in (host, vm, module.Snapshot.__new__(module.Snapshot), module.Forks.__new__(module.Forks)):
        with pytest.raises(UsageError, match="belongs to its Host") as caught:
            pickle.dumps(handle)
        assert "host.get(id)" in str(caught.value.hint)
        assert copy.copy(handle) is handle
        assert copy.deepcopy(handle) is handle
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        with pytest.raises(UsageError, match="belongs to its Host"):
            pool.submit(repr, vm).result(timeout=60)
        assert pool.submit(pow, 2, 2).result(timeout=60) == 4
