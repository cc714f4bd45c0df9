"""Keys that callers show: where they are kept, and that they are never told.

A file has one key a line; blank lines and lines that begin with ``#`` are passed over. No message here
quotes a key, nor what might be one.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from pdserve.errors import SettingsError

VARIABLE = "PDSERVE_API_KEY"

# What goes into a header and into gRPC's metadata as it is.
_KEY = re.compile(r"[!-~]+")


def read_keys(file: Path) -> tuple[str, ...]:
    """The keys in a file. Raises SettingsError for a file without any, and for one that cannot be read."""
    try:
        lines = [line.strip() for line in file.read_text("utf-8-sig").splitlines()]
    except (PermissionError, IsADirectoryError) as error:
        raise SettingsError(f"Cannot read the file of keys {file}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"The file of keys {file} is no text; it has one key a line.") from error
    except (OSError, ValueError):
        # A name that leads nowhere may be a key, which the error's own text would tell.
        known = f" {file}" if file.parent != Path() and _is_folder(file.parent) else ""
        raise SettingsError(
            f"There is no such file of keys{known}; --api-key takes a file with one key a line, and a key "
            f"itself belongs in {VARIABLE}."
        ) from None
    keys = {line: None for line in lines if line and not line.startswith("#")}
    if not keys:
        raise SettingsError(f"The file of keys {file} has none; write one key a line into it.")
    for number, line in enumerate(lines, 1):
        if line in keys:
            check_key(line, f"{file}, line {number}")
    return tuple(keys)


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def check_key(key: str, where: str) -> None:
    """Raise SettingsError for a key that cannot be sent as it is; ``where`` is what the message names."""
    if not _KEY.fullmatch(key):
        raise SettingsError(
            f"{where}: the key has other characters than letters, digits and signs of ASCII; "
            "a blank is none of them."
        )


def key_to_show(file: Path | None, environ: Mapping[str, str]) -> str | None:
    """The key that a caller shows: the first of a file, else PDSERVE_API_KEY; None where there is neither.

    Raises SettingsError.
    """
    if file:
        return read_keys(file)[0]
    key = environ.get(VARIABLE)
    if key:
        check_key(key, VARIABLE)
    return key or None
