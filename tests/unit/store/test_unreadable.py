"""Rows that can't be read: what is written can be read, and one bad row stops no other."""

from __future__ import annotations

import ast
import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from ramet.drivers import versions
from ramet.engine.context import Context
from ramet.engine.manifest import read_manifest
from ramet.engine.pool.directory import controller_name, read_warm
from ramet.engine.pool.report import pool_of
from ramet.errors import DamagedError, NameTakenError, StoreError, UnreadableError, UsageError
from ramet.images.image import load_image
from ramet.model.record import Record
from ramet.paths import Home
from ramet.store.records import Store
from tests.unit.store.test_records import record

SOURCES = Path(__file__).parents[3] / "src" / "ramet"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return Home(tmp_path).database


def damage(path: Path, row_id: str, change: Callable[[dict[str, Any]], object] | bytes) -> None:
    """Give a row another body, behind the store's back."""
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        if isinstance(change, bytes):
            database.execute("PRAGMA ignore_check_constraints = ON")
            database.execute("UPDATE instance SET body = CAST(? AS TEXT) WHERE id = ?", (change, row_id))
            return
        (body,) = database.execute("SELECT body FROM instance WHERE id = ?", (row_id,)).fetchone()
        told = msgspec.json.decode(body)
        changed = change(told)
        database.execute(
            "UPDATE instance SET body = ? WHERE id = ?",
            (msgspec.json.encode(told if changed is None else changed).decode(), row_id),
        )


DAMAGES: dict[str, Callable[[dict[str, Any]], object] | bytes] = {
    "a label that is a number": lambda told: told.update(labels={"attempt": 1}),
    "no name": lambda told: told.update(name=None),
    "a name with control characters": lambda told: told.update(name="\x1b[2J", labels=3),
    "another id": lambda told: told.update(id="../.."),
    "an unknown state": lambda told: told.update(state="sleeping"),
    "an array": lambda told: [1, 2],
    "deep": lambda told: told.update(labels=msgspec.Raw(b"[" * 900 + b"]" * 900)),
    "no UTF-8": b'{"name": "\xff\xfe"}',
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_row_that_cant_be_read_stops_no_other(path: Path, name: str) -> None:
    store = Store(path)
    good, bad = record("good"), record("bad")
    store.add([bad, good])
    damage(path, bad.id, DAMAGES[name])
    assert store.all() == [good]
    (row,) = store.unreadable()
    assert row.id == bad.id
    assert row.name.isprintable()
    assert store.get(good.id) == good
    with pytest.raises(UnreadableError, match="left alone"):
        store.get(bad.id)
    with pytest.raises(UnreadableError):
        store.change(bad.id, lambda row: row)
    with pytest.raises(UnreadableError):
        store.remove(bad.id)
    assert isinstance(store.change_all({bad.id: lambda row: row, good.id: lambda row: row})[good.id], Record)
    assert [row.id for row in store.unreadable()] == [bad.id], "whatever was asked of it, it is still there"
    store.forget(bad.id)
    assert store.rows() == ([good], [])


def test_the_name_of_a_row_that_cant_be_read_is_taken(path: Path) -> None:
    store = Store(path)
    bad = record("bad")
    store.add([bad])
    damage(path, bad.id, DAMAGES["a label that is a number"])
    assert store.names() == ["bad"]
    with pytest.raises(NameTakenError):
        store.add([record("bad")])


@pytest.mark.parametrize(
    "wrong",
    [
        {"labels": {"attempt": 1}},
        {"labels": {"a": object()}},
        {"labels": [("a", "b")]},
        {"kernel_version": None},
        {"generation": 1.5},
        {"name": 7},
    ],
    ids=["number", "object", "list", "None", "fraction", "name"],
)
def test_what_nobody_could_read_is_not_written(path: Path, wrong: dict[str, Any]) -> None:
    store = Store(path)
    one = record("one")
    with pytest.raises(StoreError, match="can't be kept"):
        store.add([record("first"), msgspec.structs.replace(one, **wrong)])
    assert store.rows() == ([], [])
    store.add([one])
    with pytest.raises(StoreError, match="can't be kept"):
        store.change(one.id, lambda it: msgspec.structs.replace(it, **wrong))
    results = store.change_all({one.id: lambda it: msgspec.structs.replace(it, **wrong)})
    assert isinstance(results[one.id], StoreError)
    assert store.all() == [one]


def test_a_receipt_that_cant_be_read_leaves_its_instance(path: Path) -> None:
    store = Store(path)
    one = record("one")
    store.add([one])
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("""UPDATE instance SET receipt = '{"ok": 3}'""")
    assert store.all() == [one]
    with pytest.raises(UnreadableError, match="isn't affected"):
        store.receipt(one.id)


@pytest.mark.parametrize("kind", ["instances", "snapshots"])
@pytest.mark.parametrize("content", [None, b""], ids=["gone", "empty"])
def test_a_new_database_in_a_home_with_guests_is_refused(
    tmp_path: Path, path: Path, kind: str, content: bytes | None
) -> None:
    """To a database without records each directory would be a leftover, to be removed with its VMM."""
    (tmp_path / kind / "0123456789ab").mkdir(parents=True)
    if content is not None:
        path.write_bytes(content)
    for _ in range(2):
        with pytest.raises(StoreError, match="0123456789ab") as caught:
            Store(path)
        assert "nothing has been touched" in str(caught.value.hint)


@pytest.mark.parametrize("what", ["directory", "other schema", "damaged page", "no database"])
def test_a_database_that_cant_be_used_is_an_error_with_a_safe_hint(path: Path, what: str) -> None:
    match what:
        case "directory":
            path.mkdir()
        case "other schema":
            with closing(sqlite3.connect(path, isolation_level=None)) as database:
                database.execute("CREATE TABLE instance (something INTEGER)")
                database.execute("PRAGMA user_version = 3")
        case "damaged page":
            store = Store(path)
            store.add([record(f"n{number}") for number in range(50)])
            store.close()
            with path.open("r+b") as opened:
                opened.seek(4096)
                opened.write(b"\xff" * 4096 * 3)
        case _:
            path.write_bytes(b"no database" * 1000)
    with pytest.raises(StoreError) as caught:
        Store(path).all()
    hint = str(caught.value.hint)
    assert "nothing has been removed" in hint
    assert not _DESTROYS.search(hint)


def test_a_closed_store_says_so(path: Path) -> None:
    store = Store(path)
    store.close()
    for ask in (store.all, store.snapshots.all, store.names, lambda: store.receipt("x")):
        with pytest.raises(UsageError, match="was left"):
            ask()


_DESTROYS = re.compile(r"\b(rm|remove|delete|clear|move[sd]? away|unlink|prune|wipe|kill|reset|format)\b")
_ASKED_FOR = {
    # Whoever reads these has just asked for exactly that.
    "`ramet rm -f {}` ends and removes it",
    "`{} -f {}` ends its VMM and deletes its files for good",
    "`ramet ps` in its container, or on the host, shows it; remove it there",
    "`ramet image prune` works when that has ended",
    "remove one of its names, or all of them and the image with --force",
    "`chattr -i {}` as root; the next ramet command removes what is left",
}


def _hints() -> list[tuple[str, str]]:
    found = []
    for source in SOURCES.rglob("*.py"):
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.keyword) and node.arg in {"hint", "advice"}:
                found += [(f"{source.name}:{node.value.lineno}", text) for text in _texts(node.value)]
    return found


def _texts(node: ast.expr) -> list[str]:
    """The texts in an expression, with `{}` where a value goes."""
    if isinstance(node, ast.JoinedStr):
        return ["".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)]
    if isinstance(node, ast.Constant):
        return [node.value] if isinstance(node.value, str) else []
    return [
        text for child in ast.iter_child_nodes(node) if isinstance(child, ast.expr) for text in _texts(child)
    ]


def test_no_hint_says_to_destroy_something() -> None:
    """Nobody may lose a guest, a snapshot or a home by doing what an error says."""
    hints = _hints()
    assert len(hints) > 100
    assert [(where, hint) for where, hint in hints if _DESTROYS.search(hint) and hint not in _ASKED_FOR] == []


GARBAGE = {
    "empty": b"",
    "another type": b'{"a": 1}',
    "no UTF-8": b"\xff\xfe\x00",
    "deep": b'{"unknown": ' + b"[" * 100_000,
    "null": b"null",
    "large": b'{"warm": ' + b"9" * 10_000 + b"}",
}


@pytest.mark.parametrize("garbage", GARBAGE)
def test_small_files_that_cant_be_read_cost_time_and_nothing_else(tmp_path: Path, garbage: str) -> None:
    """Caches and notes: each is made again, or left out. A manifest is named as damaged."""
    for name in ("manifest.json", "warm.json"):
        (tmp_path / name).write_bytes(GARBAGE[garbage])
    assert load_image(tmp_path) is None
    assert read_warm(tmp_path) is None
    with pytest.raises(DamagedError, match=r"manifest\.json"):
        read_manifest(tmp_path)
    controller = Home(tmp_path).pool / controller_name(Home(tmp_path))
    controller.parent.mkdir()
    controller.write_bytes(GARBAGE[garbage])
    assert pool_of(cast(Context, SimpleNamespace(home=Home(tmp_path)))).controllers == []


@pytest.mark.parametrize("garbage", GARBAGE)
@pytest.mark.anyio
async def test_a_cache_of_versions_that_cant_be_read_is_made_again(
    tmp_path: Path, garbage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAMET_CACHE", str(tmp_path))
    versions._file().write_bytes(GARBAGE[garbage])
    assert versions._read() == {}
