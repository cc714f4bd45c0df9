"""Logging: text or JSON lines, to standard error and a file. Every line of a request has the request's id."""

import contextlib
import json
import logging
import logging.handlers
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pdserve.errors import SettingsError
from pdserve.services.telemetry.metrics import current

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
            handlers.append(logging.handlers.RotatingFileHandler(file, "a", _FILE_BYTES, _FILES, "utf-8"))
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


class TextLines(logging.Formatter):
    """``time LEVEL logger: message``, and the request's id behind it where one runs."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the library's name
        line = super().formatMessage(record)
        request = current.get()
        return f"{line} (request {request.id})" if request else line


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
