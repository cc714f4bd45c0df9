"""The report on an optimised model, stored with it as ``report.json``; the engine reads a part of it.

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
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from pdserve import __version__
from pdserve.engines import Engine
from pdserve.engines.int8 import REPORT
from pdserve.files import disk_errors, sha256
from pdserve.tools.optimize.images import Sets, digest
from pdserve.tools.optimize.tasks import Agreement
from pdserve.vision.types import Array

FORMAT = 1
BATCHES = (1, 8)
_SECONDS = 2.0  # of a batch size
_MIN_RUNS, _MAX_RUNS = 3, 50  # of each engine


@dataclass(frozen=True)
class Speed:
    """Median milliseconds of a batch, in one instance on all cores."""

    batch: int
    float_ms: float
    optimized_ms: float

    @property
    def ratio(self) -> float:
        """Over 1: the optimised model is faster."""
        return self.float_ms / self.optimized_ms


@dataclass(frozen=True)
class Report:
    """What ``report.json`` holds, by the same names; see above."""

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

    def to_json(self) -> dict[str, Any]:
        """As JSON, without ``files``."""
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
            "calibration": _set(self.sets.calibration) if self.sets.calibration else None,
            "comparison": _set(self.sets.comparison),
            "shared": self.sets.shared,
            "skipped": self.skipped,
            "agreement": agreement | dict(self.agreement.figures),
            "min_agreement": self.min_agreement,
            "speed": [asdict(each) | {"ratio": round(each.ratio, 3)} for each in self.speed],
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
        }


def write(report: Report, folder: Path) -> None:
    """Write a report into the folder, with the checksums of the other files in it. Raises DiskError."""
    with disk_errors(folder):
        files = {path.name: sha256(path) for path in sorted(folder.iterdir())}
        content = report.to_json() | {"files": files}
        (folder / REPORT).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")


def processor() -> str:
    """This machine's processor, by the system's name."""
    try:
        for line in Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _set(pictures: Sequence[Any]) -> dict[str, Any]:
    return {"images": len(pictures), "sha256": digest(pictures)}


def measure_speed(floats: Engine, optimized: Engine, feeds: Mapping[str, Array]) -> list[Speed]:
    """Time both engines in turn, so that other load on the machine slows both.

    ``feeds``: of one image, repeated to each batch that the model takes. Raises EngineError.
    """
    free = all(shape[:1] == (-1,) for shape in floats.shapes.values())
    return [_measure(floats, optimized, feeds, batch) for batch in (BATCHES if free else BATCHES[:1])]


def _measure(floats: Engine, optimized: Engine, feeds: Mapping[str, Array], batch: int) -> Speed:
    batched = {alias: np.repeat(array, batch, axis=0) for alias, array in feeds.items()}
    engines = (floats, optimized)
    for engine in engines:
        engine.run(batched)
    times: tuple[list[float], list[float]] = ([], [])
    end = time.perf_counter() + _SECONDS
    while len(times[0]) < _MIN_RUNS or (len(times[0]) < _MAX_RUNS and time.perf_counter() < end):
        for engine, spent in zip(engines, times, strict=True):
            since = time.perf_counter()
            engine.run(batched)
            spent.append((time.perf_counter() - since) * 1000)
    return Speed(batch, round(median(times[0]), 3), round(median(times[1]), 3))
