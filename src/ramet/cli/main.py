"""The application: its verbs, and the errors that no verb has handled.

Modules of verbs import the engine when they are called, not before: help and completion are quick.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Annotated, Any, Final

import typer

from ramet.api import program
from ramet.cli import (
    calling,
    demo,
    disks,
    docker_words,
    doctor,
    examples,
    execute,
    fork,
    images,
    kernels,
    lifecycle,
    output,
    pool,
    run,
    run_words,
    show,
    snapshots,
)
from ramet.errors import UsageError
from ramet.version import __version__

_COMPLETION: Final = "_RAMET_COMPLETE"
"""The variable by which the shells' scripts ask for completions; Typer, too, ignores an empty one."""

app = typer.Typer(
    name="ramet",
    cls=docker_words.Commands,
    help="Boot a microVM once, fork it into hundreds of copies that share its memory.",
    no_args_is_help=True,
    rich_markup_mode=None,
    epilog=examples.epilog(""),
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


def _add(name: str, verb: Callable[..., None], **settings: Any) -> None:
    app.command(name, epilog=examples.epilog(name), **settings)(verb)


_add("doctor", doctor.doctor)
_add("demo", demo.demo)
_add("run", run.run, cls=run_words.RunCommand, context_settings=run.SETTINGS)
_add("ps", show.ps)
_add("tree", show.tree)
_add("inspect", show.inspect)
_add("logs", show.logs)
_add("stats", show.stats)
_add("wait", lifecycle.wait)
_add("exec", execute.execute, context_settings=execute.SETTINGS)
_add("stop", lifecycle.stop)
_add("start", lifecycle.start)
_add("pause", lifecycle.pause)
_add("resume", lifecycle.resume)
_add("standby", lifecycle.standby)
_add("restore", lifecycle.restore)
_add("rm", lifecycle.remove)
_add("template", lifecycle.template)
_add("fork", fork.fork)
_add("keep", lifecycle.keep)
_add("rewind", lifecycle.rewind)
_add("serve", pool.serve)
_add("pool", pool.pool)
_add("pull", images.pull)
app.add_typer(snapshots.snapshot, name="snapshot")
app.add_typer(disks.disk, name="disk")
app.add_typer(images.image, name="image")
app.add_typer(kernels.kernel, name="kernel")


def main() -> int:
    """Run the command line of this process and return its exit code."""
    _open_missing_streams()
    program.begin()
    output.take_over()
    if os.environ.get(_COMPLETION):
        return _complete()
    try:
        code = app(prog_name="ramet", standalone_mode=False) or 0
    except typer.TyperException as error:
        code = _report_usage(error)
    except BrokenPipeError:
        output.silence()
        code = calling.BROKEN_PIPE
    except SystemExit as error:
        # Typer's own exit: after help, which may have lost its reader (EPIPE).
        broken = isinstance(error.__context__, BrokenPipeError)
        code = calling.BROKEN_PIPE if broken else error.code if isinstance(error.code, int) else 1
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except Exception as error:
        code = calling.report(error, json=_wants_json())
    try:
        sys.stdout.flush()
    except OSError:
        output.silence()  # Typer's output; its failure has been reported
    return int(code)


def _complete() -> int:
    """Print the completions that a shell asks for. Errors are silent: a prompt is no place for them."""
    # Typer renders descriptions with rich if it finds rich, and importing that takes half of the time.
    sys.modules["rich"] = None  # type: ignore[assignment]
    try:
        app(prog_name="ramet", standalone_mode=False)
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1
    except BaseException:
        output.silence()
        return 1
    return 0


def _report_usage(error: typer.TyperException) -> int:
    """Report an error of Typer's: an unknown option, a missing argument."""
    message = error.format_message()
    context = getattr(error, "ctx", None)
    if context is not None and not _wants_json() and type(error).__name__ == "NoArgsIsHelpError":
        output.warn(message)
        return error.exit_code
    if context is None:
        return calling.report(UsageError(message), json=_wants_json())
    option = getattr(error, "option_name", None)
    if hint := docker_words.option_hint(context.command_path, option):
        message = f"no such option: {option}"
    return calling.report(
        UsageError(message, hint=hint or f"`{context.command_path} --help` shows the usage"),
        json=_wants_json(),
    )


def _wants_json() -> bool:
    """Say whether --json was given, as far as words show that couldn't be parsed."""
    words = sys.argv[1:]
    return "--json" in words[: words.index("--")] if "--" in words else "--json" in words


def _open_missing_streams() -> None:
    """Put /dev/null where a standard stream is closed.

    Otherwise the next file that is opened, perhaps the database, gets the stream's number.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


if __name__ == "__main__":
    sys.exit(main())
