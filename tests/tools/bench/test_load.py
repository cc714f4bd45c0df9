"""Closed and open loops, against a server that does as a test wants."""

import asyncio
import errno
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from pdserve.tools.bench import Run, build_target, closed_loop, open_loop
from pdserve.tools.bench.http import error_kind
from tests.tools.bench.odd_server import GOOD, Answer, OddServer, Request, odd_server, response

Loop = Callable[..., Awaitable[Run]]


async def good(request: Request, writer: asyncio.StreamWriter) -> None:
    writer.write(response())


async def silent(request: Request, writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(60)


def answering(raw: bytes) -> Answer:
    async def answer(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(raw)

    return answer


def run(answer: Answer, loop: Loop, route: str = "v1", **options: Any) -> tuple[Run, OddServer]:
    """One run against a server; ``images`` are what it sends."""

    async def both() -> tuple[Run, OddServer]:
        images = options.pop("images", [b"image"])
        async with odd_server(answer) as odd:
            target = build_target(route, odd.url, images)
            return await loop(target, **{"warm_up_s": 0, "timeout_s": 10} | options), odd

    return asyncio.run(both())


def test_a_closed_loop_sends_so_many_requests_from_so_many_connections() -> None:
    result, odd = run(good, closed_loop, clients=3, requests=30, images=[b"a", b"bb", b"ccc"])
    assert len(odd.requests) == 30
    assert odd.connections == 3
    assert result.answers == len(result.latencies) == 30
    assert not result.errors
    assert sorted({request.body for request in odd.requests}) == [b"a", b"bb", b"ccc"]
    assert [sum(r.body == image for r in odd.requests) for image in (b"a", b"bb", b"ccc")] == [10, 10, 10]
    assert result.requests_per_s == pytest.approx(30 / result.seconds)
    assert result.load.clients == 3
    assert result.cpu_seconds > 0


def test_a_client_waits_for_its_answer() -> None:
    """So many clients have so many requests in flight, and no more."""
    now, most = 0, 0

    async def slow(request: Request, writer: asyncio.StreamWriter) -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.01)
        now -= 1
        writer.write(response())

    result, _ = run(slow, closed_loop, clients=4, requests=20)
    assert most == 4
    assert min(result.latencies) >= 0.009


def test_a_closed_loop_for_a_time_does_not_count_its_warm_up() -> None:
    async def slow(request: Request, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.02)
        writer.write(response())

    marks: list[int] = []
    odd_there: list[OddServer] = []

    async def both() -> Run:
        async with odd_server(slow) as odd:
            odd_there.append(odd)

            async def mark() -> None:
                marks.append(len(odd.requests))

            target = build_target("v1", odd.url, [b"image"])
            return await closed_loop(target, clients=2, duration_s=0.3, warm_up_s=0.2, at_start=mark)

    result = asyncio.run(both())
    sent = len(odd_there[0].requests)
    assert marks[0] > 2  # clients were at work already
    assert result.answers == len(result.latencies)
    assert 0 < result.answers <= sent - marks[0] + 2
    assert result.seconds == pytest.approx(0.3, abs=0.05)
    assert result.in_flight <= 2


async def _refused(route: str, loop: Loop, **options: Any) -> Run:
    async with odd_server(good) as odd:
        url = odd.url
    return await loop(build_target(route, url, [b"image"]), warm_up_s=0, **options)


def test_refused_connections() -> None:
    result = asyncio.run(_refused("v1", closed_loop, clients=2, requests=6))
    assert result.errors == {"connection refused": 6}
    assert result.answers == 0
    assert result.latency_ms() is None
    assert result.images_per_s == 0


def test_a_name_of_several_addresses_that_all_refuse() -> None:
    """What asyncio makes of that has neither a kind nor an errno."""
    refused = [
        f"[Errno {errno.ECONNREFUSED}] Connect call failed ({host!r}, 1)" for host in ("::1", "127.0.0.1")
    ]
    assert error_kind(OSError(f"Multiple exceptions: {', '.join(refused)}")) == "connection refused"
    assert error_kind(OSError(errno.ENETUNREACH, "Network is unreachable")) == "connection ENETUNREACH"
    assert error_kind(OSError("something")) == "connection OSError"


ODD_ANSWERS = {
    "an overloaded server": (
        response(b'{"error":{"code":"overloaded","message":"The queue is full."}}', "503 Busy"),
        "v1",
        "503 overloaded",
        "The queue is full.",
    ),
    "an error in an image's place": (
        response(b'{"results":[{"error":{"code":"bad_image","message":"No image."}}]}', "400 Bad Request"),
        "v1",
        "400 bad_image",
        "No image.",
    ),
    "one bad image of several": (
        response(b'{"results":[{"labels":[]},{"error":{"code":"bad_image","message":"No image."}}]}'),
        "v1",
        "200 bad_image",
        "No image.",
    ),
    "a page": (response(b"<html>hello"), "v1", "200 no answer", "<html>hello"),
    "a proxy's page": (response(b"<html>", "502 Bad Gateway"), "v1", "502", None),
    "the old route's error": (
        response(b'{"err_no":6000,"err_msg":"too late","key":[],"value":[],"tensors":[]}'),
        "pipeline",
        "err_no 6000",
        "too late",
    ),
    "the old route's HTTP error": (
        response(b'{"error":"busy","code":14,"message":"busy","details":[]}', "503 Busy"),
        "pipeline",
        "503",
        "busy",
    ),
    "no page of the old route": (response(b"{}"), "pipeline", "200 no answer", "{}"),
    "no HTTP": (b"SSH-2.0-OpenSSH\r\n", "v1", "no HTTP", None),
}


@pytest.mark.parametrize("case", ODD_ANSWERS)
def test_bad_answers_are_counted_byerror_kind(case: str) -> None:
    raw, route, kind, example = ODD_ANSWERS[case]
    result, _ = run(answering(raw), closed_loop, route, clients=2, requests=4)
    assert result.errors == {kind: 4}
    assert result.answers == 0
    if example is not None:
        assert result.examples == {kind: example}


def test_a_server_that_resets() -> None:
    async def reset(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    result, odd = run(reset, closed_loop, clients=1, requests=3)
    assert set(result.errors) <= {"connection reset", "connection closed"}
    assert result.failed == 3
    assert odd.connections == 3


def test_a_server_that_hangs_up_in_the_middle() -> None:
    async def half(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(response()[:-10])
        writer.close()

    result, _ = run(half, closed_loop, clients=1, requests=3)
    assert result.errors == {"connection closed": 3}


def test_a_server_that_hangs() -> None:
    result, odd = run(silent, closed_loop, clients=2, requests=4, timeout_s=0.1)
    assert result.errors == {"timeout": 4}
    assert odd.connections == 4  # an answer that came too late must not be taken for the next one


def test_a_late_answer_is_not_the_next_one() -> None:
    """The first answer comes after its time, on a connection that was closed."""

    async def first_late(request: Request, writer: asyncio.StreamWriter) -> None:
        if request.number == 0:
            await asyncio.sleep(0.2)
        writer.write(response())

    result, _ = run(first_late, closed_loop, clients=1, requests=3, timeout_s=0.1)
    assert result.errors == {"timeout": 1}
    assert result.answers == 2


def test_good_answers_among_bad_ones() -> None:
    """Bad answers are quick, and must not count as throughput; the order of kinds is by number."""

    async def mixed(request: Request, writer: asyncio.StreamWriter) -> None:
        if request.number % 4 == 0:
            writer.write(response())
        elif request.number % 4 == 1:
            writer.write(response(b"{}", "500 Internal Server Error"))
        else:
            writer.write(response(b'{"error":{"code":"overloaded","message":"Full."}}', "503 Busy"))

    result, odd = run(mixed, closed_loop, clients=2, requests=40)
    assert len(odd.requests) == 40
    assert result.answers == 10
    assert list(result.errors.items()) == [("503 overloaded", 20), ("500", 10)]
    assert result.requests_per_s == pytest.approx(10 / result.seconds)


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 100 Continue\r\n\r\n" + response(),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(GOOD), GOOD),
        response(more="Connection: close\r\n"),
        response(b'{"results":[{"labels":[{"class_id":1,"label":"error","score":1.0}]}]}'),
        response(b'{"results":[{"labels":[{"class_id":1,"label":"x","score":1.0}]}],"error":null}'),
    ],
    ids=["continue", "chunked", "close", "a label called error", "an error of null"],
)
def test_good_answers_in_other_forms(raw: bytes) -> None:
    result, _ = run(answering(raw), closed_loop, clients=2, requests=6)
    assert result.answers == 6
    assert not result.errors


def test_an_answer_that_ends_with_the_connection() -> None:
    async def old(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n" + GOOD)
        await writer.drain()
        writer.close()

    result, odd = run(old, closed_loop, clients=1, requests=3)
    assert result.answers == 3
    assert odd.connections == 3


def test_an_open_loop_does_not_wait_for_answers() -> None:
    """The server holds its first answer back until all requests are there."""
    all_there = asyncio.Event()

    async def answer(request: Request, writer: asyncio.StreamWriter) -> None:
        if request.number == 9:
            all_there.set()
        if request.number == 0:
            await all_there.wait()
        writer.write(response())

    result, odd = run(answer, open_loop, rate=100, requests=10, arrivals="constant")
    assert len(odd.requests) == 10
    assert result.answers == 10
    assert result.unsent == 0


def test_latencies_count_from_when_a_request_was_due() -> None:
    """A server that stalls for 0.4 s at its first request and answers all in turn, each at once then.

    Of requests that are due every 20 ms the second waits 0.38 s, the third 0.36 s and so on. A generator
    that waited for its answers would see one slow request.
    """
    turn = asyncio.Lock()

    async def stalling(request: Request, writer: asyncio.StreamWriter) -> None:
        async with turn:
            if request.number == 0:
                await asyncio.sleep(0.4)
            writer.write(response())

    result, _ = run(stalling, open_loop, rate=50, requests=20, arrivals="constant")
    assert result.answers == 20
    for n, latency in enumerate(sorted(result.latencies, reverse=True)[:15]):
        assert latency >= 0.4 - 0.02 * n - 0.01  # later by whatever the machine was busy with


def test_lateness_of_the_generator_itself_counts() -> None:
    """The generator's own loop is blocked for 0.3 s: requests that were due meanwhile were late."""

    async def blocking(request: Request, writer: asyncio.StreamWriter) -> None:
        if request.number == 0:
            time.sleep(0.3)
        writer.write(response())

    result, _ = run(blocking, open_loop, rate=100, requests=30, arrivals="constant")
    assert sum(latency > 0.1 for latency in result.latencies) >= 18
    assert result.lag_s is not None
    assert result.lag_s > 0.1


def test_an_open_loop_for_a_time_counts_slow_requests_too() -> None:
    """Answers after the measured time are no throughput, but their latencies are not left out."""

    async def slow(request: Request, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.5)
        writer.write(response())

    result, odd = run(slow, open_loop, rate=40, duration_s=0.4, arrivals="constant")
    assert result.answers == 0
    assert len(odd.requests) == len(result.latencies) == result.in_flight
    assert 10 <= len(odd.requests) <= 16
    assert min(result.latencies) >= 0.45


def test_arrivals_in_the_warm_up_are_not_counted() -> None:
    """Nor those whose answer comes later."""

    async def slow(request: Request, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.05)
        writer.write(response())

    result, odd = run(slow, open_loop, rate=100, requests=10, warm_up_s=0.2, arrivals="constant")
    assert len(result.latencies) == result.answers == 10
    assert 27 <= len(odd.requests) <= 31


def test_the_number_in_flight_is_bounded() -> None:
    result, odd = run(
        silent, open_loop, rate=200, requests=20, arrivals="constant", max_in_flight=5, timeout_s=0.5
    )
    assert odd.connections == 5
    assert result.unsent == 15
    assert result.errors == {"timeout": 5}


def test_chance_is_the_same_for_the_same_seed() -> None:
    from pdserve.tools.bench.load import _gaps

    def first(seed: int) -> list[float]:
        return [gap for gap, _ in zip(_gaps(10, "poisson", seed), range(2000), strict=False)]

    assert first(1) == first(1) != first(2)
    gaps = first(1)
    mean = sum(gaps) / len(gaps)
    assert mean == pytest.approx(0.1, rel=0.1)
    # Of an exponential distribution mean and standard deviation are alike.
    assert sum((gap - mean) ** 2 for gap in gaps) / len(gaps) == pytest.approx(mean**2, rel=0.2)


@pytest.mark.parametrize("loop", ["closed", "open"])
def test_a_run_that_is_stopped_tells_what_was_measured(loop: str) -> None:
    async def both() -> Run:
        stop = asyncio.Event()

        async def answer(request: Request, writer: asyncio.StreamWriter) -> None:
            if request.number == 20:
                stop.set()
            if request.number >= 20:
                await asyncio.sleep(60)
            writer.write(response())

        async with odd_server(answer) as odd:
            target = build_target("v1", odd.url, [b"image"])
            if loop == "closed":
                return await closed_loop(target, clients=2, duration_s=60, warm_up_s=0, stop=stop)
            return await open_loop(target, rate=200, duration_s=60, warm_up_s=0, stop=stop)

    result = asyncio.run(asyncio.wait_for(both(), 20))
    assert result.interrupted
    assert 10 <= result.answers <= 20
    assert len(result.latencies) == result.answers
    assert result.seconds < 20
    assert not result.errors


def test_a_run_that_is_stopped_in_its_warm_up() -> None:
    async def both() -> Run:
        stop = asyncio.Event()
        stop.set()
        async with odd_server(good) as odd:
            target = build_target("v1", odd.url, [b"image"])
            return await closed_loop(target, clients=2, warm_up_s=60, stop=stop)

    result = asyncio.run(both())
    assert result.interrupted
    assert (result.answers, result.seconds) == (0, 0)
    assert result.to_json()["requests_per_s"] == 0


@pytest.mark.parametrize("loop", ["closed", "open"])
def test_a_fault_of_the_generator_is_not_counted_as_the_servers(loop: str) -> None:
    class Broken:
        async def ask(self, number: int, timeout_s: float) -> None:
            raise ZeroDivisionError

        async def close(self) -> None:
            pass

    async def both() -> Run:
        target: Any = build_target("v1", "http://127.0.0.1:1", [b"image"])
        broken: Any = type("BrokenTarget", (), {"connect": lambda self: Broken(), "server": target.server})()
        if loop == "closed":
            return await closed_loop(broken, clients=2, duration_s=5, warm_up_s=0)
        return await open_loop(broken, rate=100, duration_s=5, warm_up_s=0)

    with pytest.raises(ZeroDivisionError):
        asyncio.run(both())


def test_a_loop_without_an_end() -> None:
    target = build_target("v1", "http://127.0.0.1:1", [b"image"])
    with pytest.raises(ValueError, match="duration_s"):
        asyncio.run(closed_loop(target, duration_s=None))
    with pytest.raises(ValueError, match="duration_s"):
        asyncio.run(open_loop(target, rate=1, duration_s=None))
    with pytest.raises(ValueError, match="arrivals"):
        asyncio.run(open_loop(target, rate=1, arrivals="uneven"))
