"""The requests of Cloud Hypervisor's API: `ramet.drivers.http_api` with its paths and words.

Sources: Cloud Hypervisor's `docs/api.md`, `vmm/src/api/openapi/cloud-hypervisor.yaml`; errors are a list of
texts from 52 on, the outermost first (`vmm/src/api/http/mod.rs`).
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import ClassVar, Final

import msgspec

from ramet.drivers import http_api
from ramet.drivers.http_api import Answer, HttpApi
from ramet.text import printable

_ROOT: Final = "/api/v1/"
_LONGEST_WORDS: Final = 1000


class Api(HttpApi):
    """A leased API socket of a Cloud Hypervisor."""

    vmm: ClassVar[str] = "Cloud Hypervisor"

    def refusal(self, answer: Answer) -> str:
        """Return Cloud Hypervisor's words for a refusal, the outermost first."""
        return words_of(answer.content)


def words_of(content: bytes) -> str:
    """Return the texts of an error, as one line of at most 1000 characters."""
    try:
        words = ": ".join(msgspec.json.decode(content, type=list[str]))
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        words = content.decode(errors="replace")
    return " ".join(printable(words.encode()).split())[:_LONGEST_WORDS] or "without a word"


def path_of(request: str) -> str:
    """Return the path of a request such as `vm.pause`."""
    return f"{_ROOT}{request}"


def api(directory: Path, *, who: str, limit_s: float | None = None) -> AbstractAsyncContextManager[Api]:
    """Lease the API of the Cloud Hypervisor that works in `directory` (`http_api.lease`)."""
    return http_api.lease(Api, directory, who=who, limit_s=limit_s)
