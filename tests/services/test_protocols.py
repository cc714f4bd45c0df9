"""The table PROTOCOLS: what an entry brings, and that a new one needs no further change."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import Response

from pdserve.services.auth import Keys
from pdserve.services.budget import Entrance
from pdserve.services.http.app import build_app
from pdserve.services.http.messages import json_response, operation
from pdserve.services.protocols import PROTOCOLS, Context, Protocol, Route, grpc_protocol, resources
from pdserve.services.repository import Repository
from pdserve.services.telemetry.metrics import Metrics
from pdserve.settings import ServerSettings
from tests.services.watching import FakeService, counted, numbers, served

SETTINGS = ServerSettings(name="imagenet")
KEY = "k" * 32


def echo(context: Context) -> Iterator[Route]:
    """A protocol that answers a body with its length."""

    async def answer(request: Request) -> Response:
        (size,) = await context.service.answer([await request.body()])
        return json_response(size)

    yield Route("POST", "/v9/echo", answer, operation("echo", "The length of a body", dict[str, int]))


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_entry_says_what_it_is_and_loads(name: str) -> None:
    protocol = PROTOCOLS[name]
    assert protocol.name == name
    assert protocol.help
    assert callable(protocol.function())
    assert (protocol.transport == "grpc") == bool(protocol.grpc_service) == bool(protocol.grpc_methods)
    if protocol.transport == "grpc":
        methods = protocol.function()(Repository.of(FakeService(Metrics())), Entrance(SETTINGS))
        assert set(methods) == set(protocol.grpc_methods)


def test_no_path_is_declared_twice() -> None:
    metrics = Metrics()
    paths = [each.path for each in resources(Context(FakeService(metrics), Entrance(SETTINGS), metrics))]
    assert len(paths) == len(set(paths))


def test_a_grpc_method_belongs_to_its_service() -> None:
    pipeline = grpc_protocol("/baidu.paddle_serving.pipeline_serving.PipelineService/inference")
    assert pipeline is PROTOCOLS["pipeline-grpc"]
    service = pipeline.grpc_service
    for method in ("", "/", "/inference", "/other.Service/inference", f"/{service}/none", f"/{service}"):
        assert grpc_protocol(method) is None


@pytest.mark.parametrize("is_open", [False, True])
def test_a_new_protocol_is_one_entry(monkeypatch: pytest.MonkeyPatch, is_open: bool) -> None:
    load = f"{__name__}:echo"
    entry = Protocol("echo", "http", load, "echoes", open=is_open, predicts=True)
    monkeypatch.setitem(PROTOCOLS, "echo", entry)  # type: ignore[arg-type]  # a dictionary underneath
    metrics = Metrics()
    app = build_app(FakeService(metrics), SETTINGS, metrics, keys=Keys(KEY, None))
    keys: dict[str, Any] = {"headers": {"X-API-Key": KEY}}
    with served(app) as url, httpx.Client(base_url=url, trust_env=False, verify=False) as client:
        assert client.post("/v9/echo", content=b"12345", **keys).json() == {"size": 5}
        assert client.post("/v9/echo", content=b"12345").status_code == 401  # open is for reading only
        document = client.get("/openapi.json", **keys).json()
        assert document["paths"]["/v9/echo"]["post"]["summary"] == "The length of a body"
        expected = {("/v9/echo", "200"): 1, ("/v9/echo", "401"): 1, ("/openapi.json", "200"): 1}
        counted(metrics, expected)
        assert numbers(metrics)["pd_query_request_success_total"] == 1


def refusal(status: int, code: str, text: str, headers: Any = None) -> Response:
    """A protocol's own form of errors."""
    return json_response({"wrong": code, "text": text}, status, headers)


def test_a_protocol_with_errors_of_its_own_form(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"{__name__}:"
    entry = Protocol("echo", "http", f"{name}echo", "echoes", errors=f"{name}refusal")
    monkeypatch.setitem(PROTOCOLS, "echo", entry)  # type: ignore[arg-type]  # a dictionary underneath
    metrics = Metrics()
    app = build_app(FakeService(metrics), SETTINGS, metrics, keys=Keys(KEY, None))
    keys: dict[str, Any] = {"headers": {"X-API-Key": KEY}}
    with served(app) as url, httpx.Client(base_url=url, trust_env=False, verify=False) as client:
        full = client.post("/v9/echo", content=b"full", **keys)
        assert (full.status_code, full.json()["wrong"], full.headers["Retry-After"]) == (
            503,
            "overloaded",
            "1",
        )
        broken = client.post("/v9/echo", content=b"broken", **keys)
        assert (broken.status_code, broken.json()) == (500, {"wrong": "error", "text": "internal error"})
        refused = client.post("/v9/echo", content=b"12345")
        assert (refused.status_code, refused.json()["wrong"]) == (401, "unauthorized")
        assert refused.headers["WWW-Authenticate"] == "Bearer"
        other = client.get("/v9/echo", **keys)
        assert (other.status_code, other.json()["wrong"]) == (405, "method_not_allowed")
        assert "error" in client.get("/v1/none", **keys).json()
