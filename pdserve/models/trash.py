"""Remove folders of pdserve's home, so that a kill at any moment leaves each of them whole or gone.

A folder is renamed to ``.NAME.<12 hexadecimal digits>.trash`` beside itself, hence on the same disk, and
deleted then. What a killed process left under such a name is deleted by the next one.
"""

import os
import shutil
import stat
import sys
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from pdserve.errors import DiskError
from pdserve.files import disk_errors
from pdserve.models.home import Home

_PATTERN = f".*.{'[0-9a-f]' * 12}.trash"


def remove(paths: Sequence[Path]) -> None:
    """Remove folders, all or, where one cannot be renamed, none. A link is removed, not what it leads to.

    Raises DiskError.
    """
    renamed: list[tuple[Path, Path]] = []
    try:
        for path in paths:
            away = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.trash")
            with disk_errors(path):
                path.rename(away)
            renamed.append((path, away))
    except BaseException:
        for path, away in reversed(renamed):
            with suppress(OSError):
                away.rename(path)
        raise
    left = [away for _, away in renamed if not _delete(away)]
    if left:
        raise DiskError(
            f"{left[0]} cannot be deleted altogether, for another program has a file of it open or others "
            "may write there; it is deleted by the next `pdserve rm` or `pdserve list`."
        )


def sweep(home: Home) -> None:
    """Delete what killed processes left; what cannot be deleted stays for the next time."""
    for folder in (home.models, home.indexes):
        with suppress(OSError):
            for path in folder.glob(_PATTERN):
                _delete(path)


def _delete(path: Path) -> bool:
    """Delete a folder or a link; whether nothing is left."""
    if path.is_symlink():
        with suppress(OSError):
            path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)
        for each in (path, *path.rglob("*")) if path.exists() else ():
            # What is read-only: a folder keeps what is in it, on Windows a file itself stays.
            if not each.is_symlink() and (each.is_dir() or sys.platform == "win32"):
                with suppress(OSError):
                    each.chmod(stat.S_IRWXU)
        shutil.rmtree(path, ignore_errors=True)
    return not os.path.lexists(path)
