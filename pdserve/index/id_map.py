"""``id_map.pkl``: id -> "path<TAB>label", a pickled dict as PaddleClas writes it.

PaddleClas pickles its ids as they come out of an array, as NumPy integers: a call of NumPy's ``scalar``
with a type and eight bytes. That one call is understood (not made) and gives an int.

PaddleClas goes on only with an index that has as many labels as vectors. Where an entry has more than one
vector, as one beside a removed entry in a graph has, the others have ids of their own, *copies*, which are
negative and say whose they are: ``-2**62 + copy * 2**40 + id``. In the file a copy has the label of its
entry; what reads an id map here does not have it.
"""

import io
import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pdserve.errors import IndexFolderError
from pdserve.formats.pickles import BadPickleError, Global, Unpickler, expect

if TYPE_CHECKING:
    from pdserve.vision.types import Ids

IdMap = dict[int, str]

MAX_BYTES = 4 << 30

_FIRST_COPY, _COPY = -(1 << 62), 1 << 40
_MOST_COPIES = 1 << 20
COPIES_BELOW = _FIRST_COPY + _MOST_COPIES * _COPY
"""Ids below this are copies."""


def originals(ids: "Ids") -> "Ids":
    """Ids of any shape, in place of a copy's that of its entry."""
    import numpy as np  # where it is used: `pdserve index --help` needs none

    return np.where(ids < COPIES_BELOW, (ids - _FIRST_COPY) & (_COPY - 1), ids)


def unique(ids: "Ids") -> "Ids":
    """Ids (n) of which some come again: these become copies."""
    import numpy as np

    order = np.argsort(ids, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(ids[order]) != 0])
    times = np.arange(len(ids)) - np.repeat(starts, np.diff(np.r_[starts, len(ids)]))
    made = ids.copy()
    made[order] = np.where(times > 0, _FIRST_COPY + times * _COPY + ids[order], ids[order])
    return made


def may_repeat(ids: "Ids") -> bool:
    """Whether each of the ids can be a copy's, and come so often as there are ids."""
    return len(ids) < _MOST_COPIES and bool((ids >= 0).all() and (ids < _COPY).all())


def with_copies(entries: Mapping[int, str], copies: Iterable[int]) -> IdMap:
    """The entries, and the copies of them."""
    names = [(i, (i - _FIRST_COPY) & (_COPY - 1)) for i in copies]
    return dict(entries) | {i: entries[name] for i, name in names if name in entries}


def read(path: Path, max_bytes: int = MAX_BYTES) -> IdMap:
    """Read an id map without copies; see `read_all`."""
    entries = read_all(path, max_bytes)
    return {i: entry for i, entry in entries.items() if i >= COPIES_BELOW}


def read_all(path: Path, max_bytes: int = MAX_BYTES) -> IdMap:
    """Read an id map, the entries in the order of the file. Nothing in the file is run.

    Raises IndexFolderError for a file of more than ``max_bytes``, a pickle of anything but a dict of
    int and str, and a broken one; FileNotFoundError and other OSErrors as they come.
    """
    size = path.stat().st_size
    if size > max_bytes:
        raise IndexFolderError(f"{path} has {size} bytes, more than the limit of {max_bytes} for an id map.")
    try:
        entries: IdMap = expect(_Unpickler().load(io.BytesIO(path.read_bytes())), dict)
    except BadPickleError as error:
        raise IndexFolderError(
            f"{path} is no id map, it {error}; it may hold a dict of int and str and nothing else."
        ) from None
    return entries


def dumps(entries: Mapping[int, str]) -> bytes:
    """Pickle an id map as PaddleClas does; readable from Python 3.4 on."""
    return pickle.dumps(dict(entries), protocol=4)


def split(entry: str) -> tuple[str, str]:
    """An entry's image path and label.

    PaddleClas keeps the whole line of the label list, whose delimiter is a tab; where there is none, the
    first blank parts the two. A third column is not the label's.
    """
    parts = entry.split("\t") if "\t" in entry else entry.split(None, 1)
    return (parts[0], parts[1]) if len(parts) > 1 else (entry, "")


def join(image: str, label: str) -> str:
    """An entry of an image path and a label."""
    return f"{image}\t{label}"


_DTYPE = "numpy.dtype"
_SCALARS = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
_INT64 = Global("numpy.int64")


class _Unpickler(Unpickler):
    """Admits NumPy's ``dtype("i8", False, True)`` and ``scalar(that, eight bytes)``, which give an int."""

    names = (_DTYPE, *_SCALARS)
    key_type = int
    value_type = str
    max_int_bytes = 8

    def call(self, function: Any, arguments: tuple[Any, ...]) -> Any:
        name = function.name if isinstance(function, Global) else None
        if name == _DTYPE and arguments == ("i8", False, True):
            return _INT64
        if name in _SCALARS and len(arguments) == 2 and arguments[0] is _INT64:
            value = expect(arguments[1], bytes)
            if len(value) == 8:
                return int.from_bytes(value, "little", signed=True)
        return super().call(function, arguments)

    def check_state(self, value: Any, state: Any) -> None:
        if value is not _INT64 or not isinstance(state, tuple):
            super().check_state(value, state)
