"""Linux kernels for guests: which there are, which one is taken, and how one gets into the cache.

In the cache a kernel is `kernels/<version>/`, with `vmlinuz` and `modules/` as in `/lib/modules/<version>`,
but only the modules that a guest of ramet can use.
"""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Final, Literal

import msgspec

from ramet import config
from ramet.errors import DamagedError, UnavailableError, UsageError
from ramet.images.bzimage import read_kernel_version
from ramet.images.deb import open_package, package_relations
from ramet.images.modules import CACHED_MODULES, ModuleTree, module_name
from ramet.images.publish import published_directory, withdraw

_VERSION: Final = r"[A-Za-z0-9][A-Za-z0-9.+~_-]{0,127}"
_PART: Final = r"[A-Za-z0-9_+-][A-Za-z0-9_.+-]*"
"""A component of a path, which never leads upwards."""
_IN_PACKAGE_KERNEL: Final = re.compile(
    rf"(?:\./)?(?:boot/vmlinuz-(?P<version>{_VERSION})|usr/lib/modules/(?P<version_usr>{_VERSION})/vmlinuz)"
)
_IN_PACKAGE_MODULES: Final = re.compile(
    rf"(?:\./)?(?:usr/)?lib/modules/(?P<version>{_VERSION})/(?P<path>kernel/(?:{_PART}/)*{_PART}|modules\.builtin)"
)
_WANTED: Final = "modules.ramet"
_WANTED_TEXT: Final = "".join(f"{name}\n" for name in CACHED_MODULES)
"""The modules that were looked for when a kernel was put into the cache: a later ramet may want more."""


class Kernel(msgspec.Struct, frozen=True):
    """A kernel that a guest can boot. Without `modules_dir` it has built in all that it needs."""

    version: str
    vmlinuz: Path
    modules_dir: Path | None
    source: Literal["setting", "cache", "host"]


def find_kernel() -> Kernel:
    """Find the kernel for new guests: `RAMET_KERNEL`, else the newest in the cache, else the host's best.

    Raises `UnavailableError` when there is none, or when `RAMET_KERNEL` is set to something that is no
    kernel.
    """
    if kernels := list_kernels():
        return kernels[0]
    raise UnavailableError(
        "there is no Linux kernel for guests on this machine",
        hint="run `make setup`, set RAMET_KERNEL to a bzImage or vmlinux, or `ramet kernel add PACKAGE.deb`",
    )


def list_kernels(*, boot: Path = Path("/boot"), modules: Path = Path("/lib/modules")) -> list[Kernel]:
    """List every usable kernel, in the order of `find_kernel`'s preference.

    Of the host's kernels in `boot`, those are listed that this user may read and whose modules are installed;
    Debian's `cloud` flavour first, because it is made for VMs. Raises `UnavailableError` as `find_kernel`
    does.
    """
    chosen = config.kernel_image()
    return [
        *([_kernel_of_setting(chosen, modules)] if chosen else []),
        *sorted(_cached_kernels(), key=_age, reverse=True),
        *sorted(
            _host_kernels(boot, modules), key=lambda kernel: (_is_cloud(kernel), _age(kernel)), reverse=True
        ),
    ]


def add_kernel_package(*packages: Path) -> Kernel:
    """Copy a kernel and its modules from a Debian package, or several that belong together, to the cache.

    Debian has both in `linux-image-VERSION`; Ubuntu has the modules in `linux-modules-VERSION`. Only the
    kernel and the modules that ramet uses are copied, under ramet's names. A version that is in the cache
    already is left unchanged, unless a ramet put it there that needed fewer modules. Raises `UsageError` when
    there isn't exactly one kernel with modules, `DamagedError` for a broken package, `UnavailableError` when
    the kernel has no virtio, `OSError` for files; nothing is added then.
    """
    with ExitStack() as stack:
        archives = [stack.enter_context(open_package(package)) for package in packages]
        version, vmlinuz, builtin, modules = _contents(archives, packages)
        target = _kernels_directory() / version
        if target.is_dir() and not has_all_modules(_cached_kernel(target)):
            withdraw(target)
        if not target.is_dir():
            tree = ModuleTree(modules, builtin().decode())
            chosen = tree.needed_at_boot() + tree.needed(CACHED_MODULES, optional=True)
            with published_directory(target) as making:
                (making / "vmlinuz").write_bytes(vmlinuz())
                if read_kernel_version(making / "vmlinuz") != version:
                    raise DamagedError(
                        f"the kernel in {packages[0].name} is not the {version} that it is called"
                    )
                for module in chosen:
                    path = making / "modules" / module.path
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(module.data)
                (making / "modules" / "modules.builtin").write_text(tree.builtin_text)
                (making / "modules" / _WANTED).write_text(_WANTED_TEXT)
    return _cached_kernel(target)


def has_all_modules(kernel: Kernel) -> bool:
    """Tell whether a kernel in the cache has the modules that this ramet copies there; others have them."""
    if kernel.source != "cache" or kernel.modules_dir is None:
        return True
    try:
        return set(CACHED_MODULES) <= set((kernel.modules_dir / _WANTED).read_text().split())
    except OSError:
        return False


_Reader = Callable[[], bytes]


def _contents(
    archives: list[tarfile.TarFile], packages: tuple[Path, ...]
) -> tuple[str, _Reader, _Reader, dict[str, _Reader]]:
    """Find (version, kernel, modules.builtin, modules by path) in the archives, without reading them."""
    kernels: dict[str, _Reader] = {}
    files: dict[str, dict[str, _Reader]] = {}
    try:
        for archive in archives:
            for member in archive:
                if not member.isreg():
                    continue
                reader = partial(_read_member, archive, member)
                if match := _IN_PACKAGE_KERNEL.fullmatch(member.name):
                    kernels.setdefault(match["version"] or match["version_usr"], reader)
                elif match := _IN_PACKAGE_MODULES.fullmatch(member.name):
                    files.setdefault(match["version"], {})[match["path"]] = reader
    except tarfile.TarError as error:
        raise DamagedError(f"a kernel package's archive is broken: {error}") from error
    names = ", ".join(package.name for package in packages)
    if len(kernels) != 1:
        raise UsageError(
            f"{len(kernels) or 'no'} kernels in {names}, where one is wanted",
            hint=_hint_of_none(packages) if not kernels else "give the packages of one kernel at a time",
        )
    [(version, vmlinuz)] = kernels.items()
    module_files = files.get(version, {})
    builtin = module_files.pop("modules.builtin", None)
    if builtin is None or not any(module_name(path) for path in module_files):
        missing = _missing(packages, "linux-base-", "linux-modules-") or [f"linux-modules-{version}"]
        raise UsageError(
            f"{names} has no {'list of modules' if module_files else 'modules'} for {version}",
            hint=f"give it together with {' and '.join(missing)}",
        )
    return version, vmlinuz, builtin, module_files


def _hint_of_none(packages: tuple[Path, ...]) -> str:
    if needed := _missing(packages, "linux-image-"):
        return f"a metapackage only names others: give {' and '.join(needed)}"
    return "give the package linux-image-VERSION, and with it those of its modules"


def _missing(packages: tuple[Path, ...], *prefixes: str) -> list[str]:
    """List the packages of a kernel's parts that the given packages depend on and that aren't given."""
    relations = [package_relations(package) for package in packages]
    given = {name for name, _depends in relations}
    return [
        name
        for _package, depends in relations
        for name in depends
        for prefix in prefixes
        if name not in given and name.startswith(prefix) and name[len(prefix) :][:1].isdigit()
    ]


def _read_member(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    assert file is not None, "only regular files are kept"
    with file:
        return file.read()


def _kernel_of_setting(path: Path, modules: Path) -> Kernel:
    try:
        version = read_kernel_version(path)
    except (OSError, DamagedError) as error:
        why = f"{path}: {error.strerror}" if isinstance(error, OSError) else error.message
        raise UnavailableError(
            f"RAMET_KERNEL is no kernel that can be used: {why}",
            hint="set RAMET_KERNEL to a bzImage or vmlinux, or unset it",
        ) from error
    candidates = (path.parent / "modules", modules / version)
    modules_dir = next((place for place in candidates if (place / "modules.builtin").is_file()), None)
    return Kernel(version, path, modules_dir, "setting")


def _kernels_directory() -> Path:
    return config.cache_directory() / "kernels"


def _cached_kernel(directory: Path) -> Kernel:
    return Kernel(directory.name, directory / "vmlinuz", directory / "modules", "cache")


def _cached_kernels() -> list[Kernel]:
    return [_cached_kernel(vmlinuz.parent) for vmlinuz in _kernels_directory().glob("[!.]*/vmlinuz")]


def _host_kernels(boot: Path, modules: Path) -> list[Kernel]:
    kernels = (
        Kernel(path.name.removeprefix("vmlinuz-"), path, modules / path.name.removeprefix("vmlinuz-"), "host")
        for path in boot.glob("vmlinuz-*")
    )
    return [
        kernel
        for kernel in kernels
        if os.access(kernel.vmlinuz, os.R_OK)
        and kernel.modules_dir is not None
        and (kernel.modules_dir / "modules.builtin").is_file()
    ]


def _is_cloud(kernel: Kernel) -> bool:
    return kernel.version.endswith("-cloud-amd64")


def _age(kernel: Kernel) -> list[tuple[bool, int, str]]:
    """Make a key that sorts `6.10` after `6.9`: numbers by their value."""
    return [
        (part.isdigit(), int(part) if part.isdigit() else 0, part)
        for part in re.findall(r"\d+|[^\d.-]+", kernel.version)
    ]
