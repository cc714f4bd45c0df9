"""Asks a server what PaddleX's own was asked, as ``tests/data/paddlex/serving`` has it, and compares."""

import base64
import io
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

DATA = Path(__file__).parents[2] / "data"
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def recorded(name: str) -> list[dict[str, Any]]:
    """The exchanges with one of PaddleX's servers: request, status and headers, answer."""
    found: list[dict[str, Any]] = json.loads(
        (DATA / "paddlex" / "serving" / f"{name}.json").read_text("utf-8")
    )
    return found


class Caller:
    """Asks with the images of the recording; ``key``: of the index that was built last."""

    def __init__(self, client: httpx.Client, address: str = "http://127.0.0.1:9") -> None:
        self._client, self._address = client, address
        self.key = ""

    def ask(self, exchange: Mapping[str, Any]) -> httpx.Response:
        body = exchange.get("body")
        if not isinstance(body, str | None):
            body = json.dumps(self._filled(body, bool(exchange.get("broken"))))
        kind = exchange.get("type", "application/json")
        headers = {"Content-Type": kind} if kind and body is not None else {}
        content = None if body is None else body.encode()
        response = self._client.request(
            exchange["method"], exchange["path"], content=content, headers=headers
        )
        if response.status_code == 200 and "indexKey" in (found := response.json().get("result") or {}):
            self.key = found["indexKey"]
        return response

    def _filled(self, value: Any, broken: bool) -> Any:
        if isinstance(value, dict):
            return {name: self._filled(each, broken) for name, each in value.items()}
        if isinstance(value, list):
            return [self._filled(each, broken) for each in value]
        if not isinstance(value, str):
            return value
        for name in ("photo.jpg", "wide.png"):
            if value.endswith(f"@{name}"):
                text = base64.b64encode((DATA / "golden" / "images" / name).read_bytes()).decode()
                value = value.replace(f"@{name}", text[:100] + "\n" + text[100:] if broken else text)
        return value.replace("@address", self._address).replace("@key", self.key or "@key")

    def shown(self, answer: Any) -> Any:
        """An answer as the recording has it: its own ids as "…", the key as "@key", an image as its form."""
        if self.key:
            answer = json.loads(json.dumps(answer).replace(self.key, "@key"))
        if isinstance(answer, dict):
            if _UUID.fullmatch(str(answer.get("logId"))):
                answer["logId"] = "…"
            if image := (answer.get("result") or {}).get("image"):
                picture = Image.open(io.BytesIO(base64.b64decode(image)))
                answer["result"]["image"] = {"type": picture.format, "size": list(picture.size)}
        return answer


def wanted_log_id(exchange: Mapping[str, Any]) -> str:
    """The caller's, where it has sent a text; PaddleX's classification gives it back with errors alone."""
    body = exchange.get("body")
    given = body.get("logId") if isinstance(body, dict) else None
    return given if isinstance(given, str) else "…"


def forms(value: Any, path: str = "") -> Iterator[str]:
    """Where in an answer there is a value of which type; of a list its first."""
    if isinstance(value, dict):
        for name, each in value.items():
            yield from forms(each, f"{path}.{name}")
    elif isinstance(value, list):
        yield from forms(value[0], f"{path}[]") if value else ()
    else:
        yield f"{path}: {type(value).__name__}"
