"""Keys: where they are read, who comes in with them and who does not."""

import asyncio
import socket
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from pydantic import SecretStr

from pdserve.errors import SettingsError
from pdserve.formats.protos import pipeline
from pdserve.pipelines import SERVICES
from pdserve.services.auth import Keys, open_access_warning, require_key
from pdserve.services.http.app import RouteTable
from pdserve.settings import ServerSettings
from tests.running import Server, pdserve
from tests.services.listeners import Listeners, listeners
from tests.services.watching import until
from tests.tiny import picture

ONE, TWO, OTHER = "the-first-key-of-all", "and+a/second.one=", "nobody-knows-this-key"
ORIGIN = "https://pages.example"


def settings(**given: Any) -> ServerSettings:
    return ServerSettings(name="imagenet", http_port=0, **given)


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text(f"# of the shop\n{ONE}\n\n  {TWO}  \n", "utf-8")
    return path


# Reading


def test_nobody_is_asked_where_there_is_no_key():
    assert Keys.read(settings()) is None


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_file_has_one_key_a_line(tmp_path: Path, encoding: str, end: str):
    path = tmp_path / "keys"
    path.write_bytes(end.join((ONE, "", "  # not this one, it is a remark", f" {TWO} ")).encode(encoding))
    keys = Keys.read(settings(api_key_file=path))
    assert keys
    assert keys.admit([ONE.encode()])
    assert keys.admit([TWO.encode()])
    for wrong in ("", "#", ONE[:-1], ONE + "x", ONE.upper(), OTHER, "# not this one, it is a remark"):
        assert not keys.admit([wrong.encode()])
    assert not keys.admit([])
    assert keys.admit([OTHER.encode(), TWO.encode()])


def test_the_environment_and_a_file_both_count(key_file: Path):
    found = SERVICES["classification"].settings({"api_key_file": key_file}, {"PDSERVE_API_KEY": OTHER}).server
    keys = Keys.read(found)
    assert keys
    assert all(keys.admit([key.encode()]) for key in (ONE, TWO, OTHER))
    assert OTHER not in repr(found)
    assert not any(key in repr(vars(keys).get("_digests")) for key in (ONE, TWO, OTHER))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "has none; write one key a line"),
        (b"\n# only a remark\n   \n", "has none"),
        (b"too-short-a-key\n", "a key has 15 characters; it needs 16"),
        (f"{ONE}\n\nwith a blank in it\n".encode(), "line 3: the key has other characters"),
        ("ein-schlüssel-mit-umlaut".encode(), "other characters"),
        (b"\xff\xfe\x00\x01", "is no text"),
    ],
)
def test_a_file_that_will_not_do(tmp_path: Path, content: bytes, words: str):
    path = tmp_path / "keys"
    path.write_bytes(content)
    with pytest.raises(SettingsError, match=words) as caught:
        Keys.read(settings(api_key_file=path))
    assert str(path) in caught.value.message
    assert not any(word in caught.value.message for word in ("too-short", "blank in it", "umlaut"))


@pytest.mark.parametrize("key", ["", "short", "with a blank in the middle", "ein-schlüssel-mit-umlaut"])
def test_a_key_that_will_not_do(key: str):
    with pytest.raises(SettingsError, match="PDSERVE_API_KEY: ") as caught:
        Keys.read(settings(api_key=SecretStr(key)))
    assert not key or key not in caught.value.message


def test_a_folder_is_no_file_of_keys(tmp_path: Path):
    with pytest.raises(SettingsError, match="Cannot read the file of keys") as caught:
        Keys.read(settings(api_key_file=tmp_path))
    assert str(tmp_path) in caught.value.message


@pytest.mark.parametrize("literal", [OTHER, "a/b+c=" * 8, "x" * 5000, "with\0null-and-more"])
def test_a_key_in_place_of_its_file_is_not_told(literal: str):
    with pytest.raises(SettingsError, match=r"takes a file with one key a line.*PDSERVE_API_KEY") as caught:
        Keys.read(settings(api_key_file=Path(literal)))
    assert literal not in "".join(traceback.format_exception(caught.value))


def test_a_missing_file_in_a_folder_is_named(tmp_path: Path):
    with pytest.raises(SettingsError, match="There is no such file of keys") as caught:
        Keys.read(settings(api_key_file=tmp_path / "none"))
    assert str(tmp_path / "none") in caught.value.message


def test_a_file_named_in_the_configuration_is_beside_it(tmp_path: Path, key_file: Path):
    config = tmp_path / "config.yml"
    config.write_text(
        "http_port: 0\npdserve: {api_key_file: keys, tls_cert: cert.pem, tls_key: /etc/key.pem}\n".replace(
            "http_port: 0", "http_port: 8001"
        ),
        "utf-8",
    )
    found = SERVICES["classification"].settings({}, {}, config).server
    assert found.api_key_file == key_file
    assert found.tls_cert == tmp_path / "cert.pem"
    assert found.tls_key == Path("/etc/key.pem")


def test_a_key_of_digits_in_the_configuration_is_not_told(tmp_path: Path):
    config = tmp_path / "config.yml"
    config.write_text("http_port: 8001\npdserve: {api_key: 31415926535897932}\n", "utf-8")
    with pytest.raises(SettingsError, match=r"config\.yml: api_key is no text") as caught:
        SERVICES["classification"].settings({}, {}, config)
    assert "314159" not in "".join(traceback.format_exception(caught.value))


def test_reloading(key_file: Path):
    keys = Keys.read(settings(api_key_file=key_file, api_key=SecretStr(TWO)))
    assert keys
    key_file.write_text(OTHER, "utf-8")
    assert not keys.admit([OTHER.encode()])
    keys.reload()
    assert keys.admit([OTHER.encode()])
    assert keys.admit([TWO.encode()])
    assert not keys.admit([ONE.encode()])
    key_file.write_text("short", "utf-8")
    with pytest.raises(SettingsError, match="5 characters"):
        keys.reload()
    key_file.unlink()
    with pytest.raises(SettingsError, match="no such file"):
        keys.reload()
    assert keys.admit([OTHER.encode()])


# HTTP


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Listeners]:
    path = tmp_path_factory.mktemp("access") / "keys"
    path.write_text(f"{ONE}\n{TWO}\n", "utf-8")
    with listeners(api_key_file=path, cors_origins=(ORIGIN,)) as opened:
        yield opened


@pytest.fixture
def http(keyed: Listeners) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=keyed.url, trust_env=False, timeout=30) as client:
        yield client


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": f"Bearer {ONE}"},
        {"Authorization": f"bearer   {TWO}"},
        {"X-API-Key": TWO},
        {"X-API-Key": OTHER, "Authorization": f"Bearer {ONE}"},
    ],
)
def test_with_a_key(http: httpx.Client, headers: dict[str, str]):
    response = http.post("/v1/classification", content=b"an image", headers=headers)
    assert (response.status_code, response.json()) == (200, {"results": [{"size": 8}]})


@pytest.mark.parametrize(
    ("headers", "challenge"),
    [
        ({}, "Bearer"),
        ({"Authorization": f"Basic {ONE}"}, "Bearer"),
        ({"Authorization": ONE}, "Bearer"),
        ({"Authorization": "Bearer"}, "Bearer"),
        ({"Authorization": f"Bearer {OTHER}"}, 'Bearer error="invalid_token"'),
        ({"X-API-Key": OTHER}, 'Bearer error="invalid_token"'),
        ({"X-API-Key": f"Bearer {ONE}"}, 'Bearer error="invalid_token"'),
        ({"Cookie": f"api_key={ONE}"}, "Bearer"),
    ],
)
def test_without_one(http: httpx.Client, keyed: Listeners, headers: dict[str, str], challenge: str):
    before = len(keyed.service.asked)
    response = http.post(f"/v1/classification?api_key={ONE}", content=b"an image", headers=headers)
    assert response.status_code == 401
    assert response.headers["WWW-Authenticate"] == challenge
    error = response.json()["error"]
    assert error["code"] == "unauthorized"
    assert ONE not in error["message"]
    assert OTHER not in error["message"]
    assert len(keyed.service.asked) == before


@pytest.mark.parametrize(
    "path", ["/v2", "/docs", "/openapi.json", "/metrics", "/", "/v2/health", "/v2/health/live/"]
)
def test_what_needs_a_key(http: httpx.Client, path: str):
    refused = http.get(path)
    assert (refused.status_code, refused.json()["error"]["code"]) == (401, "unauthorized")
    assert http.get(path, headers={"X-API-Key": ONE}).status_code in (200, 404, 405)


def test_the_old_route_is_refused_in_its_own_form(http: httpx.Client):
    response = http.post("/imagenet/prediction", json={"key": ["image"], "value": ["eA=="]})
    assert response.status_code == 401
    assert response.headers["WWW-Authenticate"] == "Bearer"
    body = response.json()
    assert (body["code"], body["details"]) == (16, [])  # gRPC's number for UNAUTHENTICATED
    assert body["error"] == body["message"]
    answer = http.post(
        "/imagenet/prediction", json={"key": ["image"], "value": ["eA=="]}, headers={"X-API-Key": ONE}
    )
    assert answer.json()["err_no"] == 0


@pytest.mark.parametrize("path", ["/v2/health/live", "/v2/health/ready"])
def test_probes_need_no_key(http: httpx.Client, path: str):
    assert http.get(path).status_code == 200
    assert http.post(path).status_code == 401


def test_a_large_body_without_a_key_still_reads_its_refusal(http: httpx.Client):
    response = http.post("/v1/classification", content=bytes(20_000_000))
    assert response.status_code == 401


def test_a_page_that_may_ask_is_let_ask_whether_it_may(http: httpx.Client):
    preflight = {"Origin": ORIGIN, "Access-Control-Request-Method": "POST"}
    assert http.options("/v1/classification", headers=preflight).status_code != 401
    assert http.options("/v1/classification", headers={"Origin": ORIGIN}).status_code == 401
    refused = http.post("/v1/classification", headers={"Origin": ORIGIN})
    assert refused.headers["Access-Control-Allow-Origin"] == ORIGIN
    refused = http.post("/v1/classification", headers={"Origin": "https://other.example"})
    assert "Access-Control-Allow-Origin" not in refused.headers


def asked(app: Any, **scope: Any) -> list[dict[str, Any]]:
    """What an ASGI application sends."""
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request"}

    asyncio.run(app({"type": "http", "method": "GET", "path": "/", "headers": []} | scope, receive, send))
    return sent


def test_other_kinds_of_requests(key_file: Path):
    async def inside(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": f"inside.{scope['type']}"})

    keys = Keys.read(settings(api_key_file=key_file))
    assert keys
    app = require_key(inside, keys, RouteTable(()).find)
    preflight = [(b"origin", ORIGIN.encode()), (b"access-control-request-method", b"POST")]
    assert asked(app, method="OPTIONS", headers=preflight)[0]["status"] == 401  # no page may ask
    assert asked(app, type="websocket") == [{"type": "websocket.close", "code": 1008}]
    assert asked(app, type="websocket", path="/v2/health/live")[0]["type"] == "websocket.close"
    assert asked(app, type="lifespan") == [{"type": "inside.lifespan"}]
    assert asked(app, headers=[(b"x-api-key", ONE.encode())]) == [{"type": "inside.http"}]


def test_openapi_tells_of_the_key(http: httpx.Client):
    schema = http.get("/openapi.json", headers={"X-API-Key": ONE}).json()
    schemes = schema["components"]["securitySchemes"]
    assert {(s["type"], s.get("scheme") or s.get("name")) for s in schemes.values()} == {
        ("http", "bearer"),
        ("apiKey", "X-API-Key"),
    }
    assert {name for each in schema["security"] for name in each} == set(schemes)
    for path, operations in schema["paths"].items():
        for operation in operations.values():
            is_open = path.startswith("/v2/health/") or path == "/health"
            assert (operation.get("security") == []) is is_open
            assert ("401" in operation["responses"]) is not is_open


# gRPC


def call(target: str, metadata: Any, value: str = "eA==", method: str = pipeline.METHOD) -> Any:
    options = [("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(target, options) as channel:
        inference = channel.unary_unary(
            method,
            request_serializer=pipeline.request_class().SerializeToString,
            response_deserializer=pipeline.response_class().FromString,
        )
        return inference(pipeline.request_class()(key=["a"], value=[value]), metadata=metadata, timeout=30)


@pytest.mark.parametrize(
    "metadata",
    [(("authorization", f"Bearer {ONE}"),), (("x-api-key", TWO),), (("authorization", f"BEARER {TWO}"),)],
)
def test_a_call_with_a_key(keyed: Listeners, metadata: Any):
    assert call(keyed.target, metadata).err_no == 0


@pytest.mark.parametrize(
    "metadata",
    [
        (),
        (("x-api-key", OTHER),),
        (("authorization", ONE),),
        (("x-api-key-bin", ONE.encode()),),
        (("key", ONE),),
    ],
)
@pytest.mark.parametrize("method", [pipeline.METHOD, "/some.Other/method"])
def test_a_call_without_one(keyed: Listeners, metadata: Any, method: str):
    before = len(keyed.service.asked)
    with pytest.raises(grpc.RpcError) as caught:
        call(keyed.target, metadata, method=method)
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert "key" in caught.value.details()
    assert OTHER not in caught.value.details()
    assert len(keyed.service.asked) == before


def test_a_large_call_without_a_key(keyed: Listeners):
    with pytest.raises(grpc.RpcError) as caught:
        call(keyed.target, (), "A" * 50_000_000)
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


# Beyond this machine


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.9", "::1", "localhost"])
def test_loopback_is_not_exposed(host: str):
    assert open_access_warning(settings(host=host)) is None


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "no.such.host.invalid", "x" * 70])
def test_beyond_loopback_without_a_key(host: str, key_file: Path):
    warning = open_access_warning(settings(host=host))
    assert warning
    assert host in warning
    assert "--api-key FILE" in warning
    assert open_access_warning(settings(host=host, api_key_file=key_file)) is None
    assert open_access_warning(settings(host=host, api_key=SecretStr(ONE))) is None


# The server as it is started


@pytest.mark.full
def test_the_server_wants_its_keys(serving: Any, key_file: Path):
    server: Server = serving("--model", "tiny", "--api-key", str(key_file), PDSERVE_API_KEY=OTHER)
    assert httpx.get(f"{server.url}/v2/health/ready", trust_env=False).status_code == 200
    assert httpx.get(f"{server.url}/metrics", trust_env=False).status_code == 401
    for key in (ONE, TWO, OTHER):
        response = httpx.post(
            f"{server.url}/v1/classification",
            content=picture((255, 0, 0)),
            headers={"Authorization": f"Bearer {key}"},
            trust_env=False,
        )
        assert response.json()["results"][0]["labels"][0]["label"] == "red"
        assert call(server.target, (("x-api-key", key),)).err_no == 10000  # comes in; "x" is no image
    with pytest.raises(grpc.RpcError):
        call(server.target, ())
    assert not any(key in server.log for key in (ONE, TWO, OTHER))


@pytest.mark.full
@pytest.mark.posix
def test_the_server_reads_its_keys_again(serving: Any, key_file: Path):
    import signal

    def status(key: str) -> int:
        return httpx.get(f"{server.url}/v2", headers={"X-API-Key": key}, trust_env=False).status_code

    server: Server = serving("--model", "tiny", "--api-key", str(key_file))
    assert (status(ONE), status(OTHER)) == (200, 401)
    key_file.write_text(OTHER, "utf-8")
    server.interrupt(signal.SIGHUP)
    until(lambda: status(OTHER) == 200)
    assert status(ONE) == 401
    key_file.write_text("short", "utf-8")
    server.interrupt(signal.SIGHUP)
    until(lambda: "not reloaded, the keys that were read before stay in force" in server.log)
    assert "5 characters" in server.log
    assert "Traceback" not in server.log
    assert status(OTHER) == 200


@pytest.mark.full
def test_bad_keys_keep_the_server_shut(tiny_home: Path):
    with socket.create_server(("127.0.0.1", 0)) as taken:  # what is wrong with keys is said before that
        done = pdserve(
            tiny_home,
            *("serve", "classification", "--model", "tiny", "--api-key", OTHER),
            *("--http-port", str(taken.getsockname()[1])),
        )
    assert done.returncode == 2
    assert "takes a file" in done.stderr
    assert OTHER not in done.stderr
