"""Everything at once, for a short while: is every good request answered right?

Good, bad, slow, vanishing and excess requests by every door, while the gallery changes, models are
published anew and SIGHUP is sent. A query that was accepted must be answered by its colour.
"""

import asyncio
import base64
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from pdserve.formats.protos import pipeline
from tests.extras import import_or_skip
from tests.running import Server, pdserve, start
from tests.tiny import build_embedder, picture

aiohttp = import_or_skip("aiohttp", "check")
pytestmark = pytest.mark.full

SECONDS = 15
COLORS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
YELLOW = (255, 255, 0)
PATH = "/v1/recognition"


def shade(color: tuple[int, int, int], chance: random.Random) -> bytes:
    """The colour, darker: the same direction of its features."""
    factor = chance.uniform(0.4, 1)
    r, g, b = (round(each * factor) for each in color)
    return picture((r, g, b), (chance.randint(20, 60), chance.randint(20, 60)))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    build_embedder(tmp_path / "models")
    gallery = tmp_path / "gallery"
    for name, color in COLORS.items():
        (gallery / name).mkdir(parents=True)
        (gallery / name / "0.png").write_bytes(picture(color))
    options = ("--gallery", str(gallery), "--out", "colors", "--model", "tiny_embedder")
    done = pdserve(tmp_path, "index", "build", *options)
    assert done.returncode == 0, done.stderr
    return tmp_path


class Chaos:
    """What all clients share: the server, what was counted, what went wrong."""

    def __init__(self, server: Server, home: Path, session: aiohttp.ClientSession) -> None:
        self.server = server
        self.home = home
        self.session = session
        self.end = time.monotonic() + SECONDS
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []

    async def repeat(self, work: Any, seed: int, pause: float = 0) -> None:
        chance = random.Random(seed)
        while time.monotonic() < self.end:
            await work(chance)
            await asyncio.sleep(pause)

    def check(self, kind: str, name: str, status: int, labels: list[str]) -> None:
        """A good query: right, or refused in so many words because too much was asked."""
        if status == 503:
            self.counts[f"{kind} refused"] += 1
        elif status != 200 or labels != [name]:
            self.wrong.append(f"{kind}: {name} got {status} {labels}")
        else:
            self.counts[f"{kind} right"] += 1

    async def good(self, chance: random.Random) -> None:
        name = chance.choice(sorted(COLORS))
        async with self.session.post(self.server.url + PATH, data=shade(COLORS[name], chance)) as answer:
            content = await answer.json()
        objects = content["results"][0]["objects"] if answer.status == 200 else []
        self.check("good", name, answer.status, [each["label"] for each in objects])

    async def good_old(self, chance: random.Random) -> None:
        name = chance.choice(sorted(COLORS))
        value = base64.b64encode(shade(COLORS[name], chance)).decode()
        url = f"{self.server.url}/recognition/prediction"
        async with self.session.post(url, json={"key": ["image"], "value": [value]}) as answer:
            content = await answer.json(content_type=None)
        refused = content["err_no"] == 10000 and "wait already" in content["err_msg"]
        right = content["err_no"] == 0 and f"'rec_docs': '{name}'" in content["value"][0]
        self.check("old", name, 503 if refused else 200, [name] if right else [str(content)])

    async def good_rpc(self, call: Any, chance: random.Random) -> None:
        name = chance.choice(sorted(COLORS))
        value = base64.b64encode(shade(COLORS[name], chance)).decode()
        try:
            answer = await call(pipeline.request_class()(key=["image"], value=[value]), timeout=30)
        except grpc.RpcError as error:
            busy = error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            self.check("rpc", name, 503 if busy else 500, [str(error)])
            return
        right = answer.err_no == 0 and f"'rec_docs': '{name}'" in answer.value[0]
        self.check("rpc", name, 200, [name] if right else [str(answer)])

    async def mixed(self, chance: random.Random) -> None:
        """A form of good pictures and bad ones: each has its own answer, in its place."""
        names = [chance.choice([*sorted(COLORS), ""]) for _ in range(4)] + ["red"]
        form = aiohttp.FormData()
        for name in names:
            data = shade(COLORS[name], chance) if name else chance.randbytes(50)
            form.add_field("images", data, filename="x.png")
        async with self.session.post(self.server.url + PATH, data=form) as answer:
            content = await answer.json()
        if answer.status == 200:
            labels = [(r.get("objects") or [{}])[0].get("label", "") for r in content["results"]]
            if labels != names:
                self.wrong.append(f"mixed: {names} got {labels}")
        elif answer.status != 503:
            self.wrong.append(f"mixed: {answer.status} {content}")
        self.counts[f"mixed {answer.status}"] += 1

    async def bad(self, chance: random.Random) -> None:
        path = chance.choice([PATH, "/recognition/prediction", "/nowhere", "/v1/nothing"])
        body = chance.choice([b"", b"no image", b'{"images": 1}', chance.randbytes(300)])
        kind = chance.choice(["image/png", "application/json", "multipart/form-data; boundary=x"])
        headers = {"Content-Type": kind}
        async with self.session.post(self.server.url + path, data=body, headers=headers) as answer:
            await answer.read()
        if answer.status >= 500 and answer.status != 503:
            self.wrong.append(f"bad: {path} {kind} {body[:20]!r} got {answer.status}")
        self.counts["bad"] += 1

    async def vanish(self, chance: random.Random) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", self.server.http_port)
        body = shade(YELLOW, chance)
        head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        writer.write((head + body)[: chance.randint(1, len(head) + len(body))])
        await writer.drain()
        writer.close()
        self.counts["vanished"] += 1

    async def slow(self, chance: random.Random) -> None:
        """A good picture that comes in bits."""
        name = chance.choice(sorted(COLORS))
        body = shade(COLORS[name], chance)

        async def bits() -> Any:
            for at in range(0, len(body), 20):
                yield body[at : at + 20]
                await asyncio.sleep(0.02)

        async with self.session.post(self.server.url + PATH, data=bits()) as answer:
            content = await answer.json()
        objects = content["results"][0]["objects"] if answer.status == 200 else []
        self.check("slow", name, answer.status, [each["label"] for each in objects])

    async def burst(self, chance: random.Random) -> None:
        """More than the queue holds."""
        await asyncio.gather(*(self.good(chance) for _ in range(60)))
        self.counts["bursts"] += 1

    async def gallery(self, chance: random.Random) -> None:
        """Yellow comes and goes, each time a published version."""
        url = f"{self.server.url}/v1/gallery"
        headers = {"X-Pdserve-Write": "1"}
        data, status, text = shade(YELLOW, chance), 503, ""
        for _ in range(100):  # its images wait in the queue of all others, which the bursts fill
            form = aiohttp.FormData()
            form.add_field("label", "yellow")
            form.add_field("images", data, filename="x.png")
            async with self.session.post(url, data=form, headers=headers) as answer:
                status, text = answer.status, await answer.text()
            if status != 503:
                break
            await asyncio.sleep(0.05)
        assert status == 200, text
        async with self.session.delete(url, params={"label": "yellow"}, headers=headers) as answer:
            assert answer.status == 200, await answer.text()
        self.counts["published indexes"] += 1

    async def publish(self, chance: random.Random) -> None:
        """The same model anew, as a publisher does it: written beside, and renamed."""
        path = self.home / "models" / "tiny_embedder_serving" / "inference.yml"
        newer = path.with_suffix(".new")
        newer.write_bytes(path.read_bytes())
        newer.replace(path)
        self.counts["published models"] += 1

    async def hangup(self, chance: random.Random) -> None:
        self.server.interrupt(signal.SIGHUP)
        self.counts["SIGHUPs"] += 1

    async def health(self, chance: random.Random) -> None:
        for path in ("/v2/health/ready", "/v2/health/live", "/metrics"):
            async with self.session.get(self.server.url + path) as answer:
                if answer.status != 200:
                    self.wrong.append(f"{path} got {answer.status}")
                await answer.read()


async def run(server: Server, home: Path) -> Chaos:
    connector = aiohttp.TCPConnector(limit=0)
    async with (
        aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(40)) as session,
        grpc.aio.insecure_channel(server.target) as channel,
    ):
        call = channel.unary_unary(
            pipeline.METHOD,
            request_serializer=pipeline.request_class().SerializeToString,
            response_deserializer=pipeline.response_class().FromString,
        )
        chaos = Chaos(server, home, session)
        await asyncio.gather(
            chaos.repeat(chaos.good, 1),
            chaos.repeat(chaos.good_old, 2),
            chaos.repeat(lambda chance: chaos.good_rpc(call, chance), 3),
            chaos.repeat(chaos.mixed, 4, 0.02),
            chaos.repeat(chaos.bad, 5, 0.01),
            chaos.repeat(chaos.vanish, 6, 0.01),
            chaos.repeat(chaos.slow, 7),
            chaos.repeat(chaos.burst, 8, 1.5),
            chaos.repeat(chaos.gallery, 9, 0.5),
            chaos.repeat(chaos.publish, 10, 2.5),
            chaos.repeat(chaos.hangup, 11, 3),
            chaos.repeat(chaos.health, 12, 0.2),
        )
        return chaos


@pytest.mark.posix
@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGHUP")
def test_every_good_request_is_answered_right_whatever_else_goes_on(home: Path) -> None:
    options = (
        "--embedder", "tiny_embedder", "--detector", "none", "--index", "colors", "--gallery-writes",
        "--max-queue-size", "16",
    )  # fmt: skip
    with start(home, *options, service="recognition") as server:
        chaos = asyncio.run(run(server, home))
        assert chaos.wrong == []
        for kind in ("good right", "old right", "rpc right", "slow right", "good refused", "mixed 200"):
            assert chaos.counts[kind] > 3, chaos.counts
        for kind in ("published indexes", "published models", "SIGHUPs", "bursts", "vanished", "bad"):
            assert chaos.counts[kind] > 2, chaos.counts
        assert "Traceback" not in server.log
        assert server.log.count("reloaded: ") > 3
        server.interrupt(signal.SIGTERM)
        assert server.wait() == 0
