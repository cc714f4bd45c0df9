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

import hashlib
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, BinaryIO

from pdserve import checksum, lock
from pdserve.disk import writing
from pdserve.index import entries as entry_files
from pdserve.index import id_map, manifest, vectors
from pdserve.index.embedder import EmbedderId
from pdserve.index.entries import Entries
from pdserve.index.errors import IndexFolderError
from pdserve.index.folder import FILES, ID_MAP, VECTORS, VERSIONS, Snapshot, check_file, read_files, version_folder
from pdserve.index.id_map import IdMap
from pdserve.index.manifest import Manifest
from pdserve.progress import SILENT, Progress
from pdserve.record import Stamp

_WINDOWS = sys.platform == "win32"
_BUSY_S = 10.0


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
def writer(folder: Path, progress: Progress = SILENT, cancel: threading.Event | None = None) -> Iterator[None]:
    """Be the one who writes; waits for another. Puts right what a killed writer left. Raises DiskError."""
    with lock.held(folder / ".lock", folder.name, progress, cancel or threading.Event()):
        known = manifest.read(folder)
        if known:
            _restore(folder, known)
        yield


def publish(folder: Path, draft: Draft, base: Snapshot | None) -> Manifest:
    """Bring ``draft`` into force after ``base``, the version in force (None: there is none that can be read).

    The caller is the `writer`. Raises DiskError; then the version in force is the old one.
    """
    with writing(folder):
        if base and not base.manifest:
            _keep_foreign(folder, base)
        number = _newest(folder) + 1
        new = version_folder(folder, number)
        try:
            new.mkdir(parents=True)
            if draft.index is None:
                assert base is not None
                _link(version_folder(folder, base.version) / VECTORS, new / VECTORS)
                known = manifest.read(version_folder(folder, base.version))
                assert known is not None
                digests = {VECTORS: known.files[VECTORS].sha256}
            else:
                digests = {VECTORS: _write(new / VECTORS, lambda file: vectors.write(draft.index, file))}
            pickled = id_map.dumps(draft.id_map)
            digests[ID_MAP] = _write(new / ID_MAP, lambda file: file.write(pickled))
            digests[entry_files.FILE] = _write(
                new / entry_files.FILE, lambda file: entry_files.write(file, draft.entries)
            )
            form = vectors.form(draft.index if draft.index is not None else base.index if base else None)
            now = _now()
            made = Manifest(
                version=number,
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
                files={name: _stamp(new / name, digests[name]) for name in FILES},
            )
            _write_manifest(new, made)
            _switch(folder, made, base.id_map if base else {}, draft.id_map)
        except BaseException:
            known = manifest.read(folder)
            if not known or known.version != number:
                with suppress(OSError, IndexFolderError):
                    if known:
                        _restore(folder, known)
                    shutil.rmtree(new)
            raise
    _sweep(folder, {number, base.version if base else number})
    return made


def rollback(folder: Path, progress: Progress = SILENT) -> Manifest:
    """Bring the version before into force again, as a new version; twice gives what there was.

    Raises IndexFolderError where there is no version before, or it is broken; DiskError.
    """
    with writer_of_broken(folder, progress):
        known = manifest.read(folder)
        if known is None:
            raise IndexFolderError(f"{folder} has no version before this one; nothing was changed.")
        before = version_folder(folder, known.previous) if known.previous is not None else None
        old = manifest.read(before) if before and before.is_dir() else None
        if before is None or old is None:
            raise IndexFolderError(f"The index {folder} keeps no version before {known.version}.")
        snapshot = read_files(folder, before, old)
        with writing(folder):
            number = _newest(folder) + 1
            new = version_folder(folder, number)
            new.mkdir(parents=True)
            for name in FILES:
                _link(before / name, new / name)
            made = replace(
                old,
                version=number,
                previous=known.version,
                change=f"rollback to version {old.version}",
                next_id=max(old.next_id, known.next_id),
                updated=_now(),
            )
            _write_manifest(new, made)
            try:
                current = id_map.read(version_folder(folder, known.version) / ID_MAP)
            except (OSError, IndexFolderError):
                current = {}
            _switch(folder, made, current, snapshot.id_map)
        _sweep(folder, {number, known.version})
        return made


@contextmanager
def writer_of_broken(folder: Path, progress: Progress = SILENT) -> Iterator[None]:
    """As `writer`, for those who put something else in the place of an index that may be broken."""
    with lock.held(folder / ".lock", folder.name, progress, threading.Event()):
        yield


def _switch(folder: Path, made: Manifest, old: IdMap, new: IdMap) -> None:
    source = version_folder(folder, made.version)
    if not old.keys() <= new.keys():
        _replace_with(folder, ID_MAP, lambda path: _write(path, lambda file: file.write(id_map.dumps(old | new))))
    else:
        _replace_with(folder, ID_MAP, lambda path: _link(source / ID_MAP, path))
    for name in (VECTORS, ID_MAP, entry_files.FILE):
        _replace_with(folder, name, lambda path, name=name: _link(source / name, path))  # type: ignore[misc]
    _replace_with(folder, manifest.FILE, lambda path: _write_text(path, manifest.dumps(made)))
    _sync_folder(folder)


def _restore(folder: Path, known: Manifest) -> None:
    """Put the version in force under the plain names again, where a writer was killed at it.

    Raises IndexFolderError for a plain file that is of no version: another program wrote it.
    """
    own = version_folder(folder, known.version)
    if not own.is_dir():  # a copy without its versions: the plain files are the index
        with writing(folder):
            part = own.with_name(f"{own.name}.part")
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            for name, stamp in known.files.items():
                check_file(folder / name, stamp.bytes, stamp.sha256, stamp.mtime_ns)
                _link(folder / name, part / name)
            _write_manifest(part, known)
            part.rename(own)
    for name, stamp in known.files.items():
        plain = folder / name
        if _is(plain, stamp):
            continue
        if name != entry_files.FILE and plain.is_file() and not _ours(folder, name):
            check_file(plain, stamp.bytes, stamp.sha256, None)  # says so, unless only the time differs
            continue
        with writing(folder):
            _replace_with(folder, name, lambda path, name=name: _link(own / name, path))  # type: ignore[misc]


def _ours(folder: Path, name: str) -> bool:
    """Is a plain file one that a killed writer put there?"""
    plain = folder / name
    for version in _versions(folder):
        left = manifest.read(version_folder(folder, version))
        if left and name in left.files and _is(plain, left.files[name]):
            return True
    if name != ID_MAP:
        return False
    # The labels of two versions, which stand there for a moment while entries are removed.
    known: set[tuple[int, str]] = set()
    for version in _versions(folder):
        with suppress(OSError, IndexFolderError):
            known |= set(id_map.read(version_folder(folder, version) / ID_MAP).items())
    return set(id_map.read(plain).items()) <= known


def _is(path: Path, stamp: Stamp) -> bool:
    try:
        stat = path.stat()
    except FileNotFoundError:
        return False
    return stat.st_size == stamp.bytes and stat.st_mtime_ns == stamp.mtime_ns


def _keep_foreign(folder: Path, base: Snapshot) -> None:
    """Make a version of the files that PaddleClas wrote, so that they can be rolled back to."""
    kept = version_folder(folder, base.version)
    if kept.is_dir():
        shutil.rmtree(kept)
    kept.mkdir(parents=True)
    for name in (VECTORS, ID_MAP):
        # A copy: a hard link would be changed by whoever goes on to write the plain name in place.
        shutil.copy2(folder / name, kept / name)
    _write(kept / entry_files.FILE, lambda file: entry_files.write(file, base.entries))
    form = base.form
    _write_manifest(
        kept,
        Manifest(
            version=base.version,
            previous=None,
            change="as found",
            type=form.type,
            metric=form.metric,
            dimension=form.dimension,
            count=len(base.id_map),
            labels=len({id_map.split(entry)[1] for entry in base.id_map.values()}),
            slots=form.slots,
            trained_on=form.slots,
            next_id=base.next_id,
            embedder=None,
            created=_now(),
            updated=_now(),
            files={name: _stamp(kept / name, checksum.sha256(kept / name)) for name in FILES},
        ),
    )


def _versions(folder: Path) -> list[int]:
    return sorted(int(p.name) for p in (folder / VERSIONS).glob("*") if p.name.isdecimal())


def _newest(folder: Path) -> int:
    known = manifest.read(folder)
    return max([0, known.version if known else 0, *_versions(folder)])


def _sweep(folder: Path, keep: set[int]) -> None:
    """Remove other versions. What is open elsewhere (Windows) is left for the next time."""
    for path in (folder / VERSIONS).glob("*"):
        if not path.name.isdecimal() or int(path.name) not in keep:
            shutil.rmtree(path, ignore_errors=True)
    for left in folder.glob(".*.new"):
        with suppress(OSError):
            left.unlink()


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a disk, or a right, without hard links
        shutil.copy2(source, target)


class _Hashing:
    """A file that hashes what is written to it, so that it need not be read again."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.hash = hashlib.sha256(usedforsecurity=False)

    def write(self, data: Any) -> int:
        self.hash.update(data)
        return self._file.write(data)


def _write(path: Path, fill: Callable[[Any], object]) -> str:
    """Write a file to the disk's own memory and not just the system's; return its SHA-256."""
    with path.open("wb") as file:
        hashing = _Hashing(file)
        fill(hashing)
        file.flush()
        os.fsync(file.fileno())
    return hashing.hash.hexdigest()


def _write_text(path: Path, text: str) -> None:
    _write(path, lambda file: file.write(text.encode()))


def _write_manifest(folder: Path, made: Manifest) -> None:
    _write_text(folder / manifest.FILE, manifest.dumps(made))
    _sync_folder(folder)


def _replace_with(folder: Path, name: str, make: Callable[[Path], object]) -> None:
    new = folder / f".{name}.new"
    new.unlink(missing_ok=True)
    make(new)
    deadline = time.monotonic() + _BUSY_S
    while True:
        try:
            new.replace(folder / name)
            break
        except PermissionError:
            # Windows does not replace what somebody has open; readers have it for moments.
            if not _WINDOWS or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
    new.unlink(missing_ok=True)  # two links to one file: rename leaves both


def _sync_folder(folder: Path) -> None:
    if _WINDOWS:
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _stamp(path: Path, sha256: str) -> Stamp:
    stat = path.stat()
    return Stamp(stat.st_size, sha256, stat.st_mtime_ns)


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
