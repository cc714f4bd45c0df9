"""The only place that prints.

Answers (tables, ``--json`` lines) go to standard output; everything else that a person reads (progress,
notes, errors) goes to standard error. A progress display is drawn on standard error alone and never stands
in for standard output: only where both are the same terminal are answers printed above it.

What a person reads may quote a stranger: a label, a file's name, a server's answer. `visible` escapes there
what would break a line or drive a terminal; JSON means the same to a program, whatever is escaped in it.
"""

import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TextIO

from pdserve.errors import PdserveError, unshown, visible
from pdserve.progress import SILENT, Progress

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Display
    from rich.progress import TaskID

_UNFOLDED = 10_000  # columns of a table in a file or a pipe, where a line must stay whole
_NARROWEST = 14  # columns that a table's text gets at least
_GAP = 2  # columns between the columns of a table

_display: "Display | None" = None  # what is drawn on the terminal now


def _console(stderr: bool = False) -> "Console":
    from rich.console import Console

    if _display and (stderr or _same_terminal()):
        return _display.console
    return Console(stderr=stderr, highlight=False, soft_wrap=stderr)


def _same_terminal() -> bool:
    """Whether standard output and standard error are one terminal."""
    try:
        out, err = os.fstat(sys.stdout.fileno()), os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return sys.stdout.isatty() and (out.st_dev, out.st_ino) == (err.st_dev, err.st_ino)


def json_line(content: Mapping[str, Any]) -> None:
    """One JSON object on a line of standard output, flushed."""
    text = json.dumps(content, ensure_ascii=False)
    if not text.isprintable():  # JSON itself escapes but those below a blank
        text = text.translate({ord(c): f"\\u{ord(c):04x}" for c in unshown(text)})
    try:
        text.encode(sys.stdout.encoding)
    except UnicodeEncodeError:  # a console's code page, or a file name that is no valid text
        text = json.dumps(content)
    _write(sys.stdout, text, flush=True)


def line(text: str) -> None:
    """A line of an answer, on standard output."""
    _write(sys.stdout, visible(text))


def verbatim(text: str) -> None:
    """Lines for a program, on standard output as they are."""
    _write(sys.stdout, text)


def answer(content: Mapping[str, Any], text: str, as_json: bool) -> None:
    """An answer on standard output: as JSON, or as a line of text."""
    if as_json:
        json_line(content)
    else:
        line(text)


def say(text: str) -> None:
    """A line for the person at the terminal, on standard error."""
    _write(sys.stderr, visible(text))


def _write(stream: TextIO, text: str, flush: bool = False) -> None:
    """A line, above the progress display if there is one; characters that the encoding lacks are escaped."""
    if _display and (stream is sys.stderr or _same_terminal()):
        _display.console.out(text, highlight=False)
        return
    try:
        stream.write(text + "\n")
    except UnicodeEncodeError:
        stream.write(text.encode(stream.encoding, "backslashreplace").decode(stream.encoding) + "\n")
    except OSError:
        if stream is sys.stdout:
            raise  # of what is said nobody could be told
    if flush:
        stream.flush()


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    title: str | None = None,
    digits: int | Mapping[str, int] = 4,
    drop: Sequence[str] = (),
) -> None:
    """A table on standard output; columns of numbers (and None) only are aligned to the right.

    ``digits`` are those after the point, for all columns or by column. On a terminal it is made to fit: the
    columns of ``drop`` are left out, in this order, while words would be cut; the widest column of text is
    folded first, a heading only between its words. Where that is not enough, rows and columns are exchanged.
    """
    body = [list(row) for row in rows]
    places = digits if isinstance(digits, Mapping) else dict.fromkeys(columns, digits)
    cells = [
        [visible(_cell(cell, places.get(key, 4))) for key, cell in zip(columns, row, strict=True)]
        for row in body
    ]
    numeric = [
        bool(body) and all(isinstance(row[i], (int, float, type(None))) for row in body)
        for i in range(len(columns))
    ]
    console = _console()
    if not console.is_terminal:
        console.width = _UNFOLDED
    elif console.is_dumb_terminal:
        from rich.console import ConsoleDimensions

        # Rich takes it for 80 columns wide, whatever it says.
        console.size = ConsoleDimensions(*shutil.get_terminal_size())
    for left_out in drop:
        if sum(_words(columns, cells)) + _GAP * (len(columns) - 1) > console.width:
            i = columns.index(left_out)
            columns, numeric = (*columns[:i], *columns[i + 1 :]), numeric[:i] + numeric[i + 1 :]
            cells = [row[:i] + row[i + 1 :] for row in cells]
    if widths := _fit(columns, cells, numeric, console.width):
        _print_table(console, columns, cells, widths, numeric, title)
        return
    left = max(map(_width, columns))
    for chunk in _chunks(cells, console.width - left):
        turned = list(zip(columns, *chunk, strict=True))
        widths = [left, *(min(_width("\n".join(row)), console.width - left - _GAP) for row in chunk)]
        _print_table(console, [""] * len(widths), turned, widths, [False] * len(widths), title)


def _chunks(cells: Sequence[Sequence[str]], width: int) -> Iterator[Sequence[Sequence[str]]]:
    """Rows that fit beside each other as columns, one at least."""
    chunk: list[Sequence[str]] = []
    for row in cells:
        if chunk and sum(_GAP + _width("\n".join(each)) for each in (*chunk, row)) > width:
            yield chunk
            chunk = []
        chunk.append(row)
    yield chunk


def _print_table(
    console: "Console",
    columns: Sequence[str],
    cells: Sequence[Sequence[str]],
    widths: Sequence[int],
    numeric: Sequence[bool],
    title: str | None,
) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    out = Table(
        title=title and Text(visible(title)),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, _GAP - 1, 0, 0),
        show_header=any(columns),
    )
    for column, width, number in zip(columns, widths, numeric, strict=True):
        out.add_column(Text(column), justify="right" if number else "left", overflow="fold", width=width)
    for row in cells:
        out.add_row(*map(Text, row))
    if console.is_terminal:
        console.print(out, crop=False, soft_wrap=False)
        console.line()
        return
    with console.capture() as lines:
        console.print(out, crop=False, soft_wrap=False)
    for text in lines.get().removesuffix("\n").split("\n"):
        _write(sys.stdout, text.rstrip())


def _fit(
    columns: Sequence[str], cells: Sequence[Sequence[str]], numeric: Sequence[bool], width: int
) -> list[int] | None:
    """The widths of a table's columns that make it fit; None where none do.

    The widest column is folded between its words; where that is not enough, words are cut, first in the
    column with the longest ones.
    """
    content = [[row[i] for row in cells] for i in range(len(columns))]
    headings = [_longest_word([column]) for column in columns]
    words = _words(columns, cells)
    least = [
        word if number else max(heading, min(word, _NARROWEST))
        for word, heading, number in zip(words, headings, numeric, strict=True)
    ]
    widths = [max(map(_width, (column, *content[i]))) for i, column in enumerate(columns)]
    excess = sum(widths) + _GAP * (len(columns) - 1) - width
    while excess > 0 and widths != words:
        widths[max(range(len(widths)), key=lambda i: (widths[i] > words[i], widths[i]))] -= 1
        excess -= 1
    for i in sorted(range(len(words)), key=lambda i: -words[i]):
        if excess > 0:
            cut = min(excess, words[i] - least[i])
            widths[i] -= cut
            excess -= cut
    return widths if excess <= 0 else None


def _words(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> list[int]:
    """The longest word of each column."""
    return [_longest_word((column, *(row[i] for row in cells))) for i, column in enumerate(columns)]


def _longest_word(texts: Iterable[str]) -> int:
    return max((_width(word) for text in texts for word in text.split()), default=1)


def _width(text: str) -> int:
    """Columns of a terminal that the longest line takes."""
    from rich.cells import cell_len

    return max(map(cell_len, text.splitlines()), default=0)


def _cell(content: object, digits: int) -> str:
    if content is None:
        return "-"
    return f"{content:.{digits}f}" if isinstance(content, float) else str(content)


def failed(error: PdserveError) -> int:
    """Print an error in one sentence, with its traceback if PDSERVE_DEBUG is 1; return the exit code."""
    if os.environ.get("PDSERVE_DEBUG") == "1":
        import traceback

        traceback.print_exception(error)
    say(f"pdserve: {error.message}")
    return error.exit_code


class Bars(Progress):
    """Progress bars on the terminal, one per name."""

    def __init__(self, display: "Display") -> None:
        self._display = display
        self._tasks: dict[str, TaskID] = {}

    def _task(self, name: str) -> "TaskID":
        if name not in self._tasks:
            self._tasks[name] = self._display.add_task(visible(name), total=None, note="")
        return self._tasks[name]

    def start(self, name: str, total: int | None, completed: int) -> None:
        self._display.update(self._task(name), total=total, completed=completed, note="")

    def advance(self, name: str, n: int = 1) -> None:
        self._display.advance(self._task(name), n)

    def done(self, name: str) -> None:
        if (task := self._tasks.get(name)) is not None:
            self._display.update(task, note="")
            self._display.stop_task(task)

    def note(self, name: str, text: str) -> None:
        if self._display.disable:
            say(f"{name}: {text}")
        else:
            self._display.update(self._task(name), note=visible(text))

    def warn(self, name: str, text: str) -> None:
        say(f"{name}: {text}")


@contextmanager
def download_bars() -> Iterator[Bars]:
    """Bars of bytes, speed and time left; notes alone where standard error is no terminal."""
    from rich.progress import DownloadColumn, Task, TransferSpeedColumn
    from rich.text import Text

    class Speed(TransferSpeedColumn):
        def render(self, task: Task) -> Text:
            return Text() if task.finished else super().render(task)

    with _bars(DownloadColumn(), Speed(), transient=False) as bars:
        yield bars


@contextmanager
def image_bars(silent: bool = False) -> Iterator[Progress]:
    """Bars of images, erased at the end; notes alone if ``silent`` or standard error is no terminal."""
    if find_spec("rich") is None:  # with the clients it is a matter of choice
        yield SILENT
        return
    from rich.progress import MofNCompleteColumn

    with _bars(MofNCompleteColumn(), transient=True, silent=silent) as bars:
        yield bars


@contextmanager
def _bars(*columns: Any, transient: bool, silent: bool = False) -> Iterator[Bars]:
    global _display
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Display

    console = _console(stderr=True)
    display = Display(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        *columns,
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("{task.fields[note]}", markup=False),
        console=console,
        transient=transient,
        redirect_stdout=False,
        disable=silent or not console.is_terminal,
    )
    with display:
        _display = None if display.disable else display
        try:
            yield Bars(display)
        finally:
            _display = None
