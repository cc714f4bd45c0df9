"""What a killed writer left, put right."""

import shutil
from contextlib import suppress
from pathlib import Path

from pdserve.files import FileRecord, disk_errors, link_or_copy, replace_file
from pdserve.index import entries as entry_files
from pdserve.index import files, id_map, manifest
from pdserve.index.errors import IndexFolderError
from pdserve.index.manifest import Manifest
from pdserve.index.store import ID_MAP, check_file, version_folder


def restore(folder: Path, known: Manifest) -> None:
    """Put the version in force under the plain names again, where a writer was killed at it.

    Raises IndexFolderError for a plain file that is of no version: another program wrote it.
    """
    own = version_folder(folder, known.version)
    if not own.is_dir():  # a copy without its versions: the plain files are the index
        with disk_errors(folder):
            part = own.with_name(f"{own.name}.part")
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            for name, published in known.files.items():
                check_file(folder / name, published)
                link_or_copy(folder / name, part / name)
            manifest.write(part, known)
            part.rename(own)
    for name, published in known.files.items():
        plain = folder / name
        if _is(plain, published):
            continue
        if name != entry_files.FILE and plain.is_file() and not _ours(folder, name):
            check_file(plain, published, full=True)  # says so, unless only the time differs
            continue
        with disk_errors(folder), replace_file(plain) as new:
            link_or_copy(own / name, new)


def _ours(folder: Path, name: str) -> bool:
    """Is a plain file one that a killed writer put there?"""
    plain = folder / name
    for version in files.versions(folder):
        left = manifest.read(version_folder(folder, version))
        if left and name in left.files and _is(plain, left.files[name]):
            return True
    if name != ID_MAP:
        return False
    # The labels of two versions, which stand there for a moment while entries are removed.
    known: set[tuple[int, str]] = set()
    for version in files.versions(folder):
        with suppress(OSError, IndexFolderError):
            known |= set(id_map.read(version_folder(folder, version) / ID_MAP).items())
    return set(id_map.read(plain).items()) <= known


def _is(path: Path, published: FileRecord) -> bool:
    try:
        return published.is_untouched(path)
    except FileNotFoundError:
        return False
