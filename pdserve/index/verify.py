"""Verifies an index: its files against the manifest, and its contents."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pdserve.errors import IndexFolderError
from pdserve.index import faiss_index, forms, id_map, store
from pdserve.index.embed import LENGTH_TOLERANCE
from pdserve.index.entries import Entries
from pdserve.index.store import Manifest, Snapshot


@dataclass(frozen=True)
class Finding:
    """The result of one check. ``good`` None: it could not be made."""

    what: str
    good: bool | None
    detail: str


def verify(folder: Path) -> list[Finding]:
    """Check checksums, counts, dimension, labels, and every vector. The last finding may be the failure."""
    findings = []
    try:
        known = store.read_manifest(folder)
        findings.append(
            Finding("manifest", True, f"version {known.version}, {known.change}")
            if known
            else Finding("manifest", None, f"missing, as in an index of {_program(folder)}")
        )
        findings += _checksums(folder, known)
        snapshot = store.read(folder, plain=False)
        findings += _contents(snapshot)
    except (IndexFolderError, OSError) as error:
        detail = error.message if isinstance(error, IndexFolderError) else str(error)
        findings.append(Finding("index", False, detail))
    return findings


def _program(folder: Path) -> str:
    return " and ".join(form.program for form in forms.present(folder)) or "PaddleClas"


def _checksums(folder: Path, known: Manifest | None) -> Iterator[Finding]:
    if not known:
        return
    own = store.version_folder(folder, known.version)
    for source in (own, folder) if own.is_dir() else (folder,):
        for name, published in known.files.items():
            path = source / name
            shown = path.relative_to(folder).as_posix()
            try:
                store.check_file(path, published, full=True)
                yield Finding(shown, True, f"SHA-256 {published.sha256[:12]}…, {published.bytes} bytes")
            except FileNotFoundError:
                yield Finding(shown, False, "is missing")
            except IndexFolderError:
                yield Finding(shown, False, "is not as it was published")


def _contents(snapshot: Snapshot) -> Iterator[Finding]:
    form, known = snapshot.form, snapshot.manifest
    yield Finding(
        "vectors",
        True,
        f"{form.type}, {form.metric}, dimension {form.dimension}, {form.slots} slots, "
        f"{len(snapshot.id_map)} entries, each with its label",
    )
    if known:
        counts = (known.count, known.slots, known.labels)
        labels = {id_map.split(entry)[1] for entry in snapshot.id_map.values()}
        found = (len(snapshot.id_map), form.slots, len(labels))
        yield Finding("counts", counts == found, f"manifest {counts}, files {found} (entries, slots, labels)")
    bare = [i for i, entry in snapshot.id_map.items() if not all(id_map.split(entry))]
    detail = f"{len(bare)} entries have no label, as {bare[0]}" if bare else "every entry has one"
    yield Finding("labels", not bare, detail)
    yield _images(snapshot.entries)
    if not form.changeable:
        yield Finding("normalised", None, f"faiss's {form.type} does not keep the vectors themselves")
        return
    ids, rows = faiss_index.extract(snapshot.index)
    odd: list[int] = []
    for some in faiss_index.chunks(len(ids)):
        part = slice(some.start, some.stop)
        with np.errstate(invalid="ignore", over="ignore"):
            lengths = np.linalg.norm(rows[part], axis=1)
        fits = np.isfinite(lengths) & (np.abs(lengths - 1) < LENGTH_TOLERANCE)
        odd += ids[part][~fits].tolist()
    detail = f"all {len(ids)} vectors are finite and of length 1"
    if odd:
        first = snapshot.id_map[odd[0]]
        detail = f"{len(odd)} vectors are not finite or not of length 1, as entry {odd[0]}, {first!r}"
    yield Finding("normalised", not odd, detail)


def _images(entries: Entries) -> Finding:
    known = np.asarray(entries.sha256.any(axis=1))
    digests = entries.sha256[known]
    twice = len(digests) - len(np.unique(digests, axis=0)) if len(digests) else 0
    if twice:
        return Finding("images", False, f"{twice} images are entries twice")
    left = len(known) - len(digests)
    return Finding("images", None if left else True, f"of {len(digests)} entries known, of {left} not")
