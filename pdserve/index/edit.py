"""What changes an index: each makes the next version of it and says what it did."""

import threading
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from pdserve.index import id_map
from pdserve.index import store as folders
from pdserve.index.apply import Change, apply
from pdserve.index.embed import embed_gallery
from pdserve.index.embedder import Embedder, EmbedderId, identify, require_same
from pdserve.index.entries import Finder
from pdserve.index.errors import GalleryError, NoSuchEntryError
from pdserve.index.gallery import GalleryImage, check
from pdserve.index.plan import Plan, add_images
from pdserve.index.publish import writer
from pdserve.index.store import Snapshot
from pdserve.index.work import opened
from pdserve.progress import SILENT, Progress
from pdserve.vision.types import Vectors


def append(
    images: Sequence[GalleryImage],
    folder: Path,
    embedder: Embedder,
    *,
    strict: bool = False,
    progress: Progress = SILENT,
    cancel: threading.Event | None = None,
) -> Change:
    """Add images to an index. Idempotent: an image is known by its content.

    One that is an entry already stays; with another label, it gets that. A path that is an entry already
    and whose file has other content now replaces that entry. An index whose embedder is not known
    (PaddleClas's) is taken to be ``embedder``'s from here on. Raises OtherEmbedderError, and as `build`.
    """
    check(images)
    if not images:
        raise GalleryError("There is nothing to append; give at least one image.")
    before = folders.read(folder)
    _require(before, embedder)
    finder = Finder(before.entries)
    with opened(folder, embedder) as work:
        readable, skipped = embed_gallery(
            images,
            embedder,
            work,
            known=lambda digest: finder(digest) is not None,
            strict=strict,
            progress=progress,
        )
        with writer(folder, progress, cancel):
            base = folders.read(folder)
            _require(base, embedder)
            plan = Plan()
            add_images(base, readable, plan, by_path=True)
            if any(each.digest not in work.rows for each in plan.new.values()):
                # Another writer has removed meanwhile what was known when the images were read.
                again = [each.image for each in plan.new.values()]
                embed_gallery(again, embedder, work, known=lambda d: False, strict=strict, progress=progress)
                plan.new = {d: each for d, each in plan.new.items() if d in work.rows}
            return apply(
                base,
                plan,
                work.gather,
                embedder=identify(embedder),
                skipped=skipped,
                what="append",
            )


def remove(
    folder: Path,
    *,
    labels: Collection[str] = (),
    images: Collection[str] = (),
    ids: Collection[int] = (),
    progress: Progress = SILENT,
    cancel: threading.Event | None = None,
) -> Change:
    """Remove the entries with these labels, image paths or ids.

    Raises NoSuchEntryError that names the ones of which there is none; then nothing is removed.
    """
    with writer(folder, progress, cancel):
        base = folders.read(folder)
        wanted = {("label", each) for each in labels} | {("image", each) for each in images}
        met: set[tuple[str, Any]] = {("id", each) for each in ids if each in base.id_map}
        gone = [each for each in dict.fromkeys(ids) if each in base.id_map]
        for number, entry in base.id_map.items():
            image, label = id_map.split(entry)
            hits = wanted & {("label", label), ("image", image)}
            if hits:
                met |= hits
                gone.append(number)
        missing = sorted((wanted | {("id", each) for each in ids}) - met, key=str)
        if missing:
            named = ", ".join(f"{kind} {value!r}" for kind, value in missing[:5])
            raise NoSuchEntryError(
                f"The index has no {named}; `pdserve index info --entries` shows what it has."
            )
        unique = list(dict.fromkeys(gone))
        plan = Plan(gone=unique, removed=len(unique))
        return apply(base, plan, _nothing, embedder=embedder_of(base), skipped=[], what="remove")


def embedder_of(snapshot: Snapshot) -> EmbedderId | None:
    return snapshot.manifest.embedder if snapshot.manifest else None


def _require(snapshot: Snapshot, embedder: Embedder) -> None:
    require_same(
        embedder_of(snapshot),
        identify(embedder),
        (snapshot.form.dimension, embedder.dimension),
        snapshot.folder,
    )


def _nothing(digests: Sequence[bytes]) -> Vectors:
    raise AssertionError("there is nothing to gather")
