"""Requests about the guest's machine: encoding, and what a guest may answer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramet.errors import ProtocolError, UsageError
from ramet.guest.fields import Fields, put_number
from ramet.guest.machine import RootKind, RootSpace, shutdown, trust, trusted
from ramet.guest.messages import ExecFlag, ExecRequest

CERTIFICATE = "-----BEGIN CERTIFICATE-----\nTUlJ\nAAA=\n-----END CERTIFICATE-----\n"


def test_a_shutdown_gives_the_main_process_its_time() -> None:
    assert shutdown(reboot=True, grace_ms=None) == put_number(1, 1, 1)
    assert shutdown(reboot=False, grace_ms=10_000) == put_number(1, 1, 0) + put_number(2, 4, 10_000)
    for wrong in (-1, 2**32):
        with pytest.raises(UsageError, match="no time"):
            shutdown(reboot=False, grace_ms=wrong)


def test_a_main_process_and_its_stop_signal() -> None:
    fields = Fields(ExecRequest(("x",), main=True, stop_signal=3, console=True).encode(detached=True))
    assert fields.number(6, 4) == ExecFlag.DETACHED | ExecFlag.CONSOLE | ExecFlag.MAIN
    assert fields.number(7, 4) == 3
    assert Fields(ExecRequest(("x",), main=True).encode()).number_or_none(7, 4) is None
    for wrong in (ExecRequest(("x",), stop_signal=3), ExecRequest(("x",), main=True, stop_signal=65)):
        with pytest.raises(UsageError, match="signal"):
            wrong.encode()


def test_only_certificates_are_sent() -> None:
    assert Fields(trust([CERTIFICATE, f"  {CERTIFICATE}\n\n"])).all(1) == [CERTIFICATE.encode()] * 2
    key = CERTIFICATE.replace("CERTIFICATE", "PRIVATE KEY")
    for wrong in ([], [""], [CERTIFICATE * 2], [key]):
        with pytest.raises(UsageError):
            trust(wrong)


@given(st.binary(max_size=60))
def test_answers_raise_nothing_but_protocol_errors(payload: bytes) -> None:
    for decode in (RootSpace.decode, trusted):
        try:
            decode(payload)
        except ProtocolError:
            pass


def test_a_root_has_a_kind_and_its_room() -> None:
    room = put_number(2, 8, 10) + put_number(3, 8, 4)
    assert RootSpace.decode(put_number(1, 1, 2) + room) == RootSpace(RootKind.RAM, 10, 4)
    with pytest.raises(ProtocolError, match="known kind"):
        RootSpace.decode(put_number(1, 1, 3) + room)
