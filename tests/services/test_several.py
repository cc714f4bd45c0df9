"""Several services in one process, with tiny models: by command line, by a file, changed while it runs."""

import base64
import json
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from pdserve.clients import RpcClient
from pdserve.clients.discovery import find_server
from pdserve.errors import UsageError
from pdserve.formats.protos import pipeline
from pdserve.models.home import Home
from tests.running import Server, pdserve, start
from tests.services.watching import until
from tests.tiny import build_embedder, build_serving_model, picture

RED = picture((255, 0, 0))
IMAGE = base64.b64encode(RED).decode()
TYPE = {"Content-Type": "image/png"}
WRITE = {"X-Pdserve-Write": "1"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("several")
    build_serving_model(home / "models")
    build_serving_model(home / "models", "other")
    build_embedder(home / "models")
    return home


@pytest.fixture(scope="module")
def server(home: Path) -> Iterator[Server]:
    with start(home, "other", "tiny_embedder", "--threads", "1", service="tiny") as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, trust_env=False, timeout=60) as client:
        yield client


def ask(client: httpx.Client, path: str) -> httpx.Response:
    return client.post(path, content=RED, headers=TYPE)


def best(response: httpx.Response) -> str:
    return str(response.json()["results"][0]["labels"][0]["label"])


def test_each_is_asked_by_name_and_the_only_one_of_its_kind_without(client: httpx.Client) -> None:
    assert (
        best(ask(client, "/v1/classification/tiny")) == best(ask(client, "/v1/classification/other")) == "red"
    )
    for path in ("/v1/embedding", "/v1/embedding/tiny_embedder"):
        assert ask(client, path).json()["results"][0]["embedding"] == pytest.approx([1, 0, 0])
    several = ask(client, "/v1/classification")
    assert (several.status_code, several.json()["error"]["code"]) == (400, "several_services")
    assert "ask at /v1/classification/NAME for one of tiny and other" in several.json()["error"]["message"]
    assert ask(client, "/v1/classification/none").status_code == 404


def test_paddle_servings_protocol_finds_services_by_name(client: httpx.Client, server: Server) -> None:
    body = {"key": ["image"], "value": [IMAGE]}
    for name, error in (("tiny", 0), ("other", 0), ("classification", 3002), ("none", 3002)):
        assert client.post(f"/{name}/prediction", json=body).json()["err_no"] == error
    import grpc

    with grpc.insecure_channel(server.target) as channel:
        call = channel.unary_unary(
            f"/{pipeline.SERVICE}/inference",
            request_serializer=pipeline.request_class().SerializeToString,
            response_deserializer=pipeline.response_class().FromString,
        )
        for name, error in (("other", 0), ("embedding", 0), ("", 3002), ("classification", 3002)):
            request = pipeline.request_class()(name=name, key=["image"], value=[IMAGE])
            assert call(request, timeout=60).err_no == error


def test_what_the_server_says_of_itself_names_each(client: httpx.Client, home: Path, server: Server) -> None:
    names = [("tiny", "classification"), ("other", "classification"), ("tiny_embedder", "embedding")]
    listed = [{"name": name, "kind": kind, "state": "READY"} for name, kind in names]
    assert client.get("/v2").json()["services"] == client.get("/v1/services").json()["services"] == listed
    assert [each["id"] for each in client.get("/v1/models").json()["data"]] == ["tiny_embedder"]
    embeddings = {"model": "tiny_embedder", "input": IMAGE}
    assert client.post("/v1/embeddings", json=embeddings).json()["model"] == "tiny_embedder"
    document = client.get("/openapi.json").json()
    assert {"/v1/classification/tiny", "/v1/classification/other", "/v1/embedding"} <= document[
        "paths"
    ].keys()
    assert "/v1/classification" not in document["paths"]
    metrics = client.get("/metrics").text
    assert re.search(r'^pdserve_model_info\{.*model="other",.*service="other"\} 1', metrics, re.M)
    assert 'pdserve_queue_images{model="tiny",service="tiny"} 0.0' in metrics
    record = json.loads(next((home / "run").glob("*.json")).read_text("utf-8"))
    assert record["services"] == [list(each) for each in names]
    assert find_server("embedding", home=Home(home)).http == server.url
    with pytest.raises(UsageError, match=r"Here run classification at .* and embedding at"):
        find_server(home=Home(home))
    with RpcClient(server.target, service="embedding") as rpc:
        assert rpc.ask([RED])[0].dimension == 3


@pytest.mark.parametrize("where", [(), ("--url",), ("--rpc",), ("--rpc", "--url")])
def test_predict_names_one_of_a_kind(home: Path, server: Server, where: tuple[str, ...]) -> None:
    (home / "red.png").write_bytes(RED)
    at = (server.target if "--rpc" in where else server.url,) if "--url" in where else ()
    asked = ("predict", str(home / "red.png"), *where, *at, "--json")
    done = pdserve(home, *asked, "--name", "other")
    assert json.loads(done.stdout)["labels"][0]["label"] == "red", done.stderr
    if not at:
        done = pdserve(home, *asked, "--service", "classification")
        assert (done.returncode, done.stdout) == (2, "")
        assert "The services tiny and other run at" in done.stderr
        assert done.stderr.endswith("say which with --name.\n")
        done = pdserve(home, *asked, "--name", "none")
        assert done.returncode == 2
        assert "No service 'none' runs here; there is tiny, other, tiny_embedder." in done.stderr


def test_a_service_is_unloaded_and_loaded_by_command(client: httpx.Client, home: Path) -> None:
    done = pdserve(home, "unload", "other", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"name": "other", "kind": "classification", "state": "UNLOADED"}
    refused = ask(client, "/v1/classification/other")
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "not_loaded")
    assert client.get("/v2/health/ready").status_code == 200
    assert best(ask(client, "/v1/classification/tiny")) == "red"
    assert (
        'model="other"'
        not in client.get("/metrics").text.partition("pdserve_queue_images{")[2].partition("#")[0]
    )
    assert client.post("/v1/services/other/load").status_code == 403  # as a web page would ask
    loaded = client.post("/v1/services/other/load", headers=WRITE)
    assert (loaded.status_code, loaded.json()["state"]) == (200, "READY")
    assert best(ask(client, "/v1/classification/other")) == "red"
    done = pdserve(home, "load", "none")
    assert done.returncode == 2
    assert "There is no running service 'none': running are tiny, other, tiny_embedder" in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGHUP")
def test_a_reload_adds_and_removes_and_a_broken_one_keeps_its_state(home: Path, tmp_path: Path) -> None:
    entry = "    - {{kind: classification, name: {}, models: {}, options: {{top_k: {}}}}}\n"

    def write(*entries: tuple[str, str, int]) -> None:
        text = "pdserve:\n  services:\n" + "".join(entry.format(*each) for each in entries)
        path.write_text(text, "utf-8")

    path = tmp_path / "shop.yml"
    write(("a", "tiny", 1), ("b", "other", 1), ("c", "tiny", 1))
    with (
        start(home, str(path), service="--config") as server,
        httpx.Client(base_url=server.url, trust_env=False, timeout=60) as client,
    ):
        write(("a", "tiny", 2), ("b", "not_there", 2), ("d", "other", 3), ("e", "not_there", 1))
        server.interrupt(signal.SIGHUP)
        until(lambda: "e is not served, the other services go on" in server.log, 90)

        def labels(name: str) -> int:
            return len(ask(client, f"/v1/classification/{name}").json()["results"][0]["labels"])

        assert [each["name"] for each in client.get("/v1/services").json()["services"]] == ["a", "b", "d"]
        assert (labels("a"), labels("b"), labels("d")) == (2, 1, 3)
        assert ask(client, "/v1/classification/c").status_code == 404
        assert "/v1/classification/d" in client.get("/openapi.json").json()["paths"]
        path.write_text("pdserve: {services: [{name: a}]}", "utf-8")
        server.interrupt(signal.SIGHUP)
        until(lambda: "has no kind" in server.log, 90)
        assert (labels("a"), labels("b"), labels("d")) == (2, 1, 3)
        server.interrupt()
        assert server.wait() == 0
