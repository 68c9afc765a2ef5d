"""The vmstate of a Cloud Hypervisor guest: its two JSON documents in one, with the version that wrote them.

Cloud Hypervisor loads the state of another major version without a word, although its documents say that such
snapshots aren't compatible. So the version is kept here, and compared before a VMM is asked.

Source: Cloud Hypervisor's `docs/releases.md`; both directions were seen to load between 52, 53 and a tree
after 53.
"""

from __future__ import annotations

import re
from typing import Final, Literal

import msgspec

from ramet.drivers.cloud_hypervisor import config, releases, state
from ramet.errors import DamagedError, UnavailableError
from ramet.units import KIB

VERSION: Final = re.compile(r"\d{1,4}\.\d{1,4}(\.\d{1,4})?([-+][0-9A-Za-z.+-]{1,64})?")


def most_bytes(cpus: int) -> int:
    """Return the largest vmstate that is read, of a machine with that number of CPUs."""
    return config.MOST_BYTES + state.most_bytes(cpus) + KIB


class Vmstate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The content of a vmstate file. `config` and `state` are JSON as Cloud Hypervisor wrote it."""

    format: Literal["ramet-cloud-hypervisor-1"] = "ramet-cloud-hypervisor-1"
    version: str
    config: msgspec.Raw
    state: msgspec.Raw


def encode(version: str, config_text: bytes, state_text: bytes) -> bytes:
    """Return the content of a vmstate file. Both texts have been parsed."""
    return msgspec.json.encode(
        Vmstate(version=version, config=msgspec.Raw(config_text), state=msgspec.Raw(state_text))
    )


def decode(content: bytes, *, version: str, where: str) -> Vmstate:
    """Parse the content of a vmstate file for a VMM of that version.

    The two documents in it are still to be parsed. Raises `DamagedError` for a file of another kind,
    `UnavailableError` when another major version wrote it.
    """
    try:
        vmstate = msgspec.json.decode(content, type=Vmstate)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise DamagedError(
            f"{where} is no vmstate of a Cloud Hypervisor guest: {error}", hint="make the capture again"
        ) from error
    if VERSION.fullmatch(vmstate.version) is None:
        raise DamagedError(f"{where} was written by no version of Cloud Hypervisor: {vmstate.version!r:.80}")
    if not releases.is_compatible(vmstate.version, version):
        raise UnavailableError(
            f"{where} was written by Cloud Hypervisor {vmstate.version}, and this is {version}:"
            " snapshots are compatible within a major version",
            hint=f"set RAMET_CLOUD_HYPERVISOR to the path of a {vmstate.version}",
        )
    return vmstate
