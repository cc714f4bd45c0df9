"""Ten times the load that the server can bear, for a minute: does it go on at full speed?

Measures what the server can do (a closed loop of eight clients), then sends an open loop of ten times that,
and meanwhile asks for its health every half second and reads its memory.

    python benchmarks/overload.py --image photo.jpg
    python benchmarks/overload.py --image photo.jpg --seconds 20 --times 5
"""

import argparse
import asyncio
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import aiohttp
from rich.console import Console
from rich.table import Table

from benchmarks.measurement import machine
from benchmarks.soak import resident_mb
from pdserve.models.home import Home
from pdserve.tools.bench import build_target, closed_loop, open_loop
from tests.running import Server, start


async def watch(server: Server, health_ms: list[float], memory: list[float]) -> None:
    """Health and memory, until cancelled."""
    async with aiohttp.ClientSession() as session:
        while True:
            started = time.perf_counter()
            async with session.get(server.url + "/v2/health/ready") as answer:
                if answer.status != 200:
                    raise RuntimeError(f"health answers {answer.status}")
            health_ms.append(1000 * (time.perf_counter() - started))
            memory.append(resident_mb(server.process.pid))
            await asyncio.sleep(0.5)


async def overload(server: Server, image: bytes, times: float, seconds: float) -> dict[str, Any]:
    """Before, during and after."""
    target = build_target("v1", server.url, [image])
    before = await closed_loop(target, clients=8, duration_s=10, warm_up_s=2)
    health_ms: list[float] = []
    memory: list[float] = []
    watching = asyncio.create_task(watch(server, health_ms, memory))
    rate = times * before.images_per_s
    during = await open_loop(target, rate=rate, duration_s=seconds, warm_up_s=2, max_in_flight=2000)
    watching.cancel()
    after = await closed_loop(target, clients=8, duration_s=10, warm_up_s=2)
    return {
        "before": before.to_json(),
        "during": during.to_json(),
        "after": after.to_json(),
        "health_ms": {"median": sorted(health_ms)[len(health_ms) // 2], "max": max(health_ms)},
        "memory_mb": {"first": memory[0], "most": max(memory), "last": memory[-1]},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--image", type=Path, required=True)
    parser.add_argument("--model", default="ResNet50_vd")
    parser.add_argument("--times", type=float, default=10)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--queue", type=int, default=32, help="images that may wait")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    options = ("--model", given.model, "--max-queue-size", str(given.queue))
    with start(Home.from_environ(os.environ).root, *options) as server:
        report = asyncio.run(overload(server, given.image.read_bytes(), given.times, given.seconds))
    report |= {"command": " ".join(sys.argv), "machine": machine(), "queue": given.queue}
    table = Table("", "before", "during", "after", title=f"{given.model}, {given.times:g} × its capacity")
    phases = [report[phase] for phase in ("before", "during", "after")]
    table.add_row("offered per second", *(f"{p['rate']:.0f}" if p["rate"] else "as answered" for p in phases))
    table.add_row("answered well per second", *(f"{p['images_per_s']:.1f}" for p in phases))
    for figure in ("p50", "p99", "max"):
        table.add_row(f"{figure}, ms", *(f"{p['latency_ms'][figure]:.0f}" for p in phases))
    for kind in sorted({kind for p in phases for kind in p["errors"]}):
        table.add_row(kind, *(str(p["errors"].get(kind, 0)) for p in phases))
    console = Console()
    console.print(table)
    bound = 1000 * (given.queue + 8) / report["before"]["images_per_s"]
    console.print(f"a full queue at full speed takes {bound:.0f} ms")
    console.print(f"health: {report['health_ms']}, memory: {report['memory_mb']}")
    if given.out:
        given.out.write_text(json.dumps(report, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
