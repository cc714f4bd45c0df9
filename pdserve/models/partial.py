"""A file that is still coming: ``FILE.part``, and ``FILE.part.json`` with what is known of it.

With the note the next run can ask for the rest alone (Range), and only if the server's file is still
the same (If-Range).
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from pdserve.files import disk_errors


@dataclass(frozen=True)
class State:
    """What the server said of the file that the part is the beginning of.

    ``validator`` is for If-Range; ``total`` is in bytes, None if not known; ``md5`` is hexadecimal;
    ``pieces`` counts the answers that the part was put together from.
    """

    url: str
    validator: str | None
    total: int | None
    md5: str | None
    pieces: int = 1
    complete: bool = False


@dataclass(frozen=True)
class Partial:
    """The part of ``target``. Whatever cannot be written raises DiskError."""

    target: Path

    @property
    def path(self) -> Path:
        return self.target.with_name(self.target.name + ".part")

    @property
    def note(self) -> Path:
        return self.target.with_name(self.target.name + ".part.json")

    @property
    def size(self) -> int:
        """Bytes that are there."""
        return self.path.stat().st_size if self.path.exists() else 0

    def state(self, url: str) -> State | None:
        """What is known of the part, None if nothing is or if it came from another address."""
        try:
            state = State(**json.loads(self.note.read_text("utf-8")))
        except (OSError, ValueError, TypeError, RecursionError):
            return None
        usable = self.path.exists() and state.url == url and (not state.complete or state.total == self.size)
        return state if usable else None

    def remember(self, state: State) -> None:
        with disk_errors(self.note):
            self.note.write_text(json.dumps(asdict(state)), "utf-8")

    def begin(self, state: State) -> None:
        """Make the part empty, and note what it is the beginning of."""
        with disk_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_bytes(b"")
        self.remember(state)

    def discard(self) -> None:
        for path in (self.path, self.note):
            with disk_errors(path):
                path.unlink(missing_ok=True)
