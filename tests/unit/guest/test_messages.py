from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramet.errors import ProtocolError, UsageError
from ramet.guest.fields import Fields, put, put_number, put_text, shown
from ramet.guest.messages import (
    ExecRequest,
    GuestProcess,
    IdentityReply,
    IdentityRequest,
    Welcome,
    exit_status,
)
from ramet.model.command import ExitStatus


@given(st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=40)), max_size=10))
def test_fields_come_back_in_order(sent: list[tuple[int, bytes]]) -> None:
    fields = Fields(b"".join(put(tag, value) for tag, value in sent))
    for tag in range(256):
        assert fields.all(tag) == [value for sent_tag, value in sent if sent_tag == tag]


@given(st.binary(max_size=120))
def test_what_a_guest_may_send_raises_nothing_but_protocol_errors(payload: bytes) -> None:
    decoders = (
        Welcome.decode,
        exit_status,
        GuestProcess.decode,
        lambda data: IdentityReply.decode(data, 0),
    )
    for decode in decoders:
        try:
            decode(payload)
        except ProtocolError:
            pass


@pytest.mark.parametrize("payload", [b"", put_number(1, 4, 0) + put_number(2, 4, 9), put_number(1, 2, 0)])
def test_an_exit_has_exactly_one_reason(payload: bytes) -> None:
    with pytest.raises(ProtocolError):
        exit_status(payload)


def test_exit_codes_and_signals() -> None:
    assert exit_status(put_number(1, 4, 3)) == ExitStatus(3, None)
    assert exit_status(put_number(2, 4, 9) + put_number(3, 1, 1)) == ExitStatus(None, 9, True)


@pytest.mark.parametrize(
    "request_",
    [
        ExecRequest(()),
        ExecRequest(("",)),
        ExecRequest(("a\0b",)),
        ExecRequest(("true",), env={"A=B": "c"}),
        ExecRequest(("true",), env={"": "c"}),
        ExecRequest(("true",), timeout_s=0),
        ExecRequest(("true",), cwd="a\0"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused_before_it_is_sent(request_: ExecRequest) -> None:
    with pytest.raises(UsageError):
        request_.encode()


def test_an_exec_says_what_was_asked() -> None:
    request = ExecRequest(("ls", "ö"), {"A": "b=c"}, "/x", "1:2", 1.5, stdin_open=True)
    fields = Fields(request.encode())
    assert fields.all(1) == [b"ls", "ö".encode()]
    assert fields.all(2) == [b"A=b=c"]
    assert (fields.text(3), fields.text(4)) == ("/x", "1:2")
    assert (fields.number(5, 8), fields.number(6, 4)) == (1500, 2)
    assert Fields(request.encode(detached=True)).number(6, 4) == 1


@given(st.binary(max_size=30).filter(lambda value: b"\0" not in value))
def test_bytes_of_the_command_line_arrive_as_they_were(value: bytes) -> None:
    assert Fields(put_text(1, value.decode("utf-8", "surrogateescape"))).all(1) == [value]


def test_an_address_from_the_guest_is_an_address() -> None:
    common = put_number(1, 8, 7) + put(2, b"r" * 16) + put_text(3, "h") + put_text(4, "0" * 32)
    good = common + put_number(5, 8, 2_000_000) + put_text(6, "10.0.2.15") + put_text(6, "fd00::1")
    reply = IdentityReply.decode(good, 1_000_000)
    assert reply.addresses == ("10.0.2.15", "fd00::1")
    assert reply.clock_error_ms == 1.0
    with pytest.raises(ProtocolError):
        IdentityReply.decode(common + put_number(5, 8, 0) + put_text(6, "\x1b[2J"), 0)


def test_a_seed_has_its_length() -> None:
    with pytest.raises(UsageError, match="seed"):
        IdentityRequest(1, b"short", "h", "0" * 32).encode(0)


def test_a_hostile_text_cannot_drive_a_terminal() -> None:
    assert "\x1b" not in shown(b"\x1b]0;pwned\x07ok")


@pytest.mark.parametrize(
    "value", [b"fe80::1%\x1b]0;owned\x07", b"fe80::1%eth0", b"nonsense", b"1.2.3.4" * 9000]
)
def test_only_a_plain_address_passes_for_one(value: bytes) -> None:
    from ramet.guest.messages import _addresses

    with pytest.raises(ProtocolError, match="not an address") as caught:
        list(_addresses([b"10.0.0.2", value]))
    assert "\x1b" not in str(caught.value)
