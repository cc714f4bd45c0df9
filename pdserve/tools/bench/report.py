"""Runs as people read them: tables, sentences about failures, a JSON file, a plot."""

import importlib.util
import json
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pdserve import __version__
from pdserve.errors import UsageError
from pdserve.files import disk_errors
from pdserve.machine import cores
from pdserve.tools.bench.run import Run

Table = tuple[list[str], list[tuple[object, ...]]]
"""Columns, and rows of as many cells; None for an unknown figure."""

PLOT_FORMATS = (".png", ".svg", ".pdf")
_EXAMPLE_CHARACTERS = 160
# From this ratio of latencies on, a linear axis would hide the low ones.
_LOGARITHMIC_FROM = 20


def latencies(runs: Sequence[Run]) -> Table:
    """A row per run: throughput, failures, latencies in milliseconds."""
    columns = ["route", "load", "images/s", "requests/s", "failed"]
    columns += [f"{name} ms" for name in ("mean", "p50", "p90", "p95", "p99", "max")]
    rows: list[tuple[object, ...]] = []
    for run in runs:
        summary = run.latency_ms()
        values = tuple(summary.values()) if summary else (None,) * 6
        rows.append((run.route, str(run.load), run.images_per_s, run.requests_per_s, run.failed, *values))
    return columns, rows


def stages(runs: Sequence[Run]) -> Table | None:
    """A row per run with the server's figures: means of stages in milliseconds, and the mean batch."""
    known = [(run, run.server) for run in runs if run.server is not None]
    if not known:
        return None
    names = dict.fromkeys((s.stage, s.model) for _, server in known for s in server.stages)
    models = dict.fromkeys(b.model for _, server in known for b in server.batches)
    is_one = len({model for model in (*models, *(model for _, model in names)) if model}) < 2
    columns = ["route", "load"]
    columns += [f"{stage} ms" if is_one or not model else f"{stage} ms, {model}" for stage, model in names]
    columns += ["images/batch" if is_one else f"images/batch, {model}" for model in models]
    rows: list[tuple[object, ...]] = []
    for run, server in known:
        means = {(s.stage, s.model): s.mean_ms for s in server.stages}
        sizes = {b.model: b.mean for b in server.batches}
        cells = (*(means.get(name) for name in names), *(sizes.get(model) for model in models))
        rows.append((run.route, str(run.load), *cells))
    return columns, rows


def failures(run: Run) -> list[str]:
    """What failed in a run, a line each: requests by kind with a message of each; nothing if none did."""
    name = f"{run.route}, {run.load}"
    lines = []
    if run.errors:
        lines.append(f"{name}: {run.failed} requests failed.")
    for kind, count in run.errors.items():
        example = " ".join(run.examples.get(kind, "").split())
        if len(example) > _EXAMPLE_CHARACTERS:
            example = f"{example[: _EXAMPLE_CHARACTERS - 1]}…"
        lines.append(f"  {count} × {kind}" + (f", as in: {example}" if example else ""))
    if run.unsent:
        lines.append(f"{name}: {run.unsent} were due while too many were in flight, and not sent.")
    if not run.answers:
        waiting = f"; {run.in_flight} were in flight" if run.in_flight else ""
        lines.append(f"{name}: no request was answered in {run.seconds:.1f} s{waiting}.")
    return lines


def check_record(path: Path) -> None:
    """Raise UsageError where the file could not be written: to be called before the load starts."""
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise UsageError(f"--out {path} must be a file in a folder that exists.")


def write_record(runs: Sequence[Run], path: Path) -> None:
    """Write the figures of all runs as JSON, with where they were taken. Raises DiskError."""
    content = {
        "pdserve": __version__,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "system": platform.platform(),
            "cores": cores(),
            "python": platform.python_version(),
        },
        "runs": [run.to_json() for run in runs],
    }
    with disk_errors(path):
        path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")


def check_plot(path: Path) -> None:
    """Raise UsageError where `plot` could not write ``path``: to be called before the load starts."""
    if path.suffix.lower() not in PLOT_FORMATS:
        raise UsageError(f"--plot {path} does not end in one of {', '.join(PLOT_FORMATS)}.")
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
    drawn = [run for run in runs if len(run.latencies)]
    for number, route in enumerate(dict.fromkeys(run.route for run in drawn)):
        _draw(axes, f"C{number}", [run for run in drawn if run.route == route])
    axes.set_title(_title(runs), loc="left", fontsize="medium")
    is_open = any(run.load.clients is None for run in runs)
    axes.set_xlabel("offered, requests/s" if is_open else "answered, requests/s, by the number of clients")
    axes.set_ylabel("latency, ms")
    axes.margins(x=0.08, y=0.12)  # for the numbers beside the points
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
    with disk_errors(path):
        figure.savefig(path, dpi=150)


def _title(runs: Sequence[Run]) -> str:
    title = ", ".join(dict.fromkeys(run.address for run in runs))
    if sizes := ", ".join(dict.fromkeys(str(run.batch) for run in runs if run.batch > 1)):
        title += f"; {sizes} images in a request"
    if any(run.failed and len(run.latencies) for run in runs):
        title += "; hollow: some requests failed"
    return title


def _draw(axes: Any, colour: str, runs: Sequence[Run]) -> None:
    """One route: a solid line for p50, a dashed one for p99 with the number of clients."""
    loads = [run.requests_per_s if run.load.rate is None else run.load.rate for run in runs]
    latencies = [run.latency_ms() or {} for run in runs]
    for percentile, style in (("p50", "-"), ("p99", "--")):
        heights = [each[percentile] for each in latencies]
        axes.plot(loads, heights, style, color=colour, marker="o", label=f"{runs[0].route} {percentile}")
        for run, x, y in zip(runs, loads, heights, strict=True):
            if run.failed:
                axes.scatter([x], [y], color="white", edgecolors=colour, zorder=3)
            if percentile == "p99" and run.load.clients is not None:
                beside = {"xytext": (4, 4), "textcoords": "offset points", "fontsize": "small"}
                axes.annotate(str(run.load.clients), (x, y), color=colour, **beside)
