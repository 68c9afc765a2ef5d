"""The agent's C keeps the order of its rooms: nothing is included from above, and there is no circle.

`main > requests > session > exec | identity > link > init | loop`. Rooms on one floor don't include each
other.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from tools import agent_rooms
from tools.agent_rooms import AGENT, FLOORS, PROBE, SHARED, arrows, circles, part, room, sources, upward


def test_the_agent_includes_downward_only() -> None:
    found = arrows(sources(AGENT))
    assert len(found) > 50, "includes are read"
    assert upward(found) == []
    assert circles(found) == []


def test_every_room_has_a_floor_and_every_floor_its_rooms() -> None:
    assert {room(part(name)) for name in sources(AGENT)} == {name for rooms in FLOORS for name in rooms}


def test_every_include_names_a_file_from_the_root() -> None:
    """So that a file of one room never takes another room's header by its bare name."""
    for name, text in sources(AGENT).items():
        for target in re.findall(r'#\s*include\s+"([^"]+)"', text):
            assert (AGENT / target).is_file(), f"{name} includes {target}"
            assert ".." not in target, name


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"link/port.c": '#include "session.h"\n'}, ("link/port", "session")),
        ({"exec/pump.c": '#include "identity/identity.h"\n'}, ("exec/pump", "identity/identity")),
        ({"init/disks.h": '  # include "loop/events.h"\n'}, ("init/disks", "loop/events")),
        ({"session.c": '#include "requests.h"\n'}, ("session", "requests")),
    ],
)
def test_an_include_from_above_is_noticed(files: dict[str, str], expected: tuple[str, str]) -> None:
    assert upward(arrows(files)) == [expected]
    assert expected in upward(arrows(sources(AGENT) | files))


def test_a_circle_is_noticed() -> None:
    files = {
        "link/port.c": '#include "link/port.h"\n#include "link/resume.h"\n',
        "link/resume.h": '#include "link/port.h"\n',
        "link/wire.c": '#include "link/port.h"\n',
    }
    assert circles(arrows(files)) == [["link/port", "link/resume"]]


def test_a_room_without_a_floor_is_noticed() -> None:
    with pytest.raises(KeyError, match="terminal"):
        upward(arrows({"main.c": '#include "terminal/terminal.h"\n'}))


@pytest.mark.slow
def test_the_agent_calls_downward_only(tmp_path: Path) -> None:
    """The same by symbols: a header may declare a function that a file above it defines."""
    compiler, nm = shutil.which("gcc") or shutil.which("cc"), shutil.which("nm")
    if compiler is None or nm is None:
        pytest.skip("no C compiler on this machine")
    defined: dict[str, str] = {}
    needed: dict[str, set[str]] = {}
    for number, name in enumerate(name for name in sources(AGENT) if name.endswith(".c")):
        out = tmp_path / f"{number}.o"
        flags: list[str | Path] = [
            "-std=c11",
            "-D_GNU_SOURCE",
            "-O0",
            "-fno-pic",
            f"-I{AGENT}",
            "-c",
            "-o",
            out,
        ]
        subprocess.run([compiler, *flags, AGENT / name], check=True, timeout=60)
        listing = subprocess.run([nm, "-P", out], check=True, capture_output=True, text=True, timeout=60)
        for line in listing.stdout.splitlines():
            symbol, kind = line.split()[:2]
            if kind == "U":
                needed.setdefault(part(name), set()).add(symbol)
            elif kind.isupper():
                assert defined.setdefault(symbol, part(name)) == part(name), f"{symbol} is defined twice"
    found = {
        (by, defined[symbol])
        for by, symbols in needed.items()
        for symbol in symbols
        if symbol in defined and defined[symbol] != by
    }
    assert len(found) > 40
    assert upward(found) == []
    assert circles(found) == []


def test_the_probe_shares_frames_and_numbers_with_the_agent_and_nothing_else() -> None:
    own = sources(PROBE)
    found = arrows(own)
    shared = {target for _, target in found} - {part(name) for name in own}
    assert shared == SHARED
    assert circles(found) == []
    makefile = (PROBE / "Makefile").read_text()
    assert re.findall(r"\$\(AGENT\)/(\S+)\.c", makefile) == ["link/wire"]


def test_the_figures_are_printed() -> None:
    [agent, probe] = agent_rooms.report().splitlines()
    assert re.match(r"agent: \d+ parts, \d+ arrows, 0 circles, 0 upward, 8 rooms, ", agent)
    assert re.match(r"probe: \d+ parts, \d+ arrows, 0 circles, ", probe)
