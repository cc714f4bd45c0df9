"""Logging: text or JSON lines, to standard error and a file. Every line of a request has the request's id."""

import contextlib
import json
import logging
import logging.handlers
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pdserve.errors import SettingsError, visible
from pdserve.services.telemetry.metrics import current

log = logging.getLogger("pdserve")

Format = Literal["text", "json"]

_FILE_BYTES, _FILES = 10 * 1024 * 1024, 5
_QUIET = ("uvicorn", "faiss")  # their start and stop is logged by pdserve

# What every record has; the rest are the extra fields of its line.
_OF_ALL_RECORDS = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


@contextlib.contextmanager
def open_log(file: Path | None, form: Format = "text") -> Iterator[None]:
    """Log to standard error, and to a rotating file of 10 MiB × 5 where one is given.

    Raises SettingsError where the file cannot be written.
    """
    handlers: list[logging.Handler] = [logging.StreamHandler()]
    if file:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            handlers.append(LogFile(file))
        except OSError as error:
            raise SettingsError(f"Cannot write the log file {file}: {error.strerror}.") from error
    root = logging.getLogger()
    level = root.level
    for handler in handlers:
        handler.setFormatter(JsonLines() if form == "json" else TextLines())
        root.addHandler(handler)
    root.setLevel(logging.INFO)
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        yield
    finally:
        root.setLevel(level)
        for handler in handlers:
            root.removeHandler(handler)
            handler.close()


class LogFile(logging.handlers.RotatingFileHandler):
    """A log file, rotated at 10 MiB; opened again where another program has moved or removed it.

    That is what logrotate does, with a signal and without. What was cut to nothing in place (its
    ``copytruncate``) goes on from there. A file that takes nothing more is said once on standard error, until
    it takes something again.
    """

    def __init__(self, file: Path) -> None:
        super().__init__(file, "a", _FILE_BYTES, _FILES, "utf-8")
        self._path = Path(self.baseFilename)
        self._fails = self._said = False

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line."""
        self._fails = False
        try:
            self._follow()
            super().emit(record)
        except OSError:
            self.handleError(record)
        if not self._fails:
            self._said = False

    def _follow(self) -> None:
        stream: Any = self.stream
        if stream is not None:
            try:
                there = self._path.stat()
            except FileNotFoundError:
                pass
            else:
                if os.path.samestat(there, os.fstat(stream.fileno())):
                    return
            self.stream = None
            stream.close()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self.stream = self._open()

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the library's name
        """Say once that the file takes nothing."""
        self._fails = True
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._said:
            self._said = True  # before the line below comes here, too
            reason = error.strerror or error
            log.error("cannot write the log file %s: %s; lines are lost to it", self.baseFilename, reason)


class TextLines(logging.Formatter):
    """``time LEVEL logger: message``, and the request's id behind it where one runs.

    A message is one line, and what would drive the terminal of who reads it is escaped.
    """

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the library's name
        line = visible(super().formatMessage(record))
        request = current.get()
        return f"{line} (request {request.id})" if request else line

    def formatException(self, ei: Any) -> str:  # noqa: N802 - the library's name
        return "\n".join(visible(line) for line in super().formatException(ei).split("\n"))


class JsonLines(logging.Formatter):
    """One JSON object per line: time (RFC 3339, UTC, milliseconds), level, logger, message; request_id
    and trace_id where there are such; exception, its traceback as text; and what ``extra=`` gave.
    """

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S.", time.gmtime(record.created))
            + f"{int(record.created * 1000) % 1000:03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request := current.get():
            line["request_id"] = request.id
            if request.span:
                line["trace_id"] = request.span.trace_id
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        for name, value in record.__dict__.items():
            if name not in _OF_ALL_RECORDS:
                line.setdefault(name, value)
        try:
            return _ENCODER.encode(line)
        except ValueError:  # NaN and infinity are no JSON
            return json.dumps({name: str(value) for name, value in line.items()})


# What is not ASCII is escaped, so that no console's encoding can break a line.
_ENCODER = json.JSONEncoder(allow_nan=False, separators=(",", ":"), default=str)
