"""`make emulated-host`: a shell in the emulated host; or one command:
`python -m tests.endurance.emulated_host WORDS…`.

The exit code is the command's; 5 when the host can't be made here.
"""

from __future__ import annotations

import argparse
import signal
import sys

from ramet.errors import UnavailableError
from tests.endurance.emulated_host.machine import EmulatedHost, HostDiedError


def main(words: list[str]) -> int:
    """Carry out the words of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.endurance.emulated_host", description="A host with a real KVM."
    )
    parser.add_argument("--timeout", type=float, default=600, help="seconds for the command (default 600)")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="what to run; a shell when left out")
    asked = parser.parse_args(words)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda caught, _: sys.exit(128 + caught))
    try:
        if not asked.command:
            print("emulated host: booting; `exit` turns it off, Ctrl-A X kills it", file=sys.stderr)
            with EmulatedHost(shell=True) as host:
                host.wait()
            return 0
        with EmulatedHost() as host:
            print(f"emulated host: {host.timings_s}", file=sys.stderr)
            command = asked.command[asked.command[0] == "--" :]
            code = host.run(command, asked.timeout).code
        print(
            f"emulated host: at most {host.peak_bytes >> 20} MiB; interrupts: {host.interrupts}",
            file=sys.stderr,
        )
    except (UnavailableError, HostDiedError) as error:
        print(error, file=sys.stderr)
        return UnavailableError.exit_code
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
