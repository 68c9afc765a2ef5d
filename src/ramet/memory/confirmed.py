"""Parts whose facts have changed but whose content hasn't, which a digest shows once.

A home that was copied, restored or trimmed has other times, permissions or blocks than its manifests say. The
content is read then and compared with the digest that was taken at publication. The result is kept beside the
capture, in a separate file: the manifest and the parts are published and never change. If that file can't be
written, the process remembers the result until it ends.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from ramet.errors import FilesystemError
from ramet.memory.integrity import PartFacts, changed, current_facts, differences, digest
from ramet.paths import CONFIRMED_FILE
from ramet.system.files import open_regular
from ramet.system.publishing import write_durably

_MOST_REMEMBERED: Final = 4096
_LARGEST_FILE_BYTES: Final = 1 << 20


class _Confirmed(msgspec.Struct, frozen=True):
    """The facts with which a part was found to have that digest."""

    digest: str
    facts: PartFacts


_remembered: dict[tuple[Path, str], _Confirmed] = {}


def is_intact_by_facts(path: Path, name: str, facts: PartFacts, expected: str | None, capture: Path) -> bool:
    """Check a part without reading its content. False: the content has to be read, see `require_intact`.

    The part `name` of the capture in the directory `capture` lies at `path`. Without a digest (`expected`),
    size, mode and modification time decide. Raises `DamagedError` for a part that can't be whole,
    `FilesystemError`.
    """
    present = current_facts(path)
    if not (differing := differences(present, facts)):
        return True
    if expected is None and msgspec.structs.replace(present, allocated_bytes=facts.allocated_bytes) == facts:
        return True
    if expected is None or present.size_bytes != facts.size_bytes:
        raise changed(path, differing)
    before = _known(capture, name)
    return before is not None and before.digest == expected and not differences(present, before.facts)


def require_intact(path: Path, name: str, facts: PartFacts, expected: str | None, capture: Path) -> None:
    """Raise `DamagedError` unless a part is as published; arguments as for `is_intact_by_facts`.

    If the facts don't decide, its content is read and has to have its digest. That is done once: the result
    is kept. Raises `FilesystemError`, too.
    """
    if is_intact_by_facts(path, name, facts, expected, capture):
        return
    present = current_facts(path)
    if digest(path) != expected:
        also = "; its content isn't what it was either"
        raise changed(path, differences(present, facts), also)
    _keep(capture, name, _Confirmed(expected, _with_mode(path, present, facts.mode)))


def confirm(path: Path, name: str, facts: PartFacts, known: str, capture: Path) -> None:
    """Note that the part at `path` has the digest `known`, so that its content isn't read again.

    Nothing is written if the part has the published `facts`.
    """
    if differences(present := current_facts(path), facts):
        _keep(capture, name, _Confirmed(known, present))


def _with_mode(path: Path, facts: PartFacts, mode: int) -> PartFacts:
    """Give the part its published permissions if possible, and return its facts.

    The part may have become writable.
    """
    if facts.mode != mode:
        with suppress(OSError):  # another user's: its content is unchanged
            path.chmod(mode)
            return msgspec.structs.replace(facts, mode=current_facts(path).mode)
    return facts


def _known(capture: Path, name: str) -> _Confirmed | None:
    return _remembered.get((capture, name)) or _read(capture).get(name)


def _read(capture: Path) -> dict[str, _Confirmed]:
    try:
        # Where a VMM has worked, links and FIFOs may lie.
        with open_regular(capture / CONFIRMED_FILE) as descriptor:
            return msgspec.json.decode(os.read(descriptor, _LARGEST_FILE_BYTES), type=dict[str, _Confirmed])
    except (OSError, msgspec.MsgspecError, ValueError, RecursionError):
        return {}  # it is only a saving: the content is read again


def _keep(capture: Path, name: str, confirmed: _Confirmed) -> None:
    if len(_remembered) >= _MOST_REMEMBERED:
        _remembered.clear()
    _remembered[capture, name] = confirmed
    with suppress(FilesystemError):  # no room, read-only: remembered is enough for this process
        write_durably(
            capture / CONFIRMED_FILE, msgspec.json.encode({**_read(capture), name: confirmed}), mode=0o600
        )
