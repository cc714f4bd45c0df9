"""The table of compare.py: medians over rounds, for the terminal, a Markdown file and a page of docs/."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

BEGIN, END = "<!-- compare: begin -->", "<!-- compare: end -->"
NOTHING = "–"


@dataclass(frozen=True)
class Row:
    """One server with one model: text per column, and whether each figure is the best of the servers'."""

    title: str
    cells: tuple[str, ...]
    best: tuple[bool, ...]


@dataclass(frozen=True)
class Cells:
    """A column: its head, whether less is better, and its figures by server (None: not measured)."""

    head: str
    less: bool
    digits: int
    figures: Mapping[str, float | None]


def figure(report: Mapping[str, Any], model: str, server: str, *path: str) -> float | None:
    """The median over rounds of the values at a path of the runs, such as loads, 8, p99_ms."""
    found = []
    for run in report["runs"]:
        if run["model"] == model and run["server"] == server:
            value: Any = run
            for key in path:
                value = value.get(key) if isinstance(value, Mapping) else None
            if value is not None:
                found.append(float(value))
    return statistics.median(found) if found else None


def servers(report: Mapping[str, Any], model: str) -> list[str]:
    """Those that were measured with a model, in the order of the contenders."""
    measured = {run["server"] for run in report["runs"] if run["model"] == model}
    return [name for name in report["contenders"] if name in measured]


def models(report: Mapping[str, Any]) -> list[str]:
    """Those that were measured, in order."""
    measured = {run["model"] for run in report["runs"]}
    return [model for model in report["settings"]["models"] if model in measured]


def columns(report: Mapping[str, Any], model: str) -> list[Cells]:
    """All figures of one model's table."""
    names = servers(report, model)
    counts = [str(count) for count in report["settings"]["clients"]]

    def column(head: str, less: bool, digits: int, *path: str) -> Cells:
        return Cells(head, less, digits, {name: figure(report, model, name, *path) for name in names})

    out = []
    for count in counts:
        out.append(column(f"{count}: images/s", False, 1, "loads", count, "images_per_s"))
        out.append(column(f"{count}: p50, ms", True, 0, "loads", count, "p50_ms"))
        out.append(column(f"{count}: p99, ms", True, 0, "loads", count, "p99_ms"))
    out.append(column("memory, MB", True, 0, "memory_mb"))
    out.append(column("start, s", True, 1, "start_s"))
    sizes = {name: report["installed"].get(name) for name in names}
    out.append(Cells("installed, MB", True, 0, sizes))
    return out


def rows(report: Mapping[str, Any], model: str) -> tuple[list[str], list[Row]]:
    """The heads, and a row per server.

    The best is looked for among servers that compute in float32: raw contenders serve nobody, and INT8 is
    another model.
    """
    shown = columns(report, model)
    names = servers(report, model)
    serving = [name for name in names if report["contenders"][name]["kind"] not in ("raw", "int8")]
    out = []
    for name in names:
        cells, best = [], []
        for column in shown:
            value = column.figures[name]
            text = NOTHING if value is None else f"{value:.{column.digits}f}"
            cells.append(text)
            others = [v for n in serving if (v := column.figures[n]) is not None]
            top = (min if column.less else max)(others, default=None)
            # Figures that read the same are equally good.
            best.append(name in serving and top is not None and text == f"{top:.{column.digits}f}")
        out.append(Row(_title(report, model, name), tuple(cells), tuple(best)))
    return [column.head for column in shown], out


def _title(report: Mapping[str, Any], model: str, name: str) -> str:
    one = report["contenders"][name]
    random = one["kind"] == "int8" and model in report.get("random_weights", ())
    return f"{one['title']}, random weights" if random else str(one["title"])


def notes(report: Mapping[str, Any]) -> list[str]:
    """What a reader has to know: loads not offered, errors, contenders left out."""
    found: dict[str, None] = {}
    for run in report["runs"]:
        title = report["contenders"][run["server"]]["title"]
        for count, load in run["loads"].items():
            clients = f"{count} client" + "s" * (count != "1")
            if "not_offered" in load:
                found[f"{title}, {run['model']}, {clients}: not offered, {load['not_offered']}."] = None
            for kind, times in load.get("errors", {}).items():
                found[f"{title}, {run['model']}, {clients}: {times} × {kind} in round {run['round']}."] = None
    for what, why in report["skipped"].items():
        found[f"Not measured: {what}: {why}"] = None
    for note in report.get("notes", ()):
        found[note] = None
    return list(found)


def markdown(report: Mapping[str, Any]) -> str:
    """Tables, settings and notes; the best figure of a column is bold."""
    lines = []
    for model in models(report):
        heads, body = rows(report, model)
        lines += [f"**{model}**", "", "| |" + "|".join(f" {head} " for head in heads) + "|"]
        lines.append("|---|" + "---:|" * len(heads))
        for row in body:
            cells = [f" **{c}** " if b else f" {c} " for c, b in zip(row.cells, row.best, strict=True)]
            lines.append(f"| {row.title} |" + "|".join(cells) + "|")
        lines.append("")
    lines += ["| server | settings |", "|---|---|"]
    lines += [f"| {one['title']} | {one['settings']} |" for one in report["contenders"].values()]
    machine = report["machine"]
    hardware = [machine["processor"], *machine.get("flags", ())]
    lines += [
        "",
        f"{report['date']}, {machine['cores']} cores ({', '.join(hardware)}), Python {machine['python']}; "
        f"medians of the rounds ({report['settings']['rounds']}); "
        f"loads of {report['settings']['seconds']:g} s or more. "
        "Before the colon: clients in a closed loop. Memory: the most that all of a server's processes held "
        "(proportional set size). Start: from the command to the first good answer. Installed: the server's "
        "packages and what they require, without engine, NumPy, OpenCV, Pillow and faiss. "
        "Bold: the best of the servers that compute in float32.",
        "",
    ]
    lines += [f"- {note}" for note in notes(report)]
    return "\n".join(lines) + "\n"


def show(report: Mapping[str, Any], console: Console) -> None:
    """The same in the terminal."""
    for model in models(report):
        heads, body = rows(report, model)
        table = Table("", title=model)
        for head in heads:
            table.add_column(head, justify="right")
        for row in body:
            cells = [f"[bold green]{c}" if b else c for c, b in zip(row.cells, row.best, strict=True)]
            table.add_row(row.title, *cells)
        console.print(table)
    for note in notes(report):
        console.print(f"- {note}", highlight=False, markup=False)


def put_into(page: Path, block: Sequence[str]) -> None:
    """Replace what is between the two markers. Raises ValueError where they are not there once, in order."""
    text = page.read_text("utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in rest:
        raise ValueError(f"{page} needs the lines {BEGIN} and {END}, once each.")
    page.write_text("\n".join([before + BEGIN, *block, END + after]), "utf-8")
