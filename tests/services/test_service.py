"""Every kind of service, of pdserve's own and of a user's: what all have in common, on tiny models."""

import asyncio
import base64
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from pdserve.clients import HttpClient, RpcClient
from pdserve.errors import DeadlineError, PdserveError, RequestError
from pdserve.models.home import Home
from pdserve.pipelines import SERVICES
from pdserve.pipelines.entry import ServiceEntry
from pdserve.services.replica import Replica, time_limit_s
from pdserve.services.service import Service
from pdserve.services.telemetry.metrics import Metrics
from pdserve.settings import ModelSettings, ServerSettings, ServiceSettings
from tests.kinds import BOXES, OPTIONS, SCORES, build_home, none, two
from tests.running import Server, pdserve, start
from tests.services.http.described import check_response
from tests.services.watching import until

BATCHES = ("--max-batch-size", "4", "--max-queue-delay-ms", "300", "--instances", "1")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_home(tmp_path_factory.mktemp("kinds"))


# The other kinds have quick tests of their own.
QUICK = ("attributes", "face", "colours")
PARAMS = [pytest.param(kind, marks=() if kind in QUICK else pytest.mark.full) for kind in OPTIONS]


@pytest.fixture(scope="module", params=PARAMS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def server(home: Path, kind: str) -> Iterator[Server]:
    with start(home, *OPTIONS[kind], *BATCHES, service=kind) as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, trust_env=False, timeout=60) as client:
        yield client


def entry_of(home: Path, kind: str) -> ServiceEntry:
    """In this process, whose home is another one, a user's kind is named by its path."""
    return SERVICES[kind if kind in SERVICES else str(home / "pipelines" / f"{kind}.yml")]


def check(kind: str, answer: Any) -> None:
    """What `two` must get, as JSON."""
    if kind == "classification":
        assert answer["labels"][0]["label"] in ("red", "blue")
        return
    if kind == "embedding":
        assert sum(each * each for each in answer["embedding"]) == pytest.approx(1, abs=1e-6)
        assert answer["dimension"] == len(answer["embedding"]) == 3
        return
    objects = answer["objects"]
    boxes = [each["bbox"] for each in objects]
    if kind == "detection":
        assert boxes == [pytest.approx(box, abs=1e-3) for box in BOXES]
        assert [each["label"] for each in objects] == ["cup", "spoon"]
        assert [each["score"] for each in objects] == pytest.approx(SCORES, abs=1e-4)
    elif kind == "attributes":
        assert boxes == [pytest.approx(box, abs=1e-3) for box in BOXES]
        assert [each["score"] for each in objects] == pytest.approx(SCORES, abs=1e-4)
        assert [each["labels"][0]["label"] for each in objects] == ["blue", "red"]
        assert [len(each["labels"]) for each in objects] == [3, 3]
    elif kind == "colours":
        assert boxes == [pytest.approx(box, abs=1e-3) for box in (*BOXES, (0, 0, 8, 4))]
        assert [each["labels"][0]["label"] for each in objects][:2] == ["blue", "red"]
        assert [len(each["labels"]) for each in objects] == [2, 2, 2]
    else:
        found = {each["label"]: each for each in objects}
        assert {tuple(found[label]["bbox"]) for label in ("blue", "red")} == set(BOXES)
        assert found["blue"]["detection"]["score"] == pytest.approx(SCORES[0], abs=1e-4)


def test_v1_answers_as_the_openapi_document_says(kind: str, client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    route = f"/v1/{kind}"
    files = [("images", (f"{i}.png", data)) for i, data in enumerate((two(), b"none", two(), none()))]
    response = client.post(route, files=files)
    first, bad, third, empty = response.json()["results"]
    check(kind, first)
    check(kind, third)
    assert bad["error"]["code"] == "bad_image"
    check_response(document, route, response)
    check_response(document, route, client.post(route, content=b"none"))
    named = [each["name"] for each in document["paths"][route]["post"].get("parameters", ())]
    assert named == ([] if kind == "embedding" else ["top_k"])
    # Where nothing is found, nothing is looked at: the image itself only by those kinds that say so.
    if kind in ("detection", "attributes", "face"):
        assert empty["objects"] == []
    if kind == "colours":
        assert [each["bbox"] for each in empty["objects"]] == [[0, 0, 8, 4]]


def test_the_clients_and_the_pipeline_protocol_carry_the_same(
    kind: str, home: Path, server: Server, client: httpx.Client
) -> None:
    answers = []
    name = entry_of(home, kind).kind
    for each in (HttpClient(server.url, name), RpcClient(server.target, name)):
        with each as asked:
            good, bad = asked.ask([two(), b"none"])
            answers.append(good)
            assert isinstance(bad, PdserveError)
    assert answers[0] == answers[1]
    body = {"key": ["image"], "value": [base64.b64encode(two()).decode()]}
    for name in (kind, SERVICES[kind].name if kind in SERVICES else "colour_service"):
        answer = client.post(f"/{name}/prediction", json=body).json()
        assert answer["err_no"] == 0, answer
        read = entry_of(home, kind).answer_type().from_fields(
            dict(zip(answer["key"], answer["value"], strict=True)), 1
        )  # fmt: skip
        assert len(read) == 1


def test_batches_are_formed_across_requests(kind: str, server: Server, client: httpx.Client) -> None:
    def batches() -> list[tuple[float, float]]:
        lines = client.get("/metrics").text.splitlines()
        found = {"sum": 0.0, "count": 0.0}
        for line in lines:
            for what in found:
                if line.startswith(f"pdserve_batch_images_{what}"):
                    found[what] += float(line.rpartition(" ")[2])
        return [(found["sum"], found["count"])]

    ((images, count),) = batches()
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda _: client.post(f"/v1/{kind}", content=two()).json(), range(4)))
    for each in done:
        check(kind, each["results"][0])
    ((later_images, later_count),) = batches()
    assert later_count - count < later_images - images


def test_it_is_measured(kind: str, client: httpx.Client) -> None:
    client.post(f"/v1/{kind}", content=two())
    metrics = client.get("/metrics").text
    assert f'pdserve_requests_total{{code="200",route="/v1/{kind}"}}' in metrics
    roles = {
        "classification": {"classifier"}, "recognition": {"detector", "embedder"}, "detection": {"detector"},
        "embedding": {"embedder"}, "attributes": {"detector", "classifier"},
        "face": {"detector", "embedder"}, "colours": {"detector", "classifier"},
    }[kind]  # fmt: skip
    assert {role for role in ("detector", "embedder", "classifier") if f'role="{role}"' in metrics} == roles
    stages = {"decode", "preprocess", "infer", "queue"}
    assert {stage for stage in stages if f'stage="{stage}"' in metrics} == stages
    assert ('stage="search"' in metrics) == (kind in ("recognition", "face"))


def test_a_reload_leaves_it_as_it_was(kind: str, server: Server, client: httpx.Client) -> None:
    import signal

    if not hasattr(signal, "SIGHUP"):
        pytest.skip("SIGHUP is POSIX's")
    before = server.log.count("reloaded")
    server.interrupt(signal.SIGHUP)
    until(lambda: server.log.count("reloaded") > before, 60)
    check(kind, client.post(f"/v1/{kind}", content=two()).json()["results"][0])


def test_predict_asks_and_draws_it(kind: str, home: Path, server: Server, tmp_path: Path) -> None:
    draw = () if kind == "embedding" else ("--draw", str(tmp_path / "drawn"))
    for options in (("--url", server.url), ("--local", "--service", kind, *OPTIONS[kind])):
        done = pdserve(home, "predict", str(home / "two.png"), "--json", *draw, *options)
        assert done.returncode == 0, done.stderr
        answer = json.loads(done.stdout)
        assert answer[entry_of(home, kind).items]
        if draw:
            assert Path(answer["picture"]).stat().st_size > 0


def test_the_time_limit_holds_behind_work_that_does_not_end(kind: str, home: Path) -> None:
    """All threads are taken, as by images that decode for minutes: the answer is due all the same."""
    entry, flags = entry_of(home, kind), dict(zip(OPTIONS[kind][::2], OPTIONS[kind][1::2], strict=True))
    given = {name.removeprefix("--"): value for name, value in flags.items()} | {"timeout_ms": 300}
    settings = entry.settings(given, {})
    metrics, over = Metrics(), threading.Event()

    async def ask() -> None:
        service = Service(
            entry,
            lambda _, pool: Replica(entry.open(settings, Home(home)), settings, pool, metrics),
            metrics,
        )
        service.start()
        taken = [service._pool._threads.submit(over.wait) for _ in range(service._pool._threads._max_workers)]
        try:
            with pytest.raises(DeadlineError):
                await asyncio.wait_for(service.answer([two()]), 30)
        finally:
            over.set()
            wait(taken)
            service.stop()
            await service.close()

    asyncio.run(ask())


@pytest.mark.parametrize(
    ("timeouts", "seconds"),
    [((None,), None), ((500,), 0.5), ((500, 500), 0.5), ((500, 300), 0.8), ((500, None), None)],
)
def test_the_time_limit_of_a_request(timeouts: tuple[int | None, ...], seconds: float | None) -> None:
    models = {str(i): ModelSettings(model="x", timeout_ms=each) for i, each in enumerate(timeouts)}
    server = ServerSettings(name="x", http_port=0)
    assert time_limit_s(ServiceSettings("classification", server, models, None)) == seconds


def test_a_deadline_that_passed_costs_no_engine_time(kind: str, home: Path) -> None:
    entry, flags = entry_of(home, kind), dict(zip(OPTIONS[kind][::2], OPTIONS[kind][1::2], strict=True))
    settings = entry.settings({name.removeprefix("--"): value for name, value in flags.items()}, {})
    metrics = Metrics()

    async def ask() -> None:
        service = Service(
            entry,
            lambda _, pool: Replica(entry.open(settings, Home(home)), settings, pool, metrics),
            metrics,
        )
        service.start()
        try:
            with pytest.raises(DeadlineError):
                await service.answer([two()], timeout_s=0)
            (answer,) = await service.answer([two()], timeout_s=60)
            assert isinstance(answer, entry.answer_type())
        finally:
            service.stop()
            await service.close()

    asyncio.run(ask())
    assert "infer" in metrics.exposition("")[0].decode()


class OfManyEntries(Service):
    """A service with an index of 100,000 entries, and nothing behind it."""

    cold = False

    def __init__(self) -> None:
        pass

    @property
    def index(self) -> Any:
        return SimpleNamespace(loaded=SimpleNamespace(count=100_000))


def test_the_entries_of_an_answer_are_counted_before_they_are_searched() -> None:
    with pytest.raises(RequestError, match=r"999 for 16 images: 15984 entries, .* 10000; ask for 625"):
        asyncio.run(OfManyEntries().answer([b""] * 16, top_k=999))


PADDLEX = {
    "classification": ("/image-classification", "categories"),
    "detection": ("/object-detection", "detectedObjects"),
    "attributes": ("/pedestrian-attribute-recognition", "pedestrians"),
    "recognition": ("/shitu-infer", "detectedObjects"),
    "face": ("/face-recognition-infer", "faces"),
}


def test_paddlex_routes_answer_as_v1(kind: str, client: httpx.Client) -> None:
    """What `check` wants of /v1, in PaddleX's fields; a request's thresholds hold for it alone."""
    document = client.get("/openapi.json").json()
    if kind == "colours":  # of a user's own, whose models' names say neither pedestrians nor vehicles
        assert {"/pedestrian-attribute-recognition", "/vehicle-attribute-recognition"} <= set(
            document["paths"]
        )
        return
    if kind not in PADDLEX:
        assert not any(route in document["paths"] for route, _ in PADDLEX.values())
        return
    route, items = PADDLEX[kind]
    image = base64.b64encode(two()).decode()

    def ask(**fields: Any) -> list[Any]:
        response = client.post(route, json={"image": image, "visualize": False, **fields})
        check_response(document, route, response)
        assert response.status_code == 200, response.text
        assert response.json()["result"].keys() == {items}
        found: list[Any] = response.json()["result"][items]
        return found

    drawn = client.post(route, json={"image": image, "logId": "mine"}).json()
    assert drawn["logId"] == "mine"
    assert base64.b64decode(drawn["result"]["image"]).startswith(b"\xff\xd8\xff")
    found = ask()
    if kind == "classification":
        assert (len(found), len(ask(topk=1))) == (3, 1)
        return
    assert [each["bbox"] for each in found] == [pytest.approx(box, abs=1e-3) for box in BOXES]
    assert [each["score"] for each in found] == pytest.approx(SCORES, abs=1e-4)
    least = "threshold" if kind == "detection" else "detThreshold"
    none = 1 if kind == "recognition" else 0  # the whole image, where there is no box
    assert [len(ask(**{least: each})) for each in (0.81, 0.99, -5, "nan", 1e300)] == [1, none, 2, none, none]
    if kind == "detection":
        assert [(each["categoryId"], each["categoryName"]) for each in found] == [(0, "cup"), (1, "spoon")]
        assert [each["categoryId"] for each in ask(threshold={"0": 0.99})] == [1]
    elif kind in ("recognition", "face"):
        labels = [[each["label"] for each in one["recResults"]] for one in found]
        assert labels == [["blue", "red"], ["red", "blue"]]
        assert [len(one["recResults"]) for one in ask(topk=1)] == [1, 1]  # which PaddleX ignores
        assert [one["recResults"] for one in ask(recThreshold=2)] == [[], []]
        none_there = client.post(route, json={"image": image, "indexKey": "colors"})
        assert (none_there.status_code, none_there.json()["errorCode"]) == (404, 404)
        whole = ask(detThreshold=2)
        assert [(one["bbox"], one["score"]) for one in whole] == [([0, 0, 8, 4], 0)][:none]
    else:
        assert [each["attributes"][0]["label"] for each in found] == ["blue", "red"]
        fixed = client.post(route, json={"image": image, "clsThreshold": 0.3})
        assert (fixed.status_code, fixed.json()["errorCode"]) == (400, 400)
        assert "chooses its labels by Topk, whose thresholds no request changes" in fixed.text
    assert len(ask()) == 2  # nothing of it stays
