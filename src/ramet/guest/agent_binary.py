"""The programs for guests that ramet carries: the agent, and the probe."""

from __future__ import annotations

from pathlib import Path

from ramet.config import agent_binary
from ramet.errors import UnavailableError

_CARRIED = Path(__file__).parent / "bin"


def agent_path(arch: str = "x86_64") -> Path:
    """Return the agent for guests of that architecture: `RAMET_AGENT`, else the agent that ramet carries.

    Architectures are `x86_64` and `aarch64`. Raises `UnavailableError` when there is no agent.
    """
    if (chosen := agent_binary()) is not None:
        if not chosen.is_file():
            raise UnavailableError(
                f"RAMET_AGENT says {chosen}, and that is no file", hint="correct or unset it"
            )
        return chosen
    return _carried(f"agent-{arch}", f"the guest agent for {arch}")


def probe_path(arch: str = "x86_64") -> Path:
    """Return the probe, a bare-metal guest that speaks the agent's protocol.

    Raises `UnavailableError` when there is none: the probe exists for x86-64 only.
    """
    return _carried(f"probe-{arch}", f"the probe guest for {arch}")


def _carried(name: str, what: str) -> Path:
    path = _CARRIED / name
    if not path.is_file():
        raise UnavailableError(f"{what} hasn't been built", hint="run `make setup`")
    return path
