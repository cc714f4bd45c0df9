"""API keys: callers must send one of the server's keys, over HTTP and gRPC alike.

::

    Authorization: Bearer KEY        or        X-API-Key: KEY

Health needs no key, since probes carry none.
"""

import hashlib
import hmac
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from pdserve.clients.credentials import VARIABLE, check_key, read_keys
from pdserve.errors import SettingsError, UnauthorizedError
from pdserve.services.http.messages import error_response
from pdserve.services.net import is_loopback
from pdserve.services.protocols import App, Receive, Resource, Scope, Send, grpc_protocol
from pdserve.settings import ServerSettings

# Shorter ones can be guessed.
SHORTEST = 16

# A request needs one, and those that send it in both headers two; more are guesses.
MOST = 4

_BEARER = b"bearer"


class Keys:
    """The server's keys; callers must send one of them."""

    def __init__(self, key: str | None, file: Path | None) -> None:
        """``key`` and the keys in ``file``. Raises SettingsError for malformed keys."""
        self._key = key
        self._file = file
        self._digests = self._read()

    @classmethod
    def read(cls, settings: ServerSettings) -> "Keys | None":
        """The keys that the settings name; None where they name none, and no key is needed."""
        if settings.api_key is None and settings.api_key_file is None:
            return None
        key = None if settings.api_key is None else settings.api_key.get_secret_value()
        return cls(key, settings.api_key_file)

    def reload(self) -> None:
        """Read the file again. Raises SettingsError, and keeps the current keys, where it is malformed."""
        self._digests = self._read()

    def admit(self, sent: Sequence[bytes]) -> bool:
        """Whether one of the sent keys is valid; never where more than MOST are sent.

        Digests are compared, and all of them, so that the time it takes says nothing about the keys.
        """
        found = False
        for key in sent if len(sent) <= MOST else ():
            digest = hashlib.sha256(key).digest()
            for valid in self._digests:
                found |= hmac.compare_digest(digest, valid)
        return found

    def _read(self) -> tuple[bytes, ...]:
        keys: list[str] = []
        if self._key is not None:
            keys.append(_long_enough(self._key, VARIABLE))
            check_key(self._key, VARIABLE)
        if self._file is not None:
            keys += [_long_enough(key, str(self._file)) for key in read_keys(self._file)]
        return tuple(hashlib.sha256(key.encode()).digest() for key in keys)


def _long_enough(key: str, where: str) -> str:
    if len(key) < SHORTEST:
        raise SettingsError(
            f"{where}: a key has {len(key)} characters; it needs {SHORTEST}, as those that "
            "`openssl rand -hex 32` makes."
        )
    return key


def _refusal(sent: Sequence[bytes]) -> UnauthorizedError:
    if len(sent) > MOST:
        return UnauthorizedError(f"The request has {len(sent)} keys; send one.")
    if sent:
        return UnauthorizedError("The key is not one of this server's.")
    return UnauthorizedError(
        "This server needs a key: send the header `Authorization: Bearer KEY` or `X-API-Key: KEY`."
    )


def _sent_keys(headers: Iterable[tuple[bytes, bytes]]) -> list[bytes]:
    """The keys in headers; names in lower case."""
    keys = []
    for name, value in headers:
        if name == b"x-api-key":
            keys.append(value.strip())
        elif name == b"authorization":
            scheme, _, key = value.strip().partition(b" ")
            if scheme.lower() == _BEARER:
                keys.append(key.strip())
    return [key for key in keys if key]


def require_key(
    app: App, keys: Keys, find: Callable[[str], Resource | None], cors_origins: Sequence[str] = ()
) -> App:
    """The same ASGI application for callers with a key; others get a 401.

    ``find``: the resource at a path; those of open protocols (health) need no key. ``cors_origins``: the
    web pages that may send requests, which may read that they are refused.
    """

    def is_open(scope: Scope) -> bool:
        if scope["type"] != "http" or scope["method"] not in ("GET", "HEAD"):
            return False
        resource = find(scope["path"])
        return resource is not None and resource.protocol.open

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or is_open(scope):
            return await app(scope, receive, send)
        # A browser sends its preflight request without a key.
        if cors_origins and _is_preflight(scope):
            return await app(scope, receive, send)
        sent = _sent_keys(scope["headers"])
        if keys.admit(sent):
            return await app(scope, receive, send)
        if scope["type"] != "http":
            return await send({"type": "websocket.close", "code": 1008})
        # RFC 6750 on the challenge.
        challenge = 'Bearer error="invalid_token"' if sent else "Bearer"
        error = _refusal(sent)
        resource = find(scope["path"])
        response = error_response(
            scope["path"],
            resource.protocol if resource else None,
            error.http_status,
            error.code,
            error.message,
            {"WWW-Authenticate": challenge},
        )
        origin = dict(scope["headers"]).get(b"origin", b"").decode("latin-1")
        if origin and ("*" in cors_origins or origin in cors_origins):
            response.headers["Access-Control-Allow-Origin"] = origin
            response.headers["Vary"] = "Origin"
        return await response(scope, receive, send)

    return application


def _is_preflight(scope: Scope) -> bool:
    if scope["type"] != "http" or scope["method"] != "OPTIONS":
        return False
    names = {name for name, _ in scope["headers"]}
    return {b"origin", b"access-control-request-method"} <= names


class KeyInterceptor(grpc.aio.ServerInterceptor):
    """The same for gRPC: the key is in the metadata of those names; others get UNAUTHENTICATED."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        details: grpc.HandlerCallDetails,
    ) -> Any:
        """The method's handler, or one that refuses."""
        protocol = grpc_protocol(details.method)
        if protocol is not None and protocol.open:
            return await continuation(details)
        metadata = details.invocation_metadata or ()
        sent = _sent_keys((key.encode(), value.encode()) for key, value in metadata if isinstance(value, str))
        if self._keys.admit(sent):
            return await continuation(details)
        error = _refusal(sent)

        async def refuse(_requests: Any, context: "grpc.aio.ServicerContext[Any, Any]") -> None:
            await context.abort(grpc.StatusCode[error.grpc_status], error.message)

        # One that takes a stream is called before the message is in, which may be large.
        return grpc.stream_unary_rpc_method_handler(refuse)


def open_access_warning(settings: ServerSettings) -> str | None:
    """A warning where other machines can reach a server that needs no key; None otherwise."""
    if settings.api_key or settings.api_key_file or is_loopback(settings.host):
        return None
    return (
        f"any machine that reaches {settings.host} can use this server, since it needs no key; "
        "give --api-key FILE, or --host 127.0.0.1 to be reached from this machine only"
    )
