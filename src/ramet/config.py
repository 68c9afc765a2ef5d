"""Settings, all from the environment, read when asked for so that tests and notebooks can change them."""

from __future__ import annotations

import os
from pathlib import Path


def home_directory() -> Path:
    """`RAMET_HOME`, else `$XDG_DATA_HOME/ramet`, else `~/.local/share/ramet`."""
    if chosen := os.environ.get("RAMET_HOME"):
        return Path(chosen).absolute()
    base = os.environ.get("XDG_DATA_HOME")
    return (Path(base) if base else Path.home() / ".local" / "share") / "ramet"


def cache_directory() -> Path:
    """`RAMET_CACHE`, else `$XDG_CACHE_HOME/ramet`, else `~/.cache/ramet`: kernels and images,
    re-creatable.
    """
    if chosen := os.environ.get("RAMET_CACHE"):
        return Path(chosen).absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "ramet"


def driver() -> str:
    """`RAMET_DRIVER`: the driver that is used where none is named. Default `auto`."""
    return os.environ.get("RAMET_DRIVER") or "auto"


def qemu_binary() -> str:
    """`RAMET_QEMU`: a path or a name on PATH. Default `qemu-system-x86_64`."""
    return os.environ.get("RAMET_QEMU", "qemu-system-x86_64")


def firecracker_binary() -> str | None:
    """`RAMET_FIRECRACKER`: a path or a name on PATH, or None when nothing was chosen."""
    return os.environ.get("RAMET_FIRECRACKER") or None


def tools_directory() -> Path:
    """Programs that ramet looks for where PATH hasn't got them: `<cache>/tools`."""
    return cache_directory() / "tools"


def agent_binary() -> Path | None:
    """`RAMET_AGENT`: a guest agent to use instead of the one that ramet carries."""
    chosen = os.environ.get("RAMET_AGENT")
    return Path(chosen).absolute() if chosen else None


def kernel_image() -> Path | None:
    """`RAMET_KERNEL`: a bzImage or vmlinux to use; its modules are looked for as `docs/images.md` says."""
    chosen = os.environ.get("RAMET_KERNEL")
    return Path(chosen).absolute() if chosen else None
