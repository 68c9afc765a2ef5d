"""Completion in a shell: values of arguments and options, from the home's database and from constants.

Nothing here opens a home, makes a file, or says a word: where the database can't be read there is nothing to
complete. Only plain words are offered, with plain descriptions, since zsh evaluates what it is given.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

import typer

if TYPE_CHECKING:
    from ramet.api.names import InstanceEntry, Names

Words = list[tuple[str, str]]
"""Words that may stand there, each with a description."""

IMAGES: Final = {"builtin": "Linux with busybox", "probe": "bare-metal test guest", "bare": "alias of probe"}
DRIVERS: Final = {
    "auto": "the first that can",
    "firecracker": "needs KVM",
    "qemu": "KVM or emulation",
    "cloud-hypervisor": "needs KVM",
}
ACCELERATORS: Final = {"auto": "KVM where it runs the guest", "kvm": "KVM", "tcg": "emulation"}
SIZES: Final = ("256M", "512M", "1G", "2G", "4G", "8G")
ROOTS: Final = ("disk", "disk:20G", "ram", "ram:128M")
PULL_POLICIES: Final = {
    "missing": "if it is not here",
    "never": "ask no registry",
    "always": "the tag may have moved",
}
LEVELS: Final = range(1, 20)
STATES: Final = ("running", "paused", "standby", "template", "stopped", "failed")
_COMPRESSIBLE: Final = ("template", "standby")
_PLAIN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/=+@%-]*")
_PLAIN_IMAGE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/@:-]*")
"""With a colon, which Typer escapes for zsh."""
_PLAIN_DESCRIPTION: Final = re.compile(r"[A-Za-z0-9 ._/=+@%-]*")


def complete_reference(incomplete: str) -> Words:
    """Return instances by name, each with its state; by id when no name begins so."""
    names = _known()
    return [] if names is None else _instances(names.instances, incomplete)


def complete_references(context: typer.Context, incomplete: str) -> Words:
    """Return instances as `complete_reference` does, without those on the line already."""
    return _without(_given(context), complete_reference(incomplete))


def complete_snapshot(incomplete: str) -> Words:
    """Return snapshots as SOURCE/NAME; by id when no SOURCE/NAME begins so."""
    names = _known()
    return [] if names is None else _snapshots(names, incomplete)


def complete_snapshots(context: typer.Context, incomplete: str) -> Words:
    """Return snapshots as `complete_snapshot` does, without those on the line already."""
    return _without(_given(context), complete_snapshot(incomplete))


def complete_source(incomplete: str) -> Words:
    """Return the sources of forks: instances, then snapshots."""
    names = _known()
    if names is None:
        return []
    return _instances(names.instances, incomplete) + _snapshots(names, incomplete)


def complete_compressible(incomplete: str) -> Words:
    """Return snapshots, and the instances whose memory is in a file."""
    names = _known()
    if names is None:
        return []
    captured = [entry for entry in names.instances if entry.state in _COMPRESSIBLE]
    return _snapshots(names, incomplete) + _instances(captured, incomplete)


def complete_own_snapshot(context: typer.Context, incomplete: str) -> Words:
    """Return the names of the snapshots of the instance that is on the line already."""
    names = _known()
    if names is None:
        return []
    given = _given(context)
    ids = {entry.id for entry in names.instances if entry.name in given or entry.id in given}
    return _beginning(
        incomplete, ((entry.name, "snapshot") for entry in names.snapshots if entry.source in ids)
    )


def complete_instance_filter(incomplete: str) -> Words:
    """Return `state=STATE` and the labels of instances, for `ps --filter`."""
    states = [(f"state={state}", "state") for state in STATES]
    return _beginning(incomplete, states) + complete_label(incomplete)


def complete_label(incomplete: str) -> Words:
    """Return the labels of instances, as `key=value`."""
    names = _known()
    return [] if names is None else _labels(incomplete, (entry.labels for entry in names.instances))


def complete_snapshot_label(incomplete: str) -> Words:
    """Return the labels of snapshots, as `key=value`."""
    names = _known()
    return [] if names is None else _labels(incomplete, (entry.labels for entry in names.snapshots))


def complete_image(incomplete: str) -> Words:
    """Return the home's container images, then the images that ramet makes, and their aliases."""
    return complete_container_image(incomplete) + _beginning(incomplete, IMAGES.items())


def complete_container_image(incomplete: str) -> Words:
    """Return the home's container images by name."""
    names = [name for name in _container_images() if _PLAIN_IMAGE.fullmatch(name)]
    return [(name, "container image") for name in names if name.startswith(incomplete)]


def complete_container_images(context: typer.Context, incomplete: str) -> Words:
    """Return images as `complete_container_image` does, without those on the line already."""
    return _without(_given(context), complete_container_image(incomplete))


def complete_root(incomplete: str) -> Words:
    """Return usual places for a root."""
    return _beginning(incomplete, ((place, "root") for place in ROOTS))


def complete_pull(incomplete: str) -> Words:
    """Return the policies of pulling."""
    return _beginning(incomplete, PULL_POLICIES.items())


def complete_driver(incomplete: str) -> Words:
    """Return drivers."""
    return _beginning(incomplete, DRIVERS.items())


def complete_accelerator(incomplete: str) -> Words:
    """Return accelerators."""
    return _beginning(incomplete, ACCELERATORS.items())


def complete_size(incomplete: str) -> Words:
    """Return usual sizes of RAM."""
    return _beginning(incomplete, ((size, "RAM") for size in SIZES))


def complete_level(incomplete: str) -> Words:
    """Return the levels of compression."""
    return _beginning(incomplete, ((str(level), "level") for level in LEVELS))


def complete_variable(incomplete: str) -> Words:
    """Return the names of this shell's environment variables."""
    return _beginning(incomplete, ((name, "variable") for name in sorted(os.environ)))


def _instances(instances: Iterable[InstanceEntry], incomplete: str) -> Words:
    known = list(instances)
    matches = _beginning(incomplete, ((entry.name, entry.state) for entry in known))
    return matches or _beginning(incomplete, ((entry.id, entry.name) for entry in known))


def _snapshots(names: Names, incomplete: str) -> Words:
    matches = _beginning(incomplete, ((entry.title, "snapshot") for entry in names.snapshots))
    return matches or _beginning(incomplete, ((entry.id, entry.title) for entry in names.snapshots))


def _labels(incomplete: str, labels: Iterable[dict[str, str]]) -> Words:
    pairs = sorted({f"{key}={value}" for each in labels for key, value in each.items()})
    return _beginning(incomplete, ((pair, "label") for pair in pairs))


def _beginning(incomplete: str, words: Iterable[tuple[str, str]]) -> Words:
    return [
        (word, about if _PLAIN_DESCRIPTION.fullmatch(about) else "")
        for word, about in words
        if word.startswith(incomplete) and _PLAIN.fullmatch(word)
    ]


def _given(context: typer.Context) -> set[str]:
    """Return the words on the line that stand for arguments and options already."""
    words: set[str] = set()
    for value in context.params.values():
        words |= (
            {value} if isinstance(value, str) else set(value) if isinstance(value, (list, tuple)) else set()
        )
    return words


def _without(given: set[str], words: Words) -> Words:
    return [(word, about) for word, about in words if word not in given]


def _container_images() -> list[str]:
    try:
        from ramet.api.names import read_image_names

        return read_image_names()
    except Exception:
        return []  # nothing can be completed, and a prompt is no place for an error


def _known() -> Names | None:
    try:
        from ramet.api.names import read_names

        return read_names()
    except Exception:
        return None  # nothing can be completed, and a prompt is no place for an error
