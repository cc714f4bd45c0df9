"""Plot compare.py's results: throughput and p99 by server, for each model and number of clients."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from benchmarks.comparison import figure, models, servers

# From few clients to many; legible in print and to the colour-blind.
_SHADES = ("#9ecae1", "#4292c6", "#08519c")
_OWN = ("#fdae6b", "#f16913", "#a63603")
_RAW = ("#d9d9d9", "#a6a6a6", "#737373")
_PALETTES = {"pdserve": _OWN, "int8": _OWN, "raw": _RAW}


def plot(report: Mapping[str, Any], path: Path) -> None:
    """Write the plot; the path's suffix is its format."""
    names = models(report)
    longest = max((len(servers(report, name)) for name in names), default=1)
    size = (12, 0.9 + len(names) * (0.55 + 0.36 * longest))
    drawing = Figure(figsize=size, layout="constrained")
    axes = drawing.subplots(len(names), 2, squeeze=False)
    for row, model in zip(axes, names, strict=True):
        _bars(row[0], report, model, "images_per_s", "images per second")
        _bars(row[1], report, model, "p99_ms", "p99, ms")
        row[0].set_title(model, loc="left", fontweight="bold")
        row[1].set_xscale("log")
        row[1].set_yticklabels([])
    counts = report["settings"]["clients"]
    handles = [
        Patch(color=_shade(_SHADES, i, len(counts)), label=f"{n} client" + "s" * (n != 1))
        for i, n in enumerate(counts)
    ]
    drawing.legend(handles=handles, loc="outside upper right", ncols=len(counts), frameon=False)
    drawing.savefig(path, dpi=110)


def _bars(axes: Axes, report: Mapping[str, Any], model: str, what: str, label: str) -> None:
    names = servers(report, model)
    counts = report["settings"]["clients"]
    height = 0.8 / len(counts)
    for i, count in enumerate(counts):
        for place, name in enumerate(names):
            value = figure(report, model, name, "loads", str(count), what)
            if value is None:
                continue
            palette = _PALETTES.get(report["contenders"][name]["kind"], _SHADES)
            y = place + (i - (len(counts) - 1) / 2) * height
            axes.barh(y, value, height * 0.92, color=_shade(palette, i, len(counts)))
            axes.annotate(
                f"{value:.1f}" if what == "images_per_s" and value < 100 else f"{value:.0f}",
                (value, y),
                xytext=(3, 0),
                textcoords="offset points",
                va="center",
                fontsize=6.5,
                color="#444444",
            )
    axes.set_yticks(range(len(names)), [report["contenders"][name]["title"] for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)  # the first on top, and each in line with itself beside it
    axes.margins(x=0.12)
    axes.set_xlabel(label)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)


def _shade(palette: tuple[str, ...], number: int, count: int) -> str:
    return palette[round(number * (len(palette) - 1) / max(1, count - 1))]
