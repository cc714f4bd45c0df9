"""An incomplete download: what has come of a file, and what is known of it, for the next run to go on."""

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from pdserve import files
from pdserve.models.catalog import public


@dataclass(frozen=True)
class RemoteFile:
    """What the server said of the file that a part is the start of.

    ``validator`` is for If-Range; ``total`` is in bytes, None if not known; ``md5`` is hexadecimal;
    ``pieces`` counts the responses that the part was put together from.
    """

    url: str
    validator: str | None
    total: int | None
    md5: str | None
    pieces: int = 1
    complete: bool = False
    plain: bool = False


@dataclass(frozen=True)
class Partial:
    """An incomplete download of ``target``. Whatever cannot be written raises DiskError."""

    target: Path

    @property
    def path(self) -> Path:
        return self.target.with_name(self.target.name + ".part")

    @property
    def note(self) -> Path:
        return self.target.with_name(self.target.name + ".part.json")

    @property
    def size(self) -> int:
        """Bytes received."""
        return self.path.stat().st_size if self.path.exists() else 0

    def remote(self, url: str) -> RemoteFile | None:
        """What is known of the part, None if nothing is or if it came from another address."""
        try:
            remote = RemoteFile(**json.loads(self.note.read_text("utf-8")))
        except (OSError, ValueError, TypeError, RecursionError):
            return None
        whole = not remote.complete or remote.total == self.size
        return remote if whole and remote.url == url and self.path.exists() else None

    def remember(self, remote: RemoteFile) -> None:
        with files.disk_errors(self.note):
            self.note.write_text(json.dumps(asdict(remote)), "utf-8")

    def start(self, remote: RemoteFile) -> None:
        """Make the part empty, and note what it is the start of."""
        with files.disk_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_bytes(b"")
        self.remember(remote)

    def discard(self) -> None:
        for path in (self.path, self.note):
            with files.disk_errors(path):
                files.twice(partial(path.unlink, missing_ok=True))


def part_key(url: str) -> str:
    """What a part's note calls an address: without a password, and with the query's digest for the query."""
    query = urlsplit(url).query
    return public(url) + (f"?{hashlib.sha256(query.encode()).hexdigest()[:16]}" if query else "")
