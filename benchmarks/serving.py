"""What the server costs over the engine: both side by side, on one machine, in one run.

The raw engine (benchmarks/raw_engine.py, in its own process) and the real ``pdserve serve`` take turns,
so that a machine whose speed drifts does so for both; each ratio is of the medians over all rounds. The load
comes from ``pdserve.tools.bench``, over HTTP, from this process: its time counts as the server's cost.

    python benchmarks/serving.py --image photo.jpg            # all of it, about a quarter of an hour
    python benchmarks/serving.py --only light --rounds 3 --out light.json

Needs the models: ``pdserve fetch``, ``pdserve fetch ResNet50_vd EfficientNet_lite0``, ``pdserve convert``.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from rich.console import Console
from rich.table import Table

from benchmarks.measurement import machine, offer
from benchmarks.raw_process import Raw
from pdserve.models.home import Home
from pdserve.tools.bench import Run
from tests.running import Server, start

HOME = Home.from_environ(os.environ).root
# Boxes of any score count, so that each picture has five crops, and itself.
SIX_CROPS = ("--det-threshold", "0", "--score-threshold", "-1")


def load(server: Server, image: bytes, route: str, clients: int, seconds: float, service: str) -> Run:
    """A closed loop on one route."""
    run = offer(server.target if route == "grpc" else server.url, image, route, clients, seconds, service)
    if run.errors:
        sys.exit(f"{route}, {clients} clients: {dict(run.errors)}")
    return run


class Rounds:
    """Measurements that take turns: all of them once, and again."""

    def __init__(self) -> None:
        self._works: dict[str, Callable[[], dict[str, float]]] = {}
        self.found: dict[str, list[dict[str, float]]] = {}

    def add(self, name: str, work: Callable[[], dict[str, float]]) -> None:
        self._works[name] = work
        self.found[name] = []

    def run(self, rounds: int) -> None:
        for number in range(rounds):
            for name, work in self._works.items():
                self.found[name].append(work())
                figures = ", ".join(f"{key} {value:.1f}" for key, value in self.found[name][-1].items())
                print(f"  round {number + 1}/{rounds}  {name}: {figures}", file=sys.stderr, flush=True)

    def median(self, name: str, figure: str) -> float:
        return statistics.median(each[figure] for each in self.found[name])


def served(run: Run) -> dict[str, float]:
    latency = run.latency_ms() or {}
    return {"images_per_s": run.images_per_s, "p50_ms": latency["p50"], "p99_ms": latency["p99"]}


@contextmanager
def sides(given: argparse.Namespace, *options: str, service: str = "classification") -> Iterator[Any]:
    """The raw process and a server, both on the device and at the precision asked for."""
    device = "cpu" if given.gpu is None else f"gpu:{given.gpu}"
    where = ("--cpu",) if given.gpu is None else ("--gpu", str(given.gpu))
    raw = Raw({"device": device, "precision": given.precision, "seconds": given.seconds})
    try:
        with start(HOME, *where, "--precision", given.precision, *options, service=service) as server:
            yield raw, server
    finally:
        raw.close()


def classification(given: argparse.Namespace) -> dict[str, Any]:
    """ResNet50_vd: throughput at 8 and 256 clients, latency of one, against the engine alone."""
    image = given.image.read_bytes()
    with sides(given, "--model", given.model) as (raw, server):
        best, how = 0.0, {}
        sizes = (1, 2, 4, 8) if given.gpu is None else (1, 8, 16, 32, 64)
        for instances in (None, 1, 2):
            for batch in sizes:
                asked = {"work": "engine", "model": given.model, "batch": batch, "instances": instances}
                speed = raw.measure(**asked)["images_per_s"]
                print(
                    f"  raw, batch {batch}, instances {instances or 'auto'}: {speed:.1f}/s", file=sys.stderr
                )
                if speed > best:
                    best, how = speed, asked
        rounds = Rounds()
        rounds.add("raw best", lambda: raw.measure(**how))
        # One instance with all threads: nothing is faster for an image alone.
        one = {"work": "engine", "model": given.model, "batch": 1, "threads": 1, "instances": 1}
        rounds.add("raw, one at a time", lambda: raw.measure(**one))
        for route, clients in (("v1", 1), ("v1", 8), ("pipeline", 1), ("pipeline", 8), ("v1", 256)):
            rounds.add(
                f"{route}, {clients}",
                lambda route=route, clients=clients: served(
                    load(server, image, route, clients, given.seconds, "classification")
                ),
            )
        rounds.run(given.rounds)
    raw_best = rounds.median("raw best", "images_per_s")
    alone = rounds.median("raw, one at a time", "run_ms")
    checks = {}
    for route in ("v1", "pipeline"):
        speed = rounds.median(f"{route}, 8", "images_per_s")
        checks[f"{route}: throughput at 8 clients / raw engine's best"] = (speed / raw_best, ">=", 0.97)
        extra = rounds.median(f"{route}, 1", "p50_ms") - alone
        checks[f"{route}: median latency of one client, ms above the raw engine"] = (extra, "<=", 4)
        ideal = 8000 / speed
        p99 = rounds.median(f"{route}, 8", "p99_ms")
        checks[f"{route}: p99 at 8 clients / ideal queue"] = (p99 / ideal, "<", 1.3)
    many = rounds.median("v1, 256", "images_per_s")
    checks["v1: throughput at 256 clients / raw engine's best"] = (many / raw_best, ">=", 0.97)
    return {"raw": how, "measured": rounds.found, "checks": checks}


def light(given: argparse.Namespace) -> dict[str, Any]:
    """EfficientNet_lite0: where the server's own cost shows."""
    image = given.image.read_bytes()
    with sides(given, "--model", given.light) as (raw, server):
        asked = {"work": "limit", "model": given.light, "image": str(given.image)}
        speeds = {n: raw.measure(**asked, threads=n)["images_per_s"] for n in (2, 3, 4, 6, 8)}
        threads = max(speeds, key=lambda n: speeds[n])
        rounds = Rounds()
        rounds.add("limit", lambda: raw.measure(**asked, threads=threads))
        for route in ("v1", "pipeline", "grpc"):
            rounds.add(
                f"{route}, 8",
                lambda route=route: served(load(server, image, route, 8, given.seconds, "classification")),
            )
        rounds.run(given.rounds)
    limit = rounds.median("limit", "images_per_s")
    checks = {
        f"{route}: throughput at 8 clients / limit without a server": (
            rounds.median(f"{route}, 8", "images_per_s") / limit,
            ">=",
            0.85,
        )
        for route in ("v1", "pipeline", "grpc")
    }
    return {"threads_of_limit": threads, "measured": rounds.found, "checks": checks}


def recognition(given: argparse.Namespace) -> dict[str, Any]:
    """PP-ShiTu with six crops, against its engines' work alone."""
    image = given.image.read_bytes()
    with sides(given, *SIX_CROPS, service="recognition") as (raw, server):
        asked = {"work": "recognition", "image": str(given.image), "crops": 6}
        speeds = {n: raw.measure(**asked, threads=n)["images_per_s"] for n in (1, 2, 3)}
        threads = max(speeds, key=lambda n: speeds[n])
        rounds = Rounds()
        rounds.add("raw", lambda: raw.measure(**asked, threads=threads))
        rounds.add("v1, 8", lambda: served(load(server, image, "v1", 8, given.seconds, "recognition")))
        rounds.run(given.rounds)
    ratio = rounds.median("v1, 8", "images_per_s") / rounds.median("raw", "images_per_s")
    return {
        "threads_of_raw": threads,
        "measured": rounds.found,
        "checks": {"v1: throughput at 8 clients / raw engines, 6 crops": (ratio, ">=", 0.93)},
    }


PARTS = {"classification": classification, "light": light, "recognition": recognition}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--image", type=Path, required=True, help="a JPEG of 40 to 80 KB")
    parser.add_argument("--model", default="ResNet50_vd")
    parser.add_argument("--light", default="EfficientNet_lite0")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--gpu", type=int)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=6)
    parser.add_argument("--only", choices=PARTS, action="append")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    report: dict[str, Any] = {
        "command": " ".join(sys.argv),
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(given.rounds),
        "image": {"file": given.image.name, "bytes": given.image.stat().st_size},
    }
    console = Console()
    for name in given.only or PARTS:
        print(name, file=sys.stderr)
        report[name] = PARTS[name](given)
        table = Table("", "measured", "asked for", title=f"{name}, {given.precision}")
        for what, (value, sign, wanted) in report[name]["checks"].items():
            good = {">=": value >= wanted, "<=": value <= wanted, "<": value < wanted}[sign]
            table.add_row(what, f"{value:.3f}" + ("" if good else "  missed"), f"{sign} {wanted}")
        console.print(table)
    if given.out:
        given.out.write_text(json.dumps(report, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
