"""OpenTelemetry's spans of a fork, made after the call from the numbers in the receipts.

Nothing happens on a fork's path: the spans get explicit times. And nothing is imported for them here: an
application that wants spans has loaded `opentelemetry.trace` to set its provider, or an agent has for it. If
it isn't loaded, nothing else is done.

The spans and their attributes: docs/how-to/tracing.md.
"""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from ramet.engine.restore.timeline import STEPS
from ramet.model.schema import Receipt
from ramet.version import __version__

if TYPE_CHECKING:
    from opentelemetry.trace import Span

    from ramet.engine.capture.capture import Captured
    from ramet.engine.origin import Origin
    from ramet.model.schema import ForkFailure, ForkReport

_API = "opentelemetry.trace"


def trace(origin: Origin, report: ForkReport, called_at: float, captured: Captured | None) -> None:
    """Emit the spans of a call of `fork`, which began at `called_at` (`time.perf_counter`) and is done.

    The caller's current span is their parent. Never raises: forks that are there aren't lost to a trace.
    """
    if _API in sys.modules:
        with suppress(Exception):  # a span is all that is lost
            _Trace(called_at).call(origin, report, captured)


class _Trace:
    """The spans of a call. Numbers of receipts are whole microseconds, so they are exact in nanoseconds."""

    def __init__(self, called_at: float) -> None:
        from opentelemetry import trace as api

        self._api = api
        self._tracer = api.get_tracer("ramet", __version__)
        self._epoch_ns = time.time_ns() - time.perf_counter_ns()
        self._called_ns = self._wall_ns(called_at)

    def _wall_ns(self, moment_s: float) -> int:
        return self._epoch_ns + round(moment_s * 1e9)

    def call(self, origin: Origin, report: ForkReport, captured: Captured | None) -> None:
        failed = sum(not fork.ok for fork in report.forks)
        count = len(report.forks)
        attributes: dict[str, str | int] = {
            "ramet.source.id": origin.parent,
            "ramet.source.name": origin.name,
            "ramet.driver": origin.manifest.driver,
            "ramet.forks.count": count,
            "ramet.forks.ok": count - failed,
            "ramet.forks.failed": failed,
            "ramet.saved_bytes": report.saved_bytes,
        }
        if origin.snapshot is not None:
            attributes["ramet.snapshot.id"] = origin.snapshot
        whole = self._begin("ramet.fork", self._called_ns, None, attributes)
        if whole.is_recording():  # there is a provider, and its sampler wants this one
            if captured is not None:
                self._capture(whole, captured)
            for fork in report.forks:
                if isinstance(fork, Receipt):
                    self._fork(whole, fork)
                else:
                    self._failure(whole, fork, self._called_ns + _ns(report.wall_ms))
            if failed:
                self._fail(whole, f"{failed} of {count} forks failed")
        whole.end(self._called_ns + _ns(report.wall_ms))

    def _capture(self, whole: Span, captured: Captured) -> None:
        begun_ns = self._wall_ns(captured.begun)
        span = self._begin("ramet.fork.capture", begun_ns, whole, {})
        if captured.pause_ms:
            paused_ns = self._wall_ns(captured.pause_begun)
            self._begin("ramet.fork.pause", paused_ns, span, {}).end(paused_ns + _ns(captured.pause_ms))
        span.end(begun_ns + _ns(captured.capture_ms))

    def _fork(self, whole: Span, receipt: Receipt) -> None:
        attributes: dict[str, str | int] = {
            "ramet.instance.id": receipt.id,
            "ramet.instance.name": receipt.name,
            "ramet.generation": receipt.identity.generation,
            "ramet.memory.mode": receipt.memory.mode,
            "ramet.memory.reason": receipt.memory.reason,
            "ramet.memory.delta_bytes": receipt.memory.delta_bytes,
            "process.pid": receipt.pid,
        }
        if receipt.warm is not None:
            attributes["ramet.warm"] = receipt.warm
        end_ns = self._called_ns + _ns(receipt.timings_ms.total)
        span = self._begin("ramet.fork.one", self._called_ns, whole, attributes)
        # From the last one backwards: what comes before them is the capture, where there was one.
        step_end_ns = end_ns
        for step in reversed(STEPS):
            begun_ns = step_end_ns - _ns(getattr(receipt.timings_ms, step))
            self._begin(f"ramet.fork.{step}", begun_ns, span, {}).end(step_end_ns)
            step_end_ns = begun_ns
        if receipt.timings_ms.decompress:
            begun_ns = step_end_ns - _ns(receipt.timings_ms.decompress)
            self._begin("ramet.fork.decompress", begun_ns, span, {}).end(step_end_ns)
        span.end(end_ns)

    def _failure(self, whole: Span, failure: ForkFailure, end_ns: int) -> None:
        attributes: dict[str, str | int] = {
            "ramet.instance.name": failure.name,
            "error.type": failure.error.code,
        }
        span = self._begin("ramet.fork.one", self._called_ns, whole, attributes)
        self._fail(span, failure.error.message)
        span.end(end_ns)

    def _begin(self, name: str, at_ns: int, parent: Span | None, attributes: dict[str, str | int]) -> Span:
        context = self._api.set_span_in_context(parent) if parent is not None else None
        return self._tracer.start_span(name, context, attributes=attributes, start_time=at_ns)

    def _fail(self, span: Span, why: str) -> None:
        span.set_status(self._api.Status(self._api.StatusCode.ERROR, why))


def _ns(duration_ms: float) -> int:
    return round(duration_ms * 1e6)
