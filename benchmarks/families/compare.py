"""Runs exported architectures on all engines, and compares with what the networks computed themselves.

    python -m benchmarks.families.compare FOLDER NAME...

For each of FOLDER/NAME, as ``benchmarks.families.export`` wrote it, a line of JSON: by format, then engine,
the largest difference, or why it does not run.
"""

import json
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pdserve.convert import convert
from pdserve.engines import ENGINES, Device, load
from pdserve.errors import PdserveError

FORMATS = {"pir": "Paddle 3 (inference.json)", "program": "Paddle 2 (inference.pdmodel)"}
Array = np.ndarray[Any, Any]


def compare(folder: Path) -> dict[str, dict[str, Any]]:
    """Format -> engine -> its outcome, see ``outcome``."""
    errors = {
        kind: (folder / f"{kind}.error").read_text("utf-8")
        for kind in FORMATS
        if (folder / f"{kind}.error").is_file()
    }
    found: dict[str, dict[str, Any]] = {
        kind: {engine: {"not exported": error} for engine in ENGINES} for kind, error in errors.items()
    }
    left = [kind for kind in FORMATS if kind not in errors and (folder / kind).is_dir()]
    if not left:
        return found
    reference = np.load(folder / "reference.npz")
    feeds = {key.removeprefix("feed "): reference[key] for key in reference if key.startswith("feed ")}
    wanted = [reference[f"fetch {place}"] for place in range(len(reference) - len(feeds))]
    for kind in left:
        made = folder / f"{kind}_serving"
        try:
            model = convert(folder / kind, made, folder / f"{kind}_client")
        except PdserveError as error:
            found[kind] = {engine: {"refused": error.message} for engine in ENGINES}
            continue
        found[kind] = {engine: outcome(model, engine, feeds, wanted) for engine in ENGINES}
        shutil.rmtree(made)
    return found


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
    except (PdserveError, KeyError) as error:
        return {"refused": str(error)}
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


def main(folder: Path, names: Sequence[str]) -> None:
    """A line of JSON for each: its name and what ``compare`` found."""
    for name in names:
        print(json.dumps({"name": name, "formats": compare(folder / name)}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
