"""An index of a gallery, made anew."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from pdserve.index import faiss_index, id_map, manifest
from pdserve.index import store as folders
from pdserve.index.apply import Change, fresh
from pdserve.index.embed import embed_gallery
from pdserve.index.embedder import Embedder, identify
from pdserve.index.entries import Entries
from pdserve.index.errors import GalleryError, IndexFolderError
from pdserve.index.gallery import GalleryImage, check
from pdserve.index.publish import Draft, locked, publish
from pdserve.index.store import Snapshot
from pdserve.index.work import opened
from pdserve.progress import SILENT, Progress
from pdserve.vision.types import Vectors


def build(
    images: Sequence[GalleryImage],
    folder: Path,
    embedder: Embedder,
    *,
    kind: faiss_index.Type | None = None,
    metric: faiss_index.Metric = "IP",
    strict: bool = False,
    progress: Progress = SILENT,
) -> Change:
    """Make an index of a gallery, in place of the one in ``folder`` if there is one.

    ``kind`` None: Flat up to `vectors.FLAT_UP_TO` images, HNSW32 for more. Killed, it leaves the old
    index in force, and what was embedded for the next run. Raises GalleryError for a gallery without a
    readable image, what `embed_gallery` and `publish` raise.
    """
    check(images)
    with opened(folder, embedder) as work:
        readable, skipped = embed_gallery(
            images, embedder, work, known=lambda digest: False, strict=strict, progress=progress
        )
        if not readable:
            raise GalleryError(
                f"None of the {len(images)} images could be read ({skipped[0].image}: {skipped[0].reason})."
                if skipped
                else "The gallery is empty; give at least one image."
            )
        unique = {each.digest: each.image for each in readable}  # the same image twice: the last label counts
        with locked(folder, progress):
            base = _readable(folder)
            if base and base.manifest:
                base = replace(base, index=None)  # its vectors would only take memory from the new ones
            start = max(base.next_id if base else 0, _next_id(folder))
            chosen: faiss_index.Type = kind or ("Flat" if len(unique) <= faiss_index.FLAT_UP_TO else "HNSW32")
            digests = list(unique)
            new = np.arange(start, start + len(digests), dtype=np.int64)
            progress.note(folder.name, f"building {chosen} of {len(digests)} vectors")

            def gather(some: Sequence[int]) -> Vectors:
                return work.gather([digests[i] for i in some])

            made = publish(
                folder,
                Draft(
                    fresh(chosen, metric, embedder.dimension, new, gather),
                    {
                        i: id_map.join(each.image, each.label)
                        for i, each in zip(new.tolist(), unique.values(), strict=True)
                    },
                    Entries.of(new, digests),
                    identify(embedder),
                    start + len(digests),
                    len(digests),
                    f"build: {len(digests)} entries",
                ),
                base,
            )
    return Change(
        folder,
        made.version,
        made.count,
        added=len(unique),
        present=len(readable) - len(unique),
        skipped=skipped,
    )


def _readable(folder: Path) -> Snapshot | None:
    """The version in force, None where there is none or it is broken: a new one can be built all the same."""
    try:
        return folders.read(folder)
    except IndexFolderError:
        return None


def _next_id(folder: Path) -> int:
    try:
        known = manifest.read(folder)
    except IndexFolderError:
        return 0
    return known.next_id if known else 0
