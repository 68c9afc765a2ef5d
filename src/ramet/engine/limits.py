"""Limits on ramet's waits for guests: where one wait contains another, the inner limit is the shorter.

A caller's own limit is passed down, and nothing below has a longer limit that could hide its error.
"""

from __future__ import annotations

from typing import Final

PORT_S: Final = 10.0
"""For an agent port to come free. Shorter than every wait that contains it, except the short waits.

Those (`INSPECT_S`, `CLOCK_S`) get the same error from `Agents.lease`.
"""
ANSWER_S: Final = 30.0
"""For the first answer of a guest to a client with a command."""
ACCEPT_S: Final = 120.0
"""For a vsock connection to be accepted. The only limit that is longer than its callers', which leave it."""
RECONNECT_S: Final = 15.0
"""For another connection to the VMM of a resumed session: shorter than the session's own limit."""
CLOCK_S: Final = 5.0
"""For a guest's clock to be put right."""
INSPECT_S: Final = 3.0
"""For a guest to say which commands run in it."""
STOP_S: Final = 10.0
"""For a guest to power off, before its VMM is ended."""
BACKSTOP_S: Final = 5.0
"""After a command's own limit has passed on the host, its guest is asked what became of it."""
ASK_S: Final = 5.0
"""For the guest's answer to that."""
