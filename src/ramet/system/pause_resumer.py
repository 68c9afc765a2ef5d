"""The program that resumes a guest whose ramet died while the guest was paused. Standard library only.

It works in the VMM's directory, waits for the end of what comes through a pipe, and ends silently when that
was `done`. Otherwise the process at the other end died without saying so, and the VMM is told to resume its
guest: over its control socket, step by step, tried again until it has answered, for a minute at most. Run by
`pause_watchdog`: `python -I -S pause_resumer.py PIPE_FD SOCKET RUNS SEND ANSWER [SEND ANSWER]...`; SEND is
text, ANSWER a regular expression that its answer matches; RUNS matches an answer that says that the guest
runs, or is empty.

It is started for every capture and hardly ever has anything to do: what it would need then is imported then.
"""

import os
import sys

DONE = b"done"
LIMIT_S = 60.0
_STEP_LIMIT_S = 10.0
_AGAIN_S = 0.05


def _says_done(pipe: int) -> bool:
    received = b""
    while more := os.read(pipe, 16):
        received += more
    return received == DONE


def _asked(name: str, runs: str, steps: list[tuple[str, str]]) -> bool:
    """Take the steps, and tell whether each had its answer, up to an answer that said that the guest runs."""
    import re
    import select
    import socket
    import time

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as control:
        control.settimeout(_STEP_LIMIT_S)
        control.connect(name)
        for send, answer in steps:
            control.sendall(send.encode())
            received = b""
            deadline = time.monotonic() + _STEP_LIMIT_S
            while not re.search(answer.encode(), received):
                left_s = deadline - time.monotonic()
                if left_s <= 0 or not select.select([control], [], [], left_s)[0]:
                    return False
                more = control.recv(65536)
                if not more:
                    return False
                received = (received + more)[-65536:]
            if runs and re.search(runs.encode(), received):
                return True
    return True


def main(argv: list[str]) -> int:
    """Return 0 if nothing was to be done or the guest runs again, 1 if the VMM couldn't be told."""
    pipe, name, runs, *rest = argv
    if _says_done(int(pipe)):
        return 0
    import time

    steps = list(zip(rest[::2], rest[1::2], strict=True))
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        try:
            if _asked(name, runs, steps):
                return 0
        except (FileNotFoundError, ConnectionRefusedError):
            return 1  # the VMM is gone, too
        except OSError:
            pass
        time.sleep(_AGAIN_S)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
