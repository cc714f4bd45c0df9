"""What is in pdserve's home: each index with its version, entries, embedder and size, and what is wrong."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from pdserve.errors import PdserveError
from pdserve.index import forms, id_map, store
from pdserve.models.home import Home
from pdserve.models.inventory import check_name, usage


@dataclass(frozen=True)
class StoredIndex:
    """An index in the home, or a data set without one.

    ``path``: the folder that has the name; ``folder``: that with the index's files, in it or itself, None
    where there are none. ``version`` is 0 for an index that another program wrote; ``entries`` and ``labels``
    are counts, None where they cannot be read. ``bytes``: on disk, each file once.
    """

    name: str
    path: Path
    folder: Path | None
    bytes: int
    version: int | None = None
    previous: int | None = None
    entries: int | None = None
    labels: int | None = None
    embedder: str | None = None
    type: str | None = None
    dimension: int | None = None
    updated: str | None = None
    problems: tuple[str, ...] = ()


def indexes(home: Home) -> list[StoredIndex]:
    """Every index in the home, sorted by name. Nothing here raises: what is wrong is in ``problems``."""
    return [index for name in home.index_names() if (index := find(name, home))]


def find(name: str, home: Home) -> StoredIndex | None:
    """An index in the home; None where there is none of this name. Raises UsageError for what is no name."""
    check_name(name)
    path = home.index(name)
    if path.is_symlink() and not path.is_dir():
        return StoredIndex(name, path, None, 0, problems=(f"{path} is a link that leads nowhere.",))
    return examine(path) if path.is_dir() else None


def is_index(path: Path) -> bool:
    """Whether there is an index in a folder, or in the folder ``index`` in it."""
    return _folder(path) is not None


def examine(path: Path) -> StoredIndex:
    """An index, or a data set, wherever it is. Nothing here raises."""
    found = StoredIndex(path.name, path, None, usage([path]))
    folder = _folder(path)
    if folder is None:
        has_gallery = (path / "gallery").is_dir() or any(path.glob("*.json")) or any(path.glob("*.txt"))
        problem = f"{path} has no index: neither {store.MANIFEST} nor {store.VECTORS}."
        return replace(found, problems=() if has_gallery else (problem,))
    found = replace(found, folder=folder)
    try:
        manifest = store.read_manifest(folder)
        if manifest is None:
            _, labels = forms.read_labels(folder)
            kinds = {id_map.split(entry)[1] for entry in labels.values()}
            return replace(found, version=0, entries=len(labels), labels=len(kinds))
        problems = tuple(_problems(folder, manifest))
        return replace(
            found,
            version=manifest.version,
            previous=manifest.previous,
            entries=manifest.count,
            labels=manifest.labels,
            embedder=manifest.embedder.name if manifest.embedder else None,
            type=manifest.type,
            dimension=manifest.dimension,
            updated=manifest.updated,
            problems=problems,
        )
    except PdserveError as error:
        return replace(found, problems=(error.message,))
    except OSError as error:
        return replace(found, problems=(f"Cannot read {error.filename or folder}: {error.strerror}.",))


def _folder(path: Path) -> Path | None:
    names = (store.MANIFEST, store.VECTORS)
    return next((f for f in (path, path / "index") if any((f / name).is_file() for name in names)), None)


def _problems(folder: Path, manifest: store.Manifest) -> Iterator[str]:
    """Files that are missing or of another length; whether their content is right, `index verify` says."""
    source = store.current_folder(folder, manifest)
    for name, recorded in manifest.files.items():
        try:
            size = (source / name).stat().st_size
        except OSError:
            yield f"{source / name} is missing; type `pdserve index rollback --index {folder}`."
        else:
            if size != recorded.bytes:
                yield (
                    f"{source / name} has {size} bytes and was published with {recorded.bytes}; "
                    f"type `pdserve index rollback --index {folder}`."
                )
