"""Answers and errors as JSON answers carry them."""

from collections.abc import Mapping
from typing import Any

from pdserve.errors import PdserveError
from pdserve.services.service import Service


def described(error: PdserveError) -> Mapping[str, str]:
    """``{"code", "message"}``."""
    return {"code": error.code, "message": error.message}


def result(service: Service, answer: Any) -> Mapping[str, Any]:
    """One image's answer in the service's own form, or ``{"error": …}``."""
    if isinstance(answer, PdserveError):
        return {"error": described(answer)}
    return service.result(answer)
