"""Whether an HTTP answer is good, and what it is counted under if not."""

import json
from typing import Any

from pdserve.tools.bench.target import FailedError


def check_v1(status: int, body: bytes) -> None:
    """An answer of /v1. Raises FailedError for one that is no result for every image."""
    # Almost every answer is good and ends here, unparsed: the generator has to be cheap.
    if status == 200 and body.startswith(b'{"results":') and b'"error"' not in body:
        return
    content = _object(body)
    results = content.get("results")
    if isinstance(results, list):
        errors = [each["error"] for each in results if isinstance(each, dict) and "error" in each]
        if status == 200 and not errors:  # a label that says "error"
            return
        raise _failed(status, errors[0] if errors else None)
    if status == 200:
        raise FailedError("200 no answer", body[:80].decode("utf-8", "replace"))
    raise _failed(status, content.get("error"))


def check_pipeline(status: int, body: bytes) -> None:
    """An answer of Paddle Serving's route. Raises FailedError for an ``err_no`` and for HTTP errors."""
    content = _object(body)
    if status != 200:
        raise _failed(status, {"message": content.get("message", "")})
    number = content.get("err_no")
    if number is None:
        raise FailedError("200 no answer", body[:80].decode("utf-8", "replace"))
    if number != 0:
        raise FailedError(f"err_no {number}", str(content.get("err_msg", "")))


def _failed(status: int, error: object) -> FailedError:
    described = error if isinstance(error, dict) else {}
    return FailedError(f"{status} {described.get('code', '')}".strip(), str(described.get("message", "")))


def _object(body: bytes) -> dict[str, Any]:
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
