"""Answers and errors as JSON answers carry them."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from pdserve.errors import PdserveError
from pdserve.services.service import Answer


def described(error: PdserveError) -> Mapping[str, str]:
    """``{"code", "message"}``."""
    return {"code": error.code, "message": error.message}


def result(answer: Answer) -> Mapping[str, Any]:
    """One image's ``{"labels": […]}`` or ``{"error": …}``."""
    if isinstance(answer, PdserveError):
        return {"error": described(answer)}
    return {"labels": [asdict(label) for label in answer]}
