"""Where the built agent is."""

from __future__ import annotations

from pathlib import Path

from ramet.config import agent_binary
from ramet.errors import UnavailableError


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
    carried = Path(__file__).parent / "bin" / f"agent-{arch}"
    if not carried.is_file():
        raise UnavailableError(f"the guest agent for {arch} hasn't been built", hint="run `make setup`")
    return carried
