"""What may be asked for as a data disk, and the words that reach the guest's kernel."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramet.errors import UsageError
from ramet.model.disks import (
    MOST_DISKS,
    NewDisk,
    check_mount_point,
    mount_arguments,
    mounted,
    parse_disk,
    parse_disks,
)
from ramet.model.record import Disk
from ramet.units import GIB, MIB, TIB


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("512M", NewDisk(512 * MIB)),
        (10485760, NewDisk(10 * MIB)),
        ("1048576", NewDisk(MIB)),
        ("1G:/data", NewDisk(GIB, "/data")),
        ("16T:/srv//db/".replace("//", "/"), NewDisk(16 * TIB, "/srv/db")),
        ("16M:/var/lib/a_b-c.d+e@f%g~h,i", NewDisk(16 * MIB, "/var/lib/a_b-c.d+e@f%g~h,i")),
        ("1G:/run/database", NewDisk(GIB, "/run/database")),
        ("1G:/usr/local", NewDisk(GIB, "/usr/local")),
        ("1G:/processes", NewDisk(GIB, "/processes")),
    ],
)
def test_what_can_be_asked_for(text: str | int, wanted: NewDisk) -> None:
    assert parse_disk(text) == wanted


@pytest.mark.parametrize(
    "text",
    [
        *("", "lots", ":/data", "0", 0, -512, 513, MIB + 1, "17T", "15M:/data", "1G:", "1G:data", "1G:/"),
        *("1G://", "1G:/a//b", "1G:/..", "1G:/a/.", "1G:/a b", "1G:/a\tb", "1G:/a\nb", "1G:/a\0b", '1G:/a"'),
        *("1G:/a:b", "1G:/ä", "1G:/\u0661", "1G:/a\\b", "1G:/$x", "1G:/proc", "1G:/sys/fs", "1G:/dev/shm"),
        *(
            "1G:/run",
            "1G:/run/ramet/x",
            "1G:/etc",
            "1G:/etc/ramet",
            "1G:/bin",
            "1G:/init",
            "1G:/lib/modules/x",
        ),
        f"1G:/{'x' * 128}",
    ],
)
def test_what_cannot(text: str | int) -> None:
    with pytest.raises(UsageError):
        parse_disk(text)


@given(st.text() | st.from_regex(r"/[a-z./ \"']{1,8}"))
def test_a_path_is_one_word_in_one_spelling_or_refused(path: str) -> None:
    with suppress(UsageError):
        plain = check_mount_point(path)
        assert check_mount_point(plain) == plain
        assert plain.split() == [plain]
        assert not {*plain} & {*"\"'\\:$;&|<>*?(){}[]#="}


def test_no_more_than_there_are_places_and_no_place_twice() -> None:
    assert len(parse_disks(["1M"] * MOST_DISKS)) == MOST_DISKS
    with pytest.raises(UsageError, match="9 disks"):
        parse_disks(["1M"] * (MOST_DISKS + 1))
    with pytest.raises(UsageError, match="/data"):
        parse_disks(["16M:/data", "1M", "16M:/data/"])


def test_the_arguments_name_what_lies_above_first() -> None:
    disks = [
        Disk(name=f"disk{n or ''}", file="x", format="raw", size_bytes=MIB, path=path)
        for n, path in enumerate(["/srv/a/b", None, "/srv/a"])
    ]
    assert mount_arguments(disks) == "ramet.disk=2,disk2:/srv/a ramet.disk=0,disk:/srv/a/b"
    assert mount_arguments(disks[1:2]) == ""
    longest = [NewDisk(16 * MIB, f"/{n}{'x' * 126}") for n in range(MOST_DISKS)]
    most = mounted([*disks, *disks, *disks][:MOST_DISKS], longest)
    assert len(mount_arguments(most)) < 1536, "beside what else is on a command line of 2048"
