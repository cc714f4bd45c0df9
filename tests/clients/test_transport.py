"""Clients read within bounds, whatever a server sends."""

import asyncio
import gzip
import json
import time
import zlib
from collections.abc import Callable
from concurrent import futures
from typing import Any

import grpc
import pytest

from pdserve.answers import Label
from pdserve.clients import AsyncHttpClient, HttpClient, RpcClient
from pdserve.clients.transport import MAX_VALUES, Body, parse_json
from pdserve.errors import ClientError, UsageError
from pdserve.formats.protos import pipeline
from tests.clients.test_http_and_rpc import free_port
from tests.hostile import Handler, Hostile, bomb, endless, hostile, reply, trickle

GOOD = json.dumps({"results": [{"labels": [{"class_id": 1, "label": "猫", "score": 0.5}]}]}).encode()
FIELDS = json.dumps({"err_no": 0, "key": ["label"], "value": ["(" * 9999]}).encode()
MB = 1 << 20


def ask(url: str, **named: Any) -> list[Label] | ClientError:
    """The answer of the sync client, and that the async one has the same."""

    async def later() -> Any:
        async with AsyncHttpClient(url, **named) as client:
            return (await client.predict_batch([b"image"]))[0]

    def caught(answer: Callable[[], Any]) -> Any:
        try:
            return answer()
        except ClientError as error:
            return error

    with HttpClient(url, **named) as client:
        first = caught(lambda: client.predict_batch([b"image"])[0])
    second = caught(lambda: asyncio.run(later()))
    assert str(first) == str(second)
    return first


@pytest.mark.parametrize(
    ("encoding", "packed"),
    [("identity", GOOD), ("gzip", gzip.compress(GOOD, mtime=0)), ("deflate", zlib.compress(GOOD))],
    ids=("identity", "gzip", "deflate"),
)
def test_compressed_answers_are_read(encoding: str, packed: bytes):
    with hostile(lambda h, _: reply(h, packed, Content_Encoding=encoding)) as server:
        assert ask(server.url) == [Label(1, "猫", 0.5)]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda h, _: reply(h, bomb(20), Content_Encoding="gzip"), "more than 2 MiB"),
        (lambda h, _: reply(h, bytes(3 * MB)), "more than 2 MiB"),
        (lambda h, _: reply(h, GOOD, Content_Length=str(10**18)), "more than 2 MiB"),
        (lambda h, _: reply(h, bomb(20), 500, Content_Encoding="gzip"), "more than 1 MiB"),
        (lambda h, s: endless(h, s, 400), "more than 1 MiB"),
        (lambda h, _: reply(h, GOOD, Content_Encoding="br"), "'br', which was not asked for"),
        (lambda h, _: reply(h, GOOD, Content_Encoding="gzip"), "broken compression"),
        (lambda h, _: reply(h, b"[" * 200_000), "answers 200"),
        (lambda h, _: reply(h, b'{"results": {"a": ' * 50_000), "answers 200"),
        (lambda h, _: reply(h, b"x", X_Long="x" * 200_000), "failed|closed the connection"),
        (lambda h, _: reply(h, b'{"err_no": 0, "key": 1, "value": 2}'), "without keys and values"),
        (lambda h, _: reply(h, FIELDS), "cannot be read"),
    ],
)  # fmt: skip
def test_answers_beyond_the_bounds(answer: Callable[[Handler, Hostile], None], words: str):
    with hostile(answer) as server:
        error = ask(server.url, max_answer_bytes=2 * MB)
        assert isinstance(error, ClientError)
        with pytest.raises(ClientError, match=words):
            raise error
        assert server.sent_mb < 50  # what fits into the sockets' buffers


@pytest.mark.parametrize("body", [True, False])
def test_a_time_out_is_for_all_of_an_answer(body: bool):
    with hostile(lambda h, s: trickle(h, s, body)) as server:
        started = time.monotonic()
        assert "did not answer within 0.5 s" in str(ask(server.url, timeout=0.5))
        assert time.monotonic() - started < 20


def test_what_is_too_much_is_noticed_as_it_comes():
    packed = bomb(1000)
    body = Body({"content-encoding": "gzip"}, 5 * MB, "it")
    with pytest.raises(ClientError, match="it answers with more than 5 MiB"):
        body.add(packed)
    assert body.content() == b""


def test_json_with_too_many_values():
    assert parse_json(b'{"a": [1, null]}', "it") == {"a": [1, None]}
    assert parse_json(b"[" * 100_000, "it") is None
    with pytest.raises(ClientError, match="it answers with more than 4,000,000 values"):
        parse_json(b"[" + b"1," * MAX_VALUES + b"1]", "it")
    # Commas in a text are not counted apart, so that a long text is within the bound too.
    assert parse_json(json.dumps("," * MAX_VALUES).encode(), "it") == "," * MAX_VALUES


def test_a_grpc_answer_beyond_the_bounds():
    """Compressed ones are refused, as their bound would be that of what is sent."""

    def answer(request: bytes, context: Any) -> bytes:
        key = pipeline.request_class().FromString(request).key[0]
        text = {"image_0": "0" * (80 * MB)}[key]
        return pipeline.response_class()(key=["results"], value=[text]).SerializeToString()

    for compression in (grpc.Compression.NoCompression, grpc.Compression.Gzip):
        rpc = grpc.server(
            futures.ThreadPoolExecutor(1),
            options=[("grpc.max_send_message_length", -1)],
            compression=compression,
        )
        service, _, method = pipeline.METHOD.strip("/").rpartition("/")
        handler = grpc.unary_unary_rpc_method_handler(answer)
        rpc.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
        port = rpc.add_insecure_port("127.0.0.1:0")
        rpc.start()
        try:
            with RpcClient(f"127.0.0.1:{port}") as client, pytest.raises(ClientError) as failed:
                client.predict(b"image")
        finally:
            rpc.stop(None).wait()
        assert "answers" in failed.value.message


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (None, r"The proxy http://127.0.0.1:\d+ \(http_proxy\) does not answer; .*NO_PROXY=far.example"),
        (
            lambda h, _: reply(h, b"<html>", 503),
            r"answers 503: Service Unavailable; .*through the proxy http",
        ),
        (lambda h, _: reply(h, b"<html>", 407), r"answers 407: .*through the proxy http"),
    ],
)
def test_a_dead_proxy_is_not_a_dead_server(
    monkeypatch: pytest.MonkeyPatch, answer: Callable[[Handler, Hostile], None] | None, words: str
):
    with hostile(answer or (lambda h, _: None)) as proxy:
        at = proxy.url if answer else f"http://127.0.0.1:{free_port()}"
        monkeypatch.setenv("http_proxy", at)
        with pytest.raises(ClientError, match=words):
            raise ask("http://far.example")
        if answer:
            assert {path for path, _ in proxy.seen} == {"http://far.example/v1/classification"}


def test_a_proxy_that_refuses_to_connect(monkeypatch: pytest.MonkeyPatch):
    with hostile(lambda h, _: reply(h, b"<html>", 403)) as proxy:
        monkeypatch.setenv("https_proxy", proxy.url)
        refused = ask("https://far.example", api_key="k" * 20)
        with pytest.raises(ClientError, match=r"The proxy .* refuses \(403 Forbidden\)"):
            raise refused
        assert "authorization" not in proxy.seen[0][1]  # the key is for the server alone
        monkeypatch.setenv("grpc_proxy", proxy.url)
        with RpcClient("far.example:80", timeout=20) as client, pytest.raises(ClientError, match="The proxy"):
            client.predict(b"image")


def test_proxies_that_no_client_can_use(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "ftp://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "[::1],fe80::/10")
    for open_client in (HttpClient, AsyncHttpClient, RpcClient):
        address = "far.example:80" if open_client is RpcClient else "http://far.example"
        with pytest.raises(UsageError, match="http_proxy holds no address of a proxy"):
            open_client(address)
    with hostile(lambda h, _: reply(h, GOOD)) as server:
        assert ask(server.url) == [Label(1, "猫", 0.5)]
