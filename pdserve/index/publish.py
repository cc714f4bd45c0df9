"""Publishes a new version of an index, in one step and as a whole, and rolls back to the version before.

The new version is written into its own folder (``.versions/8/``) and put under the plain names
after that; the last file that is replaced is ``index.json``, and with it the current version changes
for pdserve, which reads ``.versions/`` only. Killed at any point, the old version or the new one is current.

Programs that open the plain names one after the other (PaddleClas, Paddle Serving: the vectors, then the
labels) can catch two versions. An id therefore never means another image, and in between the labels are
those of both versions: whichever they catch, every id they can meet has its own label. Only a program that
opened the vectors before and the labels after entries were removed lacks the labels of those.

What a killed writer left is repaired by the next one. The version before stays for `rollback`.
"""

import logging
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pdserve.errors import IndexFolderError
from pdserve.files import (
    FileRecord,
    disk_errors,
    link_or_copy,
    replace_file,
    replace_folder,
    sync_file,
    sync_folder,
    write_synced,
)
from pdserve.index import entries as entry_files
from pdserve.index import faiss_index, forms, id_map, store
from pdserve.index.embed import EmbedderId
from pdserve.index.entries import Entries
from pdserve.index.id_map import IdMap
from pdserve.index.store import FILES, ID_MAP, VECTORS, Manifest, Snapshot, version_folder
from pdserve.locks import file_lock
from pdserve.progress import SILENT, Progress

log = logging.getLogger("pdserve")


@dataclass(frozen=True)
class Draft:
    """The content of the next version. ``index`` None: the vectors stay as they are."""

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
    """Hold the writer's lock, waiting for another writer. Raises DiskError, FetchError for ``cancel``."""
    with file_lock(folder / ".lock", folder.name, progress, cancel):
        yield


@contextmanager
def writer(
    folder: Path, progress: Progress = SILENT, cancel: threading.Event | None = None
) -> Iterator[None]:
    """As `locked`, and repair what a killed writer left, for changes to what is there.

    Raises DiskError, IndexFolderError where another program changed the files.
    """
    with locked(folder, progress, cancel):
        known = store.read_manifest(folder)
        if known:
            _repair(folder, known)
        yield


def publish(folder: Path, draft: Draft, base: Snapshot | None) -> Manifest:
    """Make ``draft`` the version after ``base``, the current one (None: none, or it cannot be read).

    The caller is the `writer`. Raises DiskError; then the current version is the old one.
    """
    with disk_errors(folder):
        if base and not base.manifest:
            _adopt(folder, base)
        with _new_version(folder) as new:
            index, digests = draft.index, {}
            if index is None and base:
                before = version_folder(folder, base.version)
                link_or_copy(before / VECTORS, new / VECTORS)
                if recorded := store.read_manifest(before):
                    digests[VECTORS] = recorded.files[VECTORS].sha256
                index = base.index
            else:
                write_synced(new / VECTORS, lambda file: faiss_index.write(index, file))
            labels = id_map.with_copies(draft.id_map, faiss_index.copies(index))
            write_synced(new / ID_MAP, lambda file: file.write(id_map.dumps(labels)))
            write_synced(new / entry_files.FILE, lambda file: entry_files.write(file, draft.entries))
            made = _manifest(new, int(new.name), draft, faiss_index.form(index), base, digests)
            _switch(folder, new, made, _labels_of(folder, base) if base else {}, labels)
    store.remove_versions(folder, {made.version, base.version if base else made.version})
    return made


def rollback(folder: Path, progress: Progress = SILENT) -> Manifest:
    """Publish the version before once more, as a new version; a second time undoes the first.

    Raises IndexFolderError where there is no version before, or it is broken; DiskError.
    """
    with locked(folder, progress):
        known = store.read_manifest(folder)
        before = version_folder(folder, known.previous) if known and known.previous is not None else None
        old = store.read_manifest(before) if before else None
        if not known or not before or not old:
            raise IndexFolderError(
                f"The index {folder} keeps no version before the current one; nothing was changed."
            )
        store.read_files(folder, before, old)
        labels = id_map.read_all(before / ID_MAP)
        try:
            current = id_map.read_all(version_folder(folder, known.version) / ID_MAP)
        except (OSError, IndexFolderError):  # broken, which may be the reason for the rollback
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
            _switch(folder, new, made, current, labels)
        store.remove_versions(folder, {made.version, known.version})
        return made


@contextmanager
def _new_version(folder: Path) -> Iterator[Path]:
    """An empty folder for the next version; if the block fails before the switch, all is as it was."""
    known = store.read_manifest(folder)
    number = max([0, known.version if known else 0, *store.versions(folder)]) + 1
    new = version_folder(folder, number)
    try:
        new.mkdir(parents=True)
        yield new
    except BaseException:
        known = store.read_manifest(folder)
        if not known or known.version != number:
            with suppress(OSError, IndexFolderError):
                if known:
                    _repair(folder, known)
                shutil.rmtree(new)
        raise


def _switch(folder: Path, source: Path, made: Manifest, old: IdMap, new: IdMap) -> None:
    """Put a version's files under the plain names, the manifest last.

    Labels in another form, which an adopted index had, would be those of other vectors from then on.
    """
    before = store.read_manifest(folder)
    store.write_manifest(source, made)
    sync_folder(source)
    if old.keys() <= new.keys():
        _put(source, folder, ID_MAP)
    else:
        both = id_map.dumps(old | new)
        with replace_file(folder / ID_MAP) as path:
            write_synced(path, lambda file: file.write(both))
    for form in forms.present(folder):
        if form.file != ID_MAP:
            (folder / form.file).unlink()
            log.warning(
                "%s: %s's %s is replaced by %s; `pdserve index export` writes it again",
                folder,
                form.program,
                form.file,
                ID_MAP,
            )
    for name in (VECTORS, ID_MAP, entry_files.FILE):
        if before and _is_kept(folder / name, before.files.get(name), made.files[name]):
            continue  # vectors can take a gigabyte, and new labels leave them as they are
        _put(source, folder, name)
    store.write_manifest(folder, made)
    try:
        sync_folder(folder)
    except OSError as error:  # it is current already, and nobody is to think that it is not
        log.warning("%s: the disk does not confirm version %d: %s", folder, made.version, error.strerror)


def _is_kept(plain: Path, before: FileRecord | None, made: FileRecord) -> bool:
    return before is not None and before.sha256 == made.sha256 and before.is_untouched(plain)


def _labels_of(folder: Path, base: Snapshot) -> IdMap:
    """The labels that the plain file has now, with those of copies, whose vectors may be changed by now."""
    known = base.manifest
    if known and known.slots == known.count:
        return base.id_map
    with suppress(OSError, IndexFolderError):
        return id_map.read_all(version_folder(folder, base.version) / ID_MAP)
    return base.id_map


def _put(source: Path, folder: Path, name: str) -> None:
    """Replace the file of a plain name by a copy of a version's.

    No hard link: a program that writes the plain name in place would change the version with it.
    """
    with replace_file(folder / name) as new:
        shutil.copy2(source / name, new)
        sync_file(new)


def _adopt(folder: Path, base: Snapshot) -> None:
    """Make a version of the files that PaddleClas or PaddleX wrote, to roll back to.

    Copies, for a hard link would be changed by a program that writes the plain names in place.
    """
    own = version_folder(folder, base.version)
    if own.is_dir():
        shutil.rmtree(own)
    own.mkdir(parents=True)
    for name in (VECTORS, *(form.file for form in forms.present(folder))):
        shutil.copy2(folder / name, own / name)
    if not (own / ID_MAP).is_file():
        write_synced(own / ID_MAP, lambda file: file.write(id_map.dumps(base.id_map)))
    write_synced(own / entry_files.FILE, lambda file: entry_files.write(file, base.entries))
    found = Draft(None, base.id_map, base.entries, None, base.next_id, base.form.slots, "as found")
    made = _manifest(own, base.version, found, base.form, None, {})
    store.write_manifest(own, made)
    sync_folder(own)
    if not (folder / ID_MAP).is_file():
        _put(own, folder, ID_MAP)
    _put(own, folder, entry_files.FILE)
    # From here on it is a version like any other, which repairing a killed writer's folder restores.
    store.write_manifest(folder, made)


def _repair(folder: Path, known: Manifest) -> None:
    """Put the current version under the plain names again, where a writer was killed while it did so.

    Raises IndexFolderError for a plain file that is of no version: another program wrote it.
    """
    own = version_folder(folder, known.version)
    if not own.is_dir():  # a copy without its versions: the plain files are the index
        with disk_errors(folder), replace_folder(own) as part:
            for name, published in known.files.items():
                store.check_file(folder / name, published)
                shutil.copy2(folder / name, part / name)
            store.write_manifest(part, known)
    for name, published in known.files.items():
        plain = folder / name
        if published.is_untouched(plain):
            continue
        if name != entry_files.FILE and plain.is_file() and not store.is_of_a_version(folder, name):
            store.check_file(plain, published, full=True)  # raises, unless only the time differs
            continue
        with disk_errors(folder):
            _put(own, folder, name)


def _manifest(
    folder: Path,
    version: int,
    draft: Draft,
    form: faiss_index.Form,
    base: Snapshot | None,
    digests: Mapping[str, str],
) -> Manifest:
    """The manifest of the files in ``folder``; ``digests``: SHA-256 of those that need not be read."""
    now = _now()
    return Manifest(
        version=version,
        previous=base.version if base else None,
        change=draft.change,
        type=form.type,
        metric=form.metric,
        dimension=form.dimension,
        count=len(draft.id_map),
        labels=len({id_map.split(entry)[1] for entry in draft.id_map.values()}),
        slots=form.slots,
        trained_on=draft.trained_on,
        next_id=draft.next_id,
        embedder=draft.embedder,
        created=base.manifest.created if base and base.manifest else now,
        updated=now,
        files={name: FileRecord.of(folder / name, digests.get(name)) for name in FILES},
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
