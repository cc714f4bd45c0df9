"""The report on an optimised model, kept beside it as ``report.json``; the engine reads a part of it.

::

    {"format": 1, "model": NAME, "fingerprint": the float model's, "precision": "int8",
     "task": "classification", "preprocessing": as calibrated and compared with,
     "engine": the optimised one's line for the log, "processor": it was compared on,
     "versions": {"pdserve", "openvino", "nncf"}, "settings": {"preset", "accuracy_control"},
     "calibration": {"images": N, "sha256": of the set} or null, "comparison": the same, "shared": bool,
     "skipped": files that could not be read,
     "agreement": {"measure", "value", "images", figures…}, "min_agreement": 0.98,
     "speed": [{"batch", "float_ms", "optimized_ms", "ratio"}…],
     "files": {name: SHA-256}, "date": "2025-01-31T12:00:00+00:00"}
"""

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pdserve import __version__
from pdserve.engines.int8 import REPORT
from pdserve.files import disk_errors, sha256
from pdserve.tools.optimize.agreement import Agreement
from pdserve.tools.optimize.images import Sets, digest
from pdserve.tools.optimize.speed import Speed

FORMAT = 1


@dataclass(frozen=True)
class Report:
    """What ``report.json`` holds, by the same names; see there."""

    model: str
    fingerprint: str
    precision: str
    task: str
    preprocessing: Any
    engine: str
    versions: Mapping[str, str]
    settings: Mapping[str, Any]
    sets: Sets
    skipped: int
    agreement: Agreement
    min_agreement: float
    speed: Sequence[Speed] = ()

    def described(self) -> dict[str, Any]:
        """As JSON, but for ``files``."""
        agreement = {name: value for name, value in asdict(self.agreement).items() if name != "figures"}
        return {
            "format": FORMAT,
            "model": self.model,
            "fingerprint": self.fingerprint,
            "precision": self.precision,
            "task": self.task,
            "preprocessing": self.preprocessing,
            "engine": self.engine,
            "processor": processor(),
            "versions": {"pdserve": __version__, **self.versions},
            "settings": dict(self.settings),
            "calibration": _described(self.sets.calibration) if self.sets.calibration else None,
            "comparison": _described(self.sets.comparison),
            "shared": self.sets.shared,
            "skipped": self.skipped,
            "agreement": agreement | dict(self.agreement.figures),
            "min_agreement": self.min_agreement,
            "speed": [asdict(each) | {"ratio": round(each.ratio, 3)} for each in self.speed],
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
        }


def write(report: Report, folder: Path) -> None:
    """Write a report into the folder, with the checksums of what else is in it. Raises DiskError."""
    with disk_errors(folder):
        files = {path.name: sha256(path) for path in sorted(folder.iterdir())}
        content = report.described() | {"files": files}
        (folder / REPORT).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")


def processor() -> str:
    """This machine's processor, as the system calls it."""
    try:
        for line in Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _described(pictures: Sequence[Any]) -> dict[str, Any]:
    return {"images": len(pictures), "sha256": digest(pictures)}
