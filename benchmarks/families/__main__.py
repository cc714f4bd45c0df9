"""Exports the architectures of architectures.yml and runs each on all engines, in both of Paddle's formats.

    python -m benchmarks.families --wheels FOLDER --paddle2-python /opt/paddle2/bin/python \\
      --page docs/families.md
    python -m benchmarks.families --wheels FOLDER --only ResNet18 PicoDet-S

FOLDER holds the wheels of paddleclas 2.6.0, paddledet 2.6.0 and paddlex 3.7.2 (``pip download --no-deps``).
This Python has the engines and Paddle 3, which writes ``inference.json``. The other one has paddlepaddle
2.6.2, PyYAML, SciPy, six and opencv-python-headless, and writes ``inference.pdmodel``; without it Paddle 3
does that too, where it still can. Results go to benchmarks/results/families.json as they are found, and what
is there is not run again unless it is named. Takes an hour on two cores.
"""

import argparse
import datetime
import json
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.families import architectures, compare, page
from benchmarks.families.sources import unpack
from benchmarks.measurement import machine

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "families.json"
# Exported in one process: importing Paddle takes longer than exporting a small network.
TOGETHER = 6
_OF_RUN = ("openvino", "onnxruntime", "paddlepaddle", "p2o", "paddle2onnx")


def run(names: Sequence[str], pythons: Mapping[str, str], scratch: Path) -> dict[str, Any]:
    """Export with the Python of each format, and compare; outcomes by architecture, format and engine.

    ``scratch`` holds the unpacked wheels.
    """
    out = scratch / "out"
    for kind, python in pythons.items():
        left = list(names)
        while left:
            some = _together(left)
            _call(python, "export", kind, scratch, out, *some)
            tried = [name for name in some if any((out / name).glob(f"{kind}*"))]
            if not tried:
                raise SystemExit(f"{python} exports nothing: see what it says above.")
            left = [name for name in left if name not in tried]
    while status := _call(sys.executable, "compare", out, *names):
        begun = [
            (name, run) for name in names for run, one in compare.outcomes(out / name).items() if one is None
        ]
        if not begun:
            raise SystemExit("The comparison ends before an engine runs: see what it says above.")
        name, run = begun[0]
        compare.write(out / name, run, {"refused": f"{run[1]} {_end(status)}"})
    outcomes: dict[str, Any] = {}
    for name in names:
        outcomes[name] = {kind: {} for kind in compare.FORMATS}
        for (kind, engine), one in compare.outcomes(out / name).items():
            outcomes[name][kind][engine] = one
    shutil.rmtree(out)
    return outcomes


def _together(names: Sequence[str]) -> Sequence[str]:
    """Those that one process exports: PaddleDetection's configurations add up within one."""
    known = architectures.load()
    alone = [name for name in names if known[name].package == "paddledet"]
    return [name for name in names if name not in alone] or alone[:1]


def _call(python: str, module: str, *arguments: Any) -> int:
    command = [python, "-W", "ignore", "-m", f"benchmarks.families.{module}", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, check=False).returncode


def _end(status: int) -> str:
    if status == compare.TOO_LONG:
        return f"takes over {compare.LIMIT} s"
    return f"ends its process ({(signal.strsignal(-status) or 'unknown').lower()})"


def main() -> None:
    """Parse, run, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--wheels", type=Path, required=True)
    parser.add_argument("--paddle2-python", default=None)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, default=None)
    given = parser.parse_args()
    results = json.loads(given.results.read_text("utf-8")) if given.results.is_file() else {"outcomes": {}}
    known = architectures.load()
    names = given.only or [name for name in known if name not in results["outcomes"]]
    pythons = {"program": given.paddle2_python or sys.executable, "pir": sys.executable}
    with tempfile.TemporaryDirectory(prefix="families-") as scratch:
        for package in sorted({known[name].package for name in names}):
            unpack(given.wheels, [package], Path(scratch))
            mine = [name for name in names if known[name].package == package]
            for some in (mine[at : at + TOGETHER] for at in range(0, len(mine), TOGETHER)):
                results["outcomes"] |= run(some, pythons, Path(scratch))
                results["date"] = datetime.date.today().isoformat()
                results["machine"] = machine()
                results["versions"] = {name: version(name) for name in _OF_RUN}
                given.results.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
                print(*some, "done", flush=True)
    if given.page is not None:
        given.page.write_text(page.text(results), "utf-8")


if __name__ == "__main__":
    main()
