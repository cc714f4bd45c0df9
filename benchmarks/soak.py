"""Does memory stay flat? Thousands of requests, good and failing ones, and the server's memory as they go.

Of every ten requests seven are good (over /v1 as a body, a form and JSON, over the old route and gRPC), the
others are no image, half an image, a body that is no JSON, a route that is not there, a client that hangs up.

    python benchmarks/soak.py --image photo.jpg                    # 20,000 requests
    python benchmarks/soak.py --image photo.jpg --requests 2000 --model tiny
    python benchmarks/soak.py --minutes 60    # good requests with attacks among them: mixed_soak.py
"""

import argparse
import asyncio
import base64
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import aiohttp
import grpc.aio
from rich.console import Console
from rich.table import Table

from benchmarks.measurement import machine
from pdserve.formats.protos import pipeline
from pdserve.models.home import Home
from tests.running import Server, start


def resident_mb(pid: int) -> float:
    """Memory of a process, by Linux's /proc, in MB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("no VmRSS")


class Asker:
    """One client; ``one`` sends the request of a number and says what became of it."""

    def __init__(self, server: Server, image: bytes, session: aiohttp.ClientSession, call: Any) -> None:
        self._url = server.url
        self._port = server.http_port
        self._image = image
        self._base64 = base64.b64encode(image).decode()
        self._session = session
        self._call = call

    async def one(self, number: int) -> str:
        kind = number % 10
        image, text = self._image, self._base64
        if kind == 0:
            return await self._post("/v1/classification", json={"images": [text]})
        if kind == 1:
            return await self._post("/imagenet/prediction", json={"key": ["image"], "value": [text]})
        if kind == 2:
            form = aiohttp.FormData()
            form.add_field("images", image, filename="a.jpg")
            return await self._post("/v1/classification", data=form)
        if kind == 3:
            request = pipeline.request_class()(key=["image"], value=[text])
            return f"gRPC err_no {(await self._call(request)).err_no}"
        if kind == 4:
            return await self._post(
                "/v1/classification", data=(b"no image", image[: len(image) // 2])[number % 2]
            )
        if kind == 5:
            bad = (("/imagenet/prediction", b"{no json"), ("/nowhere/at/all", b""))[number % 2]
            return await self._post(bad[0], data=bad[1])
        if kind == 6:
            return await self._hang_up()
        return await self._post("/v1/classification", data=image)

    async def _post(self, path: str, **body: Any) -> str:
        async with self._session.post(self._url + path, **body) as answer:
            await answer.read()
            return f"{path} {answer.status}"

    async def _hang_up(self) -> str:
        _, writer = await asyncio.open_connection("127.0.0.1", self._port)
        head = f"POST /v1/classification HTTP/1.1\r\nHost: x\r\nContent-Length: {len(self._image)}\r\n\r\n"
        writer.write(head.encode() + self._image)
        await writer.drain()
        writer.close()
        return "hung up"


async def soak(server: Server, image: bytes, requests: int, clients: int) -> dict[str, Any]:
    """All requests; what became of them, and the memory after each twentieth part."""
    counts: dict[str, int] = {}
    memory: list[tuple[int, float]] = []
    done = 0
    async with aiohttp.ClientSession() as session, grpc.aio.insecure_channel(server.target) as channel:
        call = channel.unary_unary(
            pipeline.METHOD,
            request_serializer=pipeline.request_class().SerializeToString,
            response_deserializer=pipeline.response_class().FromString,
        )
        asker = Asker(server, image, session, call)
        numbers = iter(range(requests))

        async def client() -> None:
            nonlocal done
            for number in numbers:
                outcome = await asker.one(number)
                counts[outcome] = counts.get(outcome, 0) + 1
                done += 1
                if done % (requests // 20) == 0:
                    memory.append((done, round(resident_mb(server.process.pid), 1)))
                    print(f"  {done} requests, {memory[-1][1]} MB", file=sys.stderr, flush=True)

        await asyncio.gather(*(client() for _ in range(clients)))
    return {"outcomes": dict(sorted(counts.items())), "memory_mb": memory}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--image", type=Path)
    parser.add_argument("--minutes", type=float, help="the mixed soak, so long")
    parser.add_argument("--model", default="EfficientNet_lite0")
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if given.minutes:
        from benchmarks.mixed_soak import run

        sys.exit(run(given.minutes, given.out))
    if not given.image:
        parser.error("--image is needed, or --minutes")
    started = time.perf_counter()
    with start(Home.from_environ(os.environ).root, "--model", given.model) as server:
        report = asyncio.run(soak(server, given.image.read_bytes(), given.requests, given.clients))
    report |= {"command": " ".join(sys.argv), "machine": machine()}
    report["seconds"] = round(time.perf_counter() - started, 1)
    # The first tenth fills caches and pools; from there on nothing may grow.
    settled = [mb for done, mb in report["memory_mb"] if done >= given.requests / 10]
    middle = sorted(settled)[len(settled) // 2]
    report["spread"] = round(max(abs(mb - middle) for mb in settled) / middle, 4)
    table = Table("outcome", "requests", title=f"{given.requests} requests to {given.model}")
    for outcome, count in report["outcomes"].items():
        table.add_row(outcome, str(count))
    console = Console()
    console.print(table)
    console.print(
        f"memory after a tenth {settled[0]} MB, at the end {settled[-1]} MB, "
        f"at most ±{100 * report['spread']:.1f} % from the middle (asked for: ±3 %)"
    )
    if given.out:
        given.out.write_text(json.dumps(report, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
