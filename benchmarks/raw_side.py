"""What the machine does without a server, in the form of measurement.py's results."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.contenders import RECOGNITION, Contender
from benchmarks.measurement import Plan, UnfitError
from benchmarks.process_tree import MemorySampler, ProcessTree
from benchmarks.raw_process import Raw


@contextmanager
def raw_process(seconds: float) -> Iterator[Raw]:
    """The raw engine's process, on the CPU in float32 unless it is asked for something else."""
    raw = Raw({"device": "cpu", "precision": "fp32", "seconds": seconds})
    try:
        yield raw
    finally:
        raw.close()


def right_answer(raw: Raw, model: str, image: Path, precision: str) -> dict[str, str]:
    """What the raw pipeline says to the image, by the fields of an answer. Raises UnfitError."""
    which = {} if model == RECOGNITION else {"model": model}
    try:
        return raw.measure(work="answer", image=str(image), precision=precision, **which)
    except RuntimeError as error:
        raise UnfitError(str(error)) from error


class RawSide:
    """The raw engine and pipeline at their best settings, which are searched once and used in all rounds."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._best: dict[tuple[str, str], dict[str, Any]] = {}

    def measure(self, one: Contender, model: str) -> dict[str, Any]:
        """Images per second at each number of clients, in the form of measure_server."""
        alone, together = self._asked(one, model)
        best = self._best.get((one.name, model))
        if best is None:
            with raw_process(self._plan.seconds) as raw:
                best = max(together, key=lambda asked: raw.measure(**asked, seconds=1.5)["images_per_s"])
            self._best[one.name, model] = best
        # A fresh process, without the memory of what was tried.
        with raw_process(self._plan.seconds) as raw, MemorySampler(ProcessTree(raw.pid, "raw")) as memory:
            single, many = raw.measure(**alone), raw.measure(**best)
        loads = {
            str(clients): {"images_per_s": (single if clients == 1 else many)["images_per_s"]}
            for clients in self._plan.clients
        }
        if "1" in loads:
            loads["1"]["p50_ms"] = single["run_ms"]
        how = {key: best[key] for key in ("batch", "instances", "threads") if key in best}
        return {"memory_mb": memory.peak_mb, "loads": loads, "best": how}

    def _asked(self, one: Contender, model: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """What is asked for one client, and what the best for more is looked for among."""
        threads = ({"threads": count} for count in (2, 3, 4))
        image = {"image": str(self._plan.image)}
        if model == RECOGNITION:
            work = {"work": "recognition limit" if one.name == "raw-pipeline" else "recognition", **image}
            return {**work, "threads": 1}, [{**work, **each} for each in threads]
        if one.name == "raw-pipeline":
            work = {"work": "limit", "model": model, **image}
            return {**work, "threads": 1}, [{**work, **each} for each in threads]
        work = {"work": "engine", "model": model}
        single = {**work, "batch": 1, "instances": 1, "threads": 1}
        return single, [
            {**work, "batch": batch, "instances": count} for batch in (1, 4, 8) for count in (None, 1, 2)
        ]
