"""The log's lines, for people and for machines."""

import asyncio
import contextvars
import io
import json
import logging
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pdserve.errors import SettingsError
from pdserve.services.telemetry.logs import JsonLines, TextLines, open_log
from pdserve.services.telemetry.metrics import RequestContext, current

log = logging.getLogger("pdserve.test")


@pytest.fixture
def lines() -> Iterator[Callable[[logging.Formatter], io.StringIO]]:
    """What is logged from now on, in a form."""
    handlers = []

    def written(form: logging.Formatter) -> io.StringIO:
        text = io.StringIO()
        handlers.append(logging.StreamHandler(text))
        handlers[-1].setFormatter(form)
        log.addHandler(handlers[-1])
        return text

    log.setLevel(logging.INFO)
    yield written
    for handler in handlers:
        log.removeHandler(handler)
    log.setLevel(logging.NOTSET)


def within(call: RequestContext, work: Callable[[], object]) -> None:
    """Do this as part of a request."""

    def request() -> None:
        current.set(call)
        work()

    contextvars.copy_context().run(request)


def objects(text: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.getvalue().splitlines()]


def test_lines_for_people(lines: Any) -> None:
    text = lines(TextLines())
    log.warning("a %s", "word")
    within(RequestContext("mine"), lambda: log.info("of a request"))
    first, second = text.getvalue().splitlines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} WARNING pdserve\.test: a word", first)
    assert second.endswith(" INFO pdserve.test: of a request (request mine)")


def test_a_text_line_is_one_line_that_drives_no_terminal(lines: Any) -> None:
    text = lines(TextLines())
    log.info("of %s", "a\nb\x1b[31m\u202ec")
    try:
        raise ValueError("x\x1b]0;title\x07")
    except ValueError:
        log.exception("猫\r")
    first, second, *traceback = text.getvalue().splitlines()
    assert first.endswith(r"of a\nb\x1b[31m\u202ec")
    assert second.endswith(r"猫\r")
    assert traceback[-1] == r"ValueError: x\x1b]0;title\x07"


def test_lines_for_machines(lines: Any) -> None:
    text = lines(JsonLines())
    log.warning("a %s", "word")
    within(RequestContext("mine"), lambda: log.info("of a request", extra={"images": 3, "path": Path("x")}))
    first, second = objects(text)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", first.pop("time"))
    assert first == {"level": "WARNING", "logger": "pdserve.test", "message": "a word"}
    assert second.pop("time")
    assert second == {
        "level": "INFO", "logger": "pdserve.test", "message": "of a request",
        "request_id": "mine", "images": 3, "path": "x",
    }  # fmt: skip


def test_times_are_utc_with_milliseconds() -> None:
    form = JsonLines()

    def time(created: float) -> str:
        record = logging.makeLogRecord({"created": created})
        return str(json.loads(form.format(record))["time"])

    assert time(0) == "1970-01-01T00:00:00.000Z"
    assert time(1_700_000_000.25) == "2023-11-14T22:13:20.250Z"
    assert time(1_700_000_000.75) == "2023-11-14T22:13:20.750Z"
    assert time(1_700_000_001.5) == "2023-11-14T22:13:21.500Z"


def test_an_exception_is_one_line_for_machines(lines: Any) -> None:
    text = lines(JsonLines())
    try:
        raise ValueError("first\nsecond")
    except ValueError:
        log.exception("it failed")
    (line,) = objects(text)
    assert line["message"] == "it failed"
    assert line["exception"].startswith("Traceback")
    assert line["exception"].endswith("ValueError: first\nsecond")


@pytest.mark.parametrize(
    "message", ["可口可乐", "two\nlines", "a \u2028 b", "\ud800", '"}', "\x00\x1b[31m"], ids=ascii
)
def test_any_text_is_one_line_of_ascii(message: str) -> None:
    # Past the logger, whose lines pytest keeps: half a surrogate pair cannot leave a worker process.
    record = logging.makeLogRecord(
        {"name": "pdserve", "levelname": "WARNING", "msg": "%s", "args": (message,)}
    )
    line = JsonLines().format(record)
    assert line.isascii()
    assert "\n" not in line
    assert json.loads(line)["message"] == message


def test_what_json_has_no_word_for(lines: Any) -> None:
    text = lines(JsonLines())
    log.warning("numbers", extra={"score": float("nan"), "level": "mine", "images": 1})
    (line,) = objects(text)
    assert (line["score"], line["images"], line["level"]) == ("nan", "1", "WARNING")


def test_a_thread_has_the_id_where_the_context_was_carried(lines: Any) -> None:
    text = lines(JsonLines())

    async def request() -> None:
        current.set(RequestContext("mine"))
        await asyncio.to_thread(log.warning, "in a thread")

    asyncio.run(request())
    assert objects(text)[0]["request_id"] == "mine"


@pytest.mark.parametrize("form", ["text", "json"])
def test_the_log_of_a_server(form: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "new" / "log"
    root = logging.getLogger()
    before = root.handlers[:], root.level
    with open_log(file, form):
        log.info("ready: classification at http://127.0.0.1:1")
        logging.getLogger("uvicorn.error").info("not told")
        logging.getLogger("faiss.loader").info("not told")
        logging.getLogger("uvicorn.error").warning("told")
    assert (root.handlers, root.level) == before
    written = file.read_text("utf-8")
    assert capsys.readouterr().err == written
    assert "ready: classification at http://127.0.0.1:1" in written
    assert "not told" not in written
    assert len(written.splitlines()) == 2
    if form == "json":
        assert [json.loads(line)["logger"] for line in written.splitlines()] == [
            "pdserve.test",
            "uvicorn.error",
        ]


def test_a_log_file_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file" / "log", tmp_path):
        with pytest.raises(SettingsError, match="Cannot write the log file"), open_log(path):
            pass


# The file


@pytest.fixture
def log_file(tmp_path: Path) -> Iterator[Path]:
    """A log file that is open."""
    path = tmp_path / "logs" / "pdserve.log"
    with open_log(path):
        yield path


def said(path: Path) -> list[str]:
    return [line.rpartition(": ")[2] for line in path.read_text("utf-8").splitlines()]


@pytest.mark.skipif(sys.platform == "win32", reason="an open file cannot be moved there")
def test_a_file_that_was_moved_or_removed_is_opened_again(log_file: Path) -> None:
    log.info("one")
    moved = log_file.rename(log_file.with_suffix(".1"))  # as logrotate does
    log.info("two")
    assert (said(moved), said(log_file)) == (["one"], ["two"])
    log_file.unlink()
    log.info("three")
    assert said(log_file) == ["three"]
    shutil.rmtree(log_file.parent)
    log.info("four")
    assert said(log_file) == ["four"]
    log_file.rename(moved)
    log_file.write_text("made by logrotate's create: zero\n", "utf-8")
    log.info("five")
    assert said(log_file) == ["zero", "five"]


def test_a_file_that_was_cut_in_place_goes_on_at_its_beginning(log_file: Path) -> None:
    log.info("one")
    with log_file.open("r+b") as copied:  # as logrotate's copytruncate does
        copied.truncate(0)
    log.info("two")
    assert log_file.read_bytes().count(b"\0") == 0
    assert said(log_file) == ["two"]


def test_its_own_rotation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pdserve.services.telemetry.logs._FILE_BYTES", 200)
    with open_log(tmp_path / "log"):
        for i in range(9):
            log.info("line %d", i)
    assert said(tmp_path / "log")[-1] == "line 8"
    assert (tmp_path / "log.1").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="an open file cannot be moved there")
def test_a_file_that_takes_nothing_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", io.StringIO())
    path = tmp_path / "log"
    with open_log(path):
        path.unlink()
        path.mkdir()  # in its place
        for _ in range(3):
            log.info("lost")
        err = sys.stderr.getvalue()  # type: ignore[attr-defined]
        assert err.count("cannot write the log file") == 1
        assert f"{path}: Is a directory" in err
        assert "Traceback" not in err
        path.rmdir()
        log.info("found")
    assert said(path) == ["found"]
