"""Words that start ramet's own programs.

They work for every start of this process: from an archive, with a changed path, in an application.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Final

from ramet.errors import UnavailableError
from ramet.programs import python

_BEGIN: Final = (
    "import sys; count = int(sys.argv[1]); path = sys.argv[2 : 2 + count]; del sys.argv[1 : 2 + count]; "
    "sys.path[:] = path + [entry for entry in sys.path if entry not in path]; "
    "from {module} import main; main(*sys.argv[1:])"
)


def alone(module: ModuleType) -> list[str]:
    """Return the words that run a module that needs only the standard library, and so starts in 8 ms.

    Neither the user's settings nor site-packages are looked at. Raises `UnavailableError` where there is no
    interpreter.
    """
    path = module.__file__
    if path is not None and Path(path).is_file():
        return [python(), "-I", "-S", path]
    # In an archive: its loader has the source (PEP 302, `get_source`).
    get_source: Callable[[str], str | None] | None = getattr(module.__loader__, "get_source", None)
    source = get_source(module.__name__) if get_source is not None else None
    if source is None:
        raise UnavailableError(
            f"the source of {module.__name__} isn't available, and it runs in a separate process"
        )
    return [python(), "-I", "-S", "-c", source]


def with_ramet(module: str) -> list[str]:
    """Return the words that call `main` of a module in ramet with the words that follow.

    It finds ramet, and ramet's dependencies, where this process does. Raises `UnavailableError` where there
    is no interpreter.
    """
    path = _import_path()
    return [python(), "-I", "-c", _BEGIN.format(module=module), str(len(path)), *path]


def _import_path() -> list[str]:
    try:
        return [os.fspath(Path(entry).absolute()) for entry in sys.path]
    except FileNotFoundError:
        return [entry for entry in sys.path if entry.startswith("/")]  # the working directory is gone
