"""Errors as the shapes that JSON documents show."""

from __future__ import annotations

from ramet.errors import RametError
from ramet.model.schema import ErrorShape


def error_shape(error: Exception, *, internal: bool = False) -> ErrorShape:
    """Return the shape of an error.

    An error outside ramet's tree and the system's is shown with its type. With `internal` it is called an
    internal error, and its hint says how to get a traceback.
    """
    if isinstance(error, RametError):
        return ErrorShape(code=error.code, message=error.message, hint=error.hint)
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return ErrorShape(code=RametError.code, message=f"{where}{error.strerror}")
    message = f"{type(error).__name__}: {error}"
    if not internal:
        return ErrorShape(code=RametError.code, message=message)
    return ErrorShape(
        code="internal",
        message=f"internal error: {message}",
        hint="RAMET_DEBUG=1 shows where it came from",
    )
