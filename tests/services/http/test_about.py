"""What a server says about itself: /metrics, on the service's port and on its own; /v2; the documentation."""

import asyncio
import contextlib
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from pdserve import __version__
from pdserve.errors import SettingsError
from pdserve.services.http.about import metrics_listener
from pdserve.services.http.app import build_app
from pdserve.services.telemetry.metrics import Metrics
from pdserve.settings import ServerSettings
from tests.services.watching import FakeService, counted, served

SETTINGS = ServerSettings(name="imagenet")


def test_beside_the_service() -> None:
    metrics = Metrics()
    service = FakeService(metrics)
    app = build_app(service, SETTINGS, metrics)
    with served(app) as url, httpx.Client(base_url=url, trust_env=False, verify=False) as client:
        assert client.post("/v1/classification", content=b"image").status_code == 200
        found = client.get("/metrics")
        assert (found.status_code, found.headers["Content-Type"].split(";")[0]) == (200, "text/plain")
        assert 'pdserve_requests_total{code="200",route="/v1/classification"} 1.0' in found.text
        assert "X-Request-ID" in found.headers
        accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
        assert client.get("/metrics", headers=accept).text.endswith("# EOF\n")
        assert client.head("/metrics").content == b""
        assert client.post("/metrics").status_code == 405
        assert client.get("/metrics/x").status_code == 405  # as of any two segments
        counted(
            metrics,
            {
                ("/v1/classification", "200"): 1,
                ("/metrics", "200"): 3,
                ("/metrics", "405"): 1,
                ("/{name}/{method}", "405"): 1,
            },
        )


async def ask(url: str, method: str = "GET") -> httpx.Response:
    async with httpx.AsyncClient(trust_env=False, verify=False) as client:
        return await client.request(method, url)


@pytest.mark.parametrize("more", [{}, {"api_key": "k" * 32}, {"tls_cert": "none.pem", "tls_key": "none.pem"}])
def test_on_a_port_of_its_own_without_a_key_or_tls(more: dict[str, Any]) -> None:
    settings = ServerSettings(name="imagenet", prometheus_port=0, **more)

    async def test() -> None:
        metrics = Metrics()
        metrics.images("ok", 7)
        async with metrics_listener(metrics, settings, asyncio.Event()) as port:
            found = await ask(f"http://127.0.0.1:{port}/metrics")
            assert 'pdserve_images_total{outcome="ok"} 7.0' in found.text
            other = await ask(f"http://127.0.0.1:{port}/v1/classification", "POST")
            assert (other.status_code, other.text) == (404, "Not Found; the numbers are at /metrics\n")
            taken = settings.model_copy(update={"prometheus_port": port})
            with pytest.raises(SettingsError, match=str(port)):
                async with metrics_listener(metrics, taken, asyncio.Event()):
                    pass
        with pytest.raises(httpx.ConnectError):
            await ask(f"http://127.0.0.1:{port}/metrics")

    asyncio.run(test())


@contextlib.contextmanager
def client_of_the_service(**settings: Any) -> Iterator[httpx.Client]:
    metrics = Metrics()
    app = build_app(FakeService(metrics), SETTINGS.model_copy(update=settings), metrics)
    with served(app) as url, httpx.Client(base_url=url, trust_env=False, verify=False) as client:
        yield client


def test_the_servers_metadata() -> None:
    with client_of_the_service() as client:
        content = client.get("/v2").json()
    # "classification" is Triton's extension of that name.
    assert content == {
        "name": "pdserve",
        "version": __version__,
        "extensions": [
            "binary_tensor_data",
            "classification",
            "model_configuration",
            "model_repository",
            "statistics",
        ],
        "service": "classification",
    }


@pytest.mark.parametrize("path", ["/v2", "/v2/health/live", "/v2/health/ready", "/docs", "/openapi.json"])
def test_what_answers_get_answers_head(path: str) -> None:
    with client_of_the_service() as client:
        found = client.head(path)
        assert (found.status_code, found.content) == (200, b"")
        refused = client.put(path)
        assert (refused.status_code, refused.headers["Allow"]) == (405, "GET, HEAD")


def test_the_documentation_page_loads_nothing_from_elsewhere() -> None:
    with client_of_the_service() as client:
        page = client.get("/docs")
        assert page.headers["Content-Type"].startswith("text/html")
        assert not re.search(r"\b(https?:)?//", page.text)
        loaded = re.findall(r'(?:href|src|url)(?:="|: ")([^"]+)"', page.text)
        assert {"docs/swagger-ui.css", "docs/swagger-ui-bundle.js", "openapi.json"} <= set(loaded)
        for address in loaded:
            if not address.startswith("data:"):
                # Relative, so that they hold behind a path prefix; none starts at the root.
                assert not address.startswith("/")
                assert client.get(str(page.url.join(address))).status_code == 200
        style = client.get("/docs/swagger-ui.css")
        assert style.headers["Content-Type"].startswith("text/css")
        assert {each[:5] for each in re.findall(r"url\(\s*[\"']?([^)]+)", style.text)} == {"data:"}
        assert "@import" not in style.text
        assert client.get("/redoc", follow_redirects=True).text == page.text


def test_pages_of_one_origin_leave_nothing_for_others() -> None:
    with client_of_the_service(cors_origins=("https://shop.example",)) as client:
        for path in ("/openapi.json", "/docs", "/v2"):
            first = client.get(path, headers={"Origin": "https://shop.example"})
            assert first.headers["Access-Control-Allow-Origin"] == "https://shop.example"
            assert "Access-Control-Allow-Origin" not in client.get(path).headers
