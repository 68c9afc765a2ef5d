"""The spans of a fork, as OpenTelemetry's own SDK gets them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

import ramet
import ramet.sync
from ramet.engine.restore.timeline import STEPS
from ramet.model import protocols
from tests.support.lost_vmm import lose_the_second_vmm

pytestmark = [pytest.mark.vm, pytest.mark.anyio]
PAGE = (Path(__file__).parents[3] / "docs" / "how-to" / "tracing.md").read_text()


@pytest.fixture(scope="module")
def provided() -> Iterator[InMemorySpanExporter]:
    """The process's provider, which can be set once."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    yield exporter
    provider.shutdown()


class Spans:
    """What has been exported."""

    def __init__(self, exporter: InMemorySpanExporter) -> None:
        self._exporter = exporter

    def of(self, name: str, parent: ReadableSpan | None = None) -> list[ReadableSpan]:
        """Those of that name, below `parent` where one is given, in the order in which they began."""
        found = [span for span in self._exporter.get_finished_spans() if span.name == name]
        if parent is not None:
            found = [span for span in found if span.parent is not None and span.parent == parent.context]
        return sorted(found, key=lambda span: span.start_time or 0)

    def one(self, name: str, parent: ReadableSpan | None = None) -> ReadableSpan:
        [found] = self.of(name, parent)
        return found

    def names(self, parent: ReadableSpan) -> list[str]:
        """Of everything below `parent`, at once."""
        below = [span for span in self._exporter.get_finished_spans() if span.parent == parent.context]
        return sorted(span.name for span in below)


@pytest.fixture
def spans(provided: InMemorySpanExporter) -> Spans:
    provided.clear()
    return Spans(provided)


def attribute(span: ReadableSpan, name: str) -> Any:
    """One of ramet's."""
    return dict(span.attributes or {})[f"ramet.{name}"]


def took_ms(span: ReadableSpan) -> float:
    return (end_ns(span) - begun_ns(span)) / 1e6


def begun_ns(span: ReadableSpan) -> int:
    assert span.start_time is not None
    return span.start_time


def end_ns(span: ReadableSpan) -> int:
    assert span.end_time is not None
    return span.end_time


def inside(inner: ReadableSpan, outer: ReadableSpan) -> bool:
    """To 20 µs: the numbers of a receipt are rounded, each for itself."""
    return begun_ns(outer) - 20_000 <= begun_ns(inner) <= end_ns(inner) <= end_ns(outer) + 20_000


async def test_the_tree_has_the_receipts_numbers(warm: protocols.VM, spans: Spans) -> None:
    with trace.get_tracer("test").start_as_current_span("mine"):
        forks = await warm.fork(3)
    call = spans.one("ramet.fork", parent=spans.one("mine"))
    assert inside(call, spans.one("mine"))
    assert call.status.status_code is StatusCode.UNSET
    assert attribute(call, "saved_bytes") > 0
    assert {key: value for key, value in dict(call.attributes or {}).items() if "bytes" not in key} == {
        "ramet.source.id": warm.id,
        "ramet.source.name": "warm",
        "ramet.driver": "qemu",
        "ramet.forks.count": 3,
        "ramet.forks.ok": 3,
        "ramet.forks.failed": 0,
    }
    assert spans.names(call) == ["ramet.fork.one"] * 3
    found = {
        span.attributes["ramet.instance.name"]: span for span in spans.of("ramet.fork.one") if span.attributes
    }
    for fork in forks:
        span, receipt = found[fork.name], fork.receipt
        assert span.attributes is not None
        assert attribute(span, "instance.id") == fork.id
        assert attribute(span, "memory.mode") == receipt.memory.mode == "shared"
        assert begun_ns(span) == begun_ns(call)
        assert inside(span, call)
        assert took_ms(span) == pytest.approx(receipt.timings_ms.total)
        assert spans.names(span) == sorted(f"ramet.fork.{step}" for step in STEPS)
        steps = [spans.one(f"ramet.fork.{step}", parent=span) for step in STEPS]
        for step, name in zip(steps, STEPS, strict=True):
            assert took_ms(step) == pytest.approx(getattr(receipt.timings_ms, name)), name
            assert inside(step, span)
        assert all(end_ns(one) == begun_ns(other) for one, other in pairwise(steps))


async def test_a_capture_is_made_once_for_all(
    warm: protocols.VM, warm_host: protocols.Host, spans: Spans
) -> None:
    [source] = await warm.fork(1, name="source")
    call = spans.one("ramet.fork")
    assert spans.of("ramet.fork.capture") == []
    forks = await source.fork(2)
    other = next(span for span in spans.of("ramet.fork") if span is not call)
    capture = spans.one("ramet.fork.capture", parent=other)
    pause = spans.one("ramet.fork.pause", parent=capture)
    assert inside(capture, other)
    assert inside(pause, capture)
    for fork in forks:
        assert took_ms(capture) == pytest.approx(fork.receipt.timings_ms.capture)
        assert took_ms(pause) == pytest.approx(fork.receipt.timings_ms.pause)
    for span in spans.of("ramet.fork.queued"):
        if span.parent is not None and span.parent != call.context and begun_ns(span) > begun_ns(other):
            assert begun_ns(span) >= end_ns(pause)


async def test_what_fails_has_an_error(
    warm: protocols.VM, spans: Spans, monkeypatch: pytest.MonkeyPatch
) -> None:
    lose_the_second_vmm(monkeypatch)
    with pytest.raises(ramet.ForkError) as caught:
        await warm.fork(3)
    [(name, error)] = caught.value.errors.items()
    call = spans.one("ramet.fork")
    assert call.status.status_code is StatusCode.ERROR
    assert call.status.description == "1 of 3 forks failed"
    assert (attribute(call, "forks.ok"), attribute(call, "forks.failed")) == (2, 1)
    [failed] = [span for span in spans.of("ramet.fork.one") if span.status.status_code is StatusCode.ERROR]
    assert attribute(failed, "instance.name") == name
    assert dict(failed.attributes or {})["error.type"] == "vmm_failed"
    assert failed.status.description == str(error)
    assert spans.names(failed) == []


async def test_a_trace_that_fails_costs_no_fork(
    warm: protocols.VM, spans: Spans, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no clock")

    monkeypatch.setattr("ramet.engine.fork.tracing._Trace._wall_ns", broken)
    assert len(await warm.fork(1)) == 1
    assert spans.of("ramet.fork") == []


def test_plain_code_is_the_parent_too(warm_home: Path, spans: Spans) -> None:
    mine = trace.get_tracer("test").start_as_current_span("plain")
    with ramet.sync.Host(warm_home) as host, mine, host.get("warm").fork(1):
        pass
    assert spans.one("ramet.fork", parent=spans.one("plain"))


WITHOUT = """
import sys
import ramet.sync
with ramet.sync.Host() as host, host.get("warm").fork(1) as forks:
    assert forks[0].exec("true").ok
print(sorted(name for name in sys.modules if name.startswith("opentelemetry")))
"""
ABSENT = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.startswith("opentelemetry"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
"""


@pytest.mark.parametrize("extra", ["", ABSENT], ids=["installed", "absent"])
def test_nothing_is_imported_for_it(warm_home: Path, warm_host: protocols.Host, extra: str) -> None:
    assert run(extra + WITHOUT, warm_home) == "[]\n"


def test_an_application_without_a_provider_gets_none(warm_home: Path, warm_host: protocols.Host) -> None:
    script = "import opentelemetry.trace\n" + WITHOUT
    assert "opentelemetry.sdk" not in run(script, warm_home)


def test_the_pages_example(home: Path) -> None:
    [example] = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    said = run(example, home)
    names = re.findall(r'"name": "(ramet[a-z.]*)"', said)
    assert names.count("ramet.fork") == 1
    assert names.count("ramet.fork.one") == 2
    assert names.count("ramet.fork.ready") == 2


def run(script: str, home: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        env={**os.environ, "RAMET_HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


async def test_a_fork_from_a_pool_says_so(warm_home: Path, warm: protocols.VM, spans: Spans) -> None:
    async with ramet.Host(warm_home, warm=1) as warm_host:
        base = await warm_host.get(warm.id)
        stages: list[object] = []
        while "loaded" not in stages:
            await warm_host.pool(wait=60)
            async with base.fork(1) as (fork,):
                span = spans.of("ramet.fork.one")[-1]
                stages.append(dict(span.attributes or {}).get("ramet.warm"))
                assert stages[-1] == fork.receipt.warm
