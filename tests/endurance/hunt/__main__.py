"""`python -m tests.endurance.hunt`: a hunt for as long as one likes. Exits with 1 when it finds something."""

from __future__ import annotations

import argparse
import secrets
import sys
import traceback

from tests.endurance.hunt.hunt import FoundError, kind_of, report, run_hunt, run_sequence
from tests.endurance.hunt.steps import Limits
from tests.endurance.hunt.world import Tally
from tests.machines import DRIVERS


def main(words: list[str]) -> int:
    """Carry out the words of the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.endurance.hunt", description="A corruption hunt.")
    parser.add_argument("--seconds", type=float, default=60, help="no sequence is begun after this (60)")
    parser.add_argument("--seed", type=int, help="of the first sequence; the next has the next (random)")
    parser.add_argument("--driver", choices=tuple(DRIVERS), default="firecracker")
    parser.add_argument("--guest", choices=("probe", "linux"), help="probe under Firecracker, else linux")
    parser.add_argument("--steps", type=int, help="in a sequence (probe: 60, linux: 30)")
    parser.add_argument("--guests", type=int, default=12, help="at least so many live (12)")
    parser.add_argument("--keep", action="store_true", help="keep the home when something is found")
    parser.add_argument("--reduce", action="store_true", help="run one sequence, and make it shorter")
    asked = parser.parse_args(words)
    seed = secrets.randbits(31) if asked.seed is None else asked.seed
    guest = asked.guest or ("probe" if asked.driver == "firecracker" else "linux")
    kind = kind_of(asked.driver, guest)
    limits = Limits(guests=asked.guests, most_guests=asked.guests + 6, steps=asked.steps or 60)
    if guest == "linux":
        limits.checked, limits.steps = 3, asked.steps or 30
    print(f"hunt: {guest} under {asked.driver}, seed {seed}", flush=True)
    try:
        if asked.reduce:
            run_sequence(seed, kind, limits, Tally(), keep=asked.keep, reduce=True)
            return 0
        print(report(run_hunt(kind, limits, seed=seed, seconds=asked.seconds, keep=asked.keep)))
    except FoundError as error:
        traceback.print_exception(error.__cause__)
        print(f"found by {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
