"""ramet and the distributions that it needs, copied into one directory for another interpreter's PYTHONPATH.

No network is needed, and nothing of the checkout, the venv or the interpreter has to be readable there.
Compiled modules among them ask for an interpreter of this one's minor version.
"""

from __future__ import annotations

import importlib.metadata
import shutil
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]


def copy_packages(into: Path, *, besides: tuple[str, ...] = ()) -> None:
    """Fill `into` with `ramet` and what it needs at run time, and with `besides` and what those need.

    Bytecode isn't copied: it names the files that it was made from.
    """
    for name in required("ramet", *besides) | set(besides):
        for file in importlib.metadata.files(name) or []:
            place = into / file
            if ".." not in file.parts and "__pycache__" not in file.parts:
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file.locate(), place)
    nothing_made = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "src" / "ramet", into / "ramet", ignore=nothing_made)


def required(*names: str) -> set[str]:
    """The distributions that `names` need at run time, all the way down, `names` themselves left out."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        for line in importlib.metadata.requires(waiting.pop()) or []:
            wanted = Requirement(line)
            if wanted.name not in found and (not wanted.marker or wanted.marker.evaluate({"extra": ""})):
                found.add(wanted.name)
                waiting.append(wanted.name)
    return found - set(names)
