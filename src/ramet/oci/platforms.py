"""The choice of an image's variant for this machine, out of an index.

Sources: OCI image-spec, image-index.md, "platform"; Go's GOARCH; containerd's `platforms` for the variants
that mean the same; Docker BuildKit, "Attestation storage", for entries that are no images.
"""

from __future__ import annotations

import platform as this_machine
from typing import Final

from ramet.errors import NotFoundError
from ramet.oci.documents import INDEX_TYPES, MANIFEST_TYPES, Config, Descriptor, Index, Platform

_GO_NAMES: Final = {
    "x86_64": "amd64",
    "amd64": "amd64",
    "aarch64": "arm64",
    "arm64": "arm64",
    "riscv64": "riscv64",
    "ppc64le": "ppc64le",
    "s390x": "s390x",
}
BASE_VARIANT: Final = {"amd64": "v1", "arm64": "v8"}
"""The variant that an architecture has when none is written."""
_ATTESTATION: Final = "vnd.docker.reference.type"
_MOST_SHOWN: Final = 12


def host_platform() -> Platform:
    """Return the platform of guests on this machine: Linux on its architecture."""
    machine = this_machine.machine().lower()
    return Platform("linux", _GO_NAMES.get(machine, machine))


def choose(index: Index, wanted: Platform, *, name: str) -> Descriptor:
    """Return the entry of `index` for the platform `wanted`. `name` names the image in errors.

    Entries that aren't images (attestations) are passed over. An only image without a platform is taken: its
    configuration tells (`require_fitting`). Raises `NotFoundError`, which lists the platforms that there are.
    """
    images = [entry for entry in index.manifests if _is_image(entry)]
    fitting = [entry for entry in images if entry.platform is not None and fits(entry.platform, wanted)]
    if fitting:
        return fitting[0]
    if len(images) == 1 and images[0].platform is None:
        return images[0]
    present = sorted({str(entry.platform) for entry in images if entry.platform is not None})
    shown = ", ".join(present[:_MOST_SHOWN]) + (", …" if len(present) > _MOST_SHOWN else "")
    raise NotFoundError(
        f"{name} has no image for {wanted}: it has {shown or 'none at all'}",
        hint="choose another tag, or build the image for this platform",
    )


def require_fitting(config: Config, wanted: Platform, *, name: str) -> None:
    """Raise `NotFoundError` unless the image whose configuration this is runs on `wanted`."""
    if not fits(config.platform, wanted):
        raise NotFoundError(
            f"{name} is an image for {config.platform}, and this is {wanted}",
            hint="choose another tag, or build the image for this platform",
        )


def fits(offered: Platform, wanted: Platform) -> bool:
    """Tell whether an image for `offered` runs on `wanted`: the variants have to be the same."""
    return (offered.os, offered.architecture) == (wanted.os, wanted.architecture) and _variant(
        offered
    ) == _variant(wanted)


def _variant(platform: Platform) -> str | None:
    return platform.variant or BASE_VARIANT.get(platform.architecture)


def _is_image(entry: Descriptor) -> bool:
    if entry.media_type not in MANIFEST_TYPES | INDEX_TYPES:
        return False
    if entry.annotations and _ATTESTATION in entry.annotations:
        return False
    return entry.platform is None or entry.platform.os != "unknown"
