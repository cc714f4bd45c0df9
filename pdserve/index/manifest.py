"""``index.json``: what an index is, and which of its versions is in force.

::

    {"format": 1, "version": 7, "previous": 6, "change": "append: 3 added",
     "type": "Flat", "metric": "IP", "dimension": 512, "count": 48, "labels": 8, "slots": 48,
     "trained_on": 48, "next_id": 51, "embedder": {"name": "…", "fingerprint": "…"} or null,
     "created": "2025-01-31T12:00:00+00:00", "updated": "…",
     "files": {"vector.index": {"bytes": 98390, "sha256": "…", "mtime_ns": 1738…}, …}}

``count`` entries are in ``slots`` vectors: more than one per entry where some were removed from a graph
(see vectors.py). Ids from ``next_id`` on were never given. ``trained_on``: vectors that an IVF's lists
were made for.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pdserve.files import FileRecord, replace_file, retry_while_busy, write_synced
from pdserve.index.embedder import EmbedderId
from pdserve.index.errors import IndexFolderError

FILE = "index.json"
FORMAT = 1
_BUSY_S = 2.0


@dataclass(frozen=True)
class Manifest:
    """What ``index.json`` holds."""

    version: int
    previous: int | None
    change: str
    type: str
    metric: str
    dimension: int
    count: int
    labels: int
    slots: int
    trained_on: int
    next_id: int
    embedder: EmbedderId | None
    created: str
    updated: str
    files: Mapping[str, FileRecord] = field(default_factory=dict)


def dumps(manifest: Manifest) -> str:
    """The text of the file."""
    return json.dumps({"format": FORMAT} | asdict(manifest), indent=1, ensure_ascii=False) + "\n"


def write(folder: Path, manifest: Manifest) -> None:
    """Put the manifest into a folder, in one step. Raises OSError, DiskError."""
    with replace_file(folder / FILE) as new:
        write_synced(new, lambda file: file.write(dumps(manifest).encode()))


def read(folder: Path) -> Manifest | None:
    """A folder's manifest, None where there is none. Raises IndexFolderError."""
    path = folder / FILE
    try:
        return _parsed(json.loads(retry_while_busy(lambda: path.read_text("utf-8"), _BUSY_S)))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise IndexFolderError(
            f"The manifest {path} cannot be read ({error}); if the files beside it are good, delete it and "
            "they are read without."
        ) from error


def _parsed(fields: dict[str, Any]) -> Manifest:
    form = fields.pop("format")
    if form != FORMAT:
        raise ValueError(f"its format is {form!r}, this pdserve reads {FORMAT}")
    embedder = fields.pop("embedder")
    files = {name: FileRecord(**each) for name, each in fields.pop("files").items()}
    manifest = Manifest(**fields, embedder=EmbedderId(**embedder) if embedder else None, files=files)
    for name in ("version", "dimension", "count", "slots", "trained_on", "next_id"):
        if type(getattr(manifest, name)) is not int or getattr(manifest, name) < 0:
            raise ValueError(f"{name} is {getattr(manifest, name)!r}")
    for name in ("change", "type", "metric", "created", "updated"):
        if not isinstance(getattr(manifest, name), str):
            raise ValueError(f"{name} is {getattr(manifest, name)!r}")
    if not isinstance(manifest.previous, int | None):
        raise ValueError(f"previous is {manifest.previous!r}")
    for name in files:  # which are joined to the folder and read
        if name in ("", ".", "..") or any(c in "/\\:\0" for c in name):
            raise ValueError(f"it names a file outside its folder, {name!r}")
    return manifest
