"""The only place that prints.

Answers (tables, ``--json`` lines) go to standard output; everything a person reads on the way
(progress, notes, errors) goes to standard error.
"""

import json
import os
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TextIO

from pdserve.errors import PdserveError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

    from pdserve.predict import Outcome, Picture


# Of a table in a file or a pipe, whose lines a person or a program wants whole.
_UNFOLDED = 10_000


def _console(stderr: bool = False) -> "Console":
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, soft_wrap=stderr)


def json_line(content: Mapping[str, Any]) -> None:
    """One JSON object on a line of standard output, at once."""
    try:
        sys.stdout.write(json.dumps(content, ensure_ascii=False) + "\n")
    except UnicodeEncodeError:  # a console's code page, or a file's name that is no text
        sys.stdout.write(json.dumps(content) + "\n")
    sys.stdout.flush()


def table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], title: str | None = None, digits: int = 4
) -> None:
    """A table on standard output; columns of numbers only (and None) are set to the right."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    body = [list(row) for row in rows]
    out = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for i, column in enumerate(columns):
        numbers = bool(body) and all(isinstance(row[i], (int, float, type(None))) for row in body)
        out.add_column(column, justify="right" if numbers else "left", overflow="fold")
    for row in body:
        out.add_row(*(Text(_cell(cell, digits)) for cell in row))
    console = _console()
    if not console.is_terminal:
        console.width = _UNFOLDED
    console.print(out)


def _cell(content: object, digits: int) -> str:
    if content is None:
        return "-"
    return f"{content:.{digits}f}" if isinstance(content, float) else str(content)


def line(text: str) -> None:
    """A line of an answer, on standard output."""
    _write(sys.stdout, text)


def say(text: str) -> None:
    """A line for the person at the terminal, on standard error."""
    _write(sys.stderr, text)


def _write(stream: TextIO, text: str) -> None:
    """A line; what the stream's encoding has no character for is escaped."""
    try:
        stream.write(text + "\n")
    except UnicodeEncodeError:
        stream.write(text.encode(stream.encoding, "backslashreplace").decode(stream.encoding) + "\n")


def outcome(outcome: "Outcome", picture: "Picture | None", as_json: bool) -> None:
    """One image's answer: a JSON line, or lines of labels under its name."""
    from pdserve.answers import FoundObject

    answer = outcome.answer
    if as_json:
        if isinstance(answer, PdserveError):
            json_line({"image": outcome.name, "error": answer.message})
        else:
            content = {"image": outcome.name, outcome.kind: [_described(each) for each in answer]}
            json_line(content | ({"picture": str(picture.path)} if picture else {}))
            _legend(picture)
        return
    if isinstance(answer, PdserveError):
        say(f"{outcome.name}: {answer.message}")
        return
    line(f"{outcome.name}:")
    for each in answer:
        where = " ".join(map(str, each.bbox)) if isinstance(each, FoundObject) else f"{each.class_id:>5}"
        line(f"  {each.score:7.4f}  {where}  {each.label}")
    if not answer:
        line(f"  no {outcome.kind.removesuffix('s')}")
    if picture:
        line(f"  {picture.path}")
        _legend(picture)


def _legend(picture: "Picture | None") -> None:
    for text in picture.legend if picture else ():
        say(f"  {text}")


def _described(each: Any) -> dict[str, Any]:
    content: dict[str, Any] = asdict(each)
    # The neighbours beyond the best are told where they were asked for.
    if len(content.get("matches", ())) < 2:
        content.pop("matches", None)
    content.pop("detection", None)
    return content


def failed(error: PdserveError) -> int:
    """Say an error in one sentence, with its traceback if PDSERVE_DEBUG is 1; return the exit code."""
    if os.environ.get("PDSERVE_DEBUG") == "1":
        traceback.print_exception(error)
    say(f"pdserve: {error.message}")
    return error.exit_code


class DownloadBars:
    """Progress bars of downloads, a line each: bytes, speed, time left. See pdserve.progress."""

    def __init__(self, bars: "Progress") -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}

    def _task(self, name: str) -> "TaskID":
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(name, total=None, note="")
        return self._tasks[name]

    def start(self, name: str, total: int | None, completed: int) -> None:
        self._bars.update(self._task(name), total=total, completed=completed, note="")

    def advance(self, name: str, n: int) -> None:
        self._bars.advance(self._task(name), n)

    def done(self, name: str) -> None:
        task = self._task(name)
        self._bars.update(task, note="")
        self._bars.stop_task(task)

    def note(self, name: str, text: str) -> None:
        if self._bars.console.is_terminal:
            self._bars.update(self._task(name), note=text)
        else:
            say(f"{name}: {text}")


@contextmanager
def download_bars() -> Iterator[DownloadBars]:
    """Bars on standard error while the block runs; nothing but notes where that is no terminal."""
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    console = _console(stderr=True)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        disable=not console.is_terminal,
    ) as bars:
        yield DownloadBars(bars)


@contextmanager
def counted(what: str, total: int) -> Iterator["CountBar"]:
    """A bar that counts to ``total`` on standard error; silent for few, and where that is no terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = _console(stderr=True)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=total < 5 or not console.is_terminal,
    ) as bars:
        yield CountBar(bars, bars.add_task(what, total=total))


class CountBar:
    """Counts one at a time."""

    def __init__(self, bars: "Progress", task: "TaskID") -> None:
        self._bars = bars
        self._task = task

    def step(self) -> None:
        self._bars.advance(self._task)


@contextmanager
def image_bars() -> Iterator[DownloadBars]:
    """Bars that count images on standard error; nothing but notes where that is no terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = _console(stderr=True)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as bars:
        yield DownloadBars(bars)
