"""A new version of an index comes into force, in one step and as a whole.

The new version is written into a folder of its own (``.versions/8/``) and put under the plain names
after that; the last thing that is replaced is ``index.json``, and with it the version in force changes
for pdserve, which reads ``.versions/`` only. Killed at any point, the old version or the new one is in force.

Programs that open the plain names one after the other (PaddleClas, Paddle Serving: the vectors, then the
labels) can catch two versions. An id therefore never means another image, and in between the labels are
those of both versions: whichever they catch, every id they can meet has its own label. Only who opened
the vectors before and the labels after entries were removed misses the labels of those.

What a killed writer left is put right by the next one. The version before stays for `rollback`.
"""

import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pdserve.files import (
    FileRecord,
    disk_errors,
    file_lock,
    link_or_copy,
    replace_file,
    sha256,
    sync_folder,
    write_synced,
)
from pdserve.index import entries as entry_files
from pdserve.index import faiss_index, files, id_map, manifest
from pdserve.index.embedder import EmbedderId
from pdserve.index.entries import Entries
from pdserve.index.errors import IndexFolderError
from pdserve.index.id_map import IdMap
from pdserve.index.manifest import Manifest
from pdserve.index.repair import restore
from pdserve.index.store import FILES, ID_MAP, VECTORS, Snapshot, read_files, version_folder
from pdserve.progress import SILENT, Progress


@dataclass(frozen=True)
class Draft:
    """What the next version is to hold. ``index`` None: the vectors stay as they are."""

    index: Any
    id_map: IdMap
    entries: Entries
    embedder: EmbedderId | None
    next_id: int
    trained_on: int
    change: str


@contextmanager
def locked(
    folder: Path, progress: Progress = SILENT, cancel: threading.Event | None = None
) -> Iterator[None]:
    """Be the only one who writes; waits for another. Raises DiskError."""
    with file_lock(folder / ".lock", folder.name, progress, cancel):
        yield


@contextmanager
def writer(
    folder: Path, progress: Progress = SILENT, cancel: threading.Event | None = None
) -> Iterator[None]:
    """As `locked`, and put right what a killed writer left, for those who go on from what is there.

    Raises DiskError, IndexFolderError where another program changed the files.
    """
    with locked(folder, progress, cancel):
        known = manifest.read(folder)
        if known:
            restore(folder, known)
        yield


def publish(folder: Path, draft: Draft, base: Snapshot | None) -> Manifest:
    """Bring ``draft`` into force after ``base``, the version in force (None: none, or it cannot be read).

    The caller is the `writer`. Raises DiskError; then the version in force is the old one.
    """
    with disk_errors(folder):
        if base and not base.manifest:
            _adopt(folder, base)
        with _new_version(folder) as new:
            digests = {}
            if draft.index is None:
                before = version_folder(folder, base.version if base else 0)
                kept = manifest.read(before)
                link_or_copy(before / VECTORS, new / VECTORS)
                digests[VECTORS] = kept.files[VECTORS].sha256 if kept else sha256(new / VECTORS)
            else:
                digests[VECTORS] = write_synced(
                    new / VECTORS, lambda file: faiss_index.write(draft.index, file)
                )
            digests |= _write_labels(new, draft.id_map, draft.entries)
            form = faiss_index.form(base.index if draft.index is None and base else draft.index)
            now = _now()
            made = Manifest(
                version=int(new.name),
                previous=base.version if base else None,
                change=draft.change,
                type=form.type,
                metric=form.metric,
                dimension=form.dimension,
                count=len(draft.id_map),
                labels=_labels(draft.id_map),
                slots=form.slots,
                trained_on=draft.trained_on,
                next_id=draft.next_id,
                embedder=draft.embedder,
                created=base.manifest.created if base and base.manifest else now,
                updated=now,
                files={name: FileRecord.of(new / name, digests[name]) for name in FILES},
            )
            _switch(folder, new, made, base.id_map if base else {}, draft.id_map)
    files.sweep(folder, {made.version, base.version if base else made.version})
    return made


def rollback(folder: Path, progress: Progress = SILENT) -> Manifest:
    """Bring the version before into force again, as a new version; twice gives what there was.

    Raises IndexFolderError where there is no version before, or it is broken; DiskError.
    """
    with locked(folder, progress):
        known = manifest.read(folder)
        before = version_folder(folder, known.previous) if known and known.previous is not None else None
        old = manifest.read(before) if before else None
        if known is None or before is None or old is None:
            raise IndexFolderError(
                f"The index {folder} keeps no version before the one in force; nothing was changed."
            )
        snapshot = read_files(folder, before, old)
        try:
            current = id_map.read(version_folder(folder, known.version) / ID_MAP)
        except (OSError, IndexFolderError):  # broken, which may be why it is to go
            current = {}
        with disk_errors(folder), _new_version(folder) as new:
            for name in FILES:
                link_or_copy(before / name, new / name)
            made = replace(
                old,
                version=int(new.name),
                previous=known.version,
                change=f"rollback to version {old.version}",
                next_id=max(old.next_id, known.next_id),
                updated=_now(),
            )
            _switch(folder, new, made, current, snapshot.id_map)
        files.sweep(folder, {made.version, known.version})
        return made


@contextmanager
def _new_version(folder: Path) -> Iterator[Path]:
    """An empty folder for the next version; if the block fails before the switch, all is as it was."""
    number = files.newest(folder) + 1
    new = version_folder(folder, number)
    try:
        new.mkdir(parents=True)
        yield new
    except BaseException:
        known = manifest.read(folder)
        if not known or known.version != number:
            with suppress(OSError, IndexFolderError):
                if known:
                    restore(folder, known)
                shutil.rmtree(new)
        raise


def _switch(folder: Path, source: Path, made: Manifest, old: IdMap, new: IdMap) -> None:
    manifest.write(source, made)
    sync_folder(source)
    if old.keys() <= new.keys():
        _put(source, folder, ID_MAP)
    else:
        both = id_map.dumps(old | new)
        with replace_file(folder / ID_MAP) as path:
            write_synced(path, lambda file: file.write(both))
    for name in (VECTORS, ID_MAP, entry_files.FILE):
        _put(source, folder, name)
    manifest.write(folder, made)
    sync_folder(folder)


def _put(source: Path, folder: Path, name: str) -> None:
    """Bring a version's file under its plain name, in one step."""
    with replace_file(folder / name) as new:
        link_or_copy(source / name, new)


def _adopt(folder: Path, base: Snapshot) -> None:
    """Make a version of the files that PaddleClas wrote: something to come back to.

    Copies, for a hard link would be changed by whoever goes on to write the plain names in place.
    """
    own = version_folder(folder, base.version)
    if own.is_dir():
        shutil.rmtree(own)
    own.mkdir(parents=True)
    digests = {}
    for name in (VECTORS, ID_MAP):
        shutil.copy2(folder / name, own / name)
        digests[name] = sha256(own / name)
    digests[entry_files.FILE] = write_synced(
        own / entry_files.FILE, lambda file: entry_files.write(file, base.entries)
    )
    form = base.form
    made = Manifest(
        version=base.version,
        previous=None,
        change="as found",
        type=form.type,
        metric=form.metric,
        dimension=form.dimension,
        count=len(base.id_map),
        labels=_labels(base.id_map),
        slots=form.slots,
        trained_on=form.slots,
        next_id=base.next_id,
        embedder=None,
        created=_now(),
        updated=_now(),
        files={name: FileRecord.of(own / name, digests[name]) for name in FILES},
    )
    manifest.write(own, made)
    sync_folder(own)
    _put(own, folder, entry_files.FILE)
    # From here on it is a version like any other, to which a killed writer's folder is brought back.
    manifest.write(folder, made)


def _write_labels(new: Path, labels: IdMap, entries: Entries) -> Mapping[str, str]:
    pickled = id_map.dumps(labels)
    return {
        ID_MAP: write_synced(new / ID_MAP, lambda file: file.write(pickled)),
        entry_files.FILE: write_synced(new / entry_files.FILE, lambda file: entry_files.write(file, entries)),
    }


def _labels(labels: IdMap) -> int:
    return len({id_map.split(entry)[1] for entry in labels.values()})


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
