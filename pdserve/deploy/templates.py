"""The texts of ``templates/``, with their places filled in: ``@name@`` stands for a value.

A place alone on its line takes several lines, and with none the line goes; they stand as far to the right as
the place does.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

_FOLDER = Path(__file__).with_name("templates")
_LINE = re.compile(r"^([ \t]*)@([a-z_]+)@\n", re.M)
_PLACE = re.compile(r"@([a-z_]+)@")


def fill(name: str, values: Mapping[str, str | Sequence[str]]) -> str:
    """A template with its places filled in; a sequence is lines. Raises KeyError for a missing value."""
    text = (_FOLDER / name).read_text("utf-8")

    def lines(match: re.Match[str]) -> str:
        value = values[match[2]]
        each = value.splitlines() if isinstance(value, str) else value
        return "".join(f"{match[1]}{line}\n" if line else "\n" for line in each)

    def words(match: re.Match[str]) -> str:
        value = values[match[1]]
        return value if isinstance(value, str) else " ".join(value)

    return _PLACE.sub(words, _LINE.sub(lines, text))
