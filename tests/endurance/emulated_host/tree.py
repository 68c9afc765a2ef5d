"""The emulated host's second disk: ramet's tree, its packages, a kernel for guests, room for instances."""

from __future__ import annotations

import compileall
import os
import py_compile
import shutil
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final

from ramet import config
from ramet.drivers.cloud_hypervisor import driver as cloud_hypervisor
from ramet.errors import UnavailableError
from ramet.images.kernel import find_kernel
from ramet.programs import Program
from tests.endurance.emulated_host.root import INSIDE, Root, make_filesystem
from tests.support.copied_packages import ROOT, copy_packages

MOUNTED: Final = "/ramet"
TEST_PACKAGES: Final = ("hypothesis", "pytest", "pytest-timeout")
_SIZE: Final = "16G"  # of the filesystem; its file is all holes where nothing lies
_WRAPPER: Final = '#!/bin/sh\nexec python3 -m {module} "$@"\n'


def pack(image: Path, root: Root) -> None:
    """Make the disk of the sources as they are now, in the new file `image`.

    Raises `UnavailableError` where the packages of this interpreter wouldn't run in `root`, or where there is
    no kernel for guests.
    """
    version = "{}.{}".format(*sys.version_info[:2])
    if version != root.python:
        raise UnavailableError(
            f"the emulated host has Python {root.python}, these packages are Python {version}'s",
            hint=f"make .venv with Python {root.python}: PYTHON=python{root.python} make setup",
        )
    with tempfile.TemporaryDirectory(prefix="tree-", dir=image.parent) as directory:
        contents = Path(directory)
        for name in ("bin", "home", "tmp"):
            (contents / name).mkdir()
        _add_programs(contents / "bin")
        shutil.copytree(INSIDE, contents / "inside", ignore=shutil.ignore_patterns("__pycache__"))
        _add_packages(contents)
        _add_tree(contents / "tree")
        _add_cache(contents / "cache")
        make_filesystem(image, _SIZE, contents)


def _add_programs(place: Path) -> None:
    """The VMM that no archive has, where this machine's user has one: it is on PATH there."""
    with suppress(UnavailableError):
        name, setting = cloud_hypervisor.PROGRAM, cloud_hypervisor.SETTING
        shutil.copy2(Program(name, name, setting=setting, hint="").path(), place / name)


def _add_packages(contents: Path) -> None:
    packages = contents / "packages"
    copy_packages(packages, besides=TEST_PACKAGES)
    # Emulated, compiling takes longer than all that is done with it. Nobody changes these files.
    compileall.compile_dir(
        packages,
        quiet=2,
        workers=os.cpu_count() or 1,
        stripdir=str(contents),
        prependdir=MOUNTED,
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    )
    for name, module in {"ramet": "ramet.cli.main", "pytest": "pytest"}.items():
        (contents / "bin" / name).write_text(_WRAPPER.format(module=module))
        (contents / "bin" / name).chmod(0o755)


def _add_tree(tree: Path) -> None:
    """What pytest needs of a checkout."""
    shutil.copytree(ROOT / "tests", tree / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy2(ROOT / "pyproject.toml", tree)
    (tree / "src").mkdir()
    (tree / "src" / "ramet").symlink_to("../../packages/ramet")


def _add_cache(cache: Path) -> None:
    kernel = find_kernel()
    place = cache / "kernels" / kernel.version
    place.mkdir(parents=True)
    shutil.copy2(kernel.vmlinuz, place / "vmlinuz")
    if kernel.modules_dir is None:
        raise UnavailableError(
            "the emulated host's guests need a kernel with modules", hint="unset RAMET_KERNEL"
        )
    shutil.copytree(kernel.modules_dir, place / "modules", symlinks=True)
    tools = config.cache_directory() / "tools"
    if tools.is_dir():
        shutil.copytree(tools, cache / "tools")
