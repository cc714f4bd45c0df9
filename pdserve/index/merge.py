"""Indexes of the same embedder become one."""

import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pdserve.index import faiss_index, id_map
from pdserve.index import store as folders
from pdserve.index.apply import Change, apply
from pdserve.index.edit import embedder_of
from pdserve.index.embed import Digested
from pdserve.index.embedder import require_same
from pdserve.index.errors import IndexFolderError
from pdserve.index.gallery import GalleryImage
from pdserve.index.plan import VECTOR, Plan, add_images, drop_same_vectors
from pdserve.index.publish import writer
from pdserve.progress import SILENT, Progress
from pdserve.vision.types import Vectors


def merge(
    folder: Path,
    others: Sequence[Path],
    *,
    progress: Progress = SILENT,
    cancel: threading.Event | None = None,
) -> Change:
    """Add the entries of other indexes of the same embedder to the one in ``folder``.

    An image that is an entry already stays, and gets the other's label. Vectors are taken as they are.
    Raises OtherEmbedderError, IndexFolderError.
    """
    sources = [folders.read(other) for other in others]
    with writer(folder, progress, cancel):
        base = folders.read(folder)
        embedder = embedder_of(base)
        plan = Plan()
        rows: dict[bytes, tuple[int, int]] = {}
        extracted = []
        for number, source in enumerate(sources):
            theirs = embedder_of(source)
            if theirs:
                require_same(embedder, theirs, (base.form.dimension, source.form.dimension), folder)
            elif source.form.dimension != base.form.dimension:
                raise IndexFolderError(
                    f"{source.folder} has vectors of {source.form.dimension} numbers and {folder} of "
                    f"{base.form.dimension}; only indexes of the same embedder can be merged."
                )
            embedder = embedder or theirs
            found, its = faiss_index.extract(source.index)
            extracted.append(its)
            at = {int(i): row for row, i in enumerate(found)}
            more = []
            for i, digest in zip(source.entries.ids.tolist(), source.entries.sha256, strict=True):
                image, label = id_map.split(source.id_map[i])
                # An image of which nothing is known but its path is told apart by its vector.
                key = digest.tobytes() if digest.any() else VECTOR + its[at[i]].tobytes()
                rows[key] = (number, at[i])
                more.append(Digested(GalleryImage(image, label, b""), key))
            add_images(base, more, plan, by_path=False)
        drop_same_vectors(base, plan)

        def gather(keys: Sequence[bytes]) -> Vectors:
            return np.stack([extracted[n][row] for n, row in (rows[key] for key in keys)])

        return apply(base, plan, gather, embedder=embedder, skipped=[], what="merge")
