"""``pdserve bench`` as typed, against real servers with a tiny model."""

import asyncio
import json
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.certificates import issue
from tests.extras import import_or_skip
from tests.running import Server, environment, pdserve, start
from tests.tiny import build_embedder, picture
from tests.tools.bench.odd_server import GOOD

pytestmark = pytest.mark.full

QUICK = ("--requests", "12", "--clients", "2", "--warm-up", "0")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for name, color in (("r", (255, 0, 0)), ("g", (0, 255, 0)), ("b", (0, 0, 255))):
        (folder / f"{name}.png").write_bytes(picture(color))
    return folder


def bench(home: Path, *arguments: object, code: int = 0) -> tuple[list[dict[str, Any]], str]:
    done = pdserve(home, "bench", *map(str, arguments), "--json")
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()], done.stderr


def test_every_route(tiny_server: Server, tiny_home: Path, images: Path) -> None:
    routes = "v1,json,form,pipeline,grpc"
    runs, said = bench(
        tiny_home, tiny_server.url, tiny_server.target, "--route", routes, "--images", images, *QUICK
    )
    assert [run["route"] for run in runs] == routes.split(",")
    for run in runs:
        assert (run["answers"], run["errors"], run["clients"]) == (12, {}, 2)
        assert 0 < run["latency_ms"]["p50"] <= run["latency_ms"]["p99"] <= run["latency_ms"]["max"]
        assert run["images_per_s"] == run["requests_per_s"] > 0
    assert "synthetic" not in said


def test_batches_and_the_synthetic_photograph(tiny_server: Server, tiny_home: Path) -> None:
    runs, said = bench(
        tiny_home,
        *(tiny_server.url, tiny_server.target, "--batch", "3"),
        *("--route", "json", "--route", "form,pipeline,grpc", *QUICK),
    )
    assert len(runs) == 4
    for run in runs:
        assert (run["answers"], run["errors"]) == (12, {})
        assert run["images_per_s"] == pytest.approx(3 * run["requests_per_s"], rel=0.01)
    assert "synthetic" in said


def test_an_open_loop(tiny_server: Server, tiny_home: Path, images: Path) -> None:
    runs, _ = bench(
        tiny_home,
        *(tiny_server.url, "--images", images, "--rate", "20,40", "--requests", "8", "--warm-up", "0.1"),
        *("--arrivals", "constant"),
    )
    assert [(run["mode"], run["rate"], run["answers"], run["unsent"]) for run in runs] == [
        ("open", 20, 8, 0),
        ("open", 40, 8, 0),
    ]


def test_for_a_time(tiny_server: Server, tiny_home: Path, images: Path) -> None:
    (run,), _ = bench(
        tiny_home,
        tiny_server.url,
        "--images",
        images,
        "--duration",
        "0.3",
        "--clients",
        "3",
        "--warm-up",
        "0.1",
    )
    assert run["answers"] > 0
    assert 0.2 < run["seconds"] < 1


def test_the_table_the_file_and_the_picture(
    tiny_server: Server, tiny_home: Path, images: Path, tmp_path: Path
) -> None:
    import_or_skip("matplotlib", "plot")
    out, plot = tmp_path / "figures.json", tmp_path / "load.svg"
    arguments = (tiny_server.url, "--images", str(images), "--clients", "1,2", "--requests", "10")
    done = pdserve(tiny_home, "bench", *arguments, "--warm-up", "0", "--out", str(out), "--plot", str(plot))
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines() if line.strip()]
    assert lines[0][:3] == ["route", "load", "images/s"]
    assert [line[:3] for line in lines if line[0] == "v1"][:2] == [
        ["v1", "1", "client"],
        ["v1", "2", "clients"],
    ]
    content = json.loads(out.read_text("utf-8"))
    assert [run["clients"] for run in content["runs"]] == [1, 2]
    assert {"pdserve", "written", "machine"} <= content.keys()
    assert "<svg" in plot.read_text("utf-8")


def test_images_that_the_server_refuses(tiny_server: Server, tiny_home: Path, tmp_path: Path) -> None:
    """One in two is bad."""
    (tmp_path / "a.png").write_bytes(picture((255, 0, 0)))
    (tmp_path / "b.png").write_bytes(b"no image")
    runs, said = bench(
        tiny_home,
        *(tiny_server.url, tiny_server.target, "--images", tmp_path, "--route", "v1,pipeline,grpc", *QUICK),
    )
    assert [(run["answers"], run["errors"]) for run in runs] == [
        (6, {"400 bad_image": 6}),
        (6, {"err_no 10000": 6}),
        (6, {"err_no 10000": 6}),
    ]
    assert "6 × 400 bad_image, as in:" in said


def test_nothing_but_errors(tiny_server: Server, tiny_home: Path, tmp_path: Path) -> None:
    (tmp_path / "b.png").write_bytes(b"no image")
    _, said = bench(tiny_home, tiny_server.url, "--images", tmp_path / "b.png", *QUICK, code=1)
    assert "no request was answered" in said


def test_nobody_there(tiny_home: Path) -> None:
    for url in ("http://127.0.0.1:1", "127.0.0.1:1"):
        _, said = bench(tiny_home, url, "--service", "recognition", code=1)
        assert "pdserve serve recognition" in said
        assert "connection refused" in said


def test_a_route_that_is_not_there(tiny_server: Server, tiny_home: Path) -> None:
    _, said = bench(tiny_home, tiny_server.url, "--service", "recognition", code=1)
    assert "404" in said
    assert "--service" in said
    _, said = bench(tiny_home, tiny_server.url, "--route", "pipeline", "--name", "other", code=1)
    assert "err_no 3002" in said


@pytest.mark.parametrize(
    "arguments",
    [
        ("http://203.0.113.7:80",),
        ("--clients", "8", "--rate", "5"),
        ("--clients", "x"),
        ("--clients", "1.5"),
        ("--rate", "-1"),
        ("--route", "v3"),
        ("--route", "v1", "--batch", "2"),
        ("--plot", "load.gif"),
        ("--out", "gone/figures.json"),
        ("--images", "tests/bench/gone"),
    ],
    ids=" ".join,
)
def test_a_wrong_command_line(tiny_home: Path, arguments: tuple[str, ...]) -> None:
    code = 1 if arguments[0] == "--images" else 2
    _, said = bench(tiny_home, "--service", "classification", *arguments, code=code)
    assert said.count("\n") <= 2


class _Published(BaseHTTPRequestHandler):
    """As the published server: the old route, and nothing else. It asks for no key and tells no stages."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(404, b'{"error":"Not Found","code":5,"message":"Not Found","details":[]}')

    def do_POST(self) -> None:
        content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path != "/imagenet/prediction" or content.keys() != {"key", "value"}:
            self._answer(404, b"{}")
            return
        self._answer(200, b'{"err_no":0,"err_msg":"","key":["label"],"value":["[1]"],"tensors":[]}')

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


class _Slow(_Published):
    """Good answers, 20 a second and client; ready."""

    def do_GET(self) -> None:
        self._answer(200, b"{}")

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        threading.Event().wait(0.05)
        self._answer(200, GOOD)


class _HangsUp(_Published):
    """As a server that speaks TLS does with a caller who does not."""

    def do_GET(self) -> None:
        self.close_connection = True


class _NotReady(_Published):
    def do_GET(self) -> None:
        self._answer(503, b'{"ready":false}')


@pytest.fixture
def other(request: pytest.FixtureRequest) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), request.param)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize("other", [_Published], indirect=True)
def test_a_published_server(other: str, tiny_home: Path) -> None:
    (run,), said = bench(tiny_home, other, "--route", "pipeline", *QUICK)
    assert (run["answers"], run["errors"], run["server"]) == (12, {}, None)
    assert "stages are left out: /metrics answers 404" in said


@pytest.mark.parametrize("other", [_NotReady], indirect=True)
def test_a_server_that_is_not_ready(other: str, tiny_home: Path) -> None:
    _, said = bench(tiny_home, other, *QUICK, code=1)
    assert "is not ready" in said


@pytest.mark.parametrize("other", [_HangsUp], indirect=True)
def test_a_server_that_hangs_up(other: str, tiny_home: Path) -> None:
    _, said = bench(tiny_home, other, *QUICK, code=1)
    assert "closed the connection; if it uses TLS" in said


@pytest.mark.posix
@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
@pytest.mark.parametrize("other", [_Slow], indirect=True)
def test_ctrl_c_tells_what_was_measured(other: str, tiny_home: Path, images: Path) -> None:
    command = [sys.executable, "-m", "pdserve", "bench", other, "--images", str(images), "--service"]
    process = subprocess.Popen(
        [*command, "classification", "--clients", "1,2", "--duration", "1", "--warm-up", "0", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(tiny_home),
        text=True,
    )
    with process:
        assert process.stdout is not None
        first = json.loads(process.stdout.readline())  # when the first run is over the second is at work
        assert first["answers"] > 5
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    (second,) = (json.loads(line) for line in out.splitlines())
    assert second["interrupted"]
    assert second["seconds"] < 1
    assert "Interrupted; the figures are of what was measured until then." in err
    assert "Traceback" not in err


def test_stages_of_a_server_that_tells_them() -> None:
    """The metrics of a real registry, over HTTP, before and after."""
    from pdserve.clients.address import http_address
    from pdserve.clients.credentials import Access
    from pdserve.services.telemetry.metrics import Metrics
    from pdserve.tools.bench.server import ServerProbe, StageReader
    from tests.tools.bench.odd_server import Request, odd_server, response

    metrics = Metrics()
    metrics.stage("infer", 1.0, "tiny")
    heads: list[str] = []

    async def answer(request: Request, writer: asyncio.StreamWriter) -> None:
        heads.append(request.head)
        writer.write(response(metrics.exposition()[0]))

    async def measured() -> Any:
        async with odd_server(answer) as odd:
            stages = StageReader(ServerProbe(http_address(odd.url), Access("secret")), pytest.fail)
            await stages.mark()
            metrics.stage("infer", 0.02, "tiny")
            metrics.batch("tiny", 3)
            return await stages.since_mark()

    server = asyncio.run(measured())
    assert [(s.stage, s.model, round(s.mean_ms, 3)) for s in server.stages] == [("infer", "tiny", 20)]
    assert [(b.model, b.mean) for b in server.batches] == [("tiny", 3)]
    assert all("GET /metrics" in head and "authorization: Bearer secret" in head for head in heads)


def test_keys_and_tls_over_http_and_grpc(tiny_home: Path, images: Path, tmp_path: Path) -> None:
    made = issue(tmp_path / "tls")
    key = tmp_path / "keys"
    key.write_text("a-key-of-more-than-16-characters\n")
    options = ("--api-key", key, "--tls-cert", made.cert, "--tls-key", made.key)
    with start(tiny_home, "--model", "tiny", *map(str, options)) as server:
        addresses = (server.url, server.target, "--images", images, "--route", "v1,grpc", "--ca", made.ca)
        runs, _ = bench(tiny_home, *addresses, "--api-key", key, *QUICK)
        assert [(run["route"], run["answers"], run["errors"]) for run in runs] == [
            ("v1", 12, {}),
            ("grpc", 12, {}),
        ]
        _, said = bench(tiny_home, *addresses, *QUICK, code=1)
        assert "needs a key" in said


def test_recognition(tmp_path: Path, images: Path) -> None:
    home = tmp_path / "home"
    build_embedder(home / "models")
    shutil.copytree(images, tmp_path / "gallery" / "a")
    built = ("--gallery", str(tmp_path / "gallery"), "--out", "colors", "--model", "tiny_embedder")
    made = pdserve(home, "index", "build", *built)
    assert made.returncode == 0, made.stderr
    options = ("--embedder", "tiny_embedder", "--detector", "none", "--index", "colors")
    with start(home, *options, service="recognition") as server:
        routes = "v1,json,form,pipeline,grpc"
        at = (server.url, server.target, "--images", images, "--route", routes, "--service", "recognition")
        runs, _ = bench(home, *at, *QUICK)
    assert [(run["route"], run["answers"], run["errors"]) for run in runs] == [
        (route, 12, {}) for route in routes.split(",")
    ]
    assert {stage["stage"] for stage in runs[0]["server"]["stages"]} >= {"decode", "infer", "search"}


def test_a_server_that_dies_midway(tiny_home: Path, images: Path) -> None:
    with start(tiny_home, "--model", "tiny") as server:
        command = [sys.executable, "-m", "pdserve", "bench", server.url, "--images", str(images), "--json"]
        process = subprocess.Popen(
            [*command, "--clients", "2", "--duration", "0.5", "--route", "v1,json", "--warm-up", "0"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(tiny_home),
            text=True,
        )
        with process:
            assert process.stdout is not None
            first = json.loads(process.stdout.readline())
            assert (first["answers"] > 0, first["errors"]) == (True, {})
            server.process.kill()
            out, err = process.communicate(timeout=60)
    (second,) = (json.loads(line) for line in out.splitlines())
    assert set(second["errors"]) <= {"connection refused", "connection reset", "connection closed"}
    assert second["errors"]
    assert "requests failed" in err
    assert "Traceback" not in err
