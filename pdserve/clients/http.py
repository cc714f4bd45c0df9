"""HTTP clients, sync and async, of a pdserve server's ``/v1`` routes.

::

    with HttpClient("http://127.0.0.1:18080") as client:
        labels = client.predict(Path("cat.jpg").read_bytes())
"""

import ssl
from collections.abc import Sequence
from typing import Any

import httpx

from pdserve.clients.address import DEFAULT_PORTS, Address, http_address, is_this_machine
from pdserve.clients.answers import (
    Form,
    Item,
    from_results,
    unreachable,
)
from pdserve.clients.asking import Asking, AsyncAsking
from pdserve.errors import ClientError


class _Http:
    """What the two clients share: how a request is put and an answer read."""

    def __init__(self, url: str | None, service: str, timeout: float) -> None:
        self.service = service
        self.address: Address = http_address(url or f"http://127.0.0.1:{DEFAULT_PORTS[service][0]}")
        local = is_this_machine(self.address.host)
        self._options: dict[str, Any] = {
            "base_url": str(self.address),
            "timeout": timeout,
            "trust_env": not local,
            # Reading the system's certificates costs 30 ms, which plain HTTP need not pay.
            "verify": self.address.scheme == "https" and ssl.create_default_context(),
        }

    def _request(self, images: Sequence[bytes], top_k: int | None, service: str) -> dict[str, Any]:
        request: dict[str, Any] = {
            "url": f"/v1/{service}",
            "params": {"top_k": top_k} if top_k else None,
        }
        if len(images) == 1:
            request |= {"content": images[0], "headers": {"Content-Type": "application/octet-stream"}}
        else:
            request["files"] = [("images", (f"{i}", image)) for i, image in enumerate(images)]
        return request

    def _read(self, response: httpx.Response, count: int, form: Form[Item]) -> list[list[Item] | ClientError]:
        try:
            content = response.json()
        except ValueError:
            content = None
        if isinstance(content, dict) and "results" in content:
            return from_results(content, count, form)
        message = response.reason_phrase
        if isinstance(content, dict) and isinstance(content.get("error"), dict):
            message = str(content["error"].get("message", message))
        raise ClientError(f"{self.address} answers {response.status_code}: {message}")

    def _failed(self, error: httpx.HTTPError) -> ClientError:
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            return unreachable(self.address, self.service)
        if isinstance(error, httpx.TimeoutException):
            return ClientError(f"{self.address} did not answer within {self._options['timeout']:g} s.")
        return ClientError(f"The request to {self.address} failed: {error}.")


class HttpClient(_Http, Asking):
    """A client that may be shared by threads. ``timeout`` is in seconds, per request."""

    def __init__(self, url: str | None = None, service: str = "classification", timeout: float = 60) -> None:
        super().__init__(url, service, timeout)
        self._client = httpx.Client(**self._options)

    def _ask(
        self, images: Sequence[bytes], top_k: int | None, form: Form[Item]
    ) -> list[list[Item] | ClientError]:
        try:
            response = self._client.post(**self._request(images, top_k, form.service))
        except httpx.HTTPError as error:
            raise self._failed(error) from error
        return self._read(response, len(images), form)

    def is_ready(self) -> bool:
        """Whether the server would answer a request now."""
        try:
            return self._client.get("/v2/health/ready").status_code == 200
        except httpx.HTTPError:
            return False

    def service_there(self) -> str | None:
        """The kind of the service that a pdserve server offers; None where there is none to say so."""
        try:
            extensions = self._client.get("/v2").json()["extensions"]
            return next((kind for kind in DEFAULT_PORTS if kind in extensions), None)
        except (httpx.HTTPError, ValueError, KeyError, TypeError):
            return None

    def close(self) -> None:
        self._client.close()


class AsyncHttpClient(_Http, AsyncAsking):
    """The same for asyncio; use it with ``async with``."""

    def __init__(self, url: str | None = None, service: str = "classification", timeout: float = 60) -> None:
        super().__init__(url, service, timeout)
        self._client = httpx.AsyncClient(**self._options)

    async def _ask(
        self, images: Sequence[bytes], top_k: int | None, form: Form[Item]
    ) -> list[list[Item] | ClientError]:
        try:
            response = await self._client.post(**self._request(images, top_k, form.service))
        except httpx.HTTPError as error:
            raise self._failed(error) from error
        return self._read(response, len(images), form)

    async def is_ready(self) -> bool:
        """See `HttpClient.is_ready`."""
        try:
            return (await self._client.get("/v2/health/ready")).status_code == 200
        except httpx.HTTPError:
            return False

    async def close(self) -> None:
        await self._client.aclose()
