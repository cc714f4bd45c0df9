"""Safe YAML reader: plain values only, bounded in bytes and in values with all aliases expanded.

A few lines of aliases of aliases stand for gigabytes once they are printed or copied, and what YAML makes
of plain words (dates, numbers in base 60) can raise Python's errors instead of YAML's.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import yaml

MAX_BYTES = 4 << 20
MAX_VALUES = 1_000_000


class YamlError(Exception):
    """Reason why the file cannot be read, as the end of a sentence."""


# What a plain word can be taken for. Other tags are written out, and stay what they are.
_TAG = "tag:yaml.org,2002:"
_WORDS = {_TAG + kind for kind in ("bool", "float", "int", "merge", "null", "timestamp", "value")}


def read(path: Path, *, max_bytes: int = MAX_BYTES, as_text: Collection[str] = ()) -> Any:
    """The file's content, of dicts, lists and plain values. Raises YamlError, OSError.

    ``as_text``: keys, wherever they stand, whose value, or the values listed in it, stay as they are
    written, where YAML 1.1 makes ``yes`` a truth value, ``01`` a number and ``null`` nothing.
    """
    with path.open("rb") as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise YamlError(f"it has more than {max_bytes >> 20} MiB")
    try:
        content = _load(data.decode("utf-8-sig"), as_text)
    except RecursionError as error:
        raise YamlError("it is nested too deeply") from error
    # The last three: what its constructors of dates, numbers and truth values raise for words that are none.
    except (yaml.YAMLError, ValueError, AttributeError, LookupError, OverflowError) as error:
        if "maximum nesting depth" in str(error):  # libyaml's words
            raise YamlError("it is nested too deeply") from error
        raise YamlError(" ".join(str(error).split())) from error
    _check(content)
    return content


def _load(text: str, as_text: Collection[str]) -> Any:
    """As ``yaml.safe_load``; in C where libyaml is there, which is ten times as fast."""
    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _keep_text(node, as_text)
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _keep_text(root: Any, keys: Collection[str]) -> None:
    """Make texts of what is listed under the keys."""
    left, seen = [root], set()
    while left:
        node = left.pop()
        if id(node) in seen or isinstance(node, yaml.ScalarNode):
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            left += node.value
            continue
        for key, value in node.value:
            left += (key, value)
            if isinstance(key, yaml.ScalarNode) and key.value in keys:
                _as_text(value)


def _as_text(node: Any) -> None:
    if isinstance(node, yaml.SequenceNode):
        listed = node.value
    else:
        listed = [value for _, value in node.value] if isinstance(node, yaml.MappingNode) else [node]
    for each in listed:
        if isinstance(each, yaml.ScalarNode) and each.tag in _WORDS:
            each.tag = _TAG + "str"


def _check(content: Any) -> None:
    """Limit the number of values, aliases expanded, and the size of integers, which Python may not print."""
    left = [content]
    for _ in range(MAX_VALUES):
        if not left:
            return
        if len(left) > MAX_VALUES:
            break
        value = left.pop()
        if isinstance(value, dict):
            left += [*value, *value.values()]
        elif isinstance(value, (list, tuple, set)):
            left += value
        elif isinstance(value, int) and not -(2**63) <= value < 2**64:
            raise YamlError("it has a number of more than 64 bits")
    raise YamlError(f"it has more than {MAX_VALUES} values, aliases expanded")
