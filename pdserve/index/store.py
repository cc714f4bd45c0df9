"""The folder of an index, and how one version of it is read.

::

    INDEX/
      index.json        the manifest; names the version in force
      vector.index      that version's files under the plain names that PaddleClas opens,
      id_map.pkl        hard links where the disk has them
      entries.npy
      .versions/7/      the same files: what pdserve itself reads, whole and never changed
      .versions/6/      the version before, for rollback
      .work/            embedded, not yet published: see work.py
      .lock             held by whoever writes

A folder without ``index.json`` is one that PaddleClas wrote; its version is 0.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pdserve.errors import UsageError
from pdserve.files import FileRecord
from pdserve.index import entries as entry_files
from pdserve.index import faiss_index, id_map, manifest
from pdserve.index.entries import Entries
from pdserve.index.errors import IndexFolderError
from pdserve.index.id_map import IdMap
from pdserve.index.manifest import Manifest
from pdserve.models.home import Home
from pdserve.vision.types import Ids

VECTORS = "vector.index"
ID_MAP = "id_map.pkl"
FILES = (VECTORS, ID_MAP, entry_files.FILE)
VERSIONS = ".versions"
_ATTEMPTS = 20


@dataclass(frozen=True)
class Snapshot:
    """One version of an index, in memory. ``index`` is faiss's; ``manifest`` None: none was there."""

    folder: Path
    version: int
    manifest: Manifest | None
    index: Any
    id_map: IdMap
    entries: Entries

    @property
    def form(self) -> faiss_index.Form:
        return faiss_index.form(self.index)

    @property
    def next_id(self) -> int:
        """From here on, ids were never given."""
        given = max(self.id_map, default=-1) + 1
        return max(given, self.manifest.next_id) if self.manifest else given


def find(wanted: str, home: Home) -> Path:
    """The folder of an index: itself, its data set's folder (``index/`` is in it), or a name in the home.

    Raises UsageError where there is none.
    """
    given = Path(wanted).expanduser()
    for base in (given, home.index(wanted)):
        for folder in (base, base / "index"):
            if (folder / manifest.FILE).is_file() or (folder / VECTORS).is_file():
                return folder
    raise UsageError(
        f"There is no index at {wanted!r}, neither as a folder nor in {home.indexes}; make one with "
        "`pdserve index build`, or type `pdserve fetch drink_dataset_v1.0`."
    )


def place(wanted: str, home: Home) -> Path:
    """Where an index is to be written: what `find` finds, else the folder or, for a bare name, the home's.

    A data set's folder (``gallery/`` is in it) gets its index in ``index/``.
    """
    try:
        return find(wanted, home)
    except UsageError:
        given = Path(wanted).expanduser()
        bare = len(given.parts) == 1 and wanted not in (".", "..") and not given.exists()
        base = home.index(wanted) if bare else given
        return base / "index" if (base / "gallery").is_dir() else base


def version_folder(folder: Path, version: int) -> Path:
    return folder / VERSIONS / str(version)


def read(folder: Path) -> Snapshot:
    """Read the version in force, all of it from that version, while others may be published.

    Raises IndexFolderError for files that are missing, changed, broken or do not belong together.
    """
    for attempt in range(_ATTEMPTS):
        known = manifest.read(folder)
        try:
            return read_files(folder, _source(folder, known), known)
        except (IndexFolderError, OSError) as error:
            now = manifest.read(folder)
            moved_on = (now.version if now else None) != (known.version if known else None)
            if moved_on and attempt < _ATTEMPTS - 1:
                continue
            if isinstance(error, OSError):
                raise IndexFolderError(
                    f"The index {folder} cannot be read: {error.strerror or error} "
                    f"({Path(error.filename or folder).name}); check the folder, or build it anew."
                ) from error
            raise
    raise AssertionError("the loop ends by itself")


def _source(folder: Path, known: Manifest | None) -> Path:
    """The plain files serve where somebody copied the folder without its versions."""
    own = version_folder(folder, known.version) if known else folder
    return own if own.is_dir() else folder


def read_files(folder: Path, source: Path, known: Manifest | None) -> Snapshot:
    """Read the three files in ``source`` as the version that ``known`` describes, and see that they fit."""
    if known:
        for name, recorded in known.files.items():
            check_file(source / name, recorded)
    index = faiss_index.read(source / VECTORS)
    labels = id_map.read(source / ID_MAP)
    _check_ids(source, index, labels)
    if known:
        made_of = source / entry_files.FILE
        entries = entry_files.read(made_of)
        if not np.array_equal(np.sort(entries.ids), _sorted(labels)):
            raise IndexFolderError(f"{made_of} and {ID_MAP} have other ids; type `pdserve index rollback`.")
    else:
        # One that lies there is of another time: whoever wrote the rest does not know of it.
        entries = Entries.unknown(labels)
    form = faiss_index.form(index)
    if known and (form.dimension, form.type, form.metric) != (known.dimension, known.type, known.metric):
        raise IndexFolderError(
            f"{source / VECTORS} is {form.type} {form.metric} of dimension {form.dimension} but its manifest "
            f"says {known.type} {known.metric} of {known.dimension}; type `pdserve index rollback`."
        )
    return Snapshot(folder, known.version if known else 0, known, index, labels, entries)


def check_file(path: Path, published: FileRecord, *, full: bool = False) -> None:
    """Raise IndexFolderError unless a file is as it was published; FileNotFoundError.

    Without ``full``, a file of the same length and time is accepted without reading it.
    """
    if not published.matches(path, full=full):
        raise IndexFolderError(
            f"{path} is not as it was published; type `pdserve index rollback` for the version before, or "
            f"delete {manifest.FILE} if another program changed the index on purpose."
        )


def _check_ids(source: Path, index: Any, labels: IdMap) -> None:
    there = np.unique(faiss_index.ids(index))
    named = _sorted(labels)
    if np.array_equal(there, named):
        return
    missing = np.setdiff1d(there, named)
    if len(missing):
        raise IndexFolderError(
            f"{source / ID_MAP} has {len(named)} entries and {VECTORS} {len(there)}: no label for "
            f"the vector {missing[0]}; the two do not belong together, build the index anew."
        )
    extra = np.setdiff1d(named, there)
    raise IndexFolderError(
        f"{source / ID_MAP} has {len(named)} entries and {VECTORS} {len(there)}: no vector for "
        f"the entry {extra[0]}; the two do not belong together, build the index anew."
    )


def _sorted(labels: IdMap) -> Ids:
    return np.sort(np.fromiter(labels, np.int64, len(labels)))
