"""Writes an index as a folder in the form of another program, without manifest and versions."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pdserve.errors import IndexFolderError, UsageError
from pdserve.files import disk_errors, replace_folder, write_synced
from pdserve.index import METRICS, faiss_index, id_map, store
from pdserve.index.forms import FORMS, LabelForm
from pdserve.index.store import Snapshot
from pdserve.vision.types import Vectors


@dataclass(frozen=True)
class Exported:
    """What was written: ``files`` by name in ``folder``; ``images``: the labels have the images' paths."""

    folder: Path
    form: str
    version: int
    type: str
    metric: str
    dimension: int
    count: int
    files: tuple[str, ...]
    images: bool


def export(folder: Path, out: Path, name: str = "paddleclas") -> Exported:
    """Write the current version of the index in ``folder`` to ``out``, a new or empty folder.

    ``name``: one of `FORMS`. Raises UsageError for another one and for an ``out`` with something in it,
    IndexFolderError for an index that cannot be read, or has what the form cannot hold; DiskError.
    """
    if name not in FORMS:
        raise UsageError(f"{name!r} is no form of an index; choose one of {', '.join(FORMS)}.")
    form = FORMS[name]
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} is there already; give --out a new folder, or an empty one.")
    snapshot = store.read(folder)
    kind, metric, count = snapshot.form.type, snapshot.form.metric, len(snapshot.id_map)
    if metric not in METRICS:
        raise IndexFolderError(
            f"The index {folder} is {kind}, with a metric that {form.program} does not know; it knows "
            f"{' and '.join(METRICS)}."
        )
    index = _vectors(snapshot, form)
    labels = form.dumps(id_map.with_copies(snapshot.id_map, faiss_index.copies(index)), kind, metric)
    with disk_errors(out), replace_folder(out) as new:
        write_synced(new / store.VECTORS, lambda file: faiss_index.write(index, file))
        write_synced(new / form.file, lambda file: file.write(labels))
    files = (store.VECTORS, form.file)
    return Exported(
        out, name, snapshot.version, kind, metric, snapshot.form.dimension, count, files, form.images
    )


def _vectors(snapshot: Snapshot, form: LabelForm) -> object:
    """The index, built anew without the slots of removed entries where the form cannot have them."""
    given = snapshot.form
    if form.repeats or given.slots == len(snapshot.id_map):
        return snapshot.index
    ids, rows = faiss_index.extract(snapshot.index)

    def gather(some: Sequence[int]) -> Vectors:
        return np.ascontiguousarray(rows[list(some)])

    return faiss_index.build(given.type, given.metric, given.dimension, ids, gather)
