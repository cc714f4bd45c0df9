"""Middleware for HTTP and an interceptor for gRPC: a request id, metrics, the access log, a trace span.

The id goes out in ``X-Request-ID``, or in the trailing metadata ``x-request-id``.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import grpc
import grpc.aio

from pdserve.services.grpc.intake import client
from pdserve.services.http.messages import Error, ErrorAnswer, json_response
from pdserve.services.protocols import App, Message, Receive, Resource, Scope, Send, grpc_protocol
from pdserve.services.telemetry.metrics import HEADER, Metrics, RequestContext, current
from pdserve.services.telemetry.tracing import Tracer

log = logging.getLogger("pdserve")
access_log = logging.getLogger("pdserve.access")

_Context = grpc.aio.ServicerContext[Any, Any]

_HEADER = HEADER.encode()
_GONE = "499"  # nginx's number: the caller went away before there was an answer
_OTHER = "other"  # Any path may be requested: those without a resource are counted as one.
_UNTRACED = ("/metrics", "/v2/health/")  # polled every few seconds by machines
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_CLOCKS_S = 0.1  # A caller cancels at its deadline, which may be a little before the server's.
_STATUS_NAMES = {status.value[0]: status.name for status in grpc.StatusCode}


class _Recorder:
    """Where finished requests are recorded."""

    def __init__(self, metrics: Metrics, access: bool, tracer: Tracer | None) -> None:
        self.access = access
        self.tracer = tracer
        self._metrics = metrics

    def ended(self, request: RequestContext, sent: str, **more: str | int | None) -> None:
        """Record a finished request; ``sent`` is its HTTP status or the name of its gRPC status."""
        seconds = time.perf_counter() - request.started
        method, route, code = request.method, request.route, request.code(sent)
        self._metrics.request(route, code, seconds, predicts=request.predicts)
        if self.access:
            millis = round(seconds * 1000, 3)
            extra = {"method": method, "route": route, "status": code, "duration_ms": millis}
            extra |= {"images": request.images, **more}
            access_log.info("%s %s %s", method, route, code, extra=extra)
        if request.span:
            attributes: dict[str, str | int] = {
                "pdserve.request_id": request.id,
                "pdserve.images": request.images,
            }
            if method == "gRPC":
                attributes |= {"rpc.system": "grpc", "rpc.method": route}
                attributes["rpc.grpc.status_code"] = grpc.StatusCode[sent].value[0]
            else:
                attributes |= {"http.request.method": method, "http.route": route}
                attributes["http.response.status_code"] = int(sent)
            request.span.end(f"{method} {route}", code, attributes)


def telemetry(
    app: App,
    find: Callable[[str], Resource | None],
    metrics: Metrics,
    *,
    access: bool = False,
    tracer: Tracer | None = None,
) -> App:
    """The same ASGI application with telemetry; the outermost middleware, so that refusals count, too.

    ``find``: the resource at a path; requests are counted by the resource's path. What the application
    raises is logged, and answered as an internal error where nothing was sent yet.
    """
    recorder = _Recorder(metrics, access, tracer)
    fields = [(name, name.lower().encode()) for name in (tracer.fields if tracer else ())]

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await app(scope, receive, send)
        headers: Mapping[bytes, bytes] = dict(scope["headers"])
        resource = find(scope["path"])
        request = RequestContext(
            headers.get(_HEADER, b"").decode("latin-1"),
            scope["method"] if scope["method"] in _METHODS else _OTHER,
            resource.path if resource else _OTHER,
            resource is not None and resource.protocol.predicts,
        )
        if tracer and not scope["path"].startswith(_UNTRACED):
            request.span = tracer.span(
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
                message["headers"] = [*message.get("headers", ()), (_HEADER, request.id.encode())]
            elif message["type"] == "http.response.body":
                complete = not message.get("more_body", False)
            await send(message)

        token = current.set(request)
        try:
            await app(scope, receive_and_note, send_and_note)
        except Exception:
            log.exception("%s %s failed", request.method, request.route)
            if not status:
                response = json_response(ErrorAnswer(Error("error", "internal error")), 500)
                await response(scope, receive, send_and_note)
            elif not complete:
                status = 500
                raise  # so that the connection is cut: half an answer must not pass for a whole one
        finally:
            sent = _GONE if gone or not status else str(status)
            address = (scope.get("client") or (None,))[0]
            recorder.ended(request, sent, bytes_in=taken, client=address)
            current.reset(token)

    return application


class TelemetryInterceptor(grpc.aio.ServerInterceptor):
    """The same for gRPC; the first of the interceptors. Requests are counted by the method's name.

    The id is in the trailing metadata: in the initial ones it would cost a call a tenth of a millisecond.
    """

    def __init__(self, metrics: Metrics, *, access: bool = False, tracer: Tracer | None = None) -> None:
        self._recorder = _Recorder(metrics, access, tracer)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        details: grpc.HandlerCallDetails,
    ) -> Any:
        """The method's handler in telemetry; one that refuses where there is no such method.

        A stream of predictions counts as one request; health's Watch passes as it is.
        """
        handler = await continuation(details)
        if handler is None:
            # A handler that takes a stream is called before the message is in, which may be large.
            return grpc.stream_unary_rpc_method_handler(self._around(_unimplemented, details))
        how = handler.request_deserializer, handler.response_serializer
        if handler.unary_unary:
            around = self._around(handler.unary_unary, details)
            return grpc.unary_unary_rpc_method_handler(around, *how)
        if handler.stream_unary:
            around = self._around(handler.stream_unary, details)
            return grpc.stream_unary_rpc_method_handler(around, *how)
        protocol = grpc_protocol(details.method)
        if handler.stream_stream and protocol and protocol.predicts:
            around = self._around(handler.stream_stream, details)
            return grpc.stream_stream_rpc_method_handler(around, *how)
        return handler

    def _around(self, answer: Any, details: grpc.HandlerCallDetails) -> Any:
        """``answer``: what answers a call, given the request and its context."""
        protocol = grpc_protocol(details.method)
        route = details.method.rpartition("/")[2] if protocol else _OTHER
        predicts = protocol is not None and protocol.predicts
        started = time.perf_counter()  # of the call; its message comes later
        is_probe = protocol is not None and protocol.open
        tracer = self._recorder.tracer

        async def recording(request: Any, context: _Context) -> Any:
            metadata = {key: str(value) for key, value in context.invocation_metadata() or ()}
            asked = RequestContext(metadata.get(HEADER), "gRPC", route, predicts)
            asked.started = started
            if tracer and not is_probe:
                asked.span = tracer.span({key: metadata[key] for key in tracer.fields if key in metadata})
            identified = ((HEADER, asked.id),)
            context.set_trailing_metadata(identified)  # an abort without metadata sends these, too
            token = current.set(asked)
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
                more = _of_call(asked, context) if self._recorder.access else {}
                self._recorder.ended(asked, sent, **more)
                current.reset(token)

        return recording


def _status(context: _Context) -> str:
    """The name of the call's status. Older versions of gRPC give its number, and none means OK."""
    code: Any = context.code()
    if isinstance(code, int):
        return _STATUS_NAMES[code]
    return code.name if code else "OK"


def _of_call(asked: RequestContext, context: _Context) -> dict[str, str | int | None]:
    """The size of a call's message, in bytes, and who sent it."""
    return {"bytes_in": asked.bytes_in, "client": client(context)}


async def _unimplemented(_requests: Any, context: _Context) -> None:
    await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
