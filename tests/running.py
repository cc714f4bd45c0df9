"""Starts the real ``pdserve`` command and servers, in processes of their own on free ports."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx

_READY = re.compile(r"ready: \w+ at (?:https?://[\d.]+:(\d+))?(?: and )?(?:gRPC on [\d.]+:(\d+))?")


def environment(home: Path, **more: str) -> dict[str, str]:
    """The environment of a child: its own home, none of the caller's PDSERVE_ settings or proxies."""
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith("PDSERVE_") and not key.lower().endswith("_proxy")
    }
    return kept | {"PDSERVE_HOME": str(home), "PYTHONUTF8": "1"} | more


def pdserve(
    home: Path, *arguments: str, stdin: bytes | None = None, **environ: str
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; output as text."""
    done = subprocess.run(
        [sys.executable, "-m", "pdserve", *arguments],
        input=stdin,
        capture_output=True,
        env=environment(home, **environ),
        timeout=120,
        check=False,
    )
    out, err = done.stdout.decode("utf-8"), done.stderr.decode("utf-8")
    return subprocess.CompletedProcess(done.args, done.returncode, out, err)


@dataclass
class Server:
    """A running server. Ports are 0 for a door that is shut."""

    process: "subprocess.Popen[bytes]"
    log_path: Path
    http_port: int = 0
    rpc_port: int = 0
    exit_code: int | None = field(default=None)

    @property
    def url(self) -> str:
        scheme = "https" if " at https://" in self.log else "http"
        return f"{scheme}://127.0.0.1:{self.http_port}"

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.rpc_port}"

    @property
    def log(self) -> str:
        return self.log_path.read_text("utf-8")

    @property
    def queued(self) -> int:
        """Images that wait for an engine, by /metrics."""
        text = httpx.get(f"{self.url}/metrics", trust_env=False, timeout=30).text
        return sum(
            int(float(count)) for count in re.findall(r"^pdserve_queue_images\{.*\} (.+)$", text, re.M)
        )

    def interrupt(self, number: int = signal.SIGINT) -> None:
        """Send a signal, as Ctrl-C does."""
        self.process.send_signal(number)

    def wait(self, timeout: float = 30) -> int:
        """Wait for the end; the exit code."""
        self.exit_code = self.process.wait(timeout)
        return self.exit_code


@contextmanager
def start(
    home: Path,
    *options: str,
    service: str = "classification",
    ports: Sequence[str] = (),
    module: str = "pdserve",
    **environ: str,
) -> Iterator[Server]:
    """Start ``pdserve serve SERVICE`` on free ports and wait until it is ready; ``module`` is the program."""
    chosen = tuple(ports) or ("--http-port", "0", "--rpc-port", "0")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        log_path = Path(folder) / "log"
        with log_path.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", module, "serve", service, *options, *chosen],
                cwd=Path(__file__).parents[1],
                stdout=subprocess.DEVNULL,
                stderr=log,
                env=environment(home, **environ),
            )
        server = Server(process, log_path)
        try:
            _wait_until_ready(server)
            yield server
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait(5)


def _wait_until_ready(server: Server) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        if found := _READY.search(server.log):
            server.http_port, server.rpc_port = (int(port or 0) for port in found.groups())
            return
        if server.process.poll() is not None:
            break
        time.sleep(0.02)
    raise AssertionError(f"the server did not start:\n{server.log}")
