"""Reads label lists: the names of a model's classes, by class id.

The lists beside this file are those of the catalog's models. A file has either a class id and a name
on each line (``0 tench, Tinca tinca``, PaddleClas's form) or just a name.
"""

import re
from pathlib import Path

from pdserve.errors import SettingsError
from pdserve.formats import text_file

FOLDER = Path(__file__).parent
MAX_BYTES = 8 << 20
_NUMBER = r"(\d{1,600})"  # Python reads no number of several thousand digits


def read_labels(path: Path, delimiter: str | None = None) -> tuple[str, ...]:
    """The names by class id, one a line, or each after its number and a space or the ``delimiter``.

    Raises SettingsError for a missing, empty or contradictory file.
    """
    try:
        lines = [line.strip() for line in text_file.read_text(path, MAX_BYTES).splitlines()]
    except (OSError, ValueError) as error:
        raise SettingsError(f"Cannot read the label file {path}: {text_file.reason(error)}.") from error
    lines = [line for line in lines if line]
    if not lines:
        raise SettingsError(f"The label file {path} has no labels.")
    between = re.escape(delimiter) if delimiter and delimiter.strip() else r"\s+"
    numbered = [m for line in lines if (m := re.fullmatch(rf"{_NUMBER}{between}(.*\S)", line))]
    if len(numbered) < len(lines):
        return tuple(lines)
    names = {int(m[1]): m[2].strip() for m in numbered}
    if sorted(names) != list(range(len(lines))):
        raise SettingsError(f"The label file {path} does not number its classes from 0 to {len(lines) - 1}.")
    return tuple(names[i] for i in range(len(lines)))
