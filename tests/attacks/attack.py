"""What an attack is, and what it is given: a server on the loopback, or commands, in a home of their own."""

import base64
import contextlib
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from pdserve.formats.protos import pipeline
from tests import running
from tests.attacks import process
from tests.kinds import BOXES, OPTIONS, build_home, two
from tests.tiny import NAMES, expected, picture

KINDS = ("image", "body", "protocol", "grpc", "browser", "file", "client", "key", "fault")
"""The kinds of attack, each a module here."""

RED = (255, 0, 0)


@dataclass(frozen=True)
class Attack:
    """One attack; see the package.

    ``run`` attacks and asserts what holds. ``without``: "module:attribute" (dots for what is in a class) to
    what takes its place where the defence is to be missing; ``undefended_options`` are the server's options
    then, None for the same. ``environ`` is added to the server's and the commands' environment.
    """

    name: str
    kind: str
    run: Callable[["Target"], None]
    without: Mapping[str, Any]
    service: str | None = "classification"
    options: tuple[str, ...] = ()
    undefended_options: tuple[str, ...] | None = None
    environ: Mapping[str, str] = field(default_factory=dict)
    full: bool = False

    @property
    def wants(self) -> tuple[Any, ...]:
        """Attacks with the same may share a server."""
        return self.service, self.options, tuple(sorted(self.environ.items()))


def attack(**named: Any) -> Callable[[Callable[["Target"], None]], Attack]:
    """Make a function an `Attack`, whose name is the function's and whose kind is its module's."""

    def decorate(function: Callable[["Target"], None]) -> Attack:
        kind = function.__module__.rpartition(".")[2]
        return Attack(function.__name__, kind, function, **named)

    return decorate


@dataclass
class Seen:
    """What was seen from outside while something went on.

    ``grown_mb``: the most memory (anonymous, of the server and its children, in MB) above that at the
    beginning. ``health_s``: the longest that the health route took, which grows when the event loop stands.
    """

    grown_mb: float = 0.0
    health_s: float = 0.0


class Target:
    """What is attacked. ``home`` is a PDSERVE_HOME as `tests.kinds.build_home` makes it."""

    def __init__(self, home: Path, service: str | None, without: str = "") -> None:
        self.home = home
        self.service = service
        self.server: running.Server | None = None
        self._without = without
        self._stack = contextlib.ExitStack()
        self._key: dict[str, str] = {}
        self._http: httpx.Client | None = None
        self._channel: grpc.Channel | None = None

    def close(self) -> None:
        self._stack.close()

    # The server

    def serve(self, options: tuple[str, ...], environ: Mapping[str, str]) -> None:
        """Start the server."""
        assert self.service is not None
        if key := environ.get("PDSERVE_API_KEY"):
            self._key = {"Authorization": f"Bearer {key}"}
        self.server = self._stack.enter_context(
            running.start(
                self.home,
                *OPTIONS[self.service],
                *options,
                service=self.service,
                module=self._module,
                **self._environ(environ),
            )
        )

    @contextlib.contextmanager
    def start(self, *options: str, service: str | None = None, **environ: str) -> Iterator["Target"]:
        """Another server, of the attack's own, in a copy of the home; for attacks that stop or change it."""
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            home = Path(shutil.copytree(self.home, Path(folder) / "home", symlinks=True))
            own = Target(home, service or self.service or "classification", self._without)
            with contextlib.closing(own):
                own.serve(options, environ)
                yield own

    @property
    def running(self) -> running.Server:
        """The server. Raises AssertionError for an attack that has none."""
        assert self.server is not None, "this attack asks for no server"
        return self.server

    @property
    def pid(self) -> int:
        return self.running.process.pid

    @property
    def port(self) -> int:
        """The port of HTTP on 127.0.0.1."""
        return self.running.http_port

    @property
    def log(self) -> str:
        return self.running.log

    @property
    def route(self) -> str:
        """Its service's route."""
        return f"/v1/{self.service}"

    # Doors

    @property
    def http(self) -> httpx.Client:
        """An HTTP client of the server, with a time-out of 60 s; with the server's key where it has one."""
        if self._http is None:
            client = httpx.Client(base_url=self.running.url, trust_env=False, timeout=60, headers=self._key)
            self._http = self._stack.enter_context(client)
        return self._http

    @property
    def channel(self) -> grpc.Channel:
        """A gRPC channel to the server, without limits of its own."""
        if self._channel is None:
            limits = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
            channel = grpc.insecure_channel(self.running.target, options=limits)
            self._channel = self._stack.enter_context(channel)
        return self._channel

    def rpc(self, keys: list[str], values: list[str], timeout_s: float = 60, **named: Any) -> Any:
        """Call the pipeline protocol's method; its Response. Raises grpc.RpcError."""
        call = self.channel.unary_unary(
            pipeline.METHOD,
            request_serializer=pipeline.request_class().SerializeToString,
            response_deserializer=pipeline.response_class().FromString,
        )
        return call(pipeline.request_class()(key=keys, value=values), timeout=timeout_s, **named)

    @contextlib.contextmanager
    def connection(self, timeout_s: float = 20) -> Iterator[socket.socket]:
        """A bare connection to the HTTP port."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=timeout_s) as opened:
            yield opened

    def raw(self, data: bytes, timeout_s: float = 20, until: bytes | None = None) -> bytes:
        """Send bytes on a connection of their own; what comes until its end, ``until`` or ``timeout_s``."""
        out = b""
        with self.connection(timeout_s) as opened:
            with contextlib.suppress(OSError):  # it may be refused, and shut, before all was sent
                opened.sendall(data)
            with contextlib.suppress(OSError):
                while more := opened.recv(65536):
                    out += more
                    if until and until in out:
                        break
        return out

    # Commands

    @property
    def _module(self) -> str:
        return "tests.attacks.without" if self._without else "pdserve"

    def _environ(self, more: Mapping[str, str]) -> dict[str, str]:
        return {**more, **({"PDSERVE_TEST_WITHOUT": self._without} if self._without else {})}

    def command(
        self, *arguments: str, stdin: bytes | None = None, timeout_s: float = 60, **environ: str
    ) -> "subprocess.CompletedProcess[str]":
        """Run ``pdserve ARGUMENTS`` to its end. Raises subprocess.TimeoutExpired."""
        return self._run([self._module, *arguments], stdin, timeout_s, environ)

    def python(
        self, code: str, *arguments: str, timeout_s: float = 60, **environ: str
    ) -> "subprocess.CompletedProcess[str]":
        """Run Python code in a process of its own, as ``python -c`` does: for the Python clients."""
        return self._run(["tests.attacks.without", "-c", code, *arguments], None, timeout_s, environ)

    def _run(
        self, arguments: list[str], stdin: bytes | None, timeout_s: float, environ: Mapping[str, str]
    ) -> "subprocess.CompletedProcess[str]":
        done = subprocess.run(
            [sys.executable, "-m", *arguments],
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            cwd=Path(__file__).parents[2],
            env=running.environment(self.home, **self._environ(environ)),
            timeout=timeout_s,
            check=False,
        )
        out, err = (stream.decode("utf-8", "replace") for stream in (done.stdout, done.stderr))
        return subprocess.CompletedProcess(done.args, done.returncode, out, err)

    # What is seen of it

    def files(self) -> int:
        """Files and connections that the server has open."""
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))

    def until(self, holds: Callable[[], object], seconds: float = 30) -> None:
        """Wait until this is so. Raises AssertionError after ``seconds``."""
        deadline = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < deadline, f"not within {seconds} s"
            time.sleep(0.02)

    def memory_mb(self) -> float:
        """Anonymous memory of the server and its children, in MB."""
        return process.anonymous_mb(self.pid)

    def health(self) -> float:
        """Seconds that the health route takes. Raises AssertionError unless it answers 200."""
        started = time.monotonic()
        status = self.http.get("/v2/health/ready").status_code
        assert status == 200, f"health answers {status}"
        return time.monotonic() - started

    @contextlib.contextmanager
    def watch(self) -> Iterator[Seen]:
        """Watch memory and health while the attack goes on; what was seen is complete afterwards."""
        self.good()  # what is loaded at the first request is no part of it
        seen, over = Seen(), threading.Event()
        before = self.memory_mb()
        peak = process.Peak(self.pid)

        def look() -> None:
            with httpx.Client(base_url=self.running.url, trust_env=False, timeout=120) as client:
                while True:
                    started = time.monotonic()
                    with contextlib.suppress(httpx.HTTPError):
                        client.get("/v2/health/live")
                    seen.health_s = max(seen.health_s, time.monotonic() - started)
                    if over.wait(0.01):
                        return

        def weigh() -> None:
            while not over.wait(0.02):
                seen.grown_mb = max(seen.grown_mb, process.anonymous_mb(self.pid) - before)

        threads = [threading.Thread(target=each, daemon=True) for each in (look, weigh)]
        for thread in threads:
            thread.start()
        try:
            yield seen
        finally:
            over.set()
            for thread in threads:
                thread.join()
            seen.grown_mb = max(seen.grown_mb, peak.grown_mb())

    def good(self) -> None:
        """A good request of another caller is answered, and right."""
        if self.service == "classification":
            answer = self.http.post(self.route, content=picture(RED), params={"top_k": 3})
            assert answer.status_code == 200, answer.text
            (result,) = answer.json()["results"]
            assert next(label["label"] for label in result["labels"]) == "red"
            scores = {label["label"]: label["score"] for label in result["labels"]}
            assert [scores[name] for name in NAMES] == pytest.approx(expected(RED), abs=1e-4)
            return
        answer = self.http.post(self.route, content=two())
        assert answer.status_code == 200, answer.text
        (result,) = answer.json()["results"]
        if self.service == "embedding":
            assert sum(each * each for each in result["embedding"]) == pytest.approx(1, abs=1e-6)
        else:
            boxes = {tuple(map(round, each["bbox"])) for each in result["objects"]}
            assert boxes >= set(BOXES)

    def good_rpc(self) -> None:
        """A good request over gRPC is answered; of classification, by its label."""
        answer = self.rpc(["image"], [base64.b64encode(picture(RED)).decode()])
        assert answer.err_no == 0, answer.err_msg
        if self.service == "classification":
            assert "red" in answer.value[0]


def base_home(folder: Path) -> Path:
    """The home that targets have copies of."""
    return build_home(folder)
