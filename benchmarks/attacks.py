"""What costly requests do to a server and to its other callers: memory, the event loop, answers meanwhile.

Each case has a server of its own, which is watched from another process: its memory (anonymous, with all
its children), the health route every 10 ms on a connection that is kept, and two callers who ask for
something ordinary all the time, in a quiet phase first and then during the attack. The server may have
--limit-gb of memory, and a case --seconds; what takes longer is broken off.

    python benchmarks/attacks.py                          # all cases
    python benchmarks/attacks.py tiff scans               # those whose names have one of these words
    python benchmarks/attacks.py --out benchmarks/results/attacks.json
"""

import argparse
import contextlib
import gzip
import http.client
import json
import multiprocessing
import resource
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import grpc
from rich.console import Console
from rich.table import Table

from benchmarks import hostile
from benchmarks.measurement import machine
from pdserve.formats.protos import pipeline
from pdserve.settings import ServerSettings
from tests.attacks.process import anonymous_mb
from tests.kinds import OPTIONS, build_home, two
from tests.running import Server, start

QUIET_S = 2.0
HEALTH_GOAL_MS = 100.0
CALLERS = 2
KEY = "0123456789abcdef0123456789abcdef"


@dataclass
class Phase:
    """What other callers saw: answers per second, their times in ms, failures, and the slowest health."""

    per_s: float = 0.0
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    failures: int = 0
    health_ms: float = 0.0


@dataclass
class Result:
    """One case. ``sent_bytes``; ``grown_mb``: the most memory above that of the start."""

    name: str
    group: str
    sent_bytes: int = 0
    seconds: float = 0.0
    start_mb: float = 0.0
    grown_mb: float = 0.0
    quiet: Phase = field(default_factory=Phase)
    during: Phase = field(default_factory=Phase)
    note: str = ""


@dataclass(frozen=True)
class Case:
    """A case: ``run`` attacks and says in a note what became of it."""

    name: str
    group: str
    run: Callable[["Attacker"], str]
    service: str = "classification"
    options: tuple[str, ...] = ()
    gallery: int = 0


class Attacker:
    """What a case is given: the server, a home, and the time until which it may go on."""

    def __init__(self, server: Server, home: Path, service: str, seconds: float) -> None:
        self.server = server
        self.home = home
        self.route = f"/v1/{service}"
        self.deadline = time.monotonic() + seconds
        self.sent = 0

    @property
    def left(self) -> float:
        return max(0.1, self.deadline - time.monotonic())

    def post(
        self,
        path: str,
        body: bytes | str,
        headers: dict[str, str] | None = None,
        timeout: float | None = None,
    ) -> str:
        """The status of the answer, or what happened instead."""
        data = body.encode() if isinstance(body, str) else body
        self.sent += len(data)
        limit = self.left if timeout is None else timeout
        connection = http.client.HTTPConnection("127.0.0.1", self.server.http_port, timeout=limit)
        try:
            connection.request("POST", path, data, headers or {})
            answer = connection.getresponse()
            length = len(answer.read())
            return str(answer.status) if length < 100_000 else f"{answer.status} of {length / 1e6:.0f} MB"
        except (OSError, http.client.HTTPException) as error:
            return type(error).__name__
        finally:
            connection.close()

    def json(self, path: str, body: str) -> str:
        return self.post(path, body, {"Content-Type": "application/json"})

    def call(self, message: bytes, **options: Any) -> str:
        """Send a message by gRPC, on a connection of its own; the status."""
        self.sent += len(message)
        limits = [("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(self.server.target, options=limits) as channel:
            try:
                channel.unary_unary(pipeline.METHOD)(message, timeout=self.left, **options)
            except grpc.RpcError as error:
                return str(error.code().name)
        return "OK"

    def at_once(self, *calls: Callable[[], str]) -> str:
        """Do all in threads; what became of each."""
        outcomes: list[str] = []
        threads = [
            threading.Thread(target=lambda call=call: outcomes.append(call()), daemon=True) for call in calls
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(self.left + 1)
        counts = {each: outcomes.count(each) for each in dict.fromkeys(outcomes)}
        unanswered = len(calls) - len(outcomes)
        words = [f"{count} × {each}" for each, count in counts.items()]
        return ", ".join(words + ([f"{unanswered} × no answer"] if unanswered else []))

    @contextlib.contextmanager
    def connected(self) -> Iterator[socket.socket]:
        with socket.create_connection(("127.0.0.1", self.server.http_port), timeout=2) as opened:
            yield opened

    def logged(self) -> int:
        return self.server.log_path.stat().st_size


# Cases, by the groups of costly requests


def tiff(it: Attacker) -> str:
    image = hostile.two_sizes_tiff(32000, 32000)
    return it.at_once(*[lambda: it.post(it.route, image)] * 2)


def _form_of(image: bytes) -> Callable[[Attacker], str]:
    def run(it: Attacker) -> str:
        body, headers = hostile.images_form([image] * 64)
        return it.post(it.route, body, headers)

    return run


def webp_form(it: Attacker) -> str:
    return _form_of(hostile.flat(8000))(it)


def jpeg_2000_form(it: Attacker) -> str:
    return _form_of(hostile.flat(8000, "JPEG2000"))(it)


def open_bodies(it: Attacker) -> str:
    """20 bodies announced and sent by the megabyte for 20 s, each until it is refused or has 200 MB."""
    head = b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Length: 268435456\r\n\r\n" % it.route.encode()
    block = bytes(1 << 20)
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(it.connected()) for _ in range(20)]
        for connection in opened:
            connection.sendall(head)
        refused = set()
        until = time.monotonic() + min(20.0, it.left)
        rest = dict.fromkeys(opened, 200)
        while time.monotonic() < until and any(rest.values()):
            for connection in opened:
                if not rest[connection]:
                    continue
                try:
                    connection.settimeout(0.2)
                    it.sent += connection.send(block)
                    rest[connection] -= 1
                except TimeoutError:
                    continue  # it is not read at the moment
                except OSError:
                    refused.add(connection)
                    rest[connection] = 0
        return f"{it.sent / 1e6:.0f} MB taken, {len(refused)} of 20 refused"


def gzip_messages(it: Attacker) -> str:
    message = hostile.large_message(250_000_000)
    outcome = it.at_once(*[lambda: it.call(message, compression=grpc.Compression.Gzip)] * 8)
    it.sent = 8 * len(gzip.compress(message, 1))
    return outcome


def waiting_writers(it: Attacker) -> str:
    """Twelve writers of 50 MB behind one whose picture is slow; all leave after six seconds."""
    slow = hostile.many_scans(8000, 2000)
    bodies = [
        hostile.form([("images", "a", slow + bytes(more)), ("label", None, b"x")]) for more in (0, 50_000_000)
    ]

    def write(which: int) -> str:
        body, headers = bodies[which]
        return it.post("/v1/gallery", body, {**headers, "X-Pdserve-Write": "1"}, timeout=6)

    return it.at_once(lambda: write(0), *[lambda: write(1)] * 12)


def scans(it: Attacker) -> str:
    image = hostile.many_scans(8000, 4000)
    return it.at_once(*[lambda: it.post(it.route, image)] * 2)


def comment(it: Attacker) -> str:
    return it.post(it.route, hostile.long_comment(50_000_000))


def slow_writer(it: Attacker) -> str:
    """A slow picture whose caller leaves after two seconds, then an ordinary writer."""
    body, headers = hostile.form([("images", "a", hostile.many_scans(8000, 4000)), ("label", None, b"x")])
    headers["X-Pdserve-Write"] = "1"
    first = it.post("/v1/gallery", body, headers, timeout=2)
    body, _ = hostile.form([("images", "a", hostile.photo()), ("label", None, b"x")])
    started = time.monotonic()
    second = it.post("/v1/gallery", body, headers)
    return f"{first}; the next writer {second} after {time.monotonic() - started:.1f} s"


def _pipeline(it: Attacker, body: str) -> str:
    return it.json("/imagenet/prediction", body)


def rank(it: Attacker) -> str:
    return _pipeline(it, hostile.high_rank(200_000))


def rank_grpc(it: Attacker) -> str:
    return it.call(hostile.high_rank_message(200_000))


def tensors(it: Attacker) -> str:
    return _pipeline(it, hostile.many_tensors(300_000))


def numbers(it: Attacker) -> str:
    return _pipeline(it, hostile.many_numbers(5_000_000))


def keys(it: Attacker) -> str:
    return _pipeline(it, hostile.many_keys(3_000_000))


def names(it: Attacker) -> str:
    return it.json(it.route, hostile.many_names(3_000_000))


def images_1m(it: Attacker) -> str:
    return it.json(it.route, hostile.many_images(1_000_000))


def images_10m(it: Attacker) -> str:
    return it.json(it.route, hostile.many_images(10_000_000))


def pipelined(it: Attacker) -> str:
    """18 MB of GETs on one connection, answers read."""
    unit = b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
    block = memoryview(unit * 1000)
    answers, over = 0, threading.Event()
    with it.connected() as connection:
        connection.settimeout(0.5)

        def read() -> None:
            nonlocal answers
            while not over.is_set():
                try:
                    answers += connection.recv(1 << 16).count(b"HTTP/1.1 ")
                except TimeoutError:
                    continue
                except OSError:
                    return

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        until = time.monotonic() + min(15.0, it.left)
        rest = block
        while it.sent < 18_000_000 and time.monotonic() < until:
            try:
                taken = connection.send(rest)
            except TimeoutError:
                continue
            except OSError:
                break
            it.sent += taken
            rest = rest[taken:] or block
        over.set()
        reader.join()
    return f"{it.sent / 1e6:.1f} MB taken, {answers} answers"


def pipelined_and_gone(it: Attacker) -> str:
    """50 connections that send two requests with images at once and leave."""
    image = hostile.photo(64)
    head = f"POST {it.route} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(image)}\r\n\r\n".encode()
    before = it.logged()
    for _ in range(50):
        with it.connected() as connection:
            connection.sendall((head + image) * 2)
            it.sent += 2 * len(head + image)
    time.sleep(2)
    return f"{it.logged() - before} bytes of log, {it.server.log.count('Traceback')} tracebacks"


def long_inference_yml(it: Attacker) -> str:
    """A model is published anew with an inference.yml of 400,000 keys; until the server has spoken of it."""
    path = it.home / "models" / "tiny_serving" / "inference.yml"
    beside = path.with_suffix(".new")
    text = "x: {" + ",".join("ab"[number % 2] for number in range(400_000)) + "}\n"
    before, it.sent = it.logged(), len(text)
    beside.write_text(text + path.read_text("utf-8"), "utf-8")
    beside.replace(path)
    started = time.monotonic()
    while it.left > 1 and not any(word in it.server.log[before:] for word in ("reloaded:", "not reloaded")):
        time.sleep(0.1)
    lines = it.server.log[before:].strip().splitlines()
    return f"after {time.monotonic() - started:.1f} s: {(lines or ['nothing'])[-1][-120:]}"


def gallery_pixels(it: Attacker) -> str:
    """A picture of 160,000 pixels into a gallery whose server takes 20,000."""
    body, headers = hostile.form([("images", "a", hostile.photo(400)), ("label", None, b"x")])
    return it.post("/v1/gallery", body, {**headers, "X-Pdserve-Write": "1"})


def top_k(it: Attacker) -> str:
    return it.post(f"{it.route}?top_k=999999999", two())


def top_k_form(it: Attacker) -> str:
    body, headers = hostile.images_form([two()] * 16)
    return it.post(f"{it.route}?top_k=999999999", body, headers)


def stop(it: Attacker) -> str:
    """SIGTERM, with 3 s of grace, while a slow picture is decoded whose caller has gone."""
    it.post(it.route, hostile.many_scans(8000, 6000), timeout=1)
    it.server.interrupt(signal.SIGTERM)
    started = time.monotonic()
    try:
        code = it.server.wait(it.left)
    except Exception:
        return f"still runs after {time.monotonic() - started:.0f} s"
    return f"ended with {code} after {time.monotonic() - started:.1f} s"


def late(it: Attacker) -> str:
    """A good request behind two slow pictures, where a request may take 1 s."""
    slow = hostile.many_scans(8000, 6000)
    it.at_once(*[lambda: it.post(it.route, slow, timeout=1)] * 2)
    started = time.monotonic()
    return f"{it.post(it.route, hostile.photo())} after {time.monotonic() - started:.1f} s"


def no_protobuf(it: Attacker) -> str:
    before = it.logged()
    outcomes = {it.call(b"\xff") for _ in range(300)}
    return f"300 × {', '.join(outcomes)}; {(it.logged() - before) / 300:.0f} bytes of log for each"


WRITES = ("--gallery-writes",)
CASES = (
    Case("tiff of two sizes, twice", "A1", tiff),
    Case("form of 64 webp of 64 MP", "A2", webp_form, "recognition"),
    Case("form of 64 jpeg 2000 of 64 MP", "A2", jpeg_2000_form, "recognition"),
    Case("20 bodies of 256 MB kept open", "A2", open_bodies),
    Case("8 gzip messages of 250 MB", "A2", gzip_messages),
    Case("12 gallery writers of 50 MB", "A2", waiting_writers, "recognition", WRITES),
    Case("progressive jpeg of 4000 scans, twice", "A3", scans),
    Case("ppm with a comment of 50 MB", "A3", comment),
    Case("slow picture into the gallery", "A3", slow_writer, "recognition", WRITES),
    Case("tensor of rank 200,000", "A4", rank),
    Case("tensor of rank 200,000, grpc", "A4", rank_grpc),
    Case("300,000 tensors", "A4", tensors),
    Case("5,000,000 numbers", "A4", numbers),
    Case("3,000,000 keys", "A4", keys),
    Case("3,000,000 names", "A4", names),
    Case("1,000,000 images", "A4", images_1m),
    Case("10,000,000 images", "A4", images_10m),
    Case("pipelined gets", "A5", pipelined),
    Case("pipelined gets without a key", "A5", pipelined, options=("--api-key", "KEYS")),
    Case("50 that pipeline and leave", "A5", pipelined_and_gone),
    Case("inference.yml of 400,000 keys", "A6", long_inference_yml),
    Case(
        "max_pixels of the gallery", "A6", gallery_pixels, "recognition", (*WRITES, "--max-pixels", "20000")
    ),
    Case("top_k=999999999 of 100,000", "A7", top_k, "recognition", gallery=100_000),
    Case("top_k, a form of 16", "A7", top_k_form, "recognition", gallery=100_000),
    Case("stop while decoding", "A8", stop, options=("--grace", "3")),
    Case("1 s behind two slow pictures", "A8", late, options=("--timeout-ms", "1000")),
    Case("300 messages that are no protobuf", "A8", no_protobuf),
)


# What others see of it, in a process of their own


def observe(port: int, route: str, image: bytes, headers: dict[str, str], phases: Any, stop: Any) -> None:
    """Ask until told to stop; puts a Phase after the quiet time and one at the end."""
    lock, times, healths = threading.Lock(), [], []
    failures, started, over = 0, time.monotonic(), threading.Event()

    def ask(method: str, path: str, body: bytes | None, into: list[float], pause: float) -> None:
        nonlocal failures
        connection = None
        while not over.is_set():
            before = time.monotonic()
            try:
                connection = connection or http.client.HTTPConnection("127.0.0.1", port, timeout=30)
                connection.request(method, path, body, headers)
                answer = connection.getresponse()
                answer.read()
                good = answer.status == 200
            except (OSError, http.client.HTTPException):
                good, connection = False, None
            with lock:
                into.append(1000 * (time.monotonic() - before))
                failures += not good
            if not good:
                over.wait(0.05)
            over.wait(pause)

    def phase() -> Phase:
        nonlocal failures, started
        with lock:
            now, (ordered, slowest) = time.monotonic(), (sorted(times), max(healths, default=0.0))
            found = Phase(
                max(0, len(ordered) - failures) / (now - started),
                ordered[len(ordered) // 2] if ordered else 0.0,
                ordered[int(0.99 * len(ordered))] if ordered else 0.0,
                failures,
                slowest,
            )
            times.clear()
            healths.clear()
            failures, started = 0, now
        return found

    threads = [threading.Thread(target=ask, args=("GET", "/v2/health/live", None, healths, 0.01))]
    threads += [threading.Thread(target=ask, args=("POST", route, image, times, 0)) for _ in range(CALLERS)]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    phase()  # connections, and whatever is slow once
    time.sleep(QUIET_S)
    phases.put(phase())
    stop.wait()
    over.set()
    for thread in threads:
        thread.join()  # who waits for an answer now has waited for it during the attack
    phases.put(phase())


def measure(case: Case, seconds: float, limit_gb: float, budget: int) -> Result:
    """Run a case against a new server in a copy of the home."""
    result = Result(case.name, case.group)
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        home = build_home(Path(folder) / "home")
        (home / "keys").write_text(f"{KEY}\n")
        (home / "keys").chmod(0o600)
        options = [str(home / "keys") if each == "KEYS" else each for each in case.options]
        if "max_inflight_bytes" in ServerSettings.model_fields:
            options += ["--max-inflight-bytes", str(budget)]
        named = list(OPTIONS[case.service])
        if case.gallery:
            _gallery(home, case.gallery)
            named[named.index("--index") + 1] = "big"
            options += ["--score-threshold", "-1"]
        headers = {"Authorization": f"Bearer {KEY}"} if "KEYS" in case.options else {}
        image = hostile.photo() if case.service == "classification" else two()
        with start(home, *named, *options, service=case.service) as server:
            pid = server.process.pid
            resource.prlimit(pid, resource.RLIMIT_DATA, (int(limit_gb * 2**30),) * 2)
            phases, over = spawn.Queue(), spawn.Event()
            observer = spawn.Process(
                target=observe, args=(server.http_port, f"/v1/{case.service}", image, headers, phases, over)
            )
            observer.start()
            result.quiet = phases.get()
            result.start_mb = anonymous_mb(pid)
            done = threading.Event()

            def weigh() -> None:
                while not done.wait(0.02):
                    result.grown_mb = max(result.grown_mb, anonymous_mb(pid) - result.start_mb)

            weighing = threading.Thread(target=weigh)
            weighing.start()
            attacker = Attacker(server, home, case.service, seconds)
            started = time.monotonic()
            result.note = case.run(attacker)
            result.seconds = time.monotonic() - started
            result.sent_bytes = attacker.sent
            if case.run is not stop:
                time.sleep(0.5)
            over.set()
            result.during = phases.get()
            observer.join()
            done.set()
            weighing.join()
            if server.process.poll() not in (None, 0):
                result.note += f"; the server ended with {server.process.returncode}"
            if server.process.poll() is None:
                server.process.kill()  # it may be busy for minutes
                server.process.wait()
    return result


def _gallery(home: Path, count: int) -> None:
    """Publish an index of so many entries for the tiny embedder, made up."""
    import numpy as np

    from pdserve.index import faiss_index, store
    from pdserve.index.entries import Entries
    from pdserve.index.publish import Draft, publish

    vectors = np.random.default_rng(0).random((count, 3), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    ids = np.arange(count, dtype=np.int64)
    built = faiss_index.build("Flat", "IP", 3, ids, lambda rows: vectors[list(rows)])
    labels = {number: f"made/{number}.jpg\tlabel {number}" for number in range(count)}
    embedder = store.read(home / "indexes" / "colors").embedder
    draft = Draft(built, labels, Entries.unknown(labels), embedder, count, count, "made up")
    publish(home / "indexes" / "big", draft, None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="WORD")
    parser.add_argument("--seconds", type=float, default=45, help="how long a case may take")
    parser.add_argument("--limit-gb", type=float, default=6, help="memory that a server may have")
    parser.add_argument("--budget", type=int, default=1 << 30, help="--max-inflight-bytes of the servers")
    parser.add_argument("--out", type=Path, help="write the results as JSON")
    given = parser.parse_args()
    words = given.words or [""]
    chosen = [each for each in CASES if any(word in f"{each.group} {each.name}" for word in words)]
    results = []
    for case in chosen:
        result = measure(case, given.seconds, given.limit_gb, given.budget)
        results.append(result)
        print(json.dumps(asdict(result)), file=sys.stderr, flush=True)
        if given.out:
            report = {"cases": [asdict(each) for each in results], "budget_bytes": given.budget}
            report |= {"limit_gb": given.limit_gb, "command": " ".join(sys.argv), "machine": machine()}
            given.out.write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    Console(width=None if sys.stdout.isatty() else 190).print(_table(results, given.budget))


def _table(results: list[Result], budget: int) -> Table:
    goal = 1.1 * budget / 2**20
    table = Table(
        "", "case", "sent MB", "s", f"memory + MB\n(goal {goal:.0f})",
        f"health ms\n(goal {HEALTH_GOAL_MS:.0f})", "good/s\nquiet → during", "p50 ms", "p99 ms",
        "failed", "what became of it",
        caption="memory: peak above the start; quiet and during: what two ordinary callers saw",
    )  # fmt: skip
    for each in results:
        quiet, during = each.quiet, each.during
        bad = "[red]%s[/red]"
        memory, health = f"{each.grown_mb:.0f}", f"{during.health_ms:.0f}"
        table.add_row(
            each.group, each.name, f"{each.sent_bytes / 1e6:.2f}", f"{each.seconds:.1f}",
            bad % memory if each.grown_mb > goal else memory,
            bad % health if during.health_ms > HEALTH_GOAL_MS else health,
            f"{quiet.per_s:.0f} → {during.per_s:.0f}", f"{quiet.p50_ms:.0f} → {during.p50_ms:.0f}",
            f"{quiet.p99_ms:.0f} → {during.p99_ms:.0f}", str(during.failures), each.note,
        )  # fmt: skip
    return table


if __name__ == "__main__":
    main()
