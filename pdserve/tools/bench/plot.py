"""Latency against load, as a picture."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pdserve.errors import UsageError
from pdserve.files import writing
from pdserve.tools.bench.run import Run

FORMATS = (".png", ".svg", ".pdf")

# From this ratio of latencies on, a linear axis would hide the low ones.
_LOGARITHMIC_FROM = 20


def check_plot(path: Path) -> None:
    """Raise UsageError where `plot` could not write ``path``: to be asked before the load starts."""
    if path.suffix.lower() not in FORMATS:
        raise UsageError(f"--plot {path} does not end in one of {', '.join(FORMATS)}.")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"--plot {path}: there is no folder {path.absolute().parent}.")
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError('--plot needs matplotlib: `pip install "pdserve[plot]"`.')


def plot(runs: Sequence[Run], path: Path) -> None:
    """Draw p50 and p99 of each route: over the answers per second of closed loops, over the rate that open
    loops offered; hollow where some requests failed. Raises DiskError.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    axes: Any = figure.add_subplot()
    is_open = any(run.load.clients is None for run in runs)
    for route in dict.fromkeys(run.route for run in runs):
        _draw(axes, route, [run for run in runs if run.route == route and len(run.latencies)])
    axes.set_title(_title(runs), loc="left", fontsize="medium")
    axes.set_xlabel("offered, requests/s" if is_open else "answered, requests/s, by the number of clients")
    axes.set_ylabel("latency, ms")
    axes.margins(x=0.08, y=0.12)  # room for the numbers beside the points
    axes.set_xlim(left=0)
    heights = [y for line in axes.get_lines() for y in line.get_ydata()]
    if heights and max(heights) > _LOGARITHMIC_FROM * min(heights):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
    else:
        axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    if heights:
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    with writing(path):
        figure.savefig(path, dpi=150)


def _title(runs: Sequence[Run]) -> str:
    """Whose latency it is, and what was asked."""
    asked = ", ".join(dict.fromkeys(run.address for run in runs))
    sizes = ", ".join(dict.fromkeys(str(run.batch) for run in runs if run.batch > 1))
    failed = (
        "; hollow: some requests failed" if any(run.failed and len(run.latencies) for run in runs) else ""
    )
    return asked + (f"; {sizes} images in a request" if sizes else "") + failed


def _draw(axes: Any, route: str, runs: Sequence[Run]) -> None:
    """One colour per route: a whole line for p50, a broken one for p99, the clients beside it."""
    if not runs:
        return
    colour = f"C{len(axes.get_lines()) // 2}"
    loads = [run.requests_per_s if run.load.rate is None else run.load.rate for run in runs]
    for percentile, style in (("p50", "-"), ("p99", "--")):
        heights = [(run.latency_ms() or {})[percentile] for run in runs]
        axes.plot(loads, heights, style, color=colour, marker="o", label=f"{route} {percentile}")
        for run, x, y in zip(runs, loads, heights, strict=True):
            if run.failed:
                axes.scatter([x], [y], color="white", edgecolors=colour, zorder=3)
        if percentile == "p99":
            for run, x, y in zip(runs, loads, heights, strict=True):
                if run.load.clients is not None:
                    axes.annotate(
                        str(run.load.clients),
                        (x, y),
                        (4, 4),
                        textcoords="offset points",
                        color=colour,
                        fontsize="small",
                    )
