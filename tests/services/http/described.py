"""Answers against the OpenAPI document."""

from typing import Any

import httpx
from jsonschema import Draft202012Validator


def check(document: dict[str, Any], path: str, answer: Any, status: int = 200, method: str = "post") -> None:
    """Raise ValidationError for an answer in JSON that is not as the document describes it."""
    described = document["paths"][path][method]["responses"][str(status)]
    schema = described["content"]["application/json"]["schema"]
    Draft202012Validator({**schema, "components": document["components"]}).validate(answer)


def check_response(document: dict[str, Any], path: str, response: httpx.Response) -> None:
    """The same for what a server answered."""
    method = response.request.method.lower()
    check(document, path, response.json(), response.status_code, method)
