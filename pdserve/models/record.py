"""Writes and verifies ``fetch.json``, the record in a fetched folder of its origin and files.

::

    {"name": "ResNet50_vd", "source": URL, PACKAGE==VERSION, hf://… or path, "origin": where it was read,
     "sha256": of the archive or wheel, else null, "bytes": what came, "date": "2025-01-31T12:00:00+00:00",
     "files": {"inference.pdmodel": {"bytes": 95191, "sha256": "…", "mtime_ns": 1738…}, …}}
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from pdserve.errors import ChecksumError
from pdserve.files import FileRecord, disk_errors
from pdserve.formats import text_file

FILE = "fetch.json"
_MAX_BYTES = 256 << 20  # a million files


@dataclass(frozen=True)
class Record:
    """What ``fetch.json`` holds."""

    name: str
    source: str
    origin: str
    sha256: str | None
    bytes: int
    date: str
    files: Mapping[str, FileRecord]


def write(folder: Path, *, name: str, source: str, origin: str, sha256: str | None, size: int) -> Record:
    """Hash the folder's files and write their record into it. Raises DiskError."""
    with disk_errors(folder):
        files = {
            path.relative_to(folder).as_posix(): FileRecord.of(path)
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path != folder / FILE
        }
        date = datetime.now(UTC).isoformat(timespec="seconds")
        record = Record(name, source, origin, sha256, size, date, files)
        (folder / FILE).write_text(json.dumps(asdict(record), indent=1, ensure_ascii=False) + "\n", "utf-8")
    return record


def read(folder: Path) -> Record | None:
    """The folder's record, None where there is none. Raises ChecksumError for one that cannot be read."""
    path = folder / FILE
    try:
        fields = json.loads(text_file.read_text(path, _MAX_BYTES))
        fields["files"] = {name: FileRecord(**each) for name, each in fields["files"].items()}
        return Record(**fields)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ChecksumError(
            f"The record {path} cannot be read ({error}); fetch again with `pdserve fetch NAME --force`."
        ) from error


def verify(folder: Path) -> Record | None:
    """Compare a fetched folder with its record and return that, None for a folder without one.

    Files added since do not count. Raises ChecksumError that names the files that are missing or changed.
    """
    record = read(folder)
    if record is None:
        return None
    wrong = [name for name, each in record.files.items() if not _matches(each, folder / name)]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ChecksumError(
            f"{folder} is not what was fetched: {', '.join(wrong[:3])}{more} missing or changed; "
            f"fetch it again with `pdserve fetch {record.name} --force`."
        )
    return record


def _matches(recorded: FileRecord, path: Path) -> bool:
    try:
        return recorded.matches(path)
    except (OSError, ValueError):  # a name with a zero byte
        return False
