"""Safe YAML reader: plain values only, bounded in bytes, in values, and in values with all aliases expanded.

Values are counted before any is built, as building them takes ten times as long as counting. A key that
stands twice in a mapping, of which YAML takes the last in silence, is refused. A few lines of aliases of
aliases stand for gigabytes once they are printed or copied, and what YAML makes of plain words (dates,
numbers in base 60) can raise Python's errors instead of YAML's.
"""

import errno
from collections.abc import Collection
from pathlib import Path
from typing import Any

import yaml

from pdserve.formats import text_file

MAX_BYTES = 4 << 20
MAX_WRITTEN = 100_000
"""Values and keys as they are written, four times the labels of ImageNet-22k; built in half a second."""

MAX_VALUES = 1_000_000
"""Values with all aliases expanded."""


class YamlError(Exception):
    """Reason why the file cannot be read, as the end of a sentence."""


# What a plain word can be taken for. Other tags are written out, and stay what they are.
_TAG = "tag:yaml.org,2002:"
_WORDS = {_TAG + kind for kind in ("bool", "float", "int", "merge", "null", "timestamp", "value")}


def read(path: Path, *, max_bytes: int = MAX_BYTES, as_text: Collection[str] = ()) -> Any:
    """The file's content, of dicts, lists and plain values. Raises YamlError, OSError.

    ``as_text``: keys, wherever they stand, whose value, or the values listed in it, stay as they are
    written, where YAML 1.1 makes ``yes`` a truth value, ``01`` a number and ``null`` nothing. A key whose
    whole value is ``null`` has none.
    """
    try:
        data = text_file.read_bytes(path, max_bytes)
    except OSError as error:
        if error.errno == errno.EFBIG:
            raise YamlError(text_file.reason(error)) from error
        raise
    try:
        text = text_file.decode_text(data)
        _count(text)
        content = _load(text, as_text)
    except RecursionError as error:
        raise YamlError("it is nested too deeply") from error
    # The last three: what its constructors of dates, numbers and truth values raise for words that are none.
    except (yaml.YAMLError, ValueError, AttributeError, LookupError, OverflowError) as error:
        if "maximum nesting depth" in str(error):  # libyaml's words
            raise YamlError("it is nested too deeply") from error
        if "character that cannot start any token" in str(error) and "\t" in text:
            raise YamlError(f"{text_file.reason(error)}: a tab, perhaps; indent with spaces") from error
        raise YamlError(text_file.reason(error)) from error
    _check(content)
    return content


def _loader() -> Any:
    """In C where libyaml is there, which is ten times as fast."""
    return getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _count(text: str) -> None:
    for number, _ in enumerate(yaml.parse(text, Loader=_loader())):
        if number > MAX_WRITTEN:
            raise YamlError(f"it has more than {MAX_WRITTEN} values")


def _load(text: str, as_text: Collection[str]) -> Any:
    """As ``yaml.safe_load``."""
    loader = _loader()(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _prepare(node, as_text)
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _prepare(root: Any, keys: Collection[str]) -> None:
    """Make texts of what is listed under the keys; raise YamlError for a key that stands twice."""
    left, seen = [root], set()
    while left:
        node = left.pop()
        if id(node) in seen or isinstance(node, yaml.ScalarNode):
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            left += node.value
            continue
        lines: dict[tuple[str, str], int] = {}
        for key, value in node.value:
            left += (key, value)
            if isinstance(key, yaml.ScalarNode) and key.tag != f"{_TAG}merge":
                name, line = (key.tag, key.value), key.start_mark.line + 1
                if name in lines:
                    raise YamlError(
                        f"it has {key.value!r} twice, in line {lines[name]} and in line {line}; remove one"
                    )
                lines[name] = line
            nothing = isinstance(value, yaml.ScalarNode) and value.tag == f"{_TAG}null"
            if isinstance(key, yaml.ScalarNode) and key.value in keys and not nothing:
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
