"""The protocol's numbers agree in their three places: the host's Python, the agent's C, the page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tools.agent_rooms import AGENT

from ramet.guest import fields, messages
from ramet.guest.messages import ExecFlag, Message, StartStep

PAGE = (Path(__file__).parents[3] / "docs" / "reference" / "protocol.md").read_text()
HEADER = (AGENT / "link" / "message.h").read_text()
ROW = re.compile(r"^\| ((?:`[0-9a-f]{2}` ?)+)\| (host|guest) \| ([A-Z_, ]+) \|", re.MULTILINE)


def of_the_header(prefix: str) -> dict[str, int]:
    """The enumerators of `message.h` with that prefix, which is cut off."""
    numbers: dict[str, int] = {}
    for body in re.findall(r"enum \w+ \{(.*?)\}", HEADER, re.DOTALL):
        following = 0  # an enumerator without a number is one more than the one before
        for name, number in re.findall(r"(\w+)(?: = (0x[0-9a-f]+|\d+))?,?", body):
            value = int(number, 0) if number else following
            following = value + 1
            if name.startswith(prefix):
                numbers[name.removeprefix(prefix)] = value
    return numbers


def of_the_page() -> dict[str, int]:
    """The rows of the page's table of messages."""
    numbers: dict[str, int] = {}
    for types, sender, names in ROW.findall(PAGE):
        octets = [int(octet, 16) for octet in re.findall(r"[0-9a-f]{2}", types)]
        numbers.update(zip(names.strip().split(", "), octets, strict=True))
        assert all((octet >= 0x80) == (sender == "guest") for octet in octets), names
    return numbers


def test_message_types_agree() -> None:
    ours = {message.name: message.value for message in Message}
    assert len(ours) == 30
    assert of_the_header("M_") == ours
    assert of_the_page() == ours


def test_flags_of_exec_agree() -> None:
    ours = {str(flag.name): flag.value for flag in ExecFlag}
    assert of_the_header("EXEC_") == ours
    sentence = PAGE[PAGE.index("EXEC flags:") :].split(".")[0]
    numbers = re.findall(r"(\d+) (?:detached|stdin|output|main|a missing)", sentence)
    assert [int(number) for number in numbers] == list(ours.values())


def test_steps_of_a_start_agree() -> None:
    assert of_the_header("STEP_") == {"NONE": 0} | {step.name: step.value for step in StartStep}


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("PROTOCOL_VERSION", "PROTOCOL_VERSION"),
        ("OUTPUT_WINDOW_BYTES", "OUTPUT_WINDOW"),
        ("STDIN_WINDOW_BYTES", "STDIN_WINDOW"),
        ("NONCE_BYTES", "NONCE_BYTES"),
        ("TOKEN_BYTES", "TOKEN_BYTES"),
        ("TEXT_MAX_BYTES", "ERROR_TEXT_MAX"),
        ("COMMANDS_MAX", "COMMANDS_MAX"),
        ("LAST_SIGNAL", "LAST_SIGNAL"),
    ],
)
def test_limits_agree(ours: str, theirs: str) -> None:
    found = re.search(rf"^#define {theirs} (\d+)u?$", HEADER, re.MULTILINE)
    assert found is not None
    assert int(found[1]) == getattr(fields if hasattr(fields, ours) else messages, ours)
