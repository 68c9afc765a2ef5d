"""Records for the forks of one call: checked and reserved in one transaction."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import uuid4

from ramet.engine.context import Context
from ramet.engine.origin import Origin
from ramet.engine.restore.parts import ForkOptions
from ramet.errors import NameTakenError, UsageError
from ramet.model.lifecycle import State
from ramet.model.names import fork_names, new_id
from ramet.model.record import Record
from ramet.system import owners
from ramet.system.clock import now

MOST_IN_A_CALL = 1000
_NAME_TRIES = 20


def reserve(
    context: Context, origin: Origin, name: str | None, count: int, ids: Sequence[str]
) -> list[Record]:
    """Make records for `count` forks, in one transaction; the first records have those `ids`.

    Invented names are invented again when another caller was quicker.
    """
    manifest = origin.manifest
    owner = owners.owner(context.home.root)
    for _ in range(_NAME_TRIES):
        names = fork_names(count, name=name, source=origin.name, taken=context.store.names())
        records = [
            Record(
                id=ids[number] if number < len(ids) else new_id(),
                name=fork_name,
                state=State.CREATED,
                driver=manifest.driver,
                image=manifest.image,
                image_digest=manifest.image_digest,
                main=manifest.main,
                machine=manifest.machine,
                kernel_version=manifest.kernel_version,
                parent=origin.parent,
                snapshot=origin.snapshot,
                generation=manifest.generation + 1,
                machine_id=uuid4().hex,
                created_at=now(),
                labels={},
                auto_remove=False,
                owner=owner,
            )
            for number, fork_name in enumerate(names)
        ]
        try:
            context.store.add(records)
        except NameTakenError:
            if name is not None:
                raise
            continue
        return records
    raise NameTakenError(f"no free names for forks of {origin.name}", hint="give them one with --name")


def require_sense(count: int, options: ForkOptions) -> None:
    """Raise `UsageError` for too many forks, or for options that exclude each other."""
    if not 1 <= count <= MOST_IN_A_CALL:
        raise UsageError(
            f"{count} forks can't be made in one call",
            hint=f"ask for 1 to {MOST_IN_A_CALL}: each is a process and about ten open files of this machine",
        )
    if options.require_shared and not options.share_memory:
        raise UsageError("sharing can't be both required and forbidden", hint="use one of the two")
