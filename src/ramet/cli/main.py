"""The application: its verbs, and what becomes of an error that no verb has dealt with.

Modules of verbs import the engine when they are called, not before: help and completion are quick.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from ramet.api import program
from ramet.cli import (
    calling,
    demo,
    doctor,
    execute,
    fork,
    images,
    lifecycle,
    output,
    pool,
    run,
    show,
    snapshots,
)
from ramet.errors import UsageError
from ramet.version import __version__

app = typer.Typer(
    name="ramet",
    help="Boot a microVM once, fork it into hundreds of running copies that share one copy of its memory.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        output.say(f"ramet {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Options that come before the verb."""


app.command()(doctor.doctor)
app.command()(demo.demo)
app.command()(run.run)
app.command()(show.ps)
app.command()(show.tree)
app.command()(show.inspect)
app.command()(show.logs)
app.command()(show.stats)
app.command()(lifecycle.wait)
app.command("exec", context_settings=execute.SETTINGS)(execute.execute)
app.command()(lifecycle.stop)
app.command()(lifecycle.start)
app.command()(lifecycle.pause)
app.command()(lifecycle.resume)
app.command()(lifecycle.standby)
app.command()(lifecycle.restore)
app.command("rm")(lifecycle.remove)
app.command()(lifecycle.template)
app.command()(fork.fork)
app.command()(lifecycle.keep)
app.command()(lifecycle.rewind)
app.command()(pool.serve)
app.command()(pool.pool)
app.add_typer(snapshots.snapshot, name="snapshot")
app.add_typer(images.image, name="image")
app.add_typer(images.kernel, name="kernel")


def main() -> int:
    """Run the command line of this process and return its exit code."""
    _open_missing_streams()
    program.begin()
    output.take_over()
    try:
        code = app(prog_name="ramet", standalone_mode=False) or 0
    except typer.TyperException as error:
        code = _report_usage(error)
    except BrokenPipeError:
        output.silence()
        code = calling.BROKEN_PIPE
    except SystemExit as error:
        # Typer's own end: of completion, or of help that nobody reads (EPIPE).
        broken = isinstance(error.__context__, BrokenPipeError)
        code = calling.BROKEN_PIPE if broken else error.code if isinstance(error.code, int) else 1
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except Exception as error:
        code = calling.report(error, json=_wants_json())
    try:
        sys.stdout.flush()
    except OSError:
        output.silence()  # what Typer wrote; that it couldn't has been said
    return int(code)


def _report_usage(error: typer.TyperException) -> int:
    """Typer's own errors: an option that isn't there, an argument that is missing."""
    message = error.format_message()
    context = getattr(error, "ctx", None)
    if context is not None and not _wants_json() and type(error).__name__ == "NoArgsIsHelpError":
        output.warn(message)
        return error.exit_code
    hint = f"`{context.command_path} --help` lists what there is" if context is not None else None
    return calling.report(UsageError(message, hint=hint), json=_wants_json())


def _wants_json() -> bool:
    """Whether --json was given, as far as can be told when the words couldn't be parsed."""
    words = sys.argv[1:]
    return "--json" in words[: words.index("--")] if "--" in words else "--json" in words


def _open_missing_streams() -> None:
    """Put /dev/null where a standard stream is closed: otherwise the next file to be opened, perhaps the
    database, would be taken for it.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


if __name__ == "__main__":
    sys.exit(main())
