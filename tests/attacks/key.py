"""Ways around API keys, and ways to guess them."""

import base64
import os
import signal
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from pdserve.services.auth import Keys
from tests.attacks.attack import Target, attack
from tests.tiny import picture

KEY = "S3cretKeyOfFortyCharacters0123456789abcd"
OTHER = "AnotherKeyOfFortyCharacters0123456789abc"
KEYED = {"PDSERVE_API_KEY": KEY}
ROUTES = [
    *(("GET", path) for path in ("/v2", "/metrics", "/docs", "/redoc", "/openapi.json", "/")),
    *(("GET", path) for path in ("/v1/classification", "/v2/health/../metrics", "//metrics", "/METRICS")),
    *(("GET", path) for path in ("/v2/health/live/", "/v2/health/live;/../../v2", "/v2/health/live%2f..")),
    *(("POST", path) for path in ("/v1/classification", "/imagenet/prediction", "/v2/health/ready")),
    *((method, "/v2/health/live") for method in ("PUT", "DELETE", "OPTIONS", "PATCH")),
]


def without_key(target: Target) -> None:
    """Take the key from the attack's client."""
    for name in ("Authorization", "X-API-Key"):
        target.http.headers.pop(name, None)


def with_key(target: Target) -> None:
    """Let the attack's client, and what is asked after it, have the key."""
    target.http.headers["X-API-Key"] = KEY


@attack(environ=KEYED, without={"pdserve.services.auth:require_key": lambda app, *_: app})
def routes_without_a_key(target: Target) -> None:
    """Every route but health asks for the key, whatever the path or method looks like."""
    without_key(target)
    for method, path in ROUTES:
        for headers in ({}, {"X-API-Key": OTHER}, {"X-Original-URL": "/v2/health/live"}):
            answer = target.http.request(method, path, headers=headers)
            assert answer.status_code == 401, (method, path, headers)
            assert KEY not in answer.text
    assert target.http.get("/v2/health/live").status_code == 200
    with_key(target)
    assert target.http.get("/v2").status_code == 200


@attack(environ=KEYED, without={"pdserve.services.auth:Keys.admit": lambda self, sent: bool(sent)})
def keys_that_are_nearly_right(target: Target) -> None:
    """A key is right as a whole, in one of its two headers, and nowhere else."""
    without_key(target)
    basic = base64.b64encode(f"x:{KEY}".encode()).decode()
    for headers in (
        *({"X-API-Key": each} for each in (KEY[:-1], KEY + "x", KEY.lower(), KEY[1:], "x" * 40, KEY * 700)),
        *(
            {"Authorization": each}
            for each in (KEY, f"Basic {basic}", f"Bearer {KEY[:-1]}", f"Bearer x{KEY}")
        ),
        {"Cookie": f"X-API-Key={KEY}"},
        {"X_API_Key": KEY},
        {"X-Forwarded-For": "127.0.0.1"},
    ):
        assert target.http.get("/v2", headers=headers).status_code == 401, headers
    for query in (f"api_key={KEY}", f"key={KEY}", f"X-API-Key={KEY}", f"access_token={KEY}"):
        assert target.http.get(f"/v2?{query}").status_code == 401
    assert KEY not in target.log
    with_key(target)


@attack(environ=KEYED, without={"pdserve.services.auth:MOST": 1 << 30})
def many_keys_in_one_request(target: Target) -> None:
    """A request is no list of guesses: with hundreds of keys it is refused, though one of them is right."""
    without_key(target)
    guesses = [("X-API-Key", f"{i:040d}") for i in range(500)]
    for sent in ([*guesses, ("X-API-Key", KEY)], [("Authorization", f"Bearer {KEY}"), *guesses]):
        assert target.http.get("/v2", headers=sent).status_code == 401
    both = [("Authorization", f"Bearer {OTHER}"), ("Authorization", f"Bearer {KEY}")]
    assert target.http.get("/v2", headers=both).status_code == 200
    with_key(target)


@attack(environ=KEYED, full=True, without={"pdserve.services.auth:require_key": lambda app, *_: app})
def a_large_body_without_a_key(target: Target) -> None:
    """It is refused before it is read."""
    head = b"POST /v1/classification HTTP/1.1\r\nHost: localhost\r\nContent-Length: 200000000\r\n\r\n"
    with target.watch() as seen:
        answer = target.raw(head + bytes(50_000_000), timeout_s=5)
    assert answer.startswith(b"HTTP/1.1 401 ") or not answer, answer[:80]  # a reset may have outrun it
    assert seen.grown_mb < 30


def outcome(target: Target, image: str, metadata: tuple[tuple[str, str], ...]) -> grpc.StatusCode:
    """How a call ends."""
    try:
        target.rpc(["image"], [image], metadata=metadata)
    except grpc.RpcError as error:
        return error.code()  # type: ignore[attr-defined, no-any-return]
    return grpc.StatusCode.OK


async def _let_in(self: Any, continuation: Callable[[Any], Awaitable[Any]], details: Any) -> Any:
    return await continuation(details)


@attack(environ=KEYED, without={"pdserve.services.auth:KeyInterceptor.intercept_service": _let_in})
def calls_without_a_key(target: Target) -> None:
    """gRPC asks for the same keys, before a message is read."""
    image = base64.b64encode(picture((255, 0, 0))).decode()
    wrong = (("x-api-key", OTHER),), (("authorization", f"Bearer {KEY[:-1]}"),), (("cookie", KEY),)
    for metadata in ((), *wrong):
        assert outcome(target, image, metadata) is grpc.StatusCode.UNAUTHENTICATED, metadata
    assert target.rpc(["image"], [image], metadata=(("x-api-key", KEY),)).err_no == 0
    with_key(target)


def _forgets_first(self: Keys) -> None:
    self._digests = ()
    self._digests = self._read()


@attack(service=None, full=True, without={"pdserve.services.auth:Keys.reload": _forgets_first})
def a_broken_key_file_at_a_reload(target: Target) -> None:
    """The keys that were read before stay: nobody is let in, and nobody with a key is kept out."""
    file = target.home / "keys.txt"
    file.write_text(f"{KEY}\n", "utf-8")
    with target.start("--api-key", str(file), service="classification") as own:

        def status(key: str) -> int:
            return own.http.get("/v2", headers={"X-API-Key": key}).status_code

        broken: list[Callable[[], object]] = [
            lambda: file.write_text("# nothing\n", "utf-8"),
            lambda: file.write_text("short\n", "utf-8"),
            lambda: file.write_bytes(b"\xff\xfe\0" * 40),
            file.unlink,
            file.mkdir,
        ]
        for count, spoil in enumerate(broken, 1):
            spoil()
            os.kill(own.pid, signal.SIGHUP)
            deadline = time.monotonic() + 30
            while own.log.count("not reloaded") < count:
                assert time.monotonic() < deadline, "the reload is not said to have failed"
                time.sleep(0.02)
            assert (status(KEY), status(OTHER), status("")) == (200, 401, 401)
        assert KEY not in own.log
        assert "Traceback" not in own.log


@attack(service=None, without={"pdserve.services.auth:SHORTEST": 1})
def a_key_that_can_be_guessed(target: Target) -> None:
    """A server does not start with one."""
    done = target.command(
        "serve",
        "classification",
        "--model",
        "tiny",
        "--http-port",
        "0",
        "--rpc-port",
        "0",
        PDSERVE_API_KEY="secret",
        timeout_s=20,
    )
    assert done.returncode != 0
    assert "it needs 16" in done.stderr, done.stderr
    assert "secret" not in done.stderr
