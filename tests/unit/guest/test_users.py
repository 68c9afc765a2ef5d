"""Users of a guest, found in its own files as Docker finds them (moby/sys, `user/user.go`)."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from .conftest import shared_library

GROUPS_MAX = 32
PASSWD = """\
root:x:0:0:root:/root:/bin/sh
daemon:x:1:1::/usr/sbin:/usr/sbin/nologin
# a comment
app:x:1000:1001:An application:/home/app:/bin/sh
broken:x:no:1::/:
short:x:5
1234:x:77:78::/digits:
nohome:x:6:6::relative:
"""
GROUP = """\
root:x:0:
wheel:x:10:root,app
audio:x:29:other,app,more
app:x:1001:
none:x:30:application,ap,app2
broken:x:x:app
last:x:31:app"""

# The agent's code below another root.
_BELOW = """
#include <stdio.h>
#define files_open real_files_open
#include "init/files.c"
#undef files_open
char root[4096];
int files_open(const char *path, int flags) {
    char below[8192];
    snprintf(below, sizeof below, "%s%s", root, path);
    return real_files_open(below, flags);
}
"""


class Person(ctypes.Structure):
    _fields_ = (
        ("uid", ctypes.c_uint),
        ("gid", ctypes.c_uint),
        ("name", ctypes.c_char_p),
        ("home", ctypes.c_char_p),
        ("groups", ctypes.c_uint * GROUPS_MAX),
        ("groups_count", ctypes.c_size_t),
    )


class Found(NamedTuple):
    uid: int
    gid: int
    home: str
    groups: list[int]


class Users:
    def __init__(self, library: ctypes.CDLL, root: Path) -> None:
        self.etc = root / "etc"
        self.etc.mkdir(exist_ok=True)
        self._library = library
        ctypes.memmove(
            ctypes.addressof(ctypes.c_char.in_dll(library, "root")),
            os.fsencode(root) + b"\0",
            len(os.fsencode(root)) + 1,
        )

    def put(self, passwd: bytes | str, group: bytes | str = b"") -> None:
        for name, text in (("passwd", passwd), ("group", group)):
            path = self.etc / name
            path.unlink(missing_ok=True)
            path.write_bytes(text.encode() if isinstance(text, str) else text)

    def find(self, user: str | bytes | None) -> Found | str:
        person, why = Person(), ctypes.create_string_buffer(256)
        text = user.encode() if isinstance(user, str) else user
        error = self._library.user_find(text, ctypes.byref(person), why, ctypes.c_size_t(len(why)))
        if error != 0:
            assert error == errno.EINVAL
            return why.value.decode(errors="replace")
        assert person.name is not None
        own, *groups = person.groups[: person.groups_count]
        assert own == person.gid
        return Found(person.uid, person.gid, person.home.decode(errors="replace"), groups)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    directory = tmp_path_factory.mktemp("users")
    (directory / "below.c").write_text(_BELOW)
    return ctypes.CDLL(str(shared_library(directory, "exec/user.c", str(directory / "below.c"))))


@pytest.fixture
def users(library: ctypes.CDLL, tmp_path: Path) -> Users:
    return Users(library, tmp_path)


@pytest.mark.parametrize(
    ("user", "found"),
    [
        ("app", Found(1000, 1001, "/home/app", [10, 29, 31])),
        ("1000", Found(1000, 1001, "/home/app", [10, 29, 31])),
        ("app:", Found(1000, 1001, "/home/app", [10, 29, 31])),
        ("app:wheel", Found(1000, 10, "/home/app", [])),
        ("1000:29", Found(1000, 29, "/home/app", [])),
        ("app:4000", Found(1000, 4000, "/home/app", [])),
        ("0:last", Found(0, 31, "/root", [])),
        ("4000", Found(4000, 0, "/", [])),
        ("4000:4001", Found(4000, 4001, "/", [])),
        ("2000000000", Found(2_000_000_000, 0, "/", [])),
        ("1234", Found(1234, 0, "/", [])),  # digits are a number, also where somebody has such a name
        ("nohome", Found(6, 6, "/", [])),
        ("nobody", "no such user: nobody"),
        ("broken", "no such user: broken"),
        ("short", "no such user: short"),
        ("app:nobody", "no such group: nobody"),
        ("app:broken", "no such group: broken"),
        ("4294967295", "not a user id: 4294967295"),
        ("99999999999999999999", "not a user id: 99999999999999999999"),
        ("0:4294967295", "not a group id: 4294967295"),
        ("-1", "no such user: -1"),
        ("app ", "no such user: app "),
    ],
)
def test_users_are_written_as_docker_writes_them(users: Users, user: str, found: Found | str) -> None:
    users.put(PASSWD, GROUP)
    assert users.find(user) == found


@pytest.mark.parametrize("user", [None, "", ":"])
def test_nobody_in_particular_is_whom_the_agent_runs_as(users: Users, user: str | None) -> None:
    users.put(f"me:x:{os.getuid()}:12345::/home/me:/bin/sh\n", "all:x:50:you,me\n")
    assert users.find(user) == Found(os.getuid(), os.getgid(), "/home/me", [50])


def test_a_guest_without_accounts_has_numbers(users: Users) -> None:
    assert users.find("7:8") == Found(7, 8, "/", [])
    assert users.find("root") == "no such user: root"


def test_what_is_no_file_keeps_nobody_waiting(users: Users) -> None:
    os.mkfifo(users.etc / "passwd")
    (users.etc / "group").symlink_to("group")
    assert users.find("7") == Found(7, 0, "/", [])
    assert users.find("7:x") == "no such group: x"
    (users.etc / "passwd").unlink()
    (users.etc / "passwd").symlink_to("/dev/zero")
    assert users.find("root") == "no such user: root"


def test_a_link_to_a_file_is_followed(users: Users) -> None:
    (users.etc / "accounts").write_text("app:x:5:6::/:\n")
    (users.etc / "passwd").symlink_to("accounts")
    assert users.find("app") == Found(5, 6, "/", [])


def test_only_the_beginning_of_a_large_file_counts(users: Users) -> None:
    line = "first:x:5:5::/:\n"
    users.put(line + "x" * (1 << 20) + "\nlast:x:6:6::/:\n")
    assert users.find("first") == Found(5, 5, "/", [])
    assert users.find("last") == "no such user: last"
    members = ",".join(f"user{number}" for number in range(50_000))
    users.put(line, f"many:x:9:{members},first\nfew:x:8:first\n")
    assert users.find("first") == Found(5, 5, "/", [9, 8])


def test_groups_are_bounded(users: Users) -> None:
    users.put("app:x:5:5::/:\n", "".join(f"g{number}:x:{number}:app\n" for number in range(100)))
    assert users.find("app") == Found(5, 5, "/", [number for number in range(GROUPS_MAX) if number != 5])


def _lines(text: bytes, least: int, most: int) -> list[list[bytes]]:
    lines = [line.split(b":", most - 1) for line in text.split(b"\n") if b"\0" not in line]
    return [fields for fields in lines if len(fields) >= least]


def _number(text: bytes) -> int | None:
    return int(text) if text and set(text) <= set(b"0123456789") and int(text) < 2**32 - 1 else None


words = st.sampled_from(
    [b"a", b"b", b"0", b"7", b":", b":", b":", b"\n", b"\n", b"x", b",", b"/", b"\0", b"\xff", b"-"]
)


@given(st.lists(words, max_size=60).map(b"".join), st.sampled_from([b"a", b"b", b"7", b"a:b", b"0:a", b"ab"]))
def test_any_file_is_read_as_a_simple_reader_reads_it(
    library: ctypes.CDLL, tmp_path_factory: pytest.TempPathFactory, text: bytes, user: bytes
) -> None:
    users = Users(library, tmp_path_factory.getbasetemp())
    users.put(text, text)
    name, _, group = user.partition(b":")
    people = [
        fields
        for fields in _lines(text, 6, 7)
        if _number(fields[2]) is not None and _number(fields[3]) is not None
    ]
    number = _number(name)
    person = next(
        (p for p in people if (_number(p[2]) == number if number is not None else p[0] == name)), None
    )
    found = users.find(user)
    if person is None and number is None:
        assert isinstance(found, str)
        return
    if (
        group
        and not group.isdigit()
        and not any(g[0] == group and _number(g[2]) is not None for g in _lines(text, 3, 4))
    ):
        assert found == f"no such group: {group.decode()}"
        return
    assert isinstance(found, Found)
    assert found.uid == (_number(person[2]) if person is not None else number)
    if not group and person is not None:
        listed = [
            _number(g[2])
            for g in _lines(text, 4, 4)
            if person[0] in g[3].split(b",") and _number(g[2]) is not None
        ]
        others = [group for group in listed if group != found.gid]
        assert (found.gid, found.groups) == (_number(person[3]), others[: GROUPS_MAX - 1])
