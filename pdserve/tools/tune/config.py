"""Write the best settings into a config.yml: those that all models share into the block ``pdserve:``, those
that differ between models under ``op``, by Paddle Serving's keys. The rest of the file stays, with comments
and quotes.
"""

import contextlib
import io
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pdserve.errors import SettingsError
from pdserve.files import replace_file, temp_sibling
from pdserve.formats import yaml_file
from pdserve.pipelines import SERVICES
from pdserve.tools.tune.candidates import NAMES, Candidate

# Setting -> the keys below an operator.
_KEYS: Mapping[str, tuple[str, ...]] = {
    "precision": ("local_service_conf", "precision"),
    "instances": ("concurrency",),
    "threads": ("local_service_conf", "thread_num"),
    "max_batch_size": ("batch_size",),
    "max_queue_delay_ms": ("auto_batching_timeout",),
}


def check(path: Path) -> None:
    """Raise SettingsError where `write` could not, before the measurements."""
    with _translated(path):
        _load(path)
        probe = temp_sibling(path.resolve())
        probe.touch()
        probe.unlink()


def write(path: Path, best: Candidate, devices: int = 1, kind: str = "recognition") -> None:
    """Write the settings into a file, all at once or not at all.

    ``devices``: how many share ``concurrency``. ``kind``: the service, whose models' operators these are.

    Raises SettingsError where the file cannot be read or written, DiskError where it cannot be replaced.
    """
    with _translated(path):
        yaml, content, newline = _load(path)
        _put(content, best, devices, kind)
        target = path.resolve()
        with replace_file(target) as new:
            new.write_bytes(_dump(yaml, content).replace("\n", newline).encode())
            new.chmod(target.stat().st_mode & 0o777)


def snippet(best: Candidate, devices: int = 1, kind: str = "recognition") -> str:
    """A config.yml with these settings and nothing else."""
    content: dict[str, Any] = {}
    _put(content, best, devices, kind)
    return _dump(_yaml(), content)


def _put(content: Any, best: Candidate, devices: int, kind: str) -> None:
    operators = SERVICES[kind].operators
    block = _below(content, "pdserve")
    for name in NAMES:
        found = {role: settings[name] for role, settings in best.items()}
        if len(set(found.values())) == 1:
            block[name] = _whole(next(iter(found.values())))
            continue
        if name in block:  # it would come before the operators
            block[name] = None
        for role, value in found.items():
            *above, key = _KEYS[name]
            place = _below(content, "op", operators[role], *above)
            if name == "instances" and value != "auto":
                value *= devices
            # In Paddle Serving's schema, too, a key without a value takes its default.
            place[key] = None if value == "auto" else _whole(value)


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _below(content: Any, *keys: str) -> Any:
    for key in keys:
        if content.get(key) is None:
            content[key] = {}
        content = content[key]
    return content


def _dump(yaml: Any, content: Any) -> str:
    text = io.StringIO()
    yaml.dump(content, text)
    return text.getvalue()


def _yaml() -> Any:
    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 10_000
    return yaml


def _load(path: Path) -> tuple[Any, Any, str]:
    from ruamel.yaml.util import load_yaml_guess_indent

    yaml_file.read(path)  # within its bounds
    text = path.read_bytes().decode("utf-8-sig")
    newline = "\r\n" if "\r\n" in text else "\n"
    text = text.replace("\r\n", "\n")
    yaml = _yaml()
    if re.search(r":[ ]+(True|False)\b", text):
        yaml.boolean_representation = ["False", "True"]
    _, sequence, offset = load_yaml_guess_indent(text)
    nested = re.search(r"^( +)[^ #\n-]", text, re.MULTILINE)
    yaml.indent(mapping=len(nested[1]) if nested else 4, sequence=sequence or 2, offset=offset or 0)
    content = yaml.load(text)
    if not hasattr(content, "get"):
        raise TypeError("it holds no settings")
    return yaml, content, newline


@contextlib.contextmanager
def _translated(path: Path) -> Iterator[None]:
    from ruamel.yaml.error import YAMLError

    try:
        yield
    except (OSError, YAMLError, yaml_file.YamlError, UnicodeDecodeError, TypeError, AttributeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise SettingsError(f"Cannot write the settings into {path}: {reason}.") from error
