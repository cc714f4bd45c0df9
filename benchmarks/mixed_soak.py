"""`soak.py --minutes`: good requests with a tenth of attacks among them, and what both do to the server.

First a quiet phase (a tenth of the time), then the soak. The attacks come from a process of their own.
Memory, files, threads and children are looked at all the time; what grows is said, and ends with 1.
"""

import base64
import contextlib
import http.client
import json
import multiprocessing
import random
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import grpc
from rich.console import Console
from rich.table import Table

from benchmarks import hostile
from benchmarks.measurement import machine
from pdserve.formats.protos import pipeline
from tests.attacks.process import anonymous_mb, tree
from tests.kinds import OPTIONS, build_home, two
from tests.running import Server, start

CLIENTS = 4
PAUSE_S = 0.03
SERVICE = "recognition"
WRITE = {"X-Pdserve-Write": "1"}
JSON = {"Content-Type": "application/json"}
# More than this, from the first quarter of the soak to the last, counts as growing.
GROWTH_MB, GROWTH_FILES, GROWTH_THREADS, GROWTH_CHILDREN = 30, 30, 10, 2


def good_request(number: int) -> tuple[str, str, bytes, dict[str, str]]:
    """Method, path, body and headers of a good request."""
    image, text = two(), base64.b64encode(two()).decode()
    kind = number % 6
    if kind == 0:
        body, headers = hostile.images_form([image] * 3)
        return "POST", f"/v1/{SERVICE}", body, headers
    if kind == 1:
        return "POST", f"/v1/{SERVICE}", json.dumps({"images": [text, text]}).encode(), JSON
    if kind == 2:
        return (
            "POST",
            f"/{SERVICE}/prediction",
            json.dumps({"key": ["image"], "value": [text]}).encode(),
            JSON,
        )
    if kind == 3:
        return "GET", "/v1/gallery", b"", {}
    if kind == 4 and number % 60 == 4:
        body, headers = hostile.form([("images", "a", image), ("label", None, b"soaked")])
        return "POST", "/v1/gallery", body, {**headers, **WRITE}
    return "POST", f"/v1/{SERVICE}", image, {}


def attack(port: int, rpc: str, good: Any, sent: Any, stop: Any) -> None:
    """Send attacks, one for nine good requests, until told to stop."""
    chance = random.Random(0)
    path, old = f"/v1/{SERVICE}", f"/{SERVICE}/prediction"
    bodies: list[tuple[str, bytes, dict[str, str]]] = [
        (path, hostile.two_sizes_tiff(8000, 8000), {}),
        (path, hostile.many_scans(1000, 300), {}),
        (path, *hostile.images_form([hostile.flat(2000)] * 8)),
        (path, hostile.long_comment(200_000), {}),
        (path, hostile.many_images(20_000).encode(), JSON),
        (path, hostile.many_names(20_000).encode(), JSON),
        (old, hostile.high_rank(5_000).encode(), JSON),
        (old, hostile.many_tensors(5_000).encode(), JSON),
        (f"{path}?top_k=999999999", two(), {}),
        ("/v1/gallery", *hostile.form([("images", "a", two()), ("label", None, b"planted")])),
        (path, two()[:60], {"Host": "evil.example"}),
        ("/nowhere/at/all", b"", {}),
    ]
    while not stop.is_set():
        if sent.value * 9 >= good.value:
            stop.wait(0.01)
            continue
        sent.value += 1
        which = chance.randrange(len(bodies) + 3)
        with contextlib.suppress(OSError, http.client.HTTPException, grpc.RpcError):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
            with contextlib.closing(connection):
                if which < len(bodies):
                    where, body, headers = bodies[which]
                    connection.request("POST", where, body, headers)
                    connection.getresponse().read()
                elif which == len(bodies):  # half a request, and gone
                    connection.connect()
                    connection.sock.sendall(b"POST /v1/x HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\nx")
                elif which == len(bodies) + 1:  # many ahead, unread, and gone
                    connection.connect()
                    connection.sock.settimeout(1)
                    connection.sock.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n" * 200)
                else:
                    with grpc.insecure_channel(rpc) as channel:
                        channel.unary_unary(pipeline.METHOD)(b"\xff", timeout=20)


def load(server: Server, seconds: float, good: Any) -> dict[str, Any]:
    """Good requests for so long: times in ms, failures by status, samples of what the server holds."""
    times: list[float] = []
    failures: dict[str, int] = {}
    samples: list[tuple[float, float, int, int, int]] = []
    channel = grpc.insecure_channel(server.target)
    call = channel.unary_unary(pipeline.METHOD)
    text = base64.b64encode(two()).decode()
    message = bytes(pipeline.request_class()(key=["image"], value=[text]).SerializeToString())
    lock, until, pid = threading.Lock(), time.monotonic() + seconds, server.process.pid

    def client(seed: int) -> None:
        number = seed
        connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=30)
        while time.monotonic() < until:
            number += CLIENTS
            started = time.monotonic()
            try:
                if number % 12 == 5:
                    outcome = "" if call(message, timeout=30) else "empty"
                else:
                    connection.request(*good_request(number))
                    answer = connection.getresponse()
                    answer.read()
                    outcome = "" if answer.status == 200 else str(answer.status)
            except (OSError, http.client.HTTPException, grpc.RpcError) as error:
                outcome = type(error).__name__
                connection.close()
            with lock:
                times.append(1000 * (time.monotonic() - started))
                good.value += 1
                if outcome:
                    failures[outcome] = failures.get(outcome, 0) + 1
            time.sleep(PAUSE_S)
        connection.close()

    threads = [threading.Thread(target=client, args=(seed,)) for seed in range(CLIENTS)]
    for thread in threads:
        thread.start()
    while time.monotonic() < until:
        files = len(list(Path(f"/proc/{pid}/fd").iterdir()))
        count = len(list(Path(f"/proc/{pid}/task").iterdir()))
        samples.append((time.monotonic(), anonymous_mb(pid), files, count, len(tree(pid)) - 1))
        time.sleep(max(0.2, min(5, seconds / 100)))
    for thread in threads:
        thread.join()
    channel.close()
    ordered = sorted(times)
    return {
        "requests": len(ordered),
        "p50_ms": ordered[len(ordered) // 2],
        "p99_ms": ordered[int(0.99 * len(ordered))],
        "failures": failures,
        "samples": samples,
    }


def run(minutes: float, out: Path | None) -> int:
    """The whole of it; prints a table. 1 where something grows."""
    spawn = multiprocessing.get_context("spawn")
    good, sent, stop = spawn.Value("l", 0), spawn.Value("l", 0), spawn.Event()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        home = build_home(Path(folder) / "home")
        with start(home, *OPTIONS[SERVICE], "--gallery-writes", service=SERVICE) as server:
            quiet = load(server, 6 * minutes, good)
            good.value = 0
            attacker = spawn.Process(
                target=attack, args=(server.http_port, server.target, good, sent, stop), daemon=True
            )
            attacker.start()
            soaked = load(server, 54 * minutes, good)
            stop.set()
            attacker.join(30)
            attacker.kill()
    table = Table("", "quiet", "with attacks", title=f"{minutes:g} minutes, {sent.value} attacks")
    for figure in ("requests", "p50_ms", "p99_ms"):
        table.add_row(figure, f"{quiet[figure]:.0f}", f"{soaked[figure]:.0f}")
    table.add_row("failures", str(quiet["failures"]), str(soaked["failures"]))
    samples = soaked["samples"]
    quarter = max(1, len(samples) // 4)
    grows = []
    names = ("memory, MB", "files", "threads", "children")
    for place, most in enumerate((GROWTH_MB, GROWTH_FILES, GROWTH_THREADS, GROWTH_CHILDREN), 1):
        first, last = (
            statistics.median(each[place] for each in part)
            for part in (samples[:quarter], samples[-quarter:])
        )
        table.add_row(names[place - 1], f"{first:.0f} (first quarter)", f"{last:.0f} (last quarter)")
        if last - first > most:
            grows.append(names[place - 1])
    Console().print(table)
    if grows:
        print(f"grows: {', '.join(grows)}")
    if out:
        report = {
            "minutes": minutes,
            "attacks": sent.value,
            "quiet": quiet,
            "soak": soaked,
            "machine": machine(),
        }
        out.write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    return int(bool(grows))
