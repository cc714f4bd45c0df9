"""``pdserve serve --runtime paddle-serving``: check, write the folder, start the pipeline, watch it.

The service counts as ready when a first request, sent as its callers send theirs, is answered.
"""

import base64
import contextlib
import http.client
import io
import json
import logging
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from pdserve.errors import EngineError, PdserveError
from pdserve.models.home import Home
from pdserve.runtimes.paddle_serving import interpreter, unsupported, work_folder
from pdserve.runtimes.paddle_serving.interpreter import Interpreter
from pdserve.runtimes.paddle_serving.process import Process
from pdserve.runtimes.paddle_serving.work_folder import WorkFolder
from pdserve.services.net import bind
from pdserve.services.telemetry.logs import open_log
from pdserve.settings import ServerSettings, ServiceSettings

log = logging.getLogger("pdserve")

Fields = dict[str, str]
"""An answer's values by key."""
OpenPorts = tuple[int | None, int]
"""HTTP's (None: no HTTP listener) and gRPC's."""

_POLL_S = 0.05
_FIRST_ANSWER_S = 600
_AFTER_GRACE_S = 5  # for what the service does besides finishing its requests
# How packages of the wrong versions fail, as a rule at their import.
_MISFITS = ("ImportError", "ModuleNotFoundError", "AttributeError", "TypeError")


def serve(settings: ServiceSettings, home: Home, python: Path | None, environ: Mapping[str, str]) -> None:
    """Run the service until SIGINT or SIGTERM, then let running requests finish, and return.

    Raises configuration errors before anything is started; EngineError where the service ends by itself.
    """
    server = settings.server
    notes = unsupported.check(settings)
    with open_log(server.log_file, server.log_format), _on_signals() as stop:
        for note in notes:
            log.warning("%s", note)
        chosen = interpreter.choose(python, environ, home, needed(settings))
        ports = free_ports(server)
        log.info("%s: %s", chosen, ", ".join(chosen.versions))
        with tempfile.TemporaryDirectory(prefix="pdserve-") as scratch:
            folder = work_folder.write(settings, home, Path(scratch), ports, work_folder.link)
            for note in folder.notes:
                log.warning("%s", note)
            with launched(chosen, folder, server, environ) as process:
                if first_answer(process, server.name, ports, stop) is not None:
                    log.info("ready: %s at %s", folder.kind, " and ".join(_addresses(ports)))
                    _wait(process, stop)
        log.info("stopped")


def needed(settings: ServiceSettings) -> dict[str, str]:
    """Module -> package of all that the service imports."""
    dag = settings.sources.content.get("dag") or {}
    return {
        **interpreter.NEEDED,
        **(interpreter.FAISS if "index" in type(settings.options).model_fields else {}),
        **(interpreter.PROMETHEUS if dag.get("enable_prometheus") else {}),
    }


def free_ports(server: ServerSettings) -> OpenPorts:
    """The ports to listen on; for one of 0, and for gRPC, which HTTP passes, one that is free.

    Raises SettingsError for a port in use.
    """
    wanted = (server.http_port or 0, server.rpc_port or 0, server.prometheus_port or 0)
    opened = [bind("0.0.0.0", port)[0] for port in wanted]
    http_port, rpc_port, _ = (each.getsockname()[1] for each in opened)
    for each in opened:
        each.close()
    return None if server.http_port is None else http_port, rpc_port


@contextlib.contextmanager
def launched(
    python: Interpreter, folder: WorkFolder, server: ServerSettings, environ: Mapping[str, str]
) -> Iterator[Process]:
    """The service's processes, while the block runs."""
    command = [str(python.path), "-u", folder.script, "--grace", str(server.grace_s)]
    # Without proxies: the service's own parts talk over HTTP/2.
    passed = {key: value for key, value in environ.items() if not key.lower().endswith("_proxy")}
    own = {
        # Where the published packages put their notes of ports and processes, and their logs.
        "SERVING_HOME": str(folder.path),
        "SERVING_LOG_PATH": str(folder.path),
        "GLOG_minloglevel": "1",  # Paddle's warnings and errors, without how it optimises
    }
    process = Process(command, folder.path, passed | own)
    try:
        yield process
    finally:
        process.stop(server.grace_s + _AFTER_GRACE_S)


def first_answer(process: Process, name: str, ports: OpenPorts, stop: threading.Event) -> Fields | None:
    """The answer to the first request; None when ``stop`` is set meanwhile.

    Raises EngineError where the service ends, answers an error, or does not answer within ten minutes.
    """
    results: list[Fields | PdserveError] = []

    def ask() -> None:
        try:
            results.append(_ask(name, *ports))
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


def grey_image(side: int = 256) -> bytes:
    """A grey PNG, large enough for the usual crops."""
    from PIL import Image

    out = io.BytesIO()
    Image.new("RGB", (side, side), (127, 127, 127)).save(out, "PNG")
    return out.getvalue()


def _ask(name: str, http_port: int | None, rpc_port: int) -> Fields:
    """Repeat a request until it is answered; by HTTP where that is served, which passes gRPC."""
    image = base64.b64encode(grey_image()).decode()
    until = time.monotonic() + _FIRST_ANSWER_S
    while time.monotonic() < until:
        try:
            if http_port:
                number, message, fields = _over_http(name, http_port, image)
            else:
                number, message, fields = _over_grpc(name, rpc_port, image)
        except (OSError, http.client.HTTPException):
            time.sleep(_POLL_S)
            continue
        if number:
            raise EngineError(f"Paddle Serving answers the first request with err_no {number}: {message}")
        return fields
    raise EngineError(f"Paddle Serving did not answer within {_FIRST_ANSWER_S} s.")


def _over_http(name: str, port: int, image: str) -> tuple[int, str, Fields]:
    """err_no, err_msg, values. Raises OSError or HTTPException where there is no answer yet."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_FIRST_ANSWER_S)
    with contextlib.closing(connection):
        body = json.dumps({"key": ["image"], "value": [image]})
        connection.request("POST", f"/{name}/prediction", body)
        response = connection.getresponse()
        text = response.read()
    if response.status == 503:  # the gateway is up, and the service behind it is not yet
        raise OSError("unavailable")
    if response.status != 200:
        raise EngineError(f"Paddle Serving answers the first request with HTTP {response.status}.")
    answer = json.loads(text)
    return answer["err_no"], answer["err_msg"], dict(zip(answer["key"], answer["value"], strict=True))


def _over_grpc(name: str, port: int, image: str) -> tuple[int, str, Fields]:
    import grpc

    from pdserve.formats.protos import pipeline

    with grpc.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.enable_http_proxy", 0)]) as channel:
        call = channel.unary_unary(
            pipeline.METHOD,
            request_serializer=pipeline.request_class().SerializeToString,
            response_deserializer=pipeline.response_class().FromString,
        )
        request = pipeline.request_class()(key=["image"], value=[image], name=name)
        try:
            answer = call(request, timeout=_FIRST_ANSWER_S)
        except grpc.RpcError as error:
            code = error.code()
            if code is grpc.StatusCode.UNAVAILABLE:
                raise OSError("unavailable") from error
            raise EngineError(f"Paddle Serving answers the first request with {code.name}.") from error
    return answer.err_no, answer.err_msg, dict(zip(answer.key, answer.value, strict=True))


def _wait(process: Process, stop: threading.Event) -> None:
    while not stop.wait(_POLL_S):
        if process.ended:
            raise _ended(process)
    log.info("stopping: no new requests, finishing those that run")


def _ended(process: Process) -> EngineError:
    code = process.stop(0)
    how = f"with exit code {code}" if code >= 0 else f"by {signal.Signals(-code).name}"
    detail = f"; the last that it wrote: {process.last}" if process.last else ""
    if process.last.startswith(_MISFITS):
        detail += f". Its packages do not fit each other; `{interpreter.INSTALL}` brings some that do."
    return EngineError(f"Paddle Serving ended {how}{detail}")


def _addresses(ports: OpenPorts) -> Iterator[str]:
    http_port, rpc_port = ports
    if http_port is not None:
        yield f"http://127.0.0.1:{http_port}"
    yield f"gRPC on 127.0.0.1:{rpc_port}"


@contextlib.contextmanager
def _on_signals() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set; SIGHUP, at which the native runtime reloads, only logs."""
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
