"""``pdserve serve --runtime paddle-serving``: check, write the folder, launch the pipeline, watch it."""

import contextlib
import logging
import signal
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

from pdserve.errors import EngineError, PdserveError
from pdserve.models.home import Home
from pdserve.runtimes.paddle_serving import (
    interpreter,
    model_folder,
    packages,
    refusals,
    warm_up,
    work_folder,
)
from pdserve.runtimes.paddle_serving.interpreter import Interpreter
from pdserve.runtimes.paddle_serving.process import Process
from pdserve.runtimes.paddle_serving.refusals import AnySettings
from pdserve.runtimes.paddle_serving.work_folder import WorkFolder
from pdserve.services.sockets import bind
from pdserve.services.telemetry.logs import open_log
from pdserve.settings import RecognitionSettings, ServerSettings

log = logging.getLogger("pdserve")

OpenPorts = tuple[int | None, int]
"""HTTP's, None for a door that is shut, and gRPC's."""

_POLL_S = 0.05
_AFTER_GRACE_S = 5  # for what the service does besides finishing its requests
# How packages of the wrong versions fail, as a rule when they are imported.
_MISFITS = ("ImportError", "ModuleNotFoundError", "AttributeError", "TypeError")


def serve(settings: AnySettings, home: Home, python: Path | None, environ: Mapping[str, str]) -> None:
    """Run the service until SIGINT or SIGTERM, then let running requests finish, and return.

    Raises what is wrong before anything is started; EngineError where the service ends by itself.
    """
    server = settings.server
    notes = refusals.check(settings)
    with open_log(server.log_file, server.log_format), _on_signals() as stop:
        for note in notes:
            log.warning("%s", note)
        chosen = interpreter.choose(python, environ, home, needed(settings))
        ports = free_ports(server)
        log.info("%s: %s", chosen, ", ".join(chosen.versions))
        with tempfile.TemporaryDirectory(prefix="pdserve-") as scratch:
            folder = work_folder.write(settings, home, Path(scratch), ports, model_folder.link)
            for note in folder.notes:
                log.warning("%s", note)
            with launched(chosen, folder, server, environ) as process:
                if answered(process, server.name, ports, stop) is not None:
                    log.info("ready: %s at %s", folder.kind, " and ".join(_addresses(ports)))
                    _wait(process, stop)
        log.info("stopped")


def needed(settings: AnySettings) -> dict[str, str]:
    """Module -> package of all that the service imports."""
    dag = settings.given.content.get("dag") or {}
    return {
        **packages.NEEDED,
        **(packages.FAISS if isinstance(settings, RecognitionSettings) else {}),
        **(packages.PROMETHEUS if dag.get("enable_prometheus") else {}),
    }


def free_ports(server: ServerSettings) -> OpenPorts:
    """The ports to listen on; for one of 0, and for gRPC, which HTTP passes, one that is free.

    Raises SettingsError for a port in use.
    """
    wanted = (server.http_port or 0, server.rpc_port or 0, server.prometheus_port or 0)
    opened = [bind("0.0.0.0", port) for port in wanted]
    http, rpc, _ = (each.getsockname()[1] for each in opened)
    for each in opened:
        each.close()
    return None if server.http_port is None else http, rpc


@contextlib.contextmanager
def launched(
    python: Interpreter, folder: WorkFolder, server: ServerSettings, environ: Mapping[str, str]
) -> Iterator[Process]:
    """The service's processes, while the block runs."""
    command = [str(python.path), "-u", folder.script, "--grace", str(server.grace_s)]
    proxies = {key for key in environ if key.lower().endswith("_proxy")}  # its own parts talk over HTTP/2
    kept = {key: value for key, value in environ.items() if key not in proxies}
    own = {
        # Where the published packages put their notes of ports and processes, and their logs.
        "SERVING_HOME": str(folder.path),
        "SERVING_LOG_PATH": str(folder.path),
        "GLOG_minloglevel": "1",  # Paddle's warnings and errors, without how it optimises
    }
    process = Process(command, folder.path, kept | own)
    try:
        yield process
    finally:
        process.stop(server.grace_s + _AFTER_GRACE_S)


def answered(process: Process, name: str, ports: OpenPorts, stop: threading.Event) -> warm_up.Fields | None:
    """What the first request is answered with; None when told to stop. Raises EngineError."""
    results: list[warm_up.Fields | PdserveError] = []

    def ask() -> None:
        try:
            results.append(warm_up.ask(name, *ports))
        except PdserveError as error:
            results.append(error)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    while asking.is_alive() and not stop.is_set():
        if process.ended:
            raise _ended(process)
        asking.join(_POLL_S)
    if stop.is_set():
        return None
    (result,) = results
    if isinstance(result, PdserveError):
        raise result
    return result


def _wait(process: Process, stop: threading.Event) -> None:
    while not stop.wait(_POLL_S):
        if process.ended:
            raise _ended(process)
    log.info("stopping: no new requests, finishing those that run")


def _ended(process: Process) -> EngineError:
    code = process.stop(0)
    how = f"with exit code {code}" if code >= 0 else f"by {signal.Signals(-code).name}"
    said = f"; the last that it wrote: {process.last}" if process.last else ""
    if process.last.startswith(_MISFITS):
        said = f"{said}. Its packages do not fit each other; `{interpreter.INSTALL}` brings some that do."
    return EngineError(f"Paddle Serving ended {how}{said}")


def _addresses(ports: OpenPorts) -> Iterator[str]:
    http, rpc = ports
    if http is not None:
        yield f"http://127.0.0.1:{http}"
    yield f"gRPC on 127.0.0.1:{rpc}"


@contextlib.contextmanager
def _on_signals() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set; SIGHUP, at which the native runtime reloads, is told off."""
    stop = threading.Event()
    handlers = {
        signal.SIGINT: lambda *_: stop.set(),
        signal.SIGTERM: lambda *_: stop.set(),
        signal.SIGHUP: lambda *_: log.warning("Paddle Serving reloads nothing; stop it and start it again"),
    }
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
