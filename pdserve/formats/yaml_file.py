"""Safe YAML reader: plain values only, bounded in bytes and in values with all aliases expanded.

A few lines of aliases of aliases stand for gigabytes once they are printed or copied, and what YAML makes
of plain words (dates, numbers in base 60) can raise Python's errors instead of YAML's.
"""

from pathlib import Path
from typing import Any

import yaml

MAX_BYTES = 4 << 20
MAX_VALUES = 1_000_000


class YamlError(Exception):
    """Reason why the file cannot be read, as the end of a sentence."""


def read(path: Path) -> Any:
    """The file's content, of dicts, lists and plain values. Raises YamlError, OSError."""
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise YamlError(f"it has more than {MAX_BYTES >> 20} MiB")
    try:
        content = yaml.safe_load(data.decode("utf-8-sig"))
    except RecursionError as error:
        raise YamlError("it is nested too deeply") from error
    # The last three: what its constructors of dates, numbers and truth values raise for words that are none.
    except (yaml.YAMLError, ValueError, AttributeError, LookupError, OverflowError) as error:
        raise YamlError(" ".join(str(error).split())) from error
    _check(content)
    return content


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
