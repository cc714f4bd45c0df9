"""Builds and changes an index: each function publishes the next version and returns what it did."""

import logging
import threading
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from pdserve.errors import GalleryError, IndexFolderError, NoSuchEntryError, UsageError
from pdserve.index import FLAT_UP_TO, METRICS, faiss_index, id_map, store
from pdserve.index.embed import (
    EmbedderId,
    GalleryEmbedder,
    HashedImage,
    check_vectors,
    embed_gallery,
    open_cache,
    require_same,
    with_one_label,
)
from pdserve.index.entries import Entries, Finder
from pdserve.index.gallery import GalleryImage, Skipped, check
from pdserve.index.plan import (
    Change,
    GatherDigests,
    Plan,
    add_images,
    apply,
    drop_same_vectors,
    known_by_vector,
    label,
    vector_key,
)
from pdserve.index.publish import Draft, locked, publish, writer
from pdserve.index.store import Snapshot
from pdserve.progress import SILENT, Progress
from pdserve.vision.decode import MAX_PIXELS
from pdserve.vision.types import Vectors

log = logging.getLogger("pdserve")


def build(
    images: Sequence[GalleryImage],
    folder: Path,
    embedder: GalleryEmbedder,
    *,
    kind: str | None = None,
    metric: str = "IP",
    strict: bool = False,
    progress: Progress = SILENT,
) -> Change:
    """Build an index of a gallery, in place of the one in ``folder`` if there is one.

    ``kind``: one of `INDEX_TYPES`; None: Flat up to `FLAT_UP_TO` images, HNSW32 for more. ``metric``: one
    of `METRICS`. A killed run leaves the old index, and what was embedded for the next run. Raises
    UsageError, GalleryError for a gallery without a readable image, what `embed_gallery` and `publish` raise.
    """
    check(images)
    if metric not in METRICS:
        raise UsageError(f"{metric!r} is no metric of an index; choose one of {', '.join(METRICS)}.")
    if kind:
        faiss_index.index_type(kind)
    with open_cache(folder, embedder) as cache:
        readable, skipped = embed_gallery(images, embedder, cache, strict=strict, progress=progress)
        if not readable:
            raise GalleryError(
                f"None of the {len(images)} images could be read ({skipped[0].image}: {skipped[0].reason})."
                if skipped
                else "The gallery is empty; give at least one image."
            )
        unique = {each.digest: each.image for each in readable}
        with locked(folder, progress):
            base = _read_or_none(folder)
            if base and base.manifest:
                base = replace(base, index=None)  # its vectors would only take memory from the new ones
            start = max(base.next_id if base else 0, _next_id(folder))
            chosen = kind or ("Flat" if len(unique) <= FLAT_UP_TO else "HNSW32")
            digests = list(unique)
            new = np.arange(start, start + len(digests), dtype=np.int64)
            progress.note(folder.name, f"building {chosen} of {len(digests)} vectors")

            def gather(some: Sequence[int]) -> Vectors:
                return cache.gather([digests[i] for i in some])

            made = publish(
                folder,
                Draft(
                    faiss_index.build(chosen, metric, embedder.dimension, new, gather),
                    label(new, unique.values()),
                    Entries.of(new, digests),
                    EmbedderId.of(embedder),
                    start + len(digests),
                    len(digests),
                    f"build: {len(digests)} entries",
                ),
                base,
            )
    present = len(readable) - len(unique)
    return Change(folder, made.version, made.count, added=len(unique), present=present, skipped=skipped)


def append(
    images: Sequence[GalleryImage],
    folder: Path,
    embedder: GalleryEmbedder,
    *,
    replace: bool = False,
    strict: bool = False,
    max_pixels: int = MAX_PIXELS,
    progress: Progress = SILENT,
    cancel: threading.Event | None = None,
) -> Change:
    """Add images to an index. Idempotent: an image is known by its content.

    One that is an entry already stays; with another label, it gets that. Entries of other images stay, also
    those of the same path, unless ``replace``, with which they go. An image of more than ``max_pixels``
    cannot be read. Of an index whose embedder is not known (PaddleClas's), it is not known after this either.
    Raises OtherEmbedderError, and as `build`.
    """
    check(images)
    if not images:
        raise GalleryError("There is nothing to append; give at least one image.")
    before = store.read(folder)
    _require(before, embedder)
    finder = Finder(before.entries)
    with open_cache(folder, embedder) as cache:
        embed = partial(
            embed_gallery,
            embedder=embedder,
            cache=cache,
            strict=strict,
            progress=progress,
            max_pixels=max_pixels,
        )
        readable, skipped = embed(images, known=lambda digest: finder(digest) is not None)
        with writer(folder, progress, cancel):
            base = store.read(folder)
            _require(base, embedder)
            finder = Finder(base.entries)
            late = [e for e in readable if e.digest not in cache.rows and finder(e.digest) is None]
            if late:  # another writer has removed meanwhile what was known when the images were read
                embed([each.image for each in late])
            readable = [e for e in readable if e.digest in cache.rows or finder(e.digest) is not None]
            return _append(base, readable, cache.gather, EmbedderId.of(embedder), skipped, replace)


def build_embedded(
    images: Sequence[HashedImage], vectors: Vectors, folder: Path, embedder: GalleryEmbedder
) -> Change:
    """Build an index where there is none, of images that are embedded already: exact, by inner product.

    As `append_embedded`. An image's id is its place, and one that comes twice is two entries. Raises
    GalleryError where there is an index already.
    """
    rows = check_vectors(embedder, vectors, len(images))
    _require_features(images, rows, embedder)
    ids = np.arange(len(images), dtype=np.int64)
    with locked(folder):
        if _read_or_none(folder):
            raise GalleryError(f"There is an index at {folder} already; append to it.")
        made = publish(
            folder,
            Draft(
                faiss_index.build("Flat", "IP", embedder.dimension, ids, lambda some: rows[list(some)]),
                label(ids, [each.image for each in images]),
                Entries.of(ids, [each.digest for each in images]),
                EmbedderId.of(embedder),
                len(images),
                len(images),
                f"build: {len(images)} entries",
            ),
            None,
        )
    return Change(folder, made.version, made.count, added=len(images))


def append_embedded(
    images: Sequence[HashedImage],
    vectors: Vectors,
    folder: Path,
    embedder: GalleryEmbedder,
    *,
    cancel: threading.Event | None = None,
) -> Change:
    """Add images that are embedded already: n images, n×d vectors of length 1 by ``embedder``. As `append`.

    Needs the images' files no more. Raises GalleryError for a picture under two labels or a vector of zeros.
    """
    check([each.image for each in images])
    rows = dict(
        zip((each.digest for each in images), check_vectors(embedder, vectors, len(images)), strict=True)
    )
    _require_features(images, np.stack([rows[each.digest] for each in images]), embedder)
    images, _ = with_one_label(images, strict=True)
    given = EmbedderId.of(embedder)  # which reads the model's files

    def gather(digests: Sequence[bytes]) -> Vectors:
        found = [rows[digest] for digest in digests]
        return np.stack(found) if found else np.zeros((0, embedder.dimension), np.float32)

    with writer(folder, cancel=cancel):
        base = store.read(folder)
        _require(base, embedder)
        return _append(base, images, gather, given, [], replace=False)


def _require_features(images: Sequence[HashedImage], rows: Vectors, embedder: GalleryEmbedder) -> None:
    for each, row in zip(images, rows, strict=True):
        if not row.any():
            raise GalleryError(
                f"{each.image.image}: {embedder.name} finds nothing in it, its vector is zero."
            )


def _append(
    base: Snapshot,
    images: Sequence[HashedImage],
    gather: GatherDigests,
    embedder: EmbedderId,
    skipped: list[Skipped],
    replace: bool,
) -> Change:
    """Add embedded images to the current version, which this writer holds."""
    finder = Finder(base.entries)
    fresh = [each for each in images if finder(each.digest) is None]
    plan, same = Plan(), known_by_vector(base, fresh, gather)
    add_images(base, images, plan, by_path=True, replace=replace, known=same)
    made_by = base.embedder if base.id_map else embedder
    return apply(base, plan, gather, embedder=made_by, skipped=skipped, command="append")


def remove(
    folder: Path,
    *,
    labels: Collection[str] = (),
    images: Collection[str] = (),
    ids: Collection[int] = (),
    missing_ok: bool = False,
    progress: Progress = SILENT,
    cancel: threading.Event | None = None,
) -> Change:
    """Remove the entries with these labels, image paths or ids.

    Raises NoSuchEntryError that names the ones of which there is none, unless ``missing_ok``; then nothing is
    removed.
    """
    with writer(folder, progress, cancel):
        base = store.read(folder)
        wanted: set[tuple[str, str | int]] = {("label", each) for each in labels}
        wanted |= {("image", each) for each in images} | {("id", each) for each in ids}
        hits = {}
        for i, entry in base.id_map.items():
            image, label = id_map.split(entry)
            if found := wanted & {("id", i), ("image", image), ("label", label)}:
                hits[i] = found
        missing = sorted(wanted.difference(*hits.values()), key=str)
        if missing and not missing_ok:
            named = ", ".join(
                f"{kind} {str(value)[:80]!r}" if kind != "id" else f"id {value}"
                for kind, value in missing[:5]
            )
            raise NoSuchEntryError(
                f"The index has no {named}; `pdserve index info --entries` shows what it has."
            )
        plan = Plan(gone=list(hits), removed=len(hits))
        return apply(base, plan, _gather_nothing, embedder=base.embedder, skipped=[], command="remove")


def merge(
    folder: Path,
    others: Sequence[Path],
    *,
    progress: Progress = SILENT,
    cancel: threading.Event | None = None,
) -> Change:
    """Add the entries of other indexes of the same embedder to the one in ``folder``.

    An image that is an entry already stays, and gets the other's label. Vectors are taken as they are. The
    embedder is known afterwards if it was known of all of them.
    Raises OtherEmbedderError, IndexFolderError.
    """
    sources = [store.read(other) for other in others]
    with writer(folder, progress, cancel):
        base = store.read(folder)
        embedder = base.embedder
        plan = Plan()
        rows: dict[bytes, tuple[int, int]] = {}
        extracted, given = [], []
        for number, source in enumerate(sources):
            if source.embedder:
                require_same(embedder, source.embedder, (base.form.dimension, source.form.dimension), folder)
            elif source.form.dimension != base.form.dimension:
                raise IndexFolderError(
                    f"{source.folder} has vectors of {source.form.dimension} numbers and {folder} of "
                    f"{base.form.dimension}; only indexes of the same embedder can be merged."
                )
            embedder = embedder or source.embedder
            found, vectors = faiss_index.extract(source.index)
            extracted.append(vectors)
            row_of = {int(i): row for row, i in enumerate(found)}
            for i, digest in zip(source.entries.ids.tolist(), source.entries.sha256, strict=True):
                image, label = id_map.split(source.id_map[i])
                # An image of which nothing is known but its path is identified by its vector.
                key = digest.tobytes() if digest.any() else vector_key(vectors[row_of[i]])
                rows[key] = (number, row_of[i])
                given.append(HashedImage(GalleryImage(image, label, b""), key))
        given, skipped = with_one_label(given)
        add_images(base, given, plan, by_path=False)
        drop_same_vectors(base, plan)
        made_by = [sources[number].embedder for number in {rows[key][0] for key in plan.new}]
        if base.id_map:
            made_by.append(base.embedder)
        if not all(made_by):
            if base.embedder:
                log.warning(
                    "%s no longer says which embedder made it: what is merged into it does not", folder
                )
            embedder = None

        def gather(keys: Sequence[bytes]) -> Vectors:
            return np.stack([extracted[n][row] for n, row in (rows[key] for key in keys)])

        return apply(base, plan, gather, embedder=embedder, skipped=skipped, command="merge")


def _require(snapshot: Snapshot, embedder: GalleryEmbedder) -> None:
    dimensions = (snapshot.form.dimension, embedder.dimension)
    require_same(snapshot.embedder, EmbedderId.of(embedder), dimensions, snapshot.folder)


def _read_or_none(folder: Path) -> Snapshot | None:
    """The current version, None where there is none or it is broken: a new one can be built all the same."""
    try:
        return store.read(folder, plain=False)
    except IndexFolderError:
        return None


def _next_id(folder: Path) -> int:
    try:
        known = store.read_manifest(folder)
    except IndexFolderError:
        return 0
    return known.next_id if known else 0


def _gather_nothing(digests: Sequence[bytes]) -> Vectors:
    raise AssertionError("there is nothing to gather")
