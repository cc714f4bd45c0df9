"""The OpenAPI document, made from the routes and from the types of requests and answers."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter

from pdserve import __version__
from pdserve.services.http.responses import ErrorAnswer
from pdserve.services.protocols import Context, resources

_FAILURES = {
    400: "The request is malformed, or no image can be read.",
    403: "The server was started without --gallery-writes.",
    404: "There is no such entry.",
    408: "The body did not come in time.",
    413: "Too many bytes, images or pixels.",
    500: "The server failed; its log says at what.",
    503: "The server cannot answer now: its queue is full, it is rebuilding its engine, or stopping.",
    504: "The deadline passed.",
}


def operation(
    tag: str,
    summary: str,
    answer: Any,
    failures: Sequence[int] = (),
    *,
    failure: Any = ErrorAnswer,
    body: Mapping[str, Any] | None = None,
    parameters: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """The OpenAPI operation of a route. ``answer``, ``failure``: types; ``body``: types by media type."""
    responses = {200: {"model": answer, "description": "The answer."}}
    responses |= {status: {"model": failure, "description": _FAILURES[status]} for status in failures}
    extra: dict[str, Any] = {"parameters": parameters} if parameters else {}
    if body:
        extra["requestBody"] = {"content": {kind: {"schema": schema(each)} for kind, each in body.items()}}
    return {"tags": [tag], "summary": summary, "responses": responses, "openapi_extra": extra}


def schema(of: Any) -> dict[str, Any]:
    """The JSON schema of a type that refers to no other; a schema stays as it is."""
    return of if isinstance(of, dict) else TypeAdapter(of).json_schema()


def parameter(name: str, of: Any, description: str, place: str = "query") -> dict[str, Any]:
    """A parameter of an operation, in the query or (required) in the path."""
    found = {"name": name, "in": place, "schema": schema(of), "description": description}
    return found | {"required": place == "path"}


def document(context: Context) -> dict[str, Any]:
    """The OpenAPI 3.1 document of all routes that have an operation."""
    # Imported where it is used: it describes routes, and does not run them.
    from fastapi.openapi.utils import get_openapi
    from fastapi.routing import APIRoute

    described = [
        (resource, APIRoute(route.path, route.endpoint, methods=[method], **route.operation))
        for resource in resources(context)
        for method, route in resource.routes.items()
        if route.operation is not None and method == route.method
    ]
    found = get_openapi(
        title="pdserve",
        version=__version__,
        description=f"{context.service.kind}: send pictures, get answers.",
        routes=[route for _, route in described],
    )
    if context.settings.api_key is None and context.settings.api_key_file is None:
        return found
    found.setdefault("components", {})["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    }
    found["security"] = [{"bearer": []}, {"header": []}]
    for resource, _ in described:
        for each in found["paths"][resource.path].values():
            if resource.protocol.open:
                each["security"] = []
            else:
                each["responses"]["401"] = _UNAUTHORIZED
    return found


_UNAUTHORIZED = {
    "description": "No key was sent, or a wrong one.",
    "headers": {"WWW-Authenticate": {"schema": {"type": "string"}}},
    "content": {"application/json": {"schema": {"type": "object"}}},
}
