"""What may be asked for as the place of a guest's root."""

from __future__ import annotations

import pytest

from ramet.errors import UsageError
from ramet.model.rootfs import Rootfs, parse_rootfs
from ramet.units import GIB, MIB


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("disk", Rootfs("disk")),
        ("disk:20G", Rootfs("disk", 20 * GIB)),
        ("ram", Rootfs("ram")),
        ("ram:512M", Rootfs("ram", 512 * MIB)),
    ],
)
def test_what_can_be_asked_for(text: str, wanted: Rootfs) -> None:
    assert parse_rootfs(text) == wanted


@pytest.mark.parametrize(
    "text",
    ["", "tmpfs", "disk:", "ram:", "disk:1M", "disk:17T", "ram:0", "ram:1K", "disk:x", "DISK", "disk:-1"],
)
def test_what_cannot(text: str) -> None:
    with pytest.raises(UsageError):
        parse_rootfs(text)
