"""What browsers do for web pages: which writes are taken, which headers answers carry."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from pydantic import SecretStr
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.testclient import TestClient

from pdserve.services.auth import Keys
from pdserve.services.http.about import metrics_listener
from pdserve.services.http.app import build_app
from pdserve.services.http.browsers import POLICY, WRITE_HEADER, any_page_warning
from pdserve.services.http.server import http_listener
from pdserve.services.protocols import PROTOCOLS, Context, Protocol, Route
from pdserve.services.telemetry.metrics import Metrics
from pdserve.settings import ServerSettings
from tests.services.watching import FakeService

PLAIN = ServerSettings(name="imagenet")
KEY = "k" * 32
GOOD, EVIL = "https://good.example", "https://evil.example"
HEADER = {WRITE_HEADER: "1"}


def written(_: Context) -> Iterator[Route]:
    """Routes of a gallery that takes everything."""

    async def write(_: Request) -> JSONResponse:
        return JSONResponse({"written": True})

    for method in ("POST", "DELETE"):
        yield Route(method, "/v1/gallery", write, writes=True)


@pytest.fixture(autouse=True)
def gallery(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PROTOCOLS, "gallery", Protocol("gallery", "http", f"{__name__}:written", "writes"))  # type: ignore[arg-type]


@contextmanager
def client(keyed: bool = False, **more: Any) -> Iterator[TestClient]:
    metrics = Metrics()
    settings = PLAIN.model_copy(update=more)
    keys = Keys(KEY, None) if keyed else None
    app = build_app(FakeService(metrics), settings, metrics, keys=keys)
    yield TestClient(app, base_url="http://127.0.0.1:18080", follow_redirects=False)


# As a browser sends them without asking first: fetch.spec.whatwg.org, "CORS-safelisted request-header".
SIMPLE = ("multipart/form-data; boundary=x", "text/plain", "application/x-www-form-urlencoded", "")


@pytest.mark.parametrize("kind", SIMPLE)
@pytest.mark.parametrize("origin", [EVIL, "null", "http://127.0.0.1:1", "http://localhost.evil.example", ""])
@pytest.mark.parametrize("cors", [(), (GOOD,)])
def test_a_page_of_another_site_writes_nothing(kind: str, origin: str, cors: tuple[str, ...]) -> None:
    headers = {"Content-Type": kind} if kind else {}
    headers |= {"Origin": origin} if origin else {}
    with client(cors_origins=cors) as http:
        answer = http.post("/v1/gallery", content=b"x", headers=headers)
        assert answer.status_code == 403
        assert answer.json()["error"]["code"] == ("other_site" if origin else "write_header_missing")


@pytest.mark.parametrize("method", ["POST", "DELETE"])
def test_what_is_missing_is_said(method: str) -> None:
    with client() as http:
        answer = http.request(method, "/v1/gallery")
        assert answer.status_code == 403
        message = answer.json()["error"]["message"]
        assert f"`{WRITE_HEADER}: 1`" in message
        assert "--api-key" in message
        assert http.request(method, "/v1/gallery", headers=HEADER).status_code == 200
        assert http.request(method, "/v1/gallery", headers={WRITE_HEADER: ""}).status_code == 403


@pytest.mark.parametrize(
    "more", [{}, {"Origin": EVIL, "Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}]
)
def test_the_header_does_not_make_another_sites_page_ours(more: dict[str, str]) -> None:
    with client(cors_origins=(GOOD,)) as http:
        status = http.post("/v1/gallery", headers=HEADER | more).status_code
        assert status == (403 if more else 200)


@pytest.mark.parametrize("site", ["same-origin", "none"])
def test_our_own_page_writes_behind_a_proxy_that_changes_the_name(site: str) -> None:
    headers = HEADER | {"Origin": "https://shop.example", "Sec-Fetch-Site": site}
    with client() as http:
        assert http.post("/v1/gallery", headers=headers).status_code == 200


def test_our_own_page_writes_by_plain_http() -> None:
    with client() as http:
        same = str(http.base_url).rstrip("/")
        assert http.post("/v1/gallery", headers=HEADER | {"Origin": same}).status_code == 200
        headers = HEADER | {"Origin": "https://pdserve", "Host": "pdserve:443"}
        assert http.post("/v1/gallery", headers=headers).status_code == 200
        assert http.post("/v1/gallery", headers=HEADER | {"Origin": "http://localhost:1"}).status_code == 403


def test_pages_that_are_named_may_write_and_read_why_not() -> None:
    with client(cors_origins=(GOOD,)) as http:
        asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": WRITE_HEADER}
        preflight = http.options("/v1/gallery", headers={"Origin": GOOD} | asked)
        assert preflight.status_code == 200
        assert WRITE_HEADER.lower() in preflight.headers["Access-Control-Allow-Headers"].lower()
        refused = http.post("/v1/gallery", headers={"Origin": GOOD, "Sec-Fetch-Site": "cross-site"})
        assert refused.status_code == 403
        assert refused.headers["Access-Control-Allow-Origin"] == GOOD
        headers = HEADER | {"Origin": GOOD, "Sec-Fetch-Site": "cross-site"}
        assert http.post("/v1/gallery", headers=headers).status_code == 200
        assert http.options("/v1/gallery", headers={"Origin": EVIL} | asked).status_code == 400


def test_a_key_takes_the_place_of_the_header() -> None:
    with client(keyed=True) as http:
        assert http.post("/v1/gallery").status_code == 401
        assert http.post("/v1/gallery", headers=HEADER).status_code == 401
        assert http.post("/v1/gallery", headers={"X-API-Key": KEY}).status_code == 200
        assert http.post("/v1/gallery", headers={"X-API-Key": KEY, "Origin": EVIL}).status_code == 403


def test_predictions_need_no_header() -> None:
    with client() as http:
        assert http.post("/v1/classification", content=b"x", headers={"Origin": EVIL}).status_code == 200


def test_the_document_says_which_header() -> None:
    def parameters(keyed: bool) -> list[Any]:
        more = {"api_key": SecretStr(KEY)} if keyed else {}
        with client(keyed, **more) as http:
            found = http.get("/openapi.json", headers={"X-API-Key": KEY}).json()["paths"]
        return [each["name"] for each in found["/v1/gallery"]["delete"].get("parameters", ())]

    operation = {"summary": "writes", "responses": {200: {"description": "done"}}}

    def described(context: Context) -> Iterator[Route]:
        for each in written(context):
            yield Route(each.method, each.path, each.endpoint, operation, writes=True)

    globals()["described"] = described
    patch = pytest.MonkeyPatch()
    patch.setitem(PROTOCOLS, "gallery", Protocol("gallery", "http", f"{__name__}:described", "writes"))  # type: ignore[arg-type]
    try:
        assert parameters(keyed=False) == [WRITE_HEADER]
        assert parameters(keyed=True) == []
    finally:
        patch.undo()


@pytest.mark.parametrize(
    ("more", "option"),
    [
        ({"cors_origins": ("*",)}, "--cors-origin *"),
        ({"allowed_hosts": ("*",)}, "--allowed-host *"),
        ({"cors_origins": (GOOD,), "allowed_hosts": ("a.example",)}, None),
        ({"cors_origins": ("*",), "api_key": SecretStr(KEY)}, None),
    ],
)
def test_what_lets_any_page_in_is_said(more: dict[str, Any], option: str | None) -> None:
    warning = any_page_warning(PLAIN.model_copy(update=more))
    assert (option in warning) if option and warning else warning is None


# Headers

WANTED = {name.decode(): value.decode() for name, value in POLICY}


def lacking(answer: httpx.Response) -> set[str]:
    """The headers that an answer does not carry, or more than once."""
    return {name for name, value in WANTED.items() if answer.headers.get_list(name) != [value]}


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/health/live", 200),
        ("GET", "/metrics", 200),
        ("GET", "/openapi.json", 200),
        ("GET", "/docs/start.js", 200),
        ("GET", "/docs/swagger-ui.css", 200),
        ("GET", "/redoc", 307),
        ("POST", "/v1/classification", 200),
        ("GET", "/v1/classification", 405),
        ("GET", "/nothing", 404),
        ("POST", "/v1/gallery", 403),
        ("POST", "/v1/embeddings", 404),
    ],
)
def test_every_answer_carries_them(method: str, path: str, status: int) -> None:
    with client() as http:
        answer = http.request(method, path, content=b"x" if method == "POST" else None)
        assert (answer.status_code, lacking(answer)) == (status, set())


def test_refusals_carry_them() -> None:
    with client() as http:
        answer = http.get("/v2", headers={"Host": "evil.example"})
        assert (answer.status_code, lacking(answer)) == (421, set())
        answer = http.post("/v1/classification", content=b"broken")
        assert (answer.status_code, lacking(answer)) == (500, set())
    with client(keyed=True) as http:
        answer = http.get("/v2")
        assert (answer.status_code, lacking(answer)) == (401, set())


def test_paddle_servings_route_has_them_but_for_what_its_gateway_says_itself() -> None:
    with client() as http:
        answer = http.post("/imagenet/prediction", json={"key": ["a"], "value": ["eA=="]})
        assert (answer.status_code, lacking(answer)) == (200, {"x-content-type-options"})
        answer = http.get("/imagenet/prediction")
        assert (answer.status_code, lacking(answer)) == (405, set())


def test_the_page_has_a_policy_of_its_own() -> None:
    with client() as http:
        answer = http.get("/docs")
        assert lacking(answer) == {"content-security-policy"}
        (policy,) = answer.headers.get_list("content-security-policy")
        words = dict(each.split(" ", 1) for each in policy.split("; "))
        assert words["default-src"] == "'none'"
        assert words["script-src"] == words["connect-src"] == words["style-src"] == "'self'"
        assert words["frame-ancestors"] == "'none'"
        assert "unsafe" not in policy
        assert "<script>" not in answer.text
        assert "style=" not in answer.text


def test_what_is_no_request_gets_them_and_the_port_of_metrics() -> None:
    async def test() -> None:
        stop, metrics = asyncio.Event(), Metrics()
        settings = PLAIN.model_copy(update={"prometheus_port": 0})
        async with http_listener(build_app(FakeService(metrics), PLAIN, metrics), PLAIN, 0, stop) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"nonsense\r\n\r\n")
            answer = (await reader.read()).decode().lower()
            writer.close()
            assert answer.startswith("http/1.1 400")
            for name, value in WANTED.items():
                assert f"\r\n{name}: {value}\r\n".lower() in answer
        async with (
            metrics_listener(metrics, settings, stop) as port,
            httpx.AsyncClient(trust_env=False) as http,
        ):
            url = f"http://127.0.0.1:{port}/metrics"
            assert lacking(await http.get(url)) == set()
            refused = await http.get(url, headers={"Host": "evil.example"})
            assert (refused.status_code, lacking(refused)) == (421, set())
            assert "--allowed-host" in refused.text

    asyncio.run(test())
