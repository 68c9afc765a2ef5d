"""What a test does to signals ends with it: programs that a later test starts would inherit it."""

from __future__ import annotations

import signal

SIGNALS = (signal.SIGTERM, signal.SIGHUP)


def test_one_that_ignores_signals() -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def test_the_next_one_hears_them() -> None:
    """It fails when what the test before it has done is still there."""
    assert [signal.getsignal(number) for number in SIGNALS].count(signal.SIG_IGN) == 0
