"""Fetches and unpacks archives: tar files, gzipped or not, that are not trusted.

Everything is checked in a first reading, before anything is written: names that leave the folder,
links, devices, repeated names, more bytes or files than the limits. Files are then copied out one by one,
not by tarfile's extraction: its filters came with Python 3.11.4, and Debian 12 has 3.11.2.
"""

import gzip
import tarfile
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from pdserve import files
from pdserve.errors import ArchiveError, ChecksumError, DiskError, FetchError, OfflineError
from pdserve.models import record
from pdserve.models.catalog import Archive, public
from pdserve.models.download import Downloaded, Partial, download, part_key
from pdserve.models.fetch import Fetched, Job
from pdserve.models.mirrors import places

CHUNK = 1 << 20
# tarfile reads a header of any announced length into memory at once; real ones are under 1 kB.
_LONGEST_READ = 4 * CHUNK
_BLOCK = 512
_SLACK = 64 * CHUNK
# What tarfile and gzip raise for broken data; a chain of extended headers recurses.
_BROKEN = (
    tarfile.TarError,
    gzip.BadGzipFile,
    zlib.error,
    EOFError,
    ValueError,
    OverflowError,
    RecursionError,
)
_Members = list[tuple[tarfile.TarInfo, PurePosixPath]]


@dataclass(frozen=True)
class Limits:
    """The most that an archive may unpack to. The largest public model has 3.3 GB, in four files."""

    bytes: int = 16 << 30
    files: int = 200_000


LIMITS = Limits()


def fetch(job: Job, source: Archive) -> Fetched:
    """Fetch an archive from the model host, or from the first mirror that has it.

    A mirror that has not the file or does not answer makes room for the next one. One with a file of another
    checksum, or with a broken archive, ends the search: to pass over it would hide what is wrong with it.
    Raises ArchiveError, ChecksumError, DiskError, and FetchError that says what each mirror said.
    """
    wheres = places(source.url, job.mirrors)
    problems: list[FetchError] = []
    for where in wheres:
        patient = where is wheres[-1]
        try:
            got, origin = _get(job, where, source.sha256, patient)
        except (ArchiveError, ChecksumError, DiskError):
            raise
        except FetchError as error:
            if len(wheres) == 1 or job.cancel.is_set():
                raise
            problems.append(error)
            if not patient:
                job.progress.note(job.name, f"{error.message} Trying the next mirror.")
            continue
        return _publish(job, got, origin)
    if all(isinstance(each, OfflineError) for each in problems):
        raise problems[0]
    said = " ".join(each.message for each in problems)
    raise FetchError(f"None of the {len(wheres)} mirrors gave {job.name}. {said}")


def _get(job: Job, where: str | Path, sha256: str | None, patient: bool) -> tuple[Downloaded, str]:
    """An archive from one place, and that for the record; few attempts where other places are left."""
    if isinstance(where, Path):
        return _local(job, where, sha256), str(where)
    job.policy.require_network(job.wanted)
    part = Partial(job.downloads / f"{job.name}.tar")
    present = part.remote(part_key(where))
    if job.force and present and present.complete:
        part.discard()
    policy = job.policy if patient else replace(job.policy, attempts=min(2, job.policy.attempts))
    got = download(
        where,
        part.target,
        name=job.name,
        sha256=sha256,
        max_bytes=max_bytes(job.entry.bytes),
        progress=job.progress,
        policy=policy,
        cancel=job.cancel,
        free=job.free,
    )
    if got.plain and sha256 is None:
        job.progress.warn(
            job.name,
            f"{public(where)} came over plain http, and nothing vouches for it: no SHA-256 is known; an "
            "address with https:// or a mirror's folder is safer",
        )
    return got, public(where)


def max_bytes(published: int | None) -> int | None:
    """The most that is downloaded where the catalog knows a model's size; it is rounded, and packed less."""
    return None if published is None else 2 * published + _SLACK


def _local(job: Job, path: Path, sha256: str | None) -> Downloaded:
    """An archive on this machine, used in place."""
    try:
        size = path.stat().st_size
        job.progress.start(job.name, size, 0)
        found = files.sha256(path)
    except OSError as error:
        hint = f", where the mirror should have {job.name}; check --mirror and PDSERVE_MIRROR"
        raise FetchError(f"Cannot read {path} ({error.strerror}){hint if job.mirrors else ''}.") from error
    if sha256 and found != sha256.lower():
        raise ChecksumError(
            f"{path} has SHA-256 {found} but the catalog knows {sha256}, so it is another file; "
            "check the mirror."
        )
    job.progress.advance(job.name, size)
    return Downloaded(path, found, size)


def _publish(job: Job, got: Downloaded, origin: str) -> Fetched:
    """Unpack an archive to the job's folder. What was downloaded goes, unless it may still be of use."""
    downloads = Partial(job.downloads / f"{job.name}.tar")
    came = got.path == downloads.path
    job.progress.note(job.name, "unpacking")
    try:
        _compare(job, got, origin)
        with files.replace_folder(job.target) as folder:
            unpack(got.path, folder, shown=origin, free=job.free, cancel=job.cancel)
            fetched = job.finish(folder, origin, got.sha256, got.size)
    except ArchiveError:
        if came:
            downloads.discard()
        raise
    if came:
        with suppress(DiskError):  # the model is there; the next download of the name writes over it
            downloads.discard()
    return fetched


def _compare(job: Job, got: Downloaded, origin: str) -> None:
    """Say it where the same address gives another archive than before; nothing else may vouch for it."""
    with suppress(ChecksumError):
        before = record.read(job.target)
        if before and before.sha256 and before.origin == origin and before.sha256 != got.sha256:
            job.progress.warn(
                job.name,
                f"{origin} gives another archive than before: SHA-256 {got.sha256}, which was "
                f"{before.sha256} on {before.date[:10]}",
            )


def unpack(
    archive: Path,
    folder: Path,
    *,
    shown: str | None = None,
    limits: Limits = LIMITS,
    free: files.FreeSpace = files.free_space,
    cancel: threading.Event | None = None,
) -> None:
    """Unpack into ``folder``, which exists and is empty. A single folder at the top is left out.

    ``shown`` is what messages call the archive (its address), ``free`` gives the bytes free at a path.
    Raises ArchiveError for a broken or untrustworthy archive (then nothing is written), DiskError.
    """
    shown = shown or str(archive)
    with _opened(archive, shown, limits) as (tar, file):
        with _translated(shown):
            members = _members(shown, tar, limits)
            _check_end(shown, tar, file)
        top = _common_top(members)
        files.require_space(folder, sum(info.size for info, _ in members), f"Unpacking {shown}", free)
        for info, path in members:
            place = folder.joinpath(*path.parts[len(top.parts) :])
            if info.isdir():
                with files.disk_errors(place):
                    place.mkdir(parents=True, exist_ok=True)
            else:
                _copy(shown, tar, info, place, cancel)


def check_name(shown: str, name: str) -> PurePosixPath:
    """The relative path that a member's name means. Raises ArchiveError for one outside the folder.

    Backslashes and colons are refused everywhere, since on Windows they mean folders and drives.
    """
    path = PurePosixPath(name)
    odd = any(c in "\\:" or ord(c) < 32 for c in name)
    if odd or path.is_absolute() or ".." in path.parts:
        raise untrusted(shown, f"has a member named {name!r}, which could be written outside its folder")
    return path


def check_limits(shown: str, size: int, count: int, limits: Limits = LIMITS) -> None:
    """Raise ArchiveError if so many bytes or files are more than allowed."""
    if size > limits.bytes:
        raise untrusted(shown, f"unpacks to more than {files.format_size(limits.bytes)}, the limit")
    if count > limits.files:
        raise untrusted(shown, f"holds more than {limits.files} files, the limit")


def untrusted(shown: str, problem: str) -> ArchiveError:
    """The error for an archive that may be hostile."""
    return ArchiveError(f"{shown} {problem}; nothing was unpacked. Get the archive from a source you trust.")


class _Bounded:
    """Reads an archive up to the limit of bytes, and never much at once."""

    def __init__(self, shown: str, file: BinaryIO, limits: Limits) -> None:
        self._shown, self._file, self._limits = shown, file, limits
        # Each file costs a header and padding besides its bytes.
        self._end = limits.bytes + (limits.files + 20) * 4 * _BLOCK

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _LONGEST_READ:
            raise ArchiveError(f"{self._shown} is broken: it has a header of {size} bytes; fetch it again.")
        return self._file.read(size)

    def seek(self, position: int) -> int:
        if position > self._end:
            check_limits(self._shown, position, 0, self._limits)
        return self._file.seek(position)

    def tell(self) -> int:
        return self._file.tell()

    def drain(self) -> None:
        """Read to the end, which makes gzip compare its checksum."""
        while self._file.read(CHUNK):
            self.seek(self.tell())


@contextmanager
def _opened(archive: Path, shown: str, limits: Limits) -> Iterator[tuple[tarfile.TarFile, _Bounded]]:
    with _translated(shown):
        plain = archive.open("rb")
    with plain:
        zipped = plain.read(2) == b"\x1f\x8b"
        plain.seek(0)
        file = _Bounded(shown, gzip.GzipFile(fileobj=plain) if zipped else plain, limits)  # type: ignore[arg-type]
        with _translated(shown):
            # tarfile asks no more of a file than read, seek and tell.
            tar = tarfile.TarFile(fileobj=file)  # type: ignore[arg-type]
        with tar:
            yield tar, file


@contextmanager
def _translated(shown: str) -> Iterator[None]:
    try:
        yield
    except _BROKEN as error:
        raise ArchiveError(f"{shown} is broken or no tar file ({error}); fetch it again.") from error
    except OSError as error:
        raise FetchError(f"Cannot read {shown}: {error.strerror or error}.") from error


def _members(shown: str, tar: tarfile.TarFile, limits: Limits) -> _Members:
    members: _Members = []
    leaves: set[PurePosixPath] = set()
    folders: set[PurePosixPath] = set()
    size = 0
    for info in tar:
        path = check_name(shown, info.name)
        if not (info.isdir() or info.isreg()) or info.issparse():
            raise untrusted(shown, f"has {info.name!r}, which is a link, a device or a sparse file")
        if not info.isdir() and not path.parts:
            raise ArchiveError(f"{shown} has a file of no name, {info.name!r}; fetch it again.")
        if info.size < 0:
            raise ArchiveError(f"{shown} is broken: {info.name!r} has {info.size} bytes; fetch it again.")
        size += info.size
        check_limits(shown, size, len(members) + 1, limits)
        # macOS's tar adds these beside each file; they hold nothing of the model.
        if any(part.startswith("._") or part in (".DS_Store", "__MACOSX") for part in path.parts):
            continue
        (folders if info.isdir() else leaves).add(path)
        folders.update(path.parents)
        members.append((info, path))
    if len(leaves) + sum(info.isdir() for info, _ in members) < len(members) or leaves & folders:
        raise untrusted(shown, "has two members of one name")
    if not leaves:
        raise ArchiveError(f"{shown} holds no files; fetch it again, or check its address.")
    return members


def _check_end(shown: str, tar: tarfile.TarFile, file: _Bounded) -> None:
    """An archive ends with empty blocks; tarfile stops as quietly at a broken header, or at no end."""
    file.seek(tar.offset)
    if file.read(_BLOCK) != bytes(_BLOCK):
        raise ArchiveError(f"{shown} is truncated or altered: it has no end; fetch it again.")
    file.drain()


def _common_top(members: _Members) -> PurePosixPath:
    tops = {path.parts[:1] for _, path in members if path.parts}
    nested = all(len(path.parts) > 1 or info.isdir() for info, path in members)
    return PurePosixPath(*tops.pop()) if len(tops) == 1 and nested else PurePosixPath()


def _copy(
    shown: str, tar: tarfile.TarFile, info: tarfile.TarInfo, place: Path, cancel: threading.Event | None
) -> None:
    source = tar.extractfile(info)
    if source is None:  # pragma: no cover - only for members that are no files
        raise ArchiveError(f"{shown} has a member {info.name!r} that is no file.")
    # Exclusive: two names that are one on this file system (A.jpg, a.jpg) do not overwrite each other.
    with files.disk_errors(place):
        place.parent.mkdir(parents=True, exist_ok=True)
        with source, place.open("xb") as out:
            while True:
                if cancel is not None and cancel.is_set():
                    raise FetchError(f"Unpacking {shown} was interrupted; fetch it again.")
                with _translated(shown):
                    chunk = source.read(CHUNK)
                if not chunk:
                    return
                out.write(chunk)
