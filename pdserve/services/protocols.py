"""The PROTOCOLS table: the forms in which callers may ask a service, over HTTP and gRPC.

Adding a protocol is one file under http/ or grpc/ and one entry here. Whatever is done to every request
(routing, keys, metrics, traces, OpenAPI) follows from the table and from the routes a protocol declares.
"""

from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, replace
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, Literal

from pdserve.formats.protos import INFERENCE, pipeline

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from pdserve.services.budget import Entrance
    from pdserve.services.repository import Repository
    from pdserve.services.service import Answering
    from pdserve.services.telemetry.metrics import Metrics
    from pdserve.settings import ServerSettings

# ASGI (asgi.readthedocs.io, "Specifications").
Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

Endpoint = Callable[["Request"], Awaitable["Response"]]

METRICS_PATH = "/metrics"


@dataclass(frozen=True)
class Protocol:
    """A protocol.

    ``load``: import string "module:function". For HTTP the function takes a `Context` and gives `Route`s;
    for gRPC it takes the `Repository` and an `Intake`, and gives handlers by the name of their method.
    ``open``: answered without a key (over HTTP: GET and HEAD). ``predicts``: its requests count as
    predictions. ``by_service``: its routes are each service's own, so that with several services the function
    is called for each, whose name follows in the path. ``errors``: import string of the function that answers
    an HTTP request that failed (status, code, text, headers), where the form is its own. ``foreign``: its
    answers are another server's, headers too (browsers.py). ``grpc_service``, ``grpc_methods``: the gRPC
    service's full name and its methods.
    """

    name: str
    transport: Literal["http", "grpc"]
    load: str
    help: str
    open: bool = False
    predicts: bool = False
    by_service: bool = False
    errors: str = ""
    foreign: bool = False
    grpc_service: str = ""
    grpc_methods: tuple[str, ...] = ()

    def function(self) -> Callable[..., Any]:
        """What ``load`` names."""
        function: Callable[..., Any] = resolve_name(self.load)
        return function


@dataclass(frozen=True)
class Context:
    """What the functions of HTTP protocols get. ``options``: the service's own settings, where known.

    ``entrance``: the budgets that all requests share, with the server's settings. ``repository``: all
    services of the server, of which ``service`` is one.
    """

    service: "Answering"
    entrance: "Entrance"
    metrics: "Metrics"
    options: Any = None
    repository: "Repository | None" = None

    @property
    def services(self) -> "Repository":
        """All services of the server."""
        from pdserve.services.repository import Repository

        return self.repository or Repository.of(self.service)

    def each(self) -> "Iterator[tuple[str, Context]]":
        """The contexts of all services, by name."""
        from pdserve.services.service import Service

        for name, service in self.services:
            if isinstance(service, Service):
                yield name, replace(self, service=service, entrance=service.entrance, options=service.options)
            else:
                yield name, replace(self, service=service)

    @property
    def settings(self) -> "ServerSettings":
        """The server's settings."""
        return self.entrance.settings


@dataclass(frozen=True)
class Route:
    """An HTTP route; a GET is answered to HEAD as well.

    ``path``: exact, PIPELINE_PATH, or below /v2 with segments like ``{name}`` for any text but none.
    ``operation``: its OpenAPI operation, as arguments of a FastAPI route (summary, responses with models,
    openapi_extra); None leaves it out of the document. ``writes``: it changes something, so that a
    stranger's page must not be able to ask for it (browsers.py).
    """

    method: str
    path: str
    endpoint: Endpoint
    operation: Mapping[str, Any] | None = None
    writes: bool = False


PIPELINE_PATH = "/{name}/{method}"
"""Any two segments, the first of which is neither v1 nor v2."""


@dataclass(frozen=True)
class Resource:
    """All routes of one path, by method."""

    path: str
    protocol: Protocol
    routes: Mapping[str, Route]


_HTTP, _GRPC = "pdserve.services.http", "pdserve.services.grpc"
_ENTRIES = (
    Protocol(
        "v1",
        "http",
        f"{_HTTP}.v1:routes",
        "pdserve's own: images in, JSON out",
        predicts=True,
        by_service=True,
    ),
    Protocol(
        "embeddings",
        "http",
        f"{_HTTP}.openai:embeddings",
        "embeddings of images in the form of OpenAI's API",
        predicts=True,
        errors=f"{_HTTP}.openai:error_response",
    ),
    Protocol(
        "models",
        "http",
        f"{_HTTP}.openai:models",
        "the model of the embeddings, in the form of OpenAI's API",
        errors=f"{_HTTP}.openai:error_response",
    ),
    Protocol(
        "pipeline",
        "http",
        f"{_HTTP}.pipeline_json:routes",
        "Paddle Serving's pipeline protocol",
        predicts=True,
        foreign=True,
    ),
    Protocol(
        "inference-models",
        "http",
        f"{_HTTP}.oip:routes",
        "the Open Inference Protocol: models, their metadata, configuration and statistics",
        errors=f"{_HTTP}.oip:error_response",
    ),
    Protocol(
        "inference",
        "http",
        f"{_HTTP}.oip:inference",
        "the Open Inference Protocol: inference on images and tensors",
        predicts=True,
        errors=f"{_HTTP}.oip:error_response",
    ),
    Protocol(
        "inference-repository",
        "http",
        f"{_HTTP}.oip:repository",
        "the Open Inference Protocol: services are listed, loaded and unloaded",
        errors=f"{_HTTP}.oip:error_response",
    ),
    Protocol(
        "paddlex",
        "http",
        f"{_HTTP}.paddlex:routes",
        "PaddleX's serving protocol",
        predicts=True,
        errors=f"{_HTTP}.paddlex_envelope:error_response",
    ),
    Protocol(
        "paddlex-health",
        "http",
        f"{_HTTP}.paddlex:health",
        "readiness, as PaddleX's clients ask for it",
        open=True,
        errors=f"{_HTTP}.paddlex_envelope:error_response",
    ),
    Protocol(
        "gallery",
        "http",
        f"{_HTTP}.gallery:routes",
        "the gallery of a service with an index",
        by_service=True,
    ),
    Protocol("services", "http", f"{_HTTP}.services:routes", "several services: list, load, unload"),
    Protocol("health", "http", f"{_HTTP}.about:health", "liveness and readiness, for probes", open=True),
    Protocol("about", "http", f"{_HTTP}.about:routes", "name and version, metrics, the OpenAPI document"),
    Protocol(
        "pipeline-grpc",
        "grpc",
        f"{_GRPC}.pipeline:methods",
        "Paddle Serving's pipeline over gRPC",
        predicts=True,
        grpc_service=pipeline.SERVICE,
        grpc_methods=("inference",),
    ),
    Protocol(
        "inference-health-grpc",
        "grpc",
        f"{_GRPC}.oip:health",
        "the Open Inference Protocol over gRPC: liveness and readiness, for probes",
        open=True,
        grpc_service=INFERENCE,
        grpc_methods=("ServerLive", "ServerReady"),
    ),
    Protocol(
        "inference-models-grpc",
        "grpc",
        f"{_GRPC}.oip:methods",
        "the Open Inference Protocol over gRPC: models, their metadata, configuration and statistics",
        grpc_service=INFERENCE,
        grpc_methods=(
            "ServerMetadata",
            "ModelReady",
            "ModelMetadata",
            "ModelConfig",
            "ModelStatistics",
            "SystemSharedMemoryStatus",
            "SystemSharedMemoryRegister",
            "SystemSharedMemoryUnregister",
            "CudaSharedMemoryStatus",
            "CudaSharedMemoryRegister",
            "CudaSharedMemoryUnregister",
        ),
    ),
    Protocol(
        "inference-repository-grpc",
        "grpc",
        f"{_GRPC}.oip:repository",
        "the Open Inference Protocol over gRPC: services are listed, loaded and unloaded",
        grpc_service=INFERENCE,
        grpc_methods=("RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload"),
    ),
    Protocol(
        "inference-grpc",
        "grpc",
        f"{_GRPC}.oip:inference",
        "the Open Inference Protocol over gRPC: inference on images and tensors, and streams of it",
        predicts=True,
        grpc_service=INFERENCE,
        grpc_methods=("ModelInfer", "ModelStreamInfer"),
    ),
    Protocol(
        "health-grpc",
        "grpc",
        f"{_GRPC}.health:methods",
        "gRPC's health checking protocol, for probes",
        open=True,
        grpc_service="grpc.health.v1.Health",
        grpc_methods=("Check", "Watch"),
    ),
    *(
        Protocol(
            f"reflection-{version}",
            "grpc",
            f"{_GRPC}.reflection:methods",
            "gRPC's server reflection: the methods and their messages",
            grpc_service=f"grpc.reflection.{version}.ServerReflection",
            grpc_methods=("ServerReflectionInfo",),
        )
        for version in ("v1", "v1alpha")
    ),
)

PROTOCOLS: Mapping[str, Protocol] = {protocol.name: protocol for protocol in _ENTRIES}


def resources(context: Context) -> Iterator[Resource]:
    """All paths of a service over HTTP, with their routes."""
    for protocol in PROTOCOLS.values():
        if protocol.transport == "http":
            by_path: dict[str, dict[str, Route]] = {}
            for route in _routes(protocol, context):
                methods = by_path.setdefault(route.path, {})
                methods[route.method] = route
                if route.method == "GET":
                    methods["HEAD"] = route
            for path, methods in by_path.items():
                yield Resource(path, protocol, methods)


def _routes(protocol: Protocol, context: Context) -> Iterator[Route]:
    """The routes of a protocol; of several services ``PATH/NAME`` for each, and PATH for the only one."""
    if context.services.alone or not protocol.by_service:
        yield from protocol.function()(context)
        return
    found: dict[tuple[str, str], dict[str, Route]] = {}
    for name, each in context.each():
        for route in protocol.function()(each):
            found.setdefault((route.path, route.method), {})[name] = route
    for (path, _), routes in found.items():
        first = next(iter(routes.values()))
        for name, route in routes.items():
            yield replace(route, path=f"{path}/{name}", operation=first.operation)
        yield (
            first if len(routes) == 1 else replace(first, endpoint=_which(path, list(routes)), operation=None)
        )


def _which(path: str, names: "list[str]") -> Endpoint:
    """An endpoint that says by which names the services there are to be asked."""
    from pdserve.services.repository import AmbiguousError, listed

    async def refuse(_: "Request") -> "Response":
        raise AmbiguousError(f"Several services answer here; ask at {path}/NAME for one of {listed(names)}.")

    return refuse


_BY_GRPC_METHOD = {f"/{each.grpc_service}/{name}": each for each in _ENTRIES for name in each.grpc_methods}


def grpc_protocol(method: str) -> Protocol | None:
    """The protocol that a gRPC method ("/package.Service/Method") belongs to; None for an unknown one."""
    return _BY_GRPC_METHOD.get(method)
