"""Measure one contender once with one model: start it, check its answer, load it, stop it.

Also what every benchmark shares: the load it offers and the description of the machine in its results.
"""

import http.client
import importlib.metadata
import os
import platform
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks.answers import fault
from benchmarks.contenders import Contender, Launch, Pythons, launch, service
from benchmarks.process_tree import MemorySampler, ProcessTree
from benchmarks.rivals.environment import ROOT
from pdserve.tools.bench import Run, build_target, closed_loop
from pdserve.tools.bench.http import Post, posts
from pdserve.tools.bench.session import in_loop
from pdserve.tools.optimize.report import processor

START_LIMIT_S = 120
# Images that the rivals run together, and how many such batches a load should see.
BATCH = 8
BATCHES = 3


# Instruction sets that decide how fast an engine is, by their names in /proc/cpuinfo.
_FLAGS = (
    *("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_int8", "amx_bf16"),
)
_PACKAGES = (
    *("pdserve", "openvino", "paddlepaddle", "paddlepaddle-gpu", "onnxruntime", "onnxruntime-gpu", "nncf"),
    *("numpy", "opencv-python-headless", "pillow", "faiss-cpu", "uvicorn", "uvloop"),
)


def machine(rounds: int = 1) -> dict[str, Any]:
    """Where a result was measured: processor, instruction sets, system, versions, commit, rounds. Linux."""
    words = Path("/proc/cpuinfo").read_text("utf-8").split()
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"]
    done = subprocess.run(git, capture_output=True, text=True, check=False)
    return {
        "cores": os.cpu_count(),
        "processor": processor(),
        "flags": [flag for flag in _FLAGS if flag in words],
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": versions,
        "commit": done.stdout.strip() or None,
        "rounds": rounds,
    }


def offer(
    url: str,
    image: bytes,
    route: str,
    clients: int,
    seconds: float,
    service: str,
    warm_up_s: float = 1,
    timeout_s: float = 120,
) -> Run:
    """A closed loop on one route, from this process: ``clients`` that send one image again and again.

    ``url`` as build_target takes it.
    """
    target = build_target(route, url, [image], service=service)
    return in_loop(
        closed_loop(target, clients=clients, duration_s=seconds, warm_up_s=warm_up_s, timeout_s=timeout_s)
    )


class UnfitError(Exception):
    """A contender that cannot be measured, and why."""


@dataclass(frozen=True)
class Plan:
    """How to measure. ``patience_s``: a load whose requests would take longer is not offered."""

    home: Path
    image: Path
    clients: Sequence[int]
    seconds: float
    patience_s: float
    pythons: Pythons


def measure_server(one: Contender, model: str, plan: Plan, wanted: dict[str, str]) -> dict[str, Any]:
    """Start-up, memory, and a load at each number of clients. Raises UnfitError."""
    try:
        return _measure(one, model, plan, wanted)
    except (OSError, http.client.HTTPException, subprocess.SubprocessError) as error:
        raise UnfitError(f"it failed: {type(error).__name__}: {error}") from error


def _measure(one: Contender, model: str, plan: Plan, wanted: dict[str, str]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        mark = uuid.uuid4().hex
        how = launch(one, model, plan.home, Path(folder), plan.pythons, mark)
        # Paddle Serving is launched by pdserve, whose memory is not counted.
        launcher = one.kind == "paddle-serving"
        with (
            _running(how, Path(folder), mark) as (process, tree, started),
            MemorySampler(tree, but_root=launcher) as memory,
        ):
            start_s = _first_answer(how, process, Path(folder) / "log", plan, model, wanted, started)
            loads = _loads(how.url, model, plan)
        return {"start_s": start_s, "memory_mb": memory.peak_mb, "loads": loads}


@contextmanager
def _running(
    how: Launch, folder: Path, mark: str
) -> Iterator[tuple["subprocess.Popen[bytes]", ProcessTree, float]]:
    """The server's process, its tree and when it was started; all of them are ended afterwards."""
    with (folder / "log").open("wb") as log:
        started = time.perf_counter()
        process = subprocess.Popen(
            how.command,
            cwd=ROOT,
            env=how.environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    tree = ProcessTree(process.pid, mark)
    try:
        yield process, tree, started
    finally:
        tree.end()
        process.wait(10)


def _first_answer(
    how: Launch,
    process: "subprocess.Popen[bytes]",
    log: Path,
    plan: Plan,
    model: str,
    wanted: dict[str, str],
    started: float,
) -> float:
    """Seconds from the command to the first good answer. Raises UnfitError."""
    (post,) = posts("pipeline", [[plan.image.read_bytes()]], service(model))
    wrong = "no answer"
    deadline = started + START_LIMIT_S
    while time.perf_counter() < deadline:
        if process.poll() is not None:
            raise UnfitError(f"it ended with {process.returncode}: {_end_of(log)}")
        try:
            status, body = _ask(how.url, post)
        except (OSError, http.client.HTTPException):
            time.sleep(0.05)
            continue
        faulty = fault(body, wanted) if status == 200 else f"HTTP {status}"
        if faulty is None:
            return time.perf_counter() - started
        # A server that is still starting may say so in its own way; a wrong label stays wrong.
        wrong = faulty
        time.sleep(0.05)
        if status == 200:
            deadline = min(deadline, time.perf_counter() + 10)
    raise UnfitError(f"no good answer in {time.perf_counter() - started:.0f} s: {wrong}; {_end_of(log)}")


def _ask(url: str, post: Post) -> tuple[int, bytes]:
    where = urlsplit(url)
    connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=60)
    try:
        connection.request("POST", post.path, post.body, {"Content-Type": post.media_type})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def _end_of(log: Path) -> str:
    lines = log.read_text("utf-8", "replace").strip().splitlines()
    return " | ".join(lines[-3:])[-400:] or "no output"


def _throughput(run: Run, clients: int) -> float:
    """Images per second; of clients that never pause as many as they are by the mean latency (Little's law).

    A count would depend on where in a batch the time begins and ends: of 5 images per second, batches of 8
    make a third more or less. Where requests failed it is a count all the same.
    """
    latency = run.latency_ms()
    return run.images_per_s if run.errors or not latency else 1000 * clients / latency["mean"]


def _loads(url: str, model: str, plan: Plan) -> dict[str, Any]:
    """Each number of clients in turn, fewest first.

    The warm-up and the measured time are both at least as long as one round of all clients takes, so that a
    full queue is what is measured, however slow the server; and as long as several of the rivals' batches,
    whose answers come all at once.
    """
    image = plan.image.read_bytes()
    (post,) = posts("pipeline", [[image]], service(model))
    started = time.perf_counter()
    _ask(url, post)
    rate = 1 / (time.perf_counter() - started)
    loads: dict[str, Any] = {}
    for clients in sorted(plan.clients):
        one_round = clients / rate
        if one_round > plan.patience_s:
            loads[str(clients)] = {"not_offered": f"a request would take {one_round:.0f} s"}
            continue
        run = offer(
            url,
            image,
            "pipeline",
            clients,
            max(plan.seconds, one_round, BATCHES * min(clients, BATCH) / rate),
            service(model),
            warm_up_s=max(1, one_round),
        )
        latency = run.latency_ms()
        loads[str(clients)] = {
            "images_per_s": _throughput(run, clients),
            "p50_ms": latency["p50"] if latency else None,
            "p99_ms": latency["p99"] if latency else None,
            "answers": run.answers,
            "errors": dict(run.errors),
            "examples": dict(run.examples),
            "generator_cpu_s": run.cpu_seconds,
            "seconds": run.seconds,
        }
        rate = max(rate, run.images_per_s)
    return loads
