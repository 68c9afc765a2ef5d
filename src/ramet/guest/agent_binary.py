"""Where the programs for guests are that ramet carries: the agent, and the probe."""

from __future__ import annotations

from pathlib import Path

from ramet.config import agent_binary
from ramet.errors import UnavailableError

_CARRIED = Path(__file__).parent / "bin"


def agent_path(arch: str = "x86_64") -> Path:
    """The agent for guests of that architecture (`x86_64`, `aarch64`): `RAMET_AGENT`, else the one that ramet
    carries.

    Raises `UnavailableError` when there is none.
    """
    if (chosen := agent_binary()) is not None:
        if not chosen.is_file():
            raise UnavailableError(
                f"RAMET_AGENT says {chosen}, and that is no file", hint="correct or unset it"
            )
        return chosen
    return _carried(f"agent-{arch}", f"the guest agent for {arch}")


def probe_path(arch: str = "x86_64") -> Path:
    """The probe, a bare-metal guest that speaks the agent's protocol.

    Raises `UnavailableError` when there is none: it exists for x86-64 only.
    """
    return _carried(f"probe-{arch}", f"the probe guest for {arch}")


def _carried(name: str, what: str) -> Path:
    path = _CARRIED / name
    if not path.is_file():
        raise UnavailableError(f"{what} hasn't been built", hint="run `make setup`")
    return path
