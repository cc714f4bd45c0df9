"""A folder that appears under its name only when it is complete."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pdserve.files import writing


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """Give an empty folder beside ``target`` to fill; when the block ends well, it becomes ``target``.

    A ``target`` that exists is replaced at that moment and not before; after an error it is as it was.
    The caller holds a lock on ``target``: what an interrupted run left beside it is swept away.
    Raises DiskError.
    """
    new = target.parent / f".{target.name}.{os.getpid()}.tmp"
    old = target.parent / f".{target.name}.old.tmp"
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        for left in target.parent.glob(f".{target.name}.*.tmp"):
            shutil.rmtree(left)
        new.mkdir()
    try:
        yield new
        with writing(target):
            replaces = target.exists()
            if replaces:
                target.rename(old)
            try:
                new.rename(target)
            except OSError:
                if replaces:
                    old.rename(target)
                raise
    finally:
        for left in (new, old):
            shutil.rmtree(left, ignore_errors=True)
