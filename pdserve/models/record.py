"""The record beside what was fetched, ``fetch.json``: where it came from and what it was.

::

    {"name": "ResNet50_vd", "source": URL or PACKAGE==VERSION, "origin": where it was really read,
     "sha256": of the archive or wheel, "bytes": its length, "date": "2025-01-31T12:00:00+00:00",
     "files": {"inference.pdmodel": {"bytes": 95191, "sha256": "…", "mtime_ns": 1738…}, …}}
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from pdserve import checksum
from pdserve.errors import ChecksumError
from pdserve.files import writing

FILE = "fetch.json"


@dataclass(frozen=True)
class Stamp:
    """One file as it was when fetched. ``mtime_ns`` only saves hashing a file that nobody touched."""

    bytes: int
    sha256: str
    mtime_ns: int


@dataclass(frozen=True)
class Record:
    """What ``fetch.json`` holds."""

    name: str
    source: str
    origin: str
    sha256: str
    bytes: int
    date: str
    files: Mapping[str, Stamp]


def write(folder: Path, *, name: str, source: str, origin: str, sha256: str, size: int) -> Record:
    """Hash the folder's files and write their record into it. Raises DiskError."""
    with writing(folder):
        files = {
            path.relative_to(folder).as_posix(): _stamp(path)
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
        fields = json.loads(path.read_text("utf-8"))
        fields["files"] = {name: Stamp(**stamp) for name, stamp in fields["files"].items()}
        return Record(**fields)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ChecksumError(
            f"The record {path} cannot be read ({error}); fetch again with `pdserve fetch NAME --force`."
        ) from error


def changed(folder: Path, record: Record, *, full: bool = False) -> list[str]:
    """The recorded files that are missing or not what they were; files added since do not count.

    Without ``full``, a file of the recorded length and modification time is believed without reading it.
    """
    return [name for name, stamp in record.files.items() if not _same(folder / name, stamp, full)]


def verify(folder: Path, *, full: bool = False) -> Record | None:
    """Compare a fetched folder with its record and return that, None for a folder without one.

    Raises ChecksumError that names the files that are missing or changed; ``full`` hashes them all.
    """
    record = read(folder)
    wrong = changed(folder, record, full=full) if record else []
    if record and wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ChecksumError(
            f"{folder} is not what was fetched: {', '.join(wrong[:3])}{more} missing or changed; "
            f"fetch it again with `pdserve fetch {record.name} --force`."
        )
    return record


def _stamp(path: Path) -> Stamp:
    stat = path.stat()
    return Stamp(stat.st_size, checksum.sha256(path), stat.st_mtime_ns)


def _same(path: Path, stamp: Stamp, full: bool) -> bool:
    try:
        stat = path.stat()
        if stat.st_size != stamp.bytes:
            return False
        if not full and stat.st_mtime_ns == stamp.mtime_ns:
            return True
        return checksum.sha256(path) == stamp.sha256
    except (OSError, ValueError):  # a name with a zero byte
        return False
