"""Names of images, and platforms, as the library writes them."""

from __future__ import annotations

from typing import Final

from ramet.errors import UsageError
from ramet.oci.reference import Reference

_LONGEST_NAME: Final = 512


def canonical_name(text: str) -> str:
    """Return a name with its tag, as the library keeps it; a text that is no reference stays as it is."""
    try:
        return Reference.parse(text).familiar
    except UsageError:
        return text


def require_name(name: str) -> None:
    """Raise `UsageError` for a text that can't be the name of an image."""
    if not 0 < len(name) <= _LONGEST_NAME or not name.isprintable() or name != name.strip() or name[0] == "-":
        raise UsageError(
            f"{name!r} can't be the name of an image", hint="give it a name such as app or app:1.2"
        )


def host_platform_text() -> str:
    """Return the platform of guests on this machine."""
    from ramet.oci.platforms import host_platform

    return platform_text(str(host_platform()))


def platform_text(text: str) -> str:
    """Return a platform without a variant that says nothing: `linux/arm64/v8` is `linux/arm64`."""
    from ramet.oci.platforms import BASE_VARIANT

    system, _, rest = text.partition("/")
    architecture, _, variant = rest.partition("/")
    is_base = not variant or BASE_VARIANT.get(architecture) == variant
    return f"{system}/{architecture}" if is_base else text
