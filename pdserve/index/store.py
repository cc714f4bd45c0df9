"""The folder of an index, its manifest ``index.json``, and how one version of it is read.

::

    INDEX/
      index.json        the manifest; names the current version
      vector.index      copies of that version's files under the plain names that PaddleClas opens:
      id_map.pkl        what it writes there in place does not change the version
      entries.npy
      .versions/7/      the same files: what pdserve itself reads, complete and never changed
      .versions/6/      the version before, for rollback
      .work/            embedded, not yet published: see embed.py
      .lock             held by the writer

The manifest::

    {"format": 1, "version": 7, "previous": 6, "change": "append: 3 added",
     "type": "Flat", "metric": "IP", "dimension": 512, "count": 48, "labels": 8, "slots": 48,
     "trained_on": 48, "next_id": 51, "embedder": {"name": "…", "fingerprint": "…"} or null,
     "created": "2025-01-31T12:00:00+00:00", "updated": "…",
     "files": {"vector.index": {"bytes": 98390, "sha256": "…", "mtime_ns": 1738…}, …}}

``count`` entries are in ``slots`` vectors: more than one per entry where some were removed from a graph
(see faiss_index.py). Ids from ``next_id`` on were never used. ``trained_on``: vectors that an IVF's lists
were made for. An embedder that is not one of pdserve's home has a ``path`` beside its name.

A folder without manifest is one that PaddleClas or PaddleX wrote (see forms.py); its version is 0.
"""

import json
import shlex
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pdserve.errors import IndexFolderError, UsageError, unshown
from pdserve.files import FileRecord, replace_file, retry_while_busy, temp_siblings, user_path, write_synced
from pdserve.index import entries as entry_files
from pdserve.index import faiss_index, forms, id_map
from pdserve.index.embed import EmbedderId
from pdserve.index.entries import Entries
from pdserve.index.id_map import IdMap
from pdserve.models.home import Home, is_path
from pdserve.vision.types import Ids

MANIFEST = "index.json"
VECTORS = "vector.index"
ID_MAP = "id_map.pkl"
FILES = (VECTORS, ID_MAP, entry_files.FILE)
FORMAT = 1
_VERSIONS = ".versions"
_ATTEMPTS = 20


@dataclass(frozen=True)
class Manifest:
    """The content of ``index.json``."""

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


@dataclass(frozen=True)
class Snapshot:
    """One version of an index, in memory. ``index`` is faiss's; ``manifest`` None: there was none."""

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
    def embedder(self) -> EmbedderId | None:
        """The embedder that made the vectors, None where it is not known."""
        return self.manifest.embedder if self.manifest else None

    @property
    def next_id(self) -> int:
        """The first of the ids that were never used."""
        used = max(self.id_map, default=-1) + 1
        return max(used, self.manifest.next_id) if self.manifest else used


def find(name: str, home: Home, embedder: str | None = None) -> Path:
    """The folder of an index: itself, its data set's folder (``index/`` is in it), or a name in the home.

    What has a separator is a path. Raises UsageError where there is none, with the command that makes one,
    for the ``embedder`` that is to search it.
    """
    given = user_path(name)
    for base in (given,) if is_path(name) else (given, home.index(name)):
        for folder in (base, base / "index"):
            if (folder / MANIFEST).is_file() or (folder / VECTORS).is_file():
                return folder
    if given.is_file():
        which = f"that, {given.parent}" if given.name in FILES else "another"
        raise UsageError(f"{name!r} is a file, and an index is a folder; name {which}.")
    where = "which is a path" if is_path(name) else f"neither as a folder nor in {home.indexes}"
    raise UsageError(f"There is no index at {name!r}, {where}; {_how_to_get(name, home, embedder)}.")


def _how_to_get(name: str, home: Home, embedder: str | None) -> str:
    """The command that brings an index that is not there: of a data set of the catalog, or a new one."""
    from pdserve.models import catalog

    base = user_path(name) if is_path(name) else home.index(name)
    gallery = base / "gallery"
    entry = None if is_path(name) or base.is_dir() else catalog.load().get(name)
    if entry is not None and entry.task == "dataset":
        own = "`pdserve index build --gallery DIR --out NAME`"
        return f"type `pdserve fetch {name}`, or make one of your own with {own}"
    images = shlex.quote(str(gallery)) if gallery.is_dir() else "DIR"
    model = f" --model {shlex.quote(embedder)}" if embedder and embedder not in catalog.DEFAULTS else ""
    return f"make one with `pdserve index build --gallery {images} --out {shlex.quote(name)}{model}`"


def find_or_new(name: str, home: Home) -> Path:
    """Where to write an index: what `find` finds, else the folder or, for a bare name, the home's.

    A data set's folder (``gallery/`` is in it) gets its index in ``index/``. Raises UsageError for a file,
    and for a new name that nobody could type again.
    """
    given = user_path(name)
    try:
        return find(name, home)
    except UsageError:
        if given.is_file():
            raise
        bare = not is_path(name) and not given.exists()
        if not given.exists() and (unshown(name) or (bare and name != name.strip())):
            raise UsageError(
                f"{name!r} has a line break, a control character or a blank at its end; give a plain name."
            ) from None
        base = home.index(name) if bare else given
        return base / "index" if (base / "gallery").is_dir() else base


def files(folder: Path) -> list[Path]:
    """The files of an index under their plain names, those of another program's form included."""
    names = dict.fromkeys((*FILES, *(form.file for form in forms.FORMS.values())))
    return [folder / name for name in names if (folder / name).is_file()]


def version_folder(folder: Path, version: int) -> Path:
    """The folder that a version has for itself."""
    return folder / _VERSIONS / str(version)


def versions(folder: Path) -> list[int]:
    """The numbers of the versions that are stored, and of what killed writers left, ascending."""
    return sorted(int(p.name) for p in (folder / _VERSIONS).glob("*") if p.name.isdecimal())


def remove_versions(folder: Path, keep: set[int]) -> None:
    """Remove other versions. What is open elsewhere (Windows) is left for the next time."""
    with suppress(OSError):
        for path in (folder / _VERSIONS).glob("*"):
            if not path.name.isdecimal() or int(path.name) not in keep:
                shutil.rmtree(path, ignore_errors=True)
    with suppress(OSError):
        for left in temp_siblings(folder):
            with suppress(OSError):
                left.unlink()


def manifest_json(manifest: Manifest) -> str:
    """The text of ``index.json``."""
    fields = asdict(manifest)
    if fields["embedder"] and fields["embedder"]["path"] is None:
        del fields["embedder"]["path"]
    return json.dumps({"format": FORMAT} | fields, indent=1, ensure_ascii=False) + "\n"


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Replace the manifest of a folder. Raises OSError, DiskError."""
    with replace_file(folder / MANIFEST) as new:
        write_synced(new, lambda file: file.write(manifest_json(manifest).encode()))


def read_manifest(folder: Path) -> Manifest | None:
    """A folder's manifest, None where there is none. Raises IndexFolderError."""
    path = folder / MANIFEST
    try:
        # Windows refuses for the moment in which another file takes the place.
        return _parse_manifest(json.loads(retry_while_busy(lambda: path.read_text("utf-8"), 2.0)))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise IndexFolderError(
            f"The manifest {path} cannot be read ({error}); if the files beside it are good, delete it and "
            "they are read without."
        ) from error


def _parse_manifest(fields: dict[str, Any]) -> Manifest:
    found = fields.pop("format")
    if found != FORMAT:
        raise ValueError(f"its format is {found!r}, this pdserve reads {FORMAT}")
    embedder = fields.pop("embedder")
    files = {name: FileRecord(**each) for name, each in fields.pop("files").items()}
    for names, valid in (
        (("version", "dimension", "count", "slots", "trained_on", "next_id"), _is_count),
        (("change", "type", "metric", "created", "updated"), lambda value: isinstance(value, str)),
        (("previous",), lambda value: isinstance(value, int | None)),
    ):
        for name in names:
            if not valid(fields[name]):
                raise ValueError(f"{name} is {fields[name]!r}")
    for name in files:  # which are joined to the folder and read
        if name in ("", ".", "..") or any(c in "/\\:\0" for c in name):
            raise ValueError(f"it names a file outside its folder, {name!r}")
    return Manifest(**fields, embedder=EmbedderId(**embedder) if embedder else None, files=files)


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


def read(folder: Path, *, plain: bool = True) -> Snapshot:
    """Read the current version, all files from that version, even while others are published.

    Raises IndexFolderError for files that are missing, changed, broken or do not belong together; if
    ``plain``, for those that another program has put under the plain names, too.
    """
    for attempt in range(_ATTEMPTS):
        known = read_manifest(folder)
        try:
            if known and plain:
                check_plain(folder, known)
            return read_files(folder, current_folder(folder, known), known)
        except (IndexFolderError, OSError) as error:
            now = read_manifest(folder)
            replaced = (now.version if now else None) != (known.version if known else None)
            if replaced and attempt < _ATTEMPTS - 1:
                continue
            if isinstance(error, OSError):
                raise IndexFolderError(
                    f"The index {folder} cannot be read: {error.strerror or error} "
                    f"({Path(error.filename or folder).name}); check the folder, or rebuild it."
                ) from error
            raise
    raise AssertionError("the last attempt returns or raises")


def current_folder(folder: Path, known: Manifest | None) -> Path:
    """The version's own folder, or the plain files where somebody copied the index without its versions."""
    own = version_folder(folder, known.version) if known else folder
    return own if own.is_dir() else folder


def read_files(folder: Path, source: Path, known: Manifest | None) -> Snapshot:
    """Read the three files in ``source`` as the version that ``known`` describes, and check that they fit."""
    if known:
        for name, recorded in known.files.items():
            check_file(source / name, recorded)
    index = faiss_index.read(source / VECTORS)
    if known:
        file, labels = source / ID_MAP, id_map.read(source / ID_MAP)
    else:
        file, labels = forms.read_labels(source)
    _check_ids(file, index, labels)
    if known:
        entries = entry_files.read(source / entry_files.FILE)
        if not np.array_equal(np.sort(entries.ids), _sorted(labels)):
            raise IndexFolderError(
                f"{source / entry_files.FILE} and {ID_MAP} have other ids; type `pdserve index rollback`."
            )
    else:
        # One that is there was not written together with the other files.
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
            f"delete {MANIFEST} if another program changed the index on purpose."
        )


def check_plain(folder: Path, known: Manifest) -> None:
    """Raise IndexFolderError for a plain file that another program wrote. Costs a `stat` call for each.

    One that is missing, or of a version that is being published, is none; FileNotFoundError if it went.
    """
    for name, published in known.files.items():
        plain = folder / name
        if name != entry_files.FILE and plain.is_file() and not published.is_untouched(plain):
            if is_of_a_version(folder, name):
                continue
            check_file(plain, published, full=True)


def is_of_a_version(folder: Path, name: str) -> bool:
    """Whether a killed writer put a plain file there."""
    plain = folder / name
    owned = [version_folder(folder, version) for version in versions(folder)]
    for own in owned:
        left = read_manifest(own)
        if left and name in left.files and left.files[name].is_untouched(plain):
            return True
    if name != ID_MAP:
        return False
    # The labels of two versions, which are there for a moment while entries are removed.
    known: set[tuple[int, str]] = set()
    for own in owned:
        with suppress(OSError, IndexFolderError):
            known |= set(id_map.read_all(own / ID_MAP).items())
    with suppress(IndexFolderError):
        return set(id_map.read_all(plain).items()) <= known
    return False


def _check_ids(file: Path, index: Any, labels: IdMap) -> None:
    stored, named = np.unique(faiss_index.ids(index)), _sorted(labels)
    if np.array_equal(stored, named):
        return
    unnamed, extra = np.setdiff1d(stored, named), np.setdiff1d(named, stored)
    detail = f"label for the vector {unnamed[0]}" if len(unnamed) else f"vector for the entry {extra[0]}"
    raise IndexFolderError(
        f"{file} has {len(named)} entries and {VECTORS} {len(stored)}: no {detail}; the two do not belong "
        "together, rebuild the index."
    )


def _sorted(labels: IdMap) -> Ids:
    return np.sort(np.fromiter(labels, np.int64, len(labels)))
