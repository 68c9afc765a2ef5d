"""Completion of references in a shell: reads the home's database and nothing else."""

from __future__ import annotations


def complete_reference(incomplete: str) -> list[tuple[str, str]]:
    """Names that begin so, each with its state; ids when no name does. Silent about every trouble."""
    from ramet import config
    from ramet.errors import RametError
    from ramet.paths import Home
    from ramet.store.records import Store

    database = Home(config.home_directory()).database
    if not database.exists():
        return []
    try:
        store = Store(database)
        try:
            records = store.all()
        finally:
            store.close()
    except RametError:
        return []
    names = [(one.name, str(one.state)) for one in records if one.name.startswith(incomplete)]
    return names or [(one.id, one.name) for one in records if one.id.startswith(incomplete)]
