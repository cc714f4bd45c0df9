"""The model repository: who may load and unload, and what is listed."""

from collections.abc import Iterator
from pathlib import Path

import grpc
import httpx
import pytest

from pdserve.errors import PdserveError
from pdserve.formats.protos import INFERENCE, message
from pdserve.services.inference.repository import check_change, index
from pdserve.services.repository import Repository
from pdserve.settings import ServerSettings
from tests.running import Server, start
from tests.services.listeners import RecordingService
from tests.tiny import build_serving_model, picture

WRITE = {"X-Pdserve-Write": "1"}


@pytest.mark.parametrize(
    ("address", "keyed", "parameters", "status"),
    [
        ("127.0.0.1", False, {}, None),
        ("::1", False, {"unload_dependents": True}, None),
        ("::ffff:127.0.0.1", False, {}, None),
        ("192.0.2.7", True, {}, None),
        ("192.0.2.7", False, {}, 403),
        ("::ffff:192.0.2.7", False, {}, 403),
        ("", False, {}, 403),
        ("localhost.example", False, {}, 403),
        ("127.0.0.1", False, {"config": "{}"}, 501),
        ("192.0.2.7", True, {"file:1/model.onnx": "x"}, 501),
    ],
)
def test_who_may_load_and_unload(
    address: str, keyed: bool, parameters: dict[str, str], status: int | None
) -> None:
    settings = ServerSettings(name="x", api_key="k" * 32 if keyed else None)
    if status is None:
        check_change(settings, address, parameters)
        return
    with pytest.raises(PdserveError) as raised:
        check_change(settings, address, parameters)
    assert raised.value.http_status == status


def test_states() -> None:
    service = RecordingService()
    found = index(Repository({"a": service, "b": service}))
    assert [each["name"] for each in found] == ["a", "b"]
    assert {(each["version"], each["state"], each["reason"]) for each in found} == {("1", "READY", "")}
    assert index(Repository({"a": service}), ready=True) == found[:1]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("home")
    build_serving_model(Path(home) / "models")
    with start(home, "--model", "tiny") as server:
        yield server


def test_a_service_is_unloaded_and_loaded_again(server: Server) -> None:
    with httpx.Client(base_url=server.url, trust_env=False, timeout=60) as client:

        def state(**body: bool) -> list[tuple[str, str, str]]:
            listed = client.post("/v2/repository/index", json=body).json()
            return [(each["name"], each["state"], each["reason"]) for each in listed]

        name = state()[0][0]
        path = f"/v2/repository/models/{name}"
        assert state() == [(name, "READY", "")]
        refused = client.post(f"{path}/unload")
        assert (refused.status_code, "X-Pdserve-Write" in refused.json()["error"]) == (403, True)
        config = client.post(f"{path}/load", json={"parameters": {"config": "{}"}}, headers=WRITE)
        assert (config.status_code, config.json()["error"][:24]) == (501, "The parameter 'config' i")
        assert client.post("/v2/repository/models/none/load", headers=WRITE).status_code == 404
        assert state() == [(name, "READY", "")]

        assert client.post(f"{path}/unload", headers=WRITE).status_code == 200
        assert state() == [(name, "UNAVAILABLE", "unloaded")]
        assert state(ready=True) == []
        assert client.get(f"/v2/models/{name}/ready").status_code == 503
        assert client.get("/v2/models/tiny").status_code == 404
        asked = client.post("/v1/classification", content=picture((255, 0, 0)))
        assert asked.status_code == 404
        with grpc.insecure_channel(server.target, [("grpc.enable_http_proxy", 0)]) as channel:
            request = message("inference.RepositoryModelLoadRequest")(model_name=name)
            request.parameters["unload_dependents"].bool_param = True
            channel.unary_unary(
                f"/{INFERENCE}/RepositoryModelLoad", request_serializer=type(request).SerializeToString
            )(request, timeout=60)
            listed = channel.unary_unary(
                f"/{INFERENCE}/RepositoryIndex",
                response_deserializer=message("inference.RepositoryIndexResponse").FromString,
            )(b"\x10\x01", timeout=60)
        assert [(each.name, each.state) for each in listed.models] == [(name, "READY")]
        assert client.post("/v1/classification", content=picture((255, 0, 0))).status_code == 200
        assert client.get("/v2/models/tiny/ready").status_code == 200
