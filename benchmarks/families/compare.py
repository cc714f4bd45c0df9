"""Runs exported architectures on all engines, and compares with what the networks computed themselves.

    python -m benchmarks.families.compare FOLDER NAME...

For each of FOLDER/NAME, as ``benchmarks.families.export`` wrote it, FOLDER/NAME/outcomes.jsonl gets two lines
for each format and engine: one before it runs, with the outcome null, and one after it: the largest
difference, or why it does not run. A line that is there is not run again, so that after an engine which took
this process with it, or took longer than ``LIMIT``, the next process goes on.
"""

import faulthandler
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pdserve.convert import convert
from pdserve.engines import ENGINES, Device, load
from pdserve.errors import PdserveError

FORMATS = {"pir": "Paddle 3 (inference.json)", "program": "Paddle 2 (inference.pdmodel)"}
# Seconds for one engine, reading and conversion included.
LIMIT = 120
# The exit status of a process whose engine took longer.
TOO_LONG = 1
Array = np.ndarray[Any, Any]
Run = tuple[str, str]  # (format, engine)


def compare(folder: Path, known: Mapping[Run, Any]) -> Iterator[tuple[Run, dict[str, Any] | None]]:
    """Each run that is not ``known`` twice: with None before it, then with its outcome, see ``outcome``."""
    for kind in FORMATS:
        runs = [(kind, engine) for engine in ENGINES if (kind, engine) not in known]
        error = folder / f"{kind}.error"
        if error.is_file():
            yield from ((run, {"not exported": error.read_text("utf-8")}) for run in runs)
            continue
        if not runs or not (folder / kind).is_dir():
            continue
        reference = np.load(folder / "reference.npz")
        feeds = {key.removeprefix("feed "): reference[key] for key in reference if key.startswith("feed ")}
        wanted = [reference[f"fetch {place}"] for place in range(len(reference) - len(feeds))]
        made = folder / f"{kind}_serving"
        try:
            model = convert(folder / kind, made, folder / f"{kind}_client")
        except PdserveError as refusal:
            yield from ((run, {"refused": refusal.message}) for run in runs)
            continue
        for run in runs:
            yield run, None
            yield run, outcome(model, run[1], feeds, wanted)
        shutil.rmtree(made)


def outcome(model: Any, engine: str, feeds: Mapping[str, Array], wanted: Sequence[Array]) -> dict[str, Any]:
    """``difference``, ``scale``, ``seconds`` of a run and ``by`` which way it ran; or ``refused``, why."""
    try:
        loaded = load(model, engine=engine, device=Device.parse("cpu"), threads=2)
    except PdserveError as error:
        return {"refused": error.message}
    try:
        aliases = {feed.name: feed.alias for feed in loaded.feeds}
        begun = time.perf_counter()
        fetches = loaded.run({aliases[name]: value for name, value in feeds.items()})
        seconds = time.perf_counter() - begun
    except PdserveError as error:
        return {"refused": error.message}
    except Exception as error:
        return {"refused": f"{type(error).__name__}: {error}"}
    finally:
        loaded.close()
    got = list(fetches.values())
    if len(wanted) > 1:
        got = [next(one for one in got if one.ndim == 2), *(one for one in got if one.ndim == 1)]
    return {
        **(boxes_difference(wanted, got) if len(wanted) > 1 else difference(wanted[0], got[0])),
        "seconds": round(seconds, 3),
        "by": loaded.description,
    }


def difference(wanted: Array, got: Array) -> dict[str, Any]:
    """The largest difference of one element, and the largest element: ``difference``, ``scale``."""
    if wanted.shape != got.shape:
        return {"refused": f"the answer has the shape {got.shape}, not {wanted.shape}"}
    if bad := int(np.count_nonzero(~np.isfinite(got))):
        return {"refused": f"{bad} of the answer's {got.size} numbers are not finite"}
    return {"difference": float(np.abs(wanted - got).max()), "scale": float(np.abs(wanted).max())}


def boxes_difference(wanted: Sequence[Array], got: Sequence[Array]) -> dict[str, Any]:
    """Rows (label, score, x1, y1, x2, y2) in any order.

    ``difference`` is the largest in px, ``scores`` that of scores, ``boxes`` and ``unmatched`` are numbers.
    Each wanted row goes to the nearest found one of its label; rows more than a pixel apart or 0.01 in score
    are unmatched, of either side.
    """
    mine, theirs = wanted[0][: wanted[1].sum()], got[0][: got[1].sum() if len(got) > 1 else None]
    left = list(range(len(theirs)))
    unmatched, pixels, scores = 0, 0.0, 0.0
    for row in mine:
        costs = [
            np.abs(theirs[i, 2:] - row[2:]).max() + 100 * abs(theirs[i, 1] - row[1])
            if theirs[i, 0] == row[0]
            else np.inf
            for i in left
        ]
        best = int(np.argmin(costs)) if costs else -1
        if best < 0 or not costs[best] < 1:
            unmatched += 1
            continue
        one = theirs[left.pop(best)]
        pixels = max(pixels, float(np.abs(one[2:] - row[2:]).max()))
        scores = max(scores, float(abs(one[1] - row[1])))
    scale = float(np.abs(mine[:, 2:]).max()) if len(mine) else 0.0
    return {
        "difference": pixels, "scores": scores, "scale": scale, "boxes": len(mine),
        "unmatched": unmatched + len(left),
    }  # fmt: skip


def outcomes(folder: Path) -> dict[Run, dict[str, Any] | None]:
    """What FOLDER/NAME/outcomes.jsonl says; None for a run that has begun."""
    listed = folder / "outcomes.jsonl"
    lines = listed.read_text("utf-8").splitlines() if listed.is_file() else []
    return {(one["format"], one["engine"]): one["outcome"] for one in map(json.loads, lines)}


def write(folder: Path, run: Run, found: Mapping[str, Any] | None) -> None:
    """Add a line that ``outcomes`` reads."""
    line = json.dumps({"format": run[0], "engine": run[1], "outcome": found})
    with (folder / "outcomes.jsonl").open("a", encoding="utf-8") as listed:
        listed.write(line + "\n")


def main(folder: Path, names: Sequence[str]) -> None:
    """Run what has not been run."""
    for name in names:
        for run, found in compare(folder / name, outcomes(folder / name)):
            write(folder / name, run, found)
            faulthandler.dump_traceback_later(LIMIT, exit=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
    sys.stdout.flush()
    os._exit(0)  # an engine's threads may fail while Python ends
