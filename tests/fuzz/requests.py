"""``python -m tests.fuzz.requests [PARSER…] [--minutes N]``: good requests of every protocol, altered.

Each parser gets altered requests for ten minutes, through all that a request goes through except the
network: no answer may be a fault of the server, nothing may be logged as one, and none may take 256 MB or
ten seconds of the processor (guard.py). What fails is printed, and the seed makes it again.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import logging
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from pdserve.services.auth import Keys
from pdserve.settings import ServerSettings
from tests.fuzz.guard import outcome
from tests.fuzz.mutation import JSON_TOKENS, mutated, mutated_json, mutated_message
from tests.fuzz.test_requests import BODIES, FORM_TOKENS, FORMS, IMAGE, MESSAGES, REQUESTS
from tests.services.blocking import Doors
from tests.services.hostile_bodies import EMBEDDINGS, FORM, GALLERY, PIPELINE, V1, Hostile

EMBEDDING = [
    {"model": "tiny", "input": [IMAGE, f"data:image/png;base64,{IMAGE}"], "encoding_format": "base64"},
    {"model": "tiny", "input": IMAGE, "dimensions": 512, "user": "x"},
]
LABELLED = [{"images": [{"image": IMAGE, "label": "red"}, {"image": IMAGE, "label": "饮料"}]}]
LABELLED_FORMS = [form.replace(b"top_k", b"label") for form in FORMS]
QUERIES = [b"label=red&label=%e9%a5%ae", b"id=1&id=2", b"image=a%2Fb.jpg&id=9007199254740993", b"top_k=3"]
QUERY_TOKENS = (b"&", b"=", b"%", b"%ff", b"id=", b"label=", b"9" * 400, b"+", b";", b"id=1&" * 300, b"\0")
KEY = "0123456789abcdef"
HEADERS = [b"Bearer " + KEY.encode(), b"bearer  x", b"Basic eDp5", b"0-1", b'text/plain; q="1"']
# The last of HealthCheckRequest's names is that of a service which is not here.
CHECKS = [b"", b"\x0a\x01x", b"\x0a\x37baidu.paddle_serving.pipeline_serving.PipelineService"]


@dataclass(frozen=True)
class Parser:
    """Altered requests for one, and what hands them over; it gives the answer's status."""

    requests: SearchStrategy[Any]
    send: Callable[[Doors, Any], Any]


def _http(path: str, requests: SearchStrategy[bytes], content_type: str = "application/json") -> Parser:
    where = Hostile(path, bytes, content_type)
    return Parser(requests, lambda doors, body: doors.send(where, body))


def _json(path: str, seeds: Sequence[Any]) -> Parser:
    large = [
        json.loads(json.dumps(each).replace(IMAGE, IMAGE.rstrip("=") * 80 + "=" * IMAGE.count("=")))
        for each in seeds
    ]
    return _http(path, mutated_json([*seeds, *large]))


async def _headers(doors: Doors, value: bytes) -> str:
    keys = Keys.read(ServerSettings(name="x", api_key=KEY))
    assert keys is not None
    admitted = keys.admit([value.partition(b" ")[2].strip()])
    assert admitted == (value.partition(b" ")[2].strip() == KEY.encode())
    names = (b"authorization", b"x-api-key", b"x-request-id", b"origin", b"expect", b"traceparent", b"accept")
    return await doors.send(Hostile(V1, bytes, "image/png"), b"x", [(name, value) for name in names])


PARSERS: Mapping[str, Parser] = {
    "v1": _json(V1, BODIES),
    "embeddings": _json(EMBEDDINGS, EMBEDDING),
    "gallery": _json(GALLERY, LABELLED),
    "pipeline": _json(PIPELINE, REQUESTS),
    "form": _http(V1, mutated(FORMS, FORM_TOKENS), FORM),
    "gallery-form": _http(GALLERY, mutated(LABELLED_FORMS, FORM_TOKENS), FORM),
    "query": Parser(
        mutated(QUERIES, QUERY_TOKENS),
        lambda doors, query: doors.send(Hostile(GALLERY, bytes, "", "DELETE"), b"", query=query),
    ),
    "headers": Parser(mutated(HEADERS, (b" ", b",", b"\xff", b"a" * 5000)), _headers),
    "grpc": Parser(
        st.one_of(mutated(MESSAGES), mutated_message(MESSAGES)),
        lambda doors, message: doors.send(Hostile("", bytes), message),
    ),
    "grpc-health": Parser(mutated(CHECKS, JSON_TOKENS), lambda doors, message: doors.check(message)),
}


class _Faults(logging.Handler):
    """Notes what was logged with a traceback."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            self.seen.append(f"{record.getMessage()}: {record.exc_info[1]!r}")


def check(parser: Parser, request: Any, loop: asyncio.AbstractEventLoop, doors: Doors) -> None:
    """Send one request. Raises AssertionError where its answer is a fault of the server's."""
    faults = _Faults()
    logging.getLogger("pdserve").addHandler(faults)
    try:
        status = outcome(lambda: loop.run_until_complete(parser.send(doors, request)))
    finally:
        logging.getLogger("pdserve").removeHandler(faults)
    assert not faults.seen, faults.seen
    assert status is not None
    assert status not in ("INTERNAL", "UNKNOWN"), status


def run(name: str, seconds: float, first_seed: int) -> int:
    """Alter requests for a parser for so long; how many there were. Raises what a bad one makes fail."""
    parser, until, count = PARSERS[name], time.monotonic() + seconds, 0
    loop = asyncio.new_event_loop()
    doors = Doors(max_images=4, max_part_bytes=10_000)

    def one(request: Any) -> None:
        nonlocal count
        count += 1
        check(parser, request, loop, doors)

    quiet = settings(
        deadline=None, database=None, max_examples=500, phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    with contextlib.closing(loop):
        for number in itertools.count(first_seed):
            seed(number)(quiet(given(parser.requests)(one)))()
            if time.monotonic() > until:
                return count
    raise AssertionError("there is always a next seed")


def main() -> None:
    """See the module."""
    asked = argparse.ArgumentParser(prog="python -m tests.fuzz.requests")
    asked.add_argument("parsers", nargs="*", metavar="PARSER", help=f"of {', '.join(PARSERS)}; default: all")
    asked.add_argument("--minutes", type=float, default=10, help="for each parser")
    asked.add_argument("--seed", type=int, default=random.randrange(10**9))
    options = asked.parse_args()
    logging.getLogger("pdserve").propagate = False
    for name in options.parsers or PARSERS:
        print(f"{name}: seed {options.seed} …", end=" ", flush=True)
        print(f"{run(name, options.minutes * 60, options.seed)} requests")


if __name__ == "__main__":
    main()
