"""Words that start ramet's own programs, however this process was started: from an archive, with a path of
its own, in an application.
"""

from __future__ import annotations

import os
import sys
from importlib.abc import InspectLoader
from pathlib import Path
from types import ModuleType
from typing import Final

from ramet.programs import python

_BEGIN: Final = (
    "import sys; count = int(sys.argv[1]); path = sys.argv[2 : 2 + count]; del sys.argv[1 : 2 + count]; "
    "sys.path[:] = path + [one for one in sys.path if one not in path]; "
    "from {module} import main; main(*sys.argv[1:])"
)


def alone(module: ModuleType) -> list[str]:
    """The words that run a module that needs the standard library alone, and so starts in 8 ms.

    Neither the user's settings nor site-packages are looked at. Raises `UnavailableError` where there is no
    interpreter.
    """
    path = module.__file__
    if path is not None and Path(path).is_file():
        return [python(), "-I", "-S", path]
    loader = module.__loader__
    source = loader.get_source(module.__name__) if isinstance(loader, InspectLoader) else None
    return [python(), "-I", "-S", "-c", source or "raise SystemExit('the source is missing')"]


def with_ramet(module: str) -> list[str]:
    """The words that call `main` of a module of ramet's with the words that follow.

    It finds ramet, and what that needs, where this process does. Raises `UnavailableError` where there is no
    interpreter.
    """
    path = _import_path()
    return [python(), "-I", "-c", _BEGIN.format(module=module), str(len(path)), *path]


def _import_path() -> list[str]:
    try:
        return [os.fspath(Path(entry).absolute()) for entry in sys.path]
    except FileNotFoundError:
        return [entry for entry in sys.path if entry.startswith("/")]  # the working directory is gone
