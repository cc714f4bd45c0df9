"""The figures of all runs in one JSON file, with where they were taken."""

import json
import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from pdserve import __version__
from pdserve.errors import UsageError
from pdserve.files import writing
from pdserve.tools.bench.run import Run


def check_record(path: Path) -> None:
    """Raise UsageError where the file could not be written: to be asked before the load starts."""
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise UsageError(f"--out {path} must be a file in a folder that exists.")


def write_record(runs: Sequence[Run], path: Path) -> None:
    """Write them. Raises DiskError."""
    content = {
        "pdserve": __version__,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "system": platform.platform(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
        },
        "runs": [run.to_json() for run in runs],
    }
    with writing(path):
        path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")
