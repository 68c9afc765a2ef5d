"""What ramet is held to, and whether a run shows it. A bar that wasn't measured is neither met nor missed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from benchmarks import branches, footprint, images, latency, runs, startup, thousand, touched
from benchmarks.document import Document
from benchmarks.figures import Figure, Key, Ratio, percentile
from benchmarks.quantities import number, quantity
from benchmarks.run import Outcome
from ramet.units import GIB

DRIVERS: Final = {"firecracker": "Firecracker", "qemu": "QEMU"}


@dataclass(frozen=True)
class Bar:
    """A row of the table."""

    what: str
    limit: str
    measured: str
    met: bool | None
    n: int


def judge(document: Document) -> list[Bar]:
    """All bars, in the order of the page."""
    return [bar for judged in _JUDGES for bar in judged(document)]


def _ratio(document: Document, benchmark: str, name: str) -> Ratio | None:
    outcome = document.outcome(benchmark)
    return next((ratio for ratio in outcome.ratios if ratio.name == name), None) if outcome else None


def _figure(document: Document, benchmark: str, key: Key) -> Figure | None:
    outcome: Outcome | None = document.outcome(benchmark)
    return next((figure for figure in outcome.figures if figure.key == key), None) if outcome else None


def _of_ratio(
    what: str, ratio: Ratio | None, *, most: float | None = None, least: float | None = None
) -> Bar:
    limit = f"≤ {most:g}" if most is not None else f"≥ {least:g}"
    if ratio is None:
        return Bar(what, limit, "not measured", None, 0)
    met = ratio.ratio <= most if most is not None else ratio.ratio >= (least or 0)
    said = f"{number(ratio.ratio)} ({number(ratio.low)} to {number(ratio.high)})"
    return Bar(what, limit, said, met, ratio.n)


def _of_figure(what: str, figure: Figure | None, share: float, most: float) -> Bar:
    limit = "≤ "
    if figure is None:
        return Bar(what, limit + f"{most:g}", "not measured", None, 0)
    value = percentile(figure.values, share) if share != 0.5 else figure.median
    return Bar(
        what,
        limit + quantity(most, figure.unit),
        quantity(value, figure.unit),
        value <= most,
        len(figure.values),
    )


def _single_forks(document: Document) -> Iterator[Bar]:
    for driver, name in DRIVERS.items():
        found = _ratio(document, "latency", f"{driver}: ramet over floor")
        yield _of_ratio(f"{name}: fork to ready over the floor, no pool", found, most=1.25)
    for driver, most in (("firecracker", 0.8), ("qemu", 0.7)):
        found = _ratio(document, "latency", f"{driver}: warm pool over floor")
        yield _of_ratio(f"{DRIVERS[driver]}: the same with a warm pool", found, most=most)


def _hundred_forks(document: Document) -> Iterator[Bar]:
    for driver, name in DRIVERS.items():
        found = _ratio(document, "fanout", f"{driver}: 100 forks over the floor's, wall time of the call")
        yield _of_ratio(f"{name}: 100 forks in one call over the floor's, as many at a time", found, most=1.2)


def _ram(document: Document) -> Iterator[Bar]:
    for driver, name in DRIVERS.items():
        found = _ratio(document, "ram_size", f"{driver}, ramet: 4G over 256M")
        yield _of_ratio(f"{name}: RAM of 4 GiB over 256 MiB", found, most=1.15)


def _copying(document: Document) -> Iterator[Bar]:
    for driver, faster in (("firecracker", 100), ("qemu", 10)):
        for what, least in ((latency.READY, faster), (touched.DISK, 100), (touched.MEMORY, 30)):
            name = f"{driver}: copying over sharing, {4 * GIB >> 20} MiB touched, {what}"
            text = f"{DRIVERS[driver]}: copying over sharing, 4 GiB touched, {what}"
            yield _of_ratio(text, _ratio(document, "touched", name), least=least)


def _depth(document: Document) -> Iterator[Bar]:
    for driver, name in DRIVERS.items():
        found = _ratio(document, "depth", f"{driver}: depth 50 over depth 1")
        yield _of_ratio(f"{name}: depth 50 over depth 1", found, most=1.1)


def _pause(document: Document) -> Iterator[Bar]:
    for driver, name in DRIVERS.items():
        for memory, median_ms in (("512M", 10), ("4G", 15)):
            figure = _figure(document, "branches", Key(branches.PAUSE, f"{driver}, {memory}", 0))
            for share, most in ((0.5, median_ms), (0.99, 25)):
                what = f"{name}: pause of a branch, {memory}, ≤ 1 MiB changed, p{100 * share:.0f}"
                yield _of_figure(what, figure, share, most)


def _footprint(document: Document) -> Iterator[Bar]:
    who = "firecracker, ramet"
    found = _figure(document, "footprint", Key(footprint.READY, who))
    yield _of_figure("Firecracker: PSS of a living fork", found, 0.5, 1e6)
    found = _figure(document, "footprint", Key(footprint.OWN_MEMORY, who))
    yield _of_figure("ramet's own memory for each", found, 0.5, 64e3)


def _thousand(document: Document) -> Iterator[Bar]:
    def one(what: str) -> Figure | None:
        return _figure(document, "thousand", Key(what, "firecracker, ramet", thousand.COUNT))

    answered, reaped, left = one(thousand.ANSWERED), one(thousand.REAPED), one(thousand.LEFT)
    text = f"{thousand.COUNT:,} probe forks alive at once"
    if answered is None or reaped is None or left is None:
        yield Bar(text, "all answer; reaped in < 10 s; nothing left", "not measured", None, 0)
        return
    count = answered.values[0]
    yield Bar(f"{text}: those that answered", "all", f"{count:g}", count == thousand.COUNT, 1)
    yield _of_figure(f"{text}: time to reap", reaped, 0.5, 10)
    yield Bar(f"{text}: processes and directories left", "0", f"{left.values[0]:g}", left.values[0] == 0, 1)


def _startup(document: Document) -> Iterator[Bar]:
    found = _figure(document, "startup", Key(startup.WALL, "ramet --help"))
    yield _of_figure("`ramet --help`, the whole command", found, 0.5, 150)


def _images(document: Document) -> Iterator[Bar]:
    found = _ratio(document, "images", images.OVER_LAYERS)
    yield _of_ratio("Images on one base over their distinct layers, disk", found, most=1.3)


def _runs(document: Document) -> Iterator[Bar]:
    for driver, name in DRIVERS.items():
        for what in (f"{runs.SNAPSHOT} over {runs.FORK}", f"{runs.FIRST} over {runs.COLD}"):
            if driver == "qemu" or runs.FORK in what:  # the probe boots as quickly as it forks
                found = _ratio(document, "runs", f"{driver}: {what}")
                yield _of_ratio(f"{name}, first output: {what}", found, most=1.3)


_JUDGES: Final[tuple[Callable[[Document], Iterator[Bar]], ...]] = (
    _single_forks,
    _hundred_forks,
    _ram,
    _copying,
    _depth,
    _pause,
    _footprint,
    _thousand,
    _startup,
    _images,
    _runs,
)
