"""Programs of other people: a script, run by an interpreter of its own, that has to end by itself."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

import pytest

LOOPS = ["asyncio", "uvloop"]
"""Event loops that programs run on."""
LOOPS_IN_TURN = ["asyncio", pytest.param("uvloop", marks=pytest.mark.deep)]
"""The same, where whole jobs on either (`test_event_loops.py`) are enough for a merge."""
LOOPS_SHORTLY = ["asyncio", pytest.param("uvloop", marks=pytest.mark.slow)]
"""The same, where either takes little more than the start of a program."""
LIMIT_S = 120
"""No program here waits for anything that takes so long."""

_PRELUDE = """
import asyncio, os, sys, threading, time
import ramet, ramet.sync

home, loop = sys.argv[1:3]
if loop == "uvloop":
    import uvloop
    # As Ray does: whoever makes a loop from now on, ramet.sync's thread included, makes uvloop's.
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())

def outcome(call, *arguments, **options):
    try:
        return f"returned {call(*arguments, **options)!r}"
    except BaseException as error:
        return f"{type(error).__name__}: {error}"

async def awaited(work):
    try:
        return f"returned {await work!r}"
    except BaseException as error:
        return f"{type(error).__name__}: {error}"

"""


def run_program(
    script: str, home: Path, loop: str = "asyncio", *, options: Sequence[str] = (), exit_code: int = 0
) -> list[str]:
    """The lines that a script prints. It gets `home`, and runs on `loop`; nothing comes on standard error.

    Fails when the script doesn't end by itself, or not with `exit_code`.
    """
    done = subprocess.run(
        [sys.executable, *options, "-c", _PRELUDE + textwrap.dedent(script), str(home), loop],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.stderr == "", done.stderr + done.stdout
    assert done.returncode == exit_code, done.stdout
    return done.stdout.splitlines()
