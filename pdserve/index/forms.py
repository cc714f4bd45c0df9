"""The FORMS table: programs that read and write an index as a folder of ``vector.index`` and its labels.

The vectors are faiss's own file for all of them; what differs is the file of the labels. A further form is a
module with a reader and a writer of that file, and one entry here. pdserve keeps its own indexes in
PaddleClas's form.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pdserve.errors import IndexFolderError
from pdserve.index import id_map, id_map_yaml
from pdserve.index.id_map import IdMap


@dataclass(frozen=True)
class LabelForm:
    """A program's file of labels, beside ``vector.index``.

    ``read``: path -> entries, raises IndexFolderError. ``dumps``: entries, type of index, metric -> the file.
    ``images``: it has the images' paths. ``repeats``: an id may come more than once among the vectors, as
    that of a removed entry's neighbour in a graph does.
    """

    program: str
    file: str
    help: str
    read: Callable[[Path], IdMap]
    dumps: Callable[[Mapping[int, str], str, str], bytes]
    images: bool
    repeats: bool


FORMS: Mapping[str, LabelForm] = {
    "paddleclas": LabelForm(
        "PaddleClas",
        "id_map.pkl",
        "vector.index and id_map.pkl, with paths and labels",
        id_map.read,
        lambda entries, _kind, _metric: id_map.dumps(entries),
        images=True,
        repeats=True,
    ),
    "paddlex": LabelForm(
        "PaddleX",
        "id_map.yaml",
        "vector.index and id_map.yaml, with labels",
        id_map_yaml.read,
        id_map_yaml.dumps,
        images=False,
        repeats=False,
    ),
}
"""Form -> its file of labels. The first is that of pdserve's own indexes."""


def present(folder: Path) -> list[LabelForm]:
    """The forms whose file of labels is in a folder."""
    return [form for form in FORMS.values() if (folder / form.file).is_file()]


def read_labels(folder: Path) -> tuple[Path, IdMap]:
    """The labels of an index that another program wrote, in whichever form it is, and their file.

    Raises IndexFolderError, also for files of two forms that say different labels; FileNotFoundError.
    """
    found = present(folder) or [FORMS["paddleclas"]]
    entries = found[0].read(folder / found[0].file)
    for other in found[1:]:
        if _labels(other.read(folder / other.file)) != _labels(entries):
            raise IndexFolderError(
                f"{folder} has {found[0].file} of {found[0].program} and {other.file} of {other.program}, "
                "with different labels; remove the one that does not belong to vector.index."
            )
    return folder / found[0].file, entries


def _labels(entries: IdMap) -> IdMap:
    return {i: id_map.split(entry)[1] for i, entry in entries.items()}
