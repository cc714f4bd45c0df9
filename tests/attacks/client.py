"""Servers and files that attack whoever asks: predict, fetch, the Python clients."""

import gzip
import json
import tarfile
import time
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager, nullcontext
from subprocess import CompletedProcess
from typing import Any

import grpc
import requests

from pdserve.formats.protos import pipeline
from tests.attacks.attack import Target, attack
from tests.hostile import CONTROLS, ESCAPED, bomb, endless, hostile, reply, trickle
from tests.tiny import picture

MB = 1 << 20
MODEL = "ResNet50_vd"
# A Python client's answer to a hostile server: its error, and the memory that it took, in MB.
ASK = """
import resource, sys
from pdserve.clients import HttpClient, RpcClient
client = (RpcClient if sys.argv[2] == "rpc" else HttpClient)(sys.argv[1], timeout=float(sys.argv[3]))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    client.predict(b"image")
except Exception as error:
    print(type(error).__name__, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def ask(target: Target, url: str, kind: str = "http", timeout_s: float = 60) -> tuple[str, int]:
    """The kind of error that a Python client raises, and how many MB it took."""
    done = target.python(ASK, url, kind, str(timeout_s), timeout_s=120)
    assert done.returncode == 0, done.stderr
    name, grown = done.stdout.split()
    return name, int(grown)


def predict(target: Target, *arguments: str, **environ: str) -> "CompletedProcess[str]":
    """``pdserve predict`` with a classification server, which ends without a traceback."""
    done = target.command("predict", *arguments, "--service", "classification", timeout_s=120, **environ)
    assert "Traceback" not in done.stderr, done.stderr
    return done


def red(target: Target) -> str:
    """An image's path."""
    path = target.home / "red.png"
    path.write_bytes(picture((250, 0, 0)))
    return str(path)


def fetch(target: Target, mirror: str, **environ: str) -> "CompletedProcess[str]":
    """``pdserve fetch`` from a mirror, which ends without a traceback."""
    done = target.command("fetch", MODEL, "--mirror", mirror, "--force", timeout_s=120, **environ)
    assert "Traceback" not in done.stderr, done.stderr
    return done


def take_all(body: Any, data: bytes) -> None:
    """A body that is not counted."""
    body._parts.append(data)


@attack(service=None, without={"pdserve.clients.transport:Body._take": take_all})
def an_answer_without_an_end(target: Target) -> None:
    """It is read up to the bound."""
    with hostile(endless) as server:
        name, grown = ask(target, server.url)
        assert name == "AnswerTooLargeError"
        assert server.sent_mb < 150
    assert grown < 200


def inflate_all(body: Any, data: bytes) -> None:
    """A body that is counted when it is unpacked."""
    body._parts.append(body._inflate.decompress(data) if body._inflate else data)


@attack(service=None, without={"pdserve.clients.transport:Body.add": inflate_all})
def an_answer_that_grows_when_it_unpacks(target: Target) -> None:
    """It is counted while it unpacks."""
    packed = bomb(600)
    with hostile(lambda h, _: reply(h, packed, Content_Encoding="gzip")) as server:
        name, grown = ask(target, server.url)
    assert name == "AnswerTooLargeError"
    assert grown < 200


@attack(service=None, without={"pdserve.clients.http:MAX_ERROR_BYTES": 1 << 30})
def an_error_that_is_long(target: Target) -> None:
    """Little of it is read."""
    with hostile(lambda h, s: endless(h, s, 500)) as server:
        ask(target, server.url)
        assert server.sent_mb < 40


@attack(service=None, without={"pdserve.clients.transport:_Left.of": lambda _, timeout, error: timeout})
def an_answer_that_trickles(target: Target) -> None:
    """The time-out is for all of it."""
    with hostile(trickle) as server:
        started = time.monotonic()
        name, _ = ask(target, server.url, timeout_s=1)
        assert name == "ClientError"
        assert time.monotonic() - started < 30


@attack(service=None, without={"pdserve.clients.transport:MAX_VALUES": 1 << 40})
def an_answer_of_many_values(target: Target) -> None:
    """They are counted before they are made."""
    body = b'{"results": [' + b"{}," * 12_000_000 + b"{}]}"
    with hostile(lambda h, _: reply(h, body)) as server:
        name, grown = ask(target, server.url)
    assert name == "ClientError"
    assert grown < 300


@contextmanager
def rpc_server(size: int) -> Iterator[str]:
    """A gRPC server that answers with so many zeros, compressed."""

    def answer(request: bytes, context: Any) -> bytes:
        made = pipeline.response_class()(key=["results"], value=["0" * size])
        return made.SerializeToString()  # type: ignore[no-any-return]

    server = grpc.server(
        futures.ThreadPoolExecutor(1),
        options=[("grpc.max_send_message_length", -1)],
        compression=grpc.Compression.Gzip,
    )
    service, _, method = pipeline.METHOD.strip("/").rpartition("/")
    handlers = {method: grpc.unary_unary_rpc_method_handler(answer)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


@attack(
    service=None, without={"pdserve.clients.grpc:limits": lambda _: [("grpc.max_receive_message_length", -1)]}
)
def a_grpc_answer_that_grows_when_it_unpacks(target: Target) -> None:
    """Compressed answers are refused."""
    with rpc_server(300 * MB) as address:
        name, grown = ask(target, address, "rpc")
    assert name == "ClientError"
    assert grown < 150


LABELS = json.dumps({"results": [{"labels": [{"class_id": 1, "label": CONTROLS, "score": 0.5}]}]}).encode()
ERROR = json.dumps({"error": {"code": "x", "message": CONTROLS}}).encode()


def harmless(text: str) -> bool:
    return not {c for c in text if ord(c) < 32 or 127 <= ord(c) < 160 or c == "\u202e"} - {"\n"}


@attack(service=None, without={"pdserve.errors:visible": lambda text: text})
def a_label_that_drives_the_terminal(target: Target) -> None:
    """It is escaped where a person reads, and stays what it is in JSON."""
    with hostile(lambda h, _: reply(h, LABELS)) as server:
        done = predict(target, red(target), "--url", server.url)
        assert ESCAPED in done.stdout
        assert harmless(done.stdout)
        assert done.stdout.count("\n") == 2
        done = predict(target, red(target), "--url", server.url, "--json")
        assert json.loads(done.stdout)["labels"][0]["label"] == CONTROLS


@attack(service=None, without={"pdserve.errors:visible": lambda text: text})
def an_error_that_drives_the_terminal(target: Target) -> None:
    """A server's message is escaped, and a file's name."""
    with hostile(lambda h, _: reply(h, ERROR, 500)) as server:
        done = predict(target, red(target), str(target.home / "a\x1b[31m\u202eb.png"), "--url", server.url)
    assert ESCAPED in done.stderr
    assert harmless(done.stderr)
    assert done.stderr.count("\n") == 2


@attack(service=None, without={"pdserve.clients.transport:Body._take": take_all})
def a_picture_of_an_address_without_an_end(target: Target) -> None:
    """It is read up to the bound of an image."""
    with hostile(endless) as server:
        done = predict(target, server.url, "--url", "http://127.0.0.1:9")
        assert done.returncode == 1
        assert "more than 256 MiB" in done.stderr
        assert server.sent_mb < 350


@attack(service=None, without={"pdserve.commands.images:_check_size": lambda *_: None})
def a_picture_of_gigabytes(target: Target) -> None:
    """A file is not read that no server would take."""
    path = target.home / "giant.png"
    with path.open("wb") as file:
        file.truncate(400 << 20)
    done = predict(target, str(path), "--url", "http://127.0.0.1:9")
    assert "the limit of an image" in done.stderr


@attack(service=None, without={"pdserve.commands.images:_checked": lambda before, request: request})
def a_page_that_sends_on_to_this_machine(target: Target) -> None:
    """A picture's address elsewhere cannot have this machine asked."""
    with (
        hostile(lambda h, _: reply(h, picture((0, 0, 0)))) as inside,
        hostile(lambda h, _: reply(h, status=302, Location=f"{inside.url}/secret")) as elsewhere,
    ):
        address = "http://far.example/cat.jpg"
        done = predict(target, address, "--url", "http://127.0.0.1:9", http_proxy=elsewhere.url)
        assert "on this machine" in done.stderr
        assert inside.seen == []


@attack(service=None, without={"pdserve.models.download:_Task.check_size": lambda *_: None})
def a_download_without_an_end(target: Target) -> None:
    """It ends at the bound, and nothing is left."""
    with hostile(endless) as server:
        done = fetch(target, server.url, PDSERVE_MAX_DOWNLOAD_BYTES=str(20 * MB))
        assert "the limit" in done.stderr
        assert server.sent_mb < 80
    assert not list((target.home / "downloads").glob("*.part"))


@attack(
    service=None,
    without={"pdserve.models.session:_Session.get_redirect_target": requests.Session.get_redirect_target},
)
def a_mirror_that_sends_on_to_this_machine(target: Target) -> None:
    """A mirror elsewhere cannot have this machine asked."""
    with (
        hostile(lambda h, _: reply(h, b"inside")) as inside,
        hostile(lambda h, _: reply(h, status=302, Location=f"{inside.url}/secret")) as elsewhere,
    ):
        done = fetch(target, "http://far.example", http_proxy=elsewhere.url)
        assert "on this machine" in done.stderr
        assert inside.seen == []


@attack(
    service=None,
    full=True,
    without={
        "pdserve.models.session:_head_in_time": lambda _: nullcontext(),
    },
)
def a_head_that_trickles(target: Target) -> None:
    """A mirror's answer whose head does not end is given up."""
    with hostile(lambda h, s: trickle(h, s, body=False)) as server:
        code = (
            "import sys; from pathlib import Path; from pdserve.models import download, session\n"
            "session.HEAD_S = 1\n"
            "policy = download.Policy(attempts=1)\n"
            "download.download(sys.argv[1], Path(sys.argv[2]) / 'm.tar', policy=policy)\n"
        )
        started = time.monotonic()
        done = target.python(code, server.url, str(target.home / "downloads"), timeout_s=120)
        assert "FetchError" in done.stderr
        assert time.monotonic() - started < 30


@attack(service=None, without={"pdserve.models.archive:check_limits": lambda *_: None})
def an_archive_of_20_gigabytes(target: Target) -> None:
    """What it says that it unpacks to is looked at before anything is written."""
    header = tarfile.TarInfo("m/zeros")
    header.size = 20 << 30
    packed = gzip.compress(header.tobuf(tarfile.GNU_FORMAT)) + gzip.compress(bytes(64 * MB), 1)
    with hostile(lambda h, _: reply(h, packed)) as server:
        done = fetch(target, server.url)
    assert "unpacks to more than 17.2 GB, the limit" in done.stderr
