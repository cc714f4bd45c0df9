"""``id_map.yaml``: id -> label, beside a ``vector.index``, as PaddleX writes it.

::

    id_map:
      0: cola
      1: tea
    index_type: HNSW32
    metric_type: IP

Form: PaddleX 3.7.2, ``inference/pipelines/components/faisser.py``. It has no image paths, so an entry gets
the name ``paddlex/ID`` in place of one. The file is read event by event, which takes time and memory that
grow with its bytes alone: no object is made of it, and an alias, which could stand for more, is refused.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from pdserve.errors import IndexFolderError
from pdserve.index.id_map import IdMap, join, split

MAX_BYTES = 256 << 20
BINARY_METRICS = ("hamming",)
"""Metrics of binary vectors, which pdserve does not search."""

_IDS, _METRIC, _TYPE = "id_map", "metric_type", "index_type"
_NUMBER = re.compile(r"-?\d{1,19}")
# What parts image and label in an entry, what ends a line of a label list, and what is no text.
_NOT_IN_LABELS = re.compile("[\t\r\n\0\ud800-\udfff]")
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_DUMPER: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


class _BadMapError(Exception):
    """What is wrong with the file, as the end of a sentence that begins with its path."""


def read(path: Path, max_bytes: int = MAX_BYTES) -> IdMap:
    """Read an id map, the entries in the order of the file, their labels as they stand there.

    Raises IndexFolderError for a file of more than ``max_bytes``, one of binary vectors, and what is not in
    the form above; FileNotFoundError and other OSErrors as they come.
    """
    size = path.stat().st_size
    if size > max_bytes:
        raise IndexFolderError(f"{path} has {size} bytes, more than the limit of {max_bytes} for an id map.")
    try:
        with path.open("rb") as file:
            fields, entries = _document(yaml.parse(file, Loader=_LOADER))
        missing = [key for key in (_METRIC, _TYPE) if key not in fields]
        if missing:
            raise _BadMapError(f"has no {missing[0]}")
    except (yaml.YAMLError, ValueError) as error:
        raise IndexFolderError(f"{path} is no YAML: {' '.join(str(error).split())}.") from None
    except _BadMapError as error:
        raise IndexFolderError(
            f"{path} is no id map of PaddleX, it {error}; it may hold {_IDS} (ids and labels), {_METRIC} and "
            f"{_TYPE}, as PaddleX writes them."
        ) from None
    if fields[_METRIC] in BINARY_METRICS:
        raise IndexFolderError(
            f"{path} is of binary vectors ({_METRIC}: {fields[_METRIC]}), which pdserve does not search; "
            "build the index with the metric IP."
        )
    return entries


def dumps(entries: Mapping[int, str], kind: str, metric: str) -> bytes:
    """The file for entries ("path<TAB>label") of an index of this type and metric; the paths are left out."""
    labels = {i: split(entry)[1] for i, entry in entries.items()}
    content = {_IDS: labels, _TYPE: kind, _METRIC: metric}
    text: bytes = yaml.dump(content, Dumper=_DUMPER, allow_unicode=True, encoding="utf-8", width=2**30)
    return text


def _document(events: Iterator[Any]) -> tuple[dict[str, str], IdMap]:
    """The file's fields beside the entries, and the entries. Raises _BadMapError, YAMLError."""
    for expected in (yaml.StreamStartEvent, yaml.DocumentStartEvent, yaml.MappingStartEvent):
        if not isinstance(next(events, None), expected):
            raise _BadMapError("is no mapping")
    fields: dict[str, str] = {}
    entries: IdMap | None = None
    while (key := _scalar(next(events), "has a key that is no word")) is not None:
        if key in fields or (key == _IDS and entries is not None):
            raise _BadMapError(f"has {key!r} twice")
        if key == _IDS:
            entries = _entries(events)
        else:
            fields[key] = _scalar(next(events), f"has no word for {key!r}") or ""
    if not isinstance(next(events), yaml.DocumentEndEvent) or not isinstance(
        next(events), yaml.StreamEndEvent
    ):
        raise _BadMapError("has more than one document")
    if entries is None:
        raise _BadMapError(f"has no {_IDS}")
    return fields, entries


def _entries(events: Iterator[Any]) -> IdMap:
    if not isinstance(next(events), yaml.MappingStartEvent):
        raise _BadMapError(f"has an {_IDS} that is no mapping")
    entries: IdMap = {}
    while (key := _scalar(next(events), "has an id that is no number")) is not None:
        number = int(key) if _NUMBER.fullmatch(key) else None
        if number is None or not -(2**63) <= number < 2**63:
            raise _BadMapError(f"has the id {key[:40]!r}, which is no whole number of 64 bits")
        label = _scalar(next(events), f"has no text as the label of {number}")
        if label is None or _NOT_IN_LABELS.search(label):
            raise _BadMapError(f"has a label of {number} that is no text of one line without tabs")
        if number in entries:
            raise _BadMapError(f"has the id {number} twice")
        entries[number] = join(f"paddlex/{number}", label)
    return entries


def _scalar(event: Any, problem: str) -> str | None:
    """The text of a scalar, None at the end of a mapping. Raises _BadMapError."""
    if isinstance(event, yaml.MappingEndEvent):
        return None
    if not isinstance(event, yaml.ScalarEvent):
        raise _BadMapError(problem)
    text: str = event.value
    return text
