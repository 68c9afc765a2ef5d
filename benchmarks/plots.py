"""Pictures of a run, as SVG. Needs matplotlib (`make bench` installs it)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from benchmarks.catalogue import BY_NAME
from benchmarks.document import Document
from benchmarks.figures import Figure, percentile
from benchmarks.page import picture
from benchmarks.quantities import number, place, quantity
from benchmarks.run import Benchmark, Outcome, Plot

_STYLE: Final = {
    "svg.hashsalt": "ramet",  # the same values give the same file
    "svg.fonttype": "none",  # text as text: a third of the size, and it can be searched
    "font.size": 9,
    "font.family": "sans-serif",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "axes.spines.top": False,
    "axes.spines.right": False,
}
_WIDTH_INCHES: Final = 7.2
# Okabe and Ito's colours: told apart by everybody.
_COLOURS: Final = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")


def available() -> bool:
    """Whether there is what this needs."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    return True


def draw(document: Document, directory: Path) -> None:
    """Write all pictures into that directory, and remove an earlier run's that aren't there any more."""
    import matplotlib

    matplotlib.use("svg")
    wanted = set()
    with matplotlib.rc_context(_STYLE):
        for outcome in document.outcomes:
            benchmark = BY_NAME[outcome.name]
            for index, plot in enumerate(benchmark.plots):
                if any(figure.what == plot.what for figure in outcome.figures):
                    file = directory / picture(benchmark, index)
                    _picture(outcome, benchmark, plot, file)
                    wanted.add(file)
    for old in set(directory.glob("*.svg")) - wanted:
        old.unlink()


def _picture(outcome: Outcome, benchmark: Benchmark, plot: Plot, file: Path) -> None:
    from matplotlib import pyplot

    figures = [figure for figure in outcome.figures if figure.what == plot.what]
    over_axis = any(figure.x is not None for figure in figures)
    height = 3.4 if over_axis else 0.9 + 0.42 * len(figures)
    canvas, axes = pyplot.subplots(figsize=(_WIDTH_INCHES, height), layout="constrained")
    (_lines if over_axis else _boxes)(axes, figures)
    axes.set_title(plot.title, loc="left", fontsize=10)
    unit = figures[0].unit
    value_axis = axes.yaxis if over_axis else axes.xaxis
    if over_axis:
        _ticks(axes, figures, benchmark.axis, log=plot.log_x)
        axes.set_xlabel(benchmark.axis.removeprefix("bytes of ").removeprefix("bytes "))
        axes.set_ylabel("" if unit == "bytes" else unit)
        if plot.log_y:
            axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=0)
    else:
        axes.set_xlabel("" if unit == "bytes" else unit)
        if plot.log_x:
            axes.set_xscale("log")
        else:
            axes.set_xlim(left=0)
    value_axis.set_major_formatter(_numbers(unit))
    value_axis.set_minor_formatter(_numbers(unit, crowded=True))
    canvas.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    pyplot.close(canvas)


def _numbers(unit: str, *, crowded: bool = False) -> Any:
    """Ticks as the page has numbers. Between powers of ten only twos and fives have one."""
    from matplotlib.ticker import FuncFormatter

    def text(value: float, _: int | None) -> str:
        if crowded and f"{value:e}"[0] not in "25":
            return ""
        return quantity(value, unit) if unit == "bytes" else number(value)

    return FuncFormatter(text)


def _lines(axes: Any, figures: list[Figure]) -> None:
    """A line of medians for each who, with a band from p10 to p90."""
    for index, who in enumerate(dict.fromkeys(figure.who for figure in figures)):
        own = sorted((figure for figure in figures if figure.who == who), key=lambda figure: figure.x or 0)
        xs = [figure.x for figure in own]
        colour = _COLOURS[index % len(_COLOURS)]
        axes.plot(xs, [figure.median for figure in own], marker="o", markersize=4, color=colour, label=who)
        low, high = ([percentile(figure.values, share) for figure in own] for share in (0.1, 0.9))
        axes.fill_between(xs, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.legend(frameon=False)


def _boxes(axes: Any, figures: list[Figure]) -> None:
    """For each who a box from p25 to p75 with the median, whiskers from p10 to p90, and a mark at p99."""
    shown = [
        {
            "label": figure.who,
            "med": figure.median,
            "q1": percentile(figure.values, 0.25),
            "q3": percentile(figure.values, 0.75),
            "whislo": percentile(figure.values, 0.1),
            "whishi": percentile(figure.values, 0.9),
            "fliers": [percentile(figure.values, 0.99)],
        }
        for figure in reversed(figures)
    ]
    mark = {"marker": "|", "markersize": 9, "markeredgecolor": "#888888"}
    axes.bxp(
        shown,
        orientation="horizontal",
        patch_artist=True,
        flierprops=mark,
        boxprops={"facecolor": "#56b4e9", "edgecolor": "#0072b2"},
        medianprops={"color": "#d55e00"},
    )


def _ticks(axes: Any, figures: list[Figure], axis: str, *, log: bool) -> None:
    """A tick at each place that was measured."""
    if log:
        axes.set_xscale("log")
    places = sorted({figure.x for figure in figures if figure.x is not None})
    far = max(places)
    # Those that would be printed over each other have none.
    ticks = [x for x in places if log or x in {0, far} or x > far / 12]
    axes.set_xticks(ticks, labels=[place(x, axis) for x in ticks])
    axes.minorticks_off()
