"""Writes docs/families.md: which families were exported and run, where they differ, what was not tried."""

from collections.abc import Mapping
from typing import Any

from benchmarks.families import architectures
from benchmarks.families.architectures import Architecture

FORMATS = ("pir", "program")
ENGINES = ("openvino", "onnx", "paddle")
# Of the largest element; of boxes in pixels and of scores.
TOLERANCE = 1e-4
PIXELS, SCORES = 0.05, 1e-3

_HEAD = """# Architectures that were tried

Which families of the catalog run, and with which numbers; those not yet run are listed under "Not tried". Architectures are exported with random weights by PaddleClas's, PaddleDetection's or PaddleX's own code, in both of Paddle's formats, and run by pdserve on each engine; the answers are compared with those of the network before it was exported (classifiers and embedders: two images; detectors: one, suppression included).

`python -m benchmarks.families` does this and writes this page; the figures are in `benchmarks/results/families.json`.
"""  # noqa: E501

_READING = """## How to read the table

- **Paddle 3** is `inference.json` as Paddle {pir} writes it. **Paddle 2** is `inference.pdmodel` as Paddle 2.6.2 writes it: Paddle 3 has lost part of the operators in the old format.
- A figure is the largest difference of one element, divided by the largest element. For detectors it is the largest difference of a box in pixels, then of a score; every box is paired with the nearest one of its label. **Bold**: over {tolerance:g}, or {pixels:g} px, or {scores:g} in score, or boxes without a partner.
- A number in brackets leads to the notes. Where `--engine auto` finds that OpenVINO does not run a model, it takes the next engine that is installed and says so.
- Random weights say that the operators compute the same, not how good a trained model is. Rounding adds up more in a deep random network than in a trained one. Normalisations are given the statistics of the images, and heads are scaled so that scores differ. The heads of PP-YOLOE and YOLOX start with weights of zero, so that all of their boxes have one size: there, scores say more than pixels.
"""  # noqa: E501


def text(results: Mapping[str, Any]) -> str:
    """The page, from what ``python -m benchmarks.families`` found."""
    notes: dict[str, int] = {}
    known = architectures.load()
    tried = {name: one for name, one in known.items() if name in results["outcomes"]}
    lines = [_HEAD, "## The table", ""]
    for title, tasks in (
        ("Classifiers", ("classification",)),
        ("Several labels, attributes, features", ("multilabel", "attributes", "embedding")),
        ("Detectors", ("detection",)),
    ):
        lines += [f"### {title}", "", *_header()]
        lines += [
            _row(one, results["outcomes"][name], notes) for name, one in tried.items() if one.task in tasks
        ]
        lines.append("")
    machine, versions = results["machine"], results["versions"]
    if notes:
        lines += ["### Notes", "", *(f"{number}. {note}" for note, number in notes.items()), ""]
    reading = _READING.format(pir=versions["paddlepaddle"], tolerance=TOLERANCE, pixels=PIXELS, scores=SCORES)
    lines += [reading, "## Not tried", "", "| family | why |", "|---|---|"]
    lines += [f"| {family} | {why} |" for family, why in architectures.untried().items()]
    for family in sorted({one.family for one in known.values()}):
        names = [name for name, one in known.items() if one.family == family and name not in tried]
        if names:
            lines.append(f"| {family} | {', '.join(names)}: not in the last run |")
    listed = ", ".join(f"{name} {number}" for name, number in versions.items())
    flags = ", ".join(machine["flags"]) or "unknown"
    lines += ["", "## Where", "", f"{results['date']}, {machine['processor']} ({flags}); {listed}.", ""]
    return "\n".join(lines)


def _header() -> list[str]:
    names = [
        f"Paddle {3 if kind == 'pir' else 2}: {_NAMES[engine]}" for kind in FORMATS for engine in ENGINES
    ]
    columns = ("family", "exported", *names)
    return ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]


_NAMES = {"openvino": "OpenVINO", "onnx": "ONNX Runtime", "paddle": "Paddle"}


def _row(one: Architecture, outcome: Mapping[str, Any], notes: dict[str, int]) -> str:
    cells = [one.family, f"{one.name}, {one.size[1]}×{one.size[0]}"]
    for kind in FORMATS:
        for engine in ENGINES:
            found = outcome.get(kind, {}).get(engine)
            cells.append("not run" if found is None else _cell(found, notes))
    return "| " + " | ".join(cells) + " |"


def _cell(found: Mapping[str, Any], notes: dict[str, int]) -> str:
    if "difference" not in found:
        reason = found.get("refused") or f"not exported: {found.get('not exported', 'unknown')}"
        return f"[{notes.setdefault(_note(reason), len(notes) + 1)}]"
    if "boxes" in found:
        shown = f"{found['difference']:.0e}, {found['scores']:.0e}"
        wrong = found["difference"] > PIXELS or found["scores"] > SCORES or found["unmatched"]
        shown += f"; {found['unmatched']} boxes differ" * bool(found["unmatched"])
    else:
        relative = found["difference"] / max(found["scale"], 1e-12)
        shown, wrong = f"{relative:.0e}", relative > TOLERANCE
    return f"**{shown}**" if wrong else shown


def _note(reason: str) -> str:
    """A reason without the names of this run's folders and without what to type."""
    return (
        reason.partition("; use --engine")[0]
        .replace(" pir ", " it ")
        .replace(" program ", " it ")
        .rstrip(".")
    )
