"""What both doors do for every request, so that it can be seen from outside: an id that the answer has in
``X-Request-ID``, the numbers, a line of the log where wanted, a span where traced.
"""

import asyncio
import json
import logging
import time
import urllib.parse
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

import grpc
import grpc.aio

from pdserve.formats.protos import pipeline
from pdserve.services.telemetry.metrics import Metrics
from pdserve.services.telemetry.request import HEADER, Call, current
from pdserve.services.telemetry.tracing import Tracer

log = logging.getLogger("pdserve")
access_log = logging.getLogger("pdserve.access")

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
_Context = grpc.aio.ServicerContext[Any, Any]

_HEADER = HEADER.encode()
_GONE = "499"  # nginx's number: the caller went away before there was an answer
_PIPELINE = "/{name}/{method}"
_OTHER = "other"  # Any path may be asked for: those that are not ours are counted as one.
_UNTRACED = ("/metrics", "/v2/health/")  # asked every few seconds by machines
_METHOD = pipeline.METHOD.rpartition("/")[2]
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_CLOCKS_S = 0.1  # A caller cancels at its deadline, which may be a little before ours.
_STATUS_NAMES = {status.value[0]: status.name for status in grpc.StatusCode}


class _Observer:
    """What is noted of requests, and where."""

    def __init__(self, metrics: Metrics, access: bool, tracer: Tracer | None) -> None:
        self.access = access
        self.tracer = tracer
        self._metrics = metrics

    def ended(
        self, call: Call, began: float, sent: str, method: str, route: str, **more: str | int | None
    ) -> None:
        """Note a request that is over; ``sent`` is its HTTP status or the name of its gRPC status."""
        seconds = time.perf_counter() - began
        code = call.code(sent)
        self._metrics.request(route, code, seconds)
        if self.access:
            millis = round(seconds * 1000, 3)
            extra = {"method": method, "route": route, "status": code, "duration_ms": millis}
            extra |= {"images": call.images, **more}
            access_log.info("%s %s %s", method, route, code, extra=extra)
        if call.span:
            attributes: dict[str, str | int] = {"pdserve.request_id": call.id, "pdserve.images": call.images}
            if method == "gRPC":
                attributes |= {"rpc.system": "grpc", "rpc.method": route}
                attributes["rpc.grpc.status_code"] = grpc.StatusCode[sent].value[0]
            else:
                attributes |= {"http.request.method": method, "http.route": route}
                attributes["http.response.status_code"] = int(sent)
            call.span.end(f"{method} {route}", code, attributes)


def observed(
    app: App, service_kind: str, metrics: Metrics, *, access: bool = False, tracer: Tracer | None = None
) -> App:
    """The same ASGI application, observed; it goes around all others, so that their refusals count, too.

    Routes are counted by their templates. What the application raises is logged, and answered as an
    internal error where nothing was sent yet.
    """
    observer = _Observer(metrics, access, tracer)
    # Those that a refusal before the router leaves nameless.
    fixed = {f"/v1/{service_kind}", "/v1/gallery", "/v2", "/v2/health/live", "/v2/health/ready"}
    fixed |= {"/metrics", "/docs", "/openapi.json"}

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await app(scope, receive, send)
        began = time.perf_counter()
        headers: Mapping[bytes, bytes] = dict(scope["headers"])
        call = Call(headers.get(_HEADER, b"").decode("latin-1"))
        if tracer and not scope["path"].startswith(_UNTRACED):
            call.span = tracer.span(
                {name: headers[key].decode("latin-1") for name, key in fields if key in headers}
            )
        status, complete, gone, taken = 0, False, False, 0

        async def receive_and_note() -> Message:
            nonlocal gone, taken
            message = await receive()
            if message["type"] == "http.disconnect":
                gone = gone or not status
            else:
                taken += len(message.get("body", b""))
            return message

        async def send_and_note(message: Message) -> None:
            nonlocal status, complete
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (_HEADER, call.id.encode())]
            elif message["type"] == "http.response.body":
                complete = not message.get("more_body", False)
            await send(message)

        token = current.set(call)
        try:
            await app(scope, receive_and_note, send_and_note)
        except Exception:
            log.exception("%s %s failed", _method(scope), _route(scope, fixed))
            if not status:
                await _internal_error(send_and_note)
            elif not complete:
                status = 500
                raise  # so that the connection is cut: the caller must not take half an answer for one
        finally:
            sent = _GONE if gone or not status else str(status)
            client = (scope.get("client") or (None,))[0]
            method, route = _method(scope), _route(scope, fixed)
            observer.ended(call, began, sent, method, route, bytes_in=taken, client=client)
            current.reset(token)

    fields = [(name, name.lower().encode()) for name in (tracer.fields if tracer else ())]
    return application


def _method(scope: Scope) -> str:
    method: str = scope["method"]
    return method if method in _METHODS else _OTHER


def _route(scope: Scope, fixed: set[str]) -> str:
    """The template of the route. What was refused before the router saw it is told by its path."""
    if route := scope.get("route"):
        template: str = route.path
        return template
    path: str = scope["path"]
    if path in fixed:
        return path
    return _PIPELINE if path.count("/") == 2 and not path.startswith(("/v1/", "/v2/")) else _OTHER


async def _internal_error(send: Send) -> None:
    body = json.dumps({"error": {"code": "error", "message": "internal error"}}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 500, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class ObservedCalls(grpc.aio.ServerInterceptor):
    """The same for gRPC: the id is in the metadata ``x-request-id``, the answer's in its trailing ones.

    Sent as initial metadata it would cost every call a tenth of a millisecond. It goes before all other
    interceptors. The method's name is its route.
    """

    def __init__(self, metrics: Metrics, *, access: bool = False, tracer: Tracer | None = None) -> None:
        self._observer = _Observer(metrics, access, tracer)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        details: grpc.HandlerCallDetails,
    ) -> Any:
        """The method's handler with all this around it; one that refuses where there is no such method.

        One that answers with a stream passes as it is; there is none here.
        """
        began = time.perf_counter()
        handler = await continuation(details)
        route = _METHOD if details.method == pipeline.METHOD else _OTHER
        if handler is None:
            # A handler that takes a stream is called before the message is in, which may be large.
            return grpc.stream_unary_rpc_method_handler(self._around(_unimplemented, route, began))
        how = handler.request_deserializer, handler.response_serializer
        if handler.unary_unary:
            around = self._around(handler.unary_unary, route, began)
            return grpc.unary_unary_rpc_method_handler(around, *how)
        if handler.stream_unary:
            around = self._around(handler.stream_unary, route, began)
            return grpc.stream_unary_rpc_method_handler(around, *how)
        return handler

    def _around(self, answer: Any, route: str, began: float) -> Any:
        """``answer``: what answers a call, given the request and its context."""
        tracer = self._observer.tracer

        async def observing(request: Any, context: _Context) -> Any:
            metadata = {key: str(value) for key, value in context.invocation_metadata() or ()}
            call = Call(metadata.get(HEADER))
            if tracer:
                call.span = tracer.span({key: metadata[key] for key in tracer.fields if key in metadata})
            identified = ((HEADER, call.id),)
            context.set_trailing_metadata(identified)  # an abort without any of its own sends these, too
            token = current.set(call)
            sent = "CANCELLED"
            try:
                response = await answer(request, context)
                sent = _status(context)
                if context.trailing_metadata() != identified:
                    context.set_trailing_metadata((*context.trailing_metadata(), *identified))
                return response
            except grpc.aio.AbortError:
                sent = _status(context)
                raise
            except asyncio.CancelledError:
                left = context.time_remaining()
                if left is not None and left < _CLOCKS_S:
                    sent = "DEADLINE_EXCEEDED"
                raise
            except Exception:
                log.exception("gRPC %s failed", route)
                sent = "INTERNAL"
                await context.abort(grpc.StatusCode.INTERNAL, "internal error")
            finally:
                more = _of_call(request, context) if self._observer.access else {}
                self._observer.ended(call, began, sent, "gRPC", route, **more)
                current.reset(token)

        return observing


def _status(context: _Context) -> str:
    """The name of the call's status. Older versions of gRPC give its number, and none means OK."""
    code: Any = context.code()
    if isinstance(code, int):
        return _STATUS_NAMES[code]
    return code.name if code else "OK"


def _of_call(request: Any, context: _Context) -> dict[str, str | int | None]:
    """The size of a call's message, in bytes, and who sent it."""
    kind, _, address = context.peer().partition(":")
    client = urllib.parse.unquote(address.rpartition(":")[0]).strip("[]") if kind != "unix" else kind
    return {"bytes_in": request.ByteSize() if hasattr(request, "ByteSize") else None, "client": client}


async def _unimplemented(_requests: Any, context: _Context) -> None:
    await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
