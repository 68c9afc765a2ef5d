"""The main process of a container image's instance, as a request to its agent."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import msgspec

from ramet.engine import limits
from ramet.engine.agent.session import agent_of
from ramet.engine.context import Context
from ramet.guest.messages import ExecRequest
from ramet.model.container import MainProcess
from ramet.model.record import ProcessRef, Record

_NAMES_OF_THE_BUNDLE: Final = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS")
"""Variables of OpenSSL, Python's requests (and pip), and Node.js, which bring certificates along."""


def main_request(main: MainProcess, *, stdin_open: bool = False, console: bool = False) -> ExecRequest:
    """Return the request that starts a main process."""
    return ExecRequest(
        argv=main.argv,
        env=main.env,
        cwd=main.cwd,
        user=main.user or None,
        stdin_open=stdin_open,
        console=console,
        main=True,
        stop_signal=main.stop_signal,
    )


async def start_main(context: Context, record: Record, process: ProcessRef) -> None:
    """Start the instance's main process, unless it is left for later. The console has its output.

    Raises what starting a command raises; the guest runs on without it then.
    """
    if record.main is None or record.main.is_idle or not record.main.argv:
        return
    async with agent_of(context, record, process, timeout_s=limits.ANSWER_S, own=True) as client:
        await client.spawn(main_request(record.main, console=True))


async def trust_authorities(context: Context, record: Record, process: ProcessRef) -> MainProcess | None:
    """Add the instance's certificates to those that its guest trusts. Returns its main process.

    The environment names the bundle for the libraries that don't look at the system's, unless it names
    another already. Raises `GuestError` when the guest can't write its bundle.
    """
    main = record.main
    if main is None or not main.authorities:
        return main
    bundles: tuple[str, ...] = ()
    async with agent_of(context, record, process, timeout_s=limits.ANSWER_S, own=True) as client:
        for certificate in main.authorities:  # all of them might not fit a frame
            bundles = await client.trust([certificate], timeout_s=limits.ANSWER_S)
    return msgspec.structs.replace(main, env={**dict.fromkeys(_NAMES_OF_THE_BUNDLE, bundles[0]), **main.env})


def with_defaults(record: Record, command: ExecRequest) -> ExecRequest:
    """Return a command with the environment, directory and user of the image, where it names none itself."""
    main = record.main
    if main is None:
        return command
    return replace(
        command,
        env={**main.env, **command.env},
        cwd=command.cwd or main.cwd,
        make_cwd=command.cwd is None,
        user=command.user or main.user or None,
    )
