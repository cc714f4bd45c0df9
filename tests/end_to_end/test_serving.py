"""Start, checks before a port is opened, stop: the real server as a process."""

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import httpx
import pytest

from pdserve.clients import HttpClient, RpcClient
from tests.running import Server, pdserve
from tests.services.watching import until
from tests.tiny import build_serving_model, picture

RED = (255, 0, 0)
GUIDE = """
worker_num: 1
http_port: {http}
rpc_port: {rpc}
dag:
    is_thread_op: False
op:
    imagenet:
        concurrency: 1
        local_service_conf:
            model_config: {model}
            device_type: {device_type}
            devices: "{devices}"
            client_type: local_predictor
            fetch_list: ["prediction"]
"""


def free_ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as two:
        one.bind(("127.0.0.1", 0))
        two.bind(("127.0.0.1", 0))
        return one.getsockname()[1], two.getsockname()[1]


def serve(home: Path, *options: str, **environ: str) -> tuple[int, str]:
    """Start a server that must refuse to start: its exit code and what it said."""
    done = pdserve(
        home, "serve", "classification", "--http-port", "0", "--rpc-port", "0", *options, **environ
    )
    assert "ready" not in done.stderr
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr


def test_the_guides_configuration_works_unchanged(
    tiny_home: Path, tmp_path: Path, serving: Callable[..., Server]
) -> None:
    build_serving_model(tmp_path, "ResNet50_vd")
    http, rpc = free_ports()
    config = tmp_path / "config.yml"
    values = {"http": http, "rpc": rpc, "model": "ResNet50_vd_serving"}
    config.write_text(GUIDE.format(device_type=1, devices="0", **values))
    done = pdserve(tiny_home, "serve", "classification", "--config", str(config))
    assert done.returncode == 1  # it asks for a GPU, and there is none
    assert "gpu:0" in done.stderr

    server = serving("--config", str(config), "--cpu", ports=("--host", "127.0.0.1"))
    assert (server.http_port, server.rpc_port) == (http, rpc)
    with HttpClient(server.url) as over_http, RpcClient(server.target, name="imagenet") as over_rpc:
        assert over_http.predict(picture(RED))[0].label == "red"
        assert over_rpc.predict(picture(RED))[0].label == "red"


def test_one_door_only(tiny_home: Path, tmp_path: Path, serving: Callable[..., Server]) -> None:
    http, _ = free_ports()
    config = tmp_path / "config.yml"
    config.write_text(f"http_port: {http}\n")
    server = serving("--config", str(config), "--model", "tiny", ports=("--host", "127.0.0.1"))
    assert (server.http_port, server.rpc_port) == (http, 0)


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (("--model", "nothing"), 1, "pdserve fetch --list"),
        (("--model", "ResNet18", "--offline"), 1, "pdserve fetch ResNet18"),
        (("--model", "tiny", "--labels", "no-such-file"), 2, "no-such-file"),
        (("--model", "tiny", "--engine", "paddle", "--gpu", "0"), 1, "gpu:0"),
        (("--model", "tiny", "--gpu", "0"), 1, "--cpu"),
        (("--model", "tiny", "--resize", "64,64"), 1, "32×32"),
        (("--model", "tiny", "--resize", "a,b"), 2, "resize"),
        (("--model", "tiny", "--mean", "1,2"), 2, "mean"),
        (("--model", "tiny", "--interpolation", "wavelet"), 2, "wavelet"),
        (("--model", "tiny", "--precision", "fp4"), 2, "precision"),
        (("--model", "tiny", "--host", "192.0.2.1"), 2, "192.0.2.1"),
        (("--config", "no-such.yml"), 2, "no-such.yml"),
    ],
)
def test_what_is_wrong_is_said_before_a_port_is_opened(
    tiny_home: Path, options: tuple[str, ...], code: int, said: str
) -> None:
    returned, text = serve(tiny_home, *options)
    assert said in text
    assert returned == code


def test_the_wrong_number_of_labels(tiny_home: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("red\ngreen\n")
    returned, text = serve(tiny_home, "--model", "tiny", "--labels", str(labels))
    assert returned == 2
    assert "3 outputs" in text
    assert "2 labels" in text


def test_wrong_aliases_are_said_with_the_command_that_mends_them(tiny_home: Path, tmp_path: Path) -> None:
    model = build_serving_model(tmp_path)
    assert pdserve(tiny_home, "alias", str(model.path), "--feed", "image=x").returncode == 0
    returned, text = serve(tiny_home, "--model", str(model.path))
    assert returned == 1
    command = text.split("`")[1]
    assert command == f"pdserve alias {model.path} --feed x=image"
    assert pdserve(tiny_home, *command.split()[1:]).returncode == 0
    with HttpClient("http://127.0.0.1:9") as client:
        assert not client.is_ready()


def test_a_broken_model(tiny_home: Path, tmp_path: Path) -> None:
    model = build_serving_model(tmp_path)
    assert model.files.params is not None
    model.files.params.write_bytes(model.files.params.read_bytes()[:-5])
    assert serve(tiny_home, "--model", str(model.path))[0] == 1
    model.files.model.write_bytes(b"hello")
    assert serve(tiny_home, "--model", str(model.path))[0] == 1


@pytest.mark.parametrize("door", ["http", "rpc"])
def test_a_port_in_use(tiny_home: Path, tiny_server: Server, door: str) -> None:
    port = tiny_server.http_port if door == "http" else tiny_server.rpc_port
    other = "rpc" if door == "http" else "http"
    ports = (f"--{door}-port", str(port), f"--{other}-port", "0")
    done = pdserve(tiny_home, "serve", "classification", "--model", "tiny", *ports)
    assert done.returncode == 2
    assert str(port) in done.stderr


def test_environment_and_precedence(serving: Callable[..., Server]) -> None:
    server = serving("--top-k", "1", PDSERVE_MODEL="tiny", PDSERVE_TOP_K="2", PDSERVE_MAX_IMAGES="1")
    with HttpClient(server.url) as client:
        assert len(client.predict(picture(RED))) == 1
        response = httpx.post(
            f"{server.url}/v1/classification",
            files=[("images", ("a", picture(RED))), ("images", ("b", picture(RED)))],
            trust_env=False,
        )
        assert response.status_code == 413


def test_a_log_file(serving: Callable[..., Server], tmp_path: Path) -> None:
    log = tmp_path / "logs" / "pdserve.log"
    server = serving("--model", "tiny", "--log-file", str(log))
    assert "ready: classification" in log.read_text("utf-8")
    assert "ready: classification" in server.log


@pytest.mark.full
@pytest.mark.posix
@pytest.mark.skipif(sys.platform == "win32", reason="sends POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_finishes_what_is_running(serving: Callable[..., Server], number: int) -> None:
    # The delay keeps the requests in the queue until the signal has come.
    server = serving("--model", "tiny", "--max-batch-size", "8", "--max-queue-delay-ms", "3000")
    answers: list[str] = []

    def ask(kind: type[HttpClient] | type[RpcClient]) -> None:
        with kind(server.url if kind is HttpClient else server.target) as client:
            answers.append(client.predict(picture(RED))[0].label)

    threads = [threading.Thread(target=ask, args=(kind,)) for kind in (HttpClient, RpcClient)]
    for thread in threads:
        thread.start()
    until(lambda: server.queued == 2)
    server.interrupt(number)
    for thread in threads:
        thread.join(20)
    assert server.wait() == 0
    assert answers == ["red", "red"]
    assert "stopped" in server.log
    assert "Traceback" not in server.log
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", server.http_port), 1)


@pytest.mark.posix
@pytest.mark.skipif(sys.platform == "win32", reason="sends POSIX signals")
def test_a_stop_while_nothing_runs_is_quick(serving: Callable[..., Server]) -> None:
    server = serving("--model", "tiny")
    with HttpClient(server.url) as client:  # an idle connection that is kept alive does not hold it up
        assert client.predict(picture(RED))
        server.interrupt(signal.SIGTERM)
        assert server.wait(10) == 0


@pytest.mark.full
@pytest.mark.skipif(sys.platform != "linux", reason="looks for children in /proc")
@pytest.mark.parametrize(
    ("engine", "package"), [("openvino", "openvino"), ("paddle", "paddle"), ("onnx", "onnxruntime")]
)
def test_a_server_is_one_process(serving: Callable[..., Server], engine: str, package: str) -> None:
    """No child but decoders, which may be killed: none leaves a server that looks alive and is not."""
    if find_spec(package) is None:
        pytest.skip(f'needs {package}: pip install "pdserve[{engine}]"')
    server = serving("--model", "tiny", "--engine", engine, "--instances", "2")
    with HttpClient(server.url) as client:
        assert client.predict(picture(RED))[0].label == "red"
        decoders = children(server.process.pid)
        assert decoders  # the picture is a PNG
        for pid in decoders:
            assert "decoder_process.py" in Path(f"/proc/{pid}/cmdline").read_text()
            os.kill(pid, signal.SIGKILL)
        until(lambda: not {*decoders} & {*children(server.process.pid)})
        assert client.predict(picture(RED))[0].label == "red"


def children(pid: int) -> list[int]:
    """The processes that a process has started, and that have not ended."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # State and parent follow the name, which is in brackets and may hold any character.
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
            if int(parent) == pid and state != "Z":
                found.append(int(path.parent.name))
    return found
