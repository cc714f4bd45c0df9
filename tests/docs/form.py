"""Compares what a command printed with what a page shows of it: the same form, other figures.

Lines of JSON must have the same keys, tables the same headings and columns, other lines the same words where
they hold no figure, name or path. A line ``…`` stands for any number of lines.
"""

import json
import re
from collections.abc import Sequence
from typing import Any

_COLUMNS = re.compile(r"\s{2,}")


def differences(shown: Sequence[str], printed: Sequence[str]) -> list[str]:
    """Where the two differ, a sentence each; nothing if they have the same form."""
    left = [line.rstrip() for line in printed if line.strip(" ─")]
    wrong, skip = [], False
    for line in _joined(shown):
        if line.strip() == "…":
            skip = True
            continue
        candidates = range(len(left) if skip else min(1, len(left)))
        at = next((i for i in candidates if same(line.rstrip(), left[i])), None)
        if at is None:
            wrong.append(f"not printed: {line}")
        else:
            left, skip = left[at + 1 :], False
    return wrong if skip else [*wrong, *(f"not shown: {line}" for line in left)]


def same(shown: str, printed: str) -> bool:
    """Whether two lines have the same form."""
    one, other = _json(shown), _json(printed)
    if one is not None or other is not None:
        return one is not None and other is not None and _same_keys(one, other)
    columns = [_COLUMNS.split(line.strip()) for line in (shown, printed)]
    if len(columns[0]) > 2:  # a row of a table
        return len(columns[0]) == len(columns[1]) and all(map(_same_cell, *columns))
    return _words(shown) == _words(printed)


def _joined(lines: Sequence[str]) -> list[str]:
    """JSON that a page shows on several lines is one line."""
    out: list[str] = []
    for line in lines:
        if out and out[-1].startswith("{") and _json(out[-1]) is None:
            out[-1] += line.strip()
        elif line.strip():
            out.append(line)
    return out


def _json(line: str) -> Any:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _same_keys(one: Any, other: Any) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same_keys(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return not one or not other or _same_keys(one[0], other[0])
    if one is None or other is None:
        return True
    return type(one) is type(other) or {type(one), type(other)} == {int, float}


def _same_cell(one: str, other: str) -> bool:
    return one == other or _is_figure(one) == _is_figure(other) or "-" in (one, other)


def _is_figure(cell: str) -> bool:
    return bool(re.search(r"\d", cell))


def _words(line: str) -> list[str]:
    """The words of a sentence without figures, names in quotation marks, paths and addresses."""
    plain = re.sub(r"'[^']*'|\"[^\"]*\"|\S*[\d/_]\S*", " ", line)
    return re.findall(r"[^\W\d]+", plain)
