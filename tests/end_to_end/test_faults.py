"""Engines that fail, hang and dawdle, clients that go away, models that change: through the real command."""

import asyncio
import base64
import contextlib
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import grpc
import httpx
import pytest
import yaml

from pdserve.formats.protos import pipeline
from tests.faults import MAGENTA
from tests.running import Server, start
from tests.tiny import build_serving_model, picture

pytestmark = pytest.mark.full

RED, GREEN = picture((255, 0, 0)), picture((0, 255, 0))


class Faulty:
    """A server with an engine that does as it is told."""

    def __init__(self, server: Server, folder: Path) -> None:
        self.server = server
        self._folder = folder
        self.client = httpx.Client(
            base_url=server.url, trust_env=False, timeout=30, limits=httpx.Limits(max_connections=None)
        )

    def tell(self, fault: str, text: str = "") -> None:
        (self._folder / fault).write_text(text)

    def end(self, fault: str) -> None:
        (self._folder / fault).unlink()

    @property
    def runs(self) -> int:
        """Images that the engine was given."""
        return (self._folder / "runs").stat().st_size

    @property
    def gone(self) -> int:
        """Images whose callers went away."""
        found = re.search(r'images_total\{outcome="gone"\} (\S+)', self.client.get("/metrics").text)
        return int(float(found[1])) if found else 0

    def ask(self, image: bytes) -> httpx.Response:
        return self.client.post("/v1/classification?top_k=1", content=image)

    def label(self, image: bytes) -> str:
        answer = self.ask(image)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["results"][0]["labels"][0]["label"])

    def is_ready(self) -> bool:
        return self.client.get("/v2/health/ready").status_code == 200

    def pipeline(self, image: bytes) -> dict[str, object]:
        value = base64.b64encode(image).decode()
        answer = self.client.post("/imagenet/prediction", json={"key": ["image"], "value": [value]})
        assert answer.status_code == 200
        return dict(answer.json())


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("it never came")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home of the test's own, since its model may change."""
    build_serving_model(tmp_path / "home" / "models")
    return tmp_path / "home"


@pytest.fixture
def faulty(home: Path, tmp_path: Path) -> Iterator[Callable[..., Faulty]]:
    folder = tmp_path / "faults"
    folder.mkdir()
    with ExitStack() as stack:

        def begin(*options: str) -> Faulty:
            server = stack.enter_context(
                start(home, "--model", "tiny", *options, module="tests.faults", PDSERVE_FAULTS=str(folder))
            )
            made = Faulty(server, folder)
            stack.callback(made.client.close)
            return made

        yield begin


def test_only_the_image_that_the_engine_cannot_stand_fails(faulty: Callable[..., Faulty]) -> None:
    it = faulty("--instances", "1", "--max-batch-size", "8", "--max-queue-delay-ms", "200")
    images = [RED, GREEN, picture(MAGENTA), GREEN, RED]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(it.ask, images))
    assert [answer.status_code for answer in answers] == [200, 200, 500, 200, 200]
    found = [a.json()["results"][0].get("labels", [{}])[0].get("label") for a in answers]
    assert found == ["red", "green", None, "green", "red"]
    error = answers[2].json()["results"][0]["error"]
    assert error["code"] == "engine"
    assert "/" not in error["message"]  # no path of ours
    assert it.is_ready()


def test_an_engine_that_fails_is_rebuilt_and_readiness_says_so(faulty: Callable[..., Faulty]) -> None:
    it = faulty()
    assert it.label(RED) == "red"
    it.tell("fail")
    for _ in range(3):
        assert it.ask(RED).status_code in (500, 503)
    until(lambda: not it.is_ready())
    answer = it.ask(RED)
    assert answer.status_code == 503
    assert int(answer.headers["Retry-After"]) > 0
    assert it.client.get("/v2/health/live").status_code == 200
    it.end("fail")
    until(it.is_ready)
    assert it.label(GREEN) == "green"
    assert 'pdserve_engine_rebuilds_total{cause="failing"} 1.0' in it.client.get("/metrics").text


@pytest.mark.posix
@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGTERM")
def test_an_engine_that_hangs_is_left_behind_and_the_server_goes_on_and_can_stop(
    faulty: Callable[..., Faulty],
) -> None:
    it = faulty("--hang-s", "0.5", "--instances", "1", "--max-batch-size", "1")
    assert it.label(RED) == "red"
    it.tell("hang")
    with ThreadPoolExecutor(4) as pool:
        answers = [a.status_code for a in pool.map(it.ask, [RED] * 4)]
    assert sorted(answers) == [200, 200, 200, 500]  # who waited is answered by the next engine
    until(it.is_ready)
    assert it.label(GREEN) == "green"
    it.server.interrupt(signal.SIGTERM)
    assert it.server.wait() == 0


def test_engines_that_go_on_hanging_end_the_server(faulty: Callable[..., Faulty]) -> None:
    it = faulty("--hang-s", "0.3", "--instances", "1")
    for _ in range(3):
        until(it.is_ready)
        it.tell("hang")
        assert it.ask(RED).status_code == 500
    assert it.server.wait() == 1
    assert "hung 3 times" in it.server.log


def test_a_full_queue_answers_at_once_by_every_door(faulty: Callable[..., Faulty]) -> None:
    it = faulty("--instances", "1", "--max-batch-size", "1", "--max-queue-size", "2")
    it.tell("hold")
    before = it.runs
    with ThreadPoolExecutor(8) as pool:
        inside = [pool.submit(it.ask, RED) for _ in range(3)]
        until(lambda: it.runs == before + 1 and it.server.queued == 2)
        refused = it.ask(RED)
        old = it.pipeline(RED)
        assert rpc_status(it.server.target) is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert it.is_ready()
        assert it.runs == before + 1  # the engine has done none of them yet
        it.end("hold")
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "overloaded"
        assert int(refused.headers["Retry-After"]) > 0
        assert (old["err_no"], old["value"]) == (10000, [])
        assert "wait already" in str(old["err_msg"])
        assert [each.result().status_code for each in inside] == [200, 200, 200]


def rpc_status(target: str) -> grpc.StatusCode:
    """What gRPC says to a red picture."""
    with grpc.insecure_channel(target) as channel:
        call = channel.unary_unary(
            pipeline.METHOD,
            request_serializer=pipeline.request_class().SerializeToString,
            response_deserializer=pipeline.response_class().FromString,
        )
        request = pipeline.request_class()(key=["image"], value=[base64.b64encode(RED).decode()])
        try:
            call(request, timeout=20)
        except grpc.RpcError as error:
            return error.code()
    return grpc.StatusCode.OK


def test_what_comes_too_late_costs_no_engine_time(faulty: Callable[..., Faulty]) -> None:
    it = faulty("--instances", "1", "--max-batch-size", "1", "--timeout-ms", "1000")
    it.tell("hold")
    before = it.runs
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(it.ask, RED)
        until(lambda: it.runs == before + 1)
        late, old = pool.submit(it.ask, RED), pool.submit(it.pipeline, RED)
        assert late.result().status_code == 504
        assert late.result().json()["error"]["code"] == "deadline"
        assert old.result()["err_no"] == 6000
        assert rpc_status(it.server.target) is grpc.StatusCode.DEADLINE_EXCEEDED
        assert first.result().status_code == 504
    it.end("hold")
    assert it.ask(GREEN).status_code == 200
    assert it.runs == before + 2


def test_a_client_that_went_away_is_not_computed(faulty: Callable[..., Faulty]) -> None:
    it = faulty("--instances", "1", "--max-batch-size", "1")
    it.tell("hold")
    before = it.runs
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(it.ask, RED)
        until(lambda: it.runs == before + 1)
        for count, route in enumerate(("/v1/classification", "/imagenet/prediction"), 1):
            body = (
                RED if route.startswith("/v1") else b'{"key": ["a"], "value": ["%s"]}' % base64.b64encode(RED)
            )
            with socket.create_connection(("127.0.0.1", it.server.http_port)) as gone:
                head = f"POST {route} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
                gone.sendall(head.encode() + body)
                until(lambda: it.server.queued == 1)
            until(lambda count=count: it.gone == count)
            until(lambda: it.server.queued == 0)
        asyncio.run(_cancelled_call(it.server))
        until(lambda: it.gone == 3)
        it.end("hold")
        assert first.result().status_code == 200
    assert it.label(GREEN) == "green"
    assert it.runs == before + 2


async def _cancelled_call(server: Server) -> None:
    async with grpc.aio.insecure_channel(server.target) as channel:
        call = channel.unary_unary(
            pipeline.METHOD,
            request_serializer=pipeline.request_class().SerializeToString,
            response_deserializer=pipeline.response_class().FromString,
        )(pipeline.request_class()(key=["a"], value=[base64.b64encode(RED).decode()]))
        await asyncio.to_thread(until, lambda: server.queued == 1)
        call.cancel()


def relabel(home: Path, names: list[str]) -> None:
    """Change the labels in the serving folder, as a publisher would: beside, then renamed."""
    path = home / "models" / "tiny_serving" / "inference.yml"
    content = yaml.safe_load(path.read_text("utf-8"))
    content["PostProcess"]["Topk"]["label_list"] = names
    newer = path.with_suffix(".new")
    newer.write_text(yaml.safe_dump(content), "utf-8")
    newer.replace(path)


def test_a_newly_published_model_is_taken_without_a_failed_request(
    faulty: Callable[..., Faulty], home: Path
) -> None:
    it = faulty()
    wrong: list[str] = []
    seen: set[str] = set()
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            answer = it.ask(RED)
            if answer.status_code != 200:
                wrong.append(answer.text)
            else:
                seen.add(answer.json()["results"][0]["labels"][0]["label"])

    with ThreadPoolExecutor(4) as pool:
        for _ in range(4):
            pool.submit(ask)
        try:
            until(lambda: "red" in seen)
            relabel(home, ["rouge", "vert", "bleu"])
            until(lambda: "rouge" in seen)
            relabel(home, ["rot", "grün"])  # too few: it is not taken
            until(lambda: "not reloaded" in it.server.log)
            relabel(home, ["rot", "grün", "blau"])
            until(lambda: "rot" in seen)
        finally:
            done.set()
    assert wrong == []
    assert seen == {"red", "rouge", "rot"}


@pytest.mark.posix
@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGHUP")
def test_sighup_reads_the_configuration_anew(
    faulty: Callable[..., Faulty], home: Path, tmp_path: Path
) -> None:
    config = tmp_path / "config.yml"
    config.write_text("op: {imagenet: {}}\npdserve: {top_k: 1}\n")
    it = faulty("--config", str(config))
    count = lambda: len(it.client.post("/v1/classification", content=RED).json()["results"][0]["labels"])  # noqa: E731
    assert count() == 1
    config.write_text("op: {imagenet: {}}\npdserve: {top_k: 2}\n")
    it.server.interrupt(signal.SIGHUP)
    until(lambda: count() == 2)
    config.write_text("op: {imagenet: {}}\npdserve: {top_k: none of it}\n")
    it.server.interrupt(signal.SIGHUP)
    until(lambda: "not reloaded" in it.server.log)
    assert count() == 2


@pytest.mark.posix
@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGTERM")
def test_a_stopping_server_finishes_what_runs_within_its_grace(faulty: Callable[..., Faulty]) -> None:
    it = faulty("--grace", "10", "--instances", "1", "--max-batch-size", "1")
    it.tell("hold")
    with ThreadPoolExecutor(4) as pool:
        before = it.runs
        inside = [pool.submit(it.ask, RED) for _ in range(3)]
        until(lambda: it.runs == before + 1 and it.server.queued == 2)
        it.server.interrupt(signal.SIGTERM)
        until(lambda: "stopping: " in it.server.log)
        it.end("hold")
        assert [each.result().status_code for each in inside] == [200, 200, 200]
    assert it.server.wait() == 0


@pytest.mark.posix
@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGTERM")
def test_grace_has_an_end(faulty: Callable[..., Faulty]) -> None:
    it = faulty("--grace", "0.5", "--instances", "1", "--max-batch-size", "1")
    it.tell("hang")
    with ThreadPoolExecutor(1) as pool:
        before = it.runs
        stuck = pool.submit(it.ask, RED)
        until(lambda: it.runs == before + 1)
        it.server.interrupt(signal.SIGTERM)
        it.server.wait(15)
        with contextlib.suppress(httpx.HTTPError):  # it may be told so, or find the door shut
            assert stuck.result().status_code >= 500
