"""The words of `run`: options, IMAGE, and a command with its own options.

Everything after IMAGE is CMD, as with Docker. The images that ramet makes have no entrypoint, so a first word
with a dash can't be a program there: options directly after such an image stay ramet's, as they ever were.
"""

from __future__ import annotations

from typing import Any, Final

from typer.core import TyperCommand

BUILT_IN: Final = ("builtin", "probe", "bare")
_SEPARATOR: Final = "--"


class RunCommand(TyperCommand):
    """The command `run`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the words, after options behind IMAGE have been put before it where IMAGE is ramet's own."""
        return super().parse_args(ctx, self._in_order(ctx, args))

    def _in_order(self, ctx: Any, args: list[str]) -> list[str]:
        after = self._after_options(ctx, args)
        if len(after) < 2 or after[0] not in BUILT_IN or not _is_option(after[1]):
            return args
        image, tail = after[0], after[1:]
        rest = self._after_options(ctx, tail)
        options = tail[: len(tail) - len(rest)]
        if options and options[-1] == _SEPARATOR:
            options.pop()
        before = args[: len(args) - len(after)]
        return [*before, *options, image, _SEPARATOR, *rest] if rest else [*before, *options, image]

    def _after_options(self, ctx: Any, args: list[str]) -> list[str]:
        """Return the words behind the options that `args` begin with; none if these are wrong."""
        parser: Any = self.make_parser(ctx)
        try:
            given, _, _ = parser.parse_args(list(args))
        except Exception:
            return []  # the parse that follows finds the same, and reports it
        image, command = given.get("image"), given.get("command")
        return [image, *(command or ())] if isinstance(image, str) else []


def _is_option(word: str) -> bool:
    return word.startswith("-") and word not in ("-", _SEPARATOR)
