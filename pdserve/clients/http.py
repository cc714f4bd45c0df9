"""HTTP clients, sync and async, of a pdserve server's ``/v1`` routes, and of Paddle Serving's own route."""

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx

from pdserve.clients.address import http_address, is_this_machine
from pdserve.clients.answers import from_pipeline, from_results
from pdserve.clients.base import AsyncClient, Client, busy, service_entry, unreachable
from pdserve.clients.credentials import Access, key_refused, no_tls, tls_context
from pdserve.errors import ClientError, OverloadedError, UnauthorizedError, UsageError
from pdserve.pipelines import SERVICES, ServiceEntry


class _Http:
    """What the two clients share: how a request is built and an answer read."""

    _transport: type[Any]

    def __init__(
        self,
        url: str | None = None,
        service: str = "classification",
        timeout: float = 60,
        *,
        api_key: str | None = None,
        tls: bool = False,
        ca: Path | None = None,
    ) -> None:
        access = Access(api_key, tls, ca)
        self.service = service
        self.timeout = timeout
        self._is_paddle_serving = False
        scheme = "https" if access.wants_tls else "http"
        self.address = http_address(url or f"{scheme}://127.0.0.1:{service_entry(service).http_port}")
        if access.wants_tls and self.address.scheme == "http":
            raise UsageError(f"{self.address} asks without TLS; write https:// with --tls and --ca.")
        self._sends_key = access.api_key is not None
        self._client = self._transport(
            base_url=str(self.address),
            timeout=timeout,
            headers=httpx.Headers(access.headers),  # whose repr leaves the key out
            follow_redirects=False,  # the key is for this server, the images too
            trust_env=not is_this_machine(self.address.host),
            # Reading the system's certificates costs 30 ms, which plain HTTP need not pay.
            verify=self.address.scheme == "https" and tls_context(access.ca),
        )

    def _request(self, images: Sequence[bytes], top_k: int | None, entry: ServiceEntry) -> dict[str, Any]:
        if self._is_paddle_serving:
            keys = [f"image_{i}" for i in range(len(images))]
            values = [base64.b64encode(image).decode("ascii") for image in images]
            return {"url": f"/{entry.name}/prediction", "json": {"key": keys, "value": values}}
        request: dict[str, Any] = {"url": entry.route, "params": {"top_k": top_k} if top_k else None}
        if len(images) == 1:
            request |= {"content": images[0], "headers": {"Content-Type": "application/octet-stream"}}
        else:
            request["files"] = [("images", (f"{i}", image)) for i, image in enumerate(images)]
        return request

    def _is_gateway(self, response: httpx.Response) -> bool:
        """Whether Paddle Serving's own gateway answers, which takes /v1/… for a service's name and method.

        The request is to be repeated then; it and all later ones go to the gateway's own route.
        """
        if self._is_paddle_serving or response.status_code != 400:
            return False
        self._is_paddle_serving = {"code", "message", "details"} <= _json(response).keys()
        return self._is_paddle_serving

    def _read(self, response: httpx.Response, count: int, entry: ServiceEntry) -> list[Any]:
        content = _json(response)
        if "err_no" in content:
            if content["err_no"]:
                raise ClientError(f"{self.address} answers error {content['err_no']}: {content['err_msg']}")
            return from_pipeline(content["key"], content["value"], count, entry.answer_type())
        if "results" in content:
            return from_results(content, count, entry.answer_type())
        error = content.get("error")
        error = error if isinstance(error, dict) else {}
        message = str(error.get("message", response.reason_phrase))
        if response.status_code == UnauthorizedError.http_status:
            raise key_refused(self.address, self._sends_key)
        if response.status_code == OverloadedError.http_status and error.get("code") == OverloadedError.code:
            raise busy(self.address, message)
        raise ClientError(f"{self.address} answers {response.status_code}: {message}")

    def _failed(self, error: httpx.HTTPError) -> ClientError:
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            return no_tls(self.address, str(error)) or unreachable(self.address, self.service)
        if isinstance(error, httpx.TimeoutException):
            return ClientError(f"{self.address} did not answer within {self.timeout:g} s.")
        if (
            isinstance(error, httpx.RemoteProtocolError | httpx.NetworkError)
            and self.address.scheme == "http"
        ):
            return ClientError(f"{self.address} closed the connection; if it uses TLS, write https://.")
        return ClientError(f"The request to {self.address} failed: {str(error).rstrip('.')}.")


class HttpClient(_Http, Client):
    """A client that may be shared by threads. ``timeout`` is in seconds, per request.

    ``api_key`` is sent to a server that asks for one. ``tls`` asks by https where no ``url`` is given;
    with ``ca``, a PEM file, none but its authorities are trusted. Raises UsageError.
    """

    _transport = httpx.Client

    def _ask(self, images: Sequence[bytes], top_k: int | None, entry: ServiceEntry) -> list[Any]:
        try:
            response = self._client.post(**self._request(images, top_k, entry))
            if self._is_gateway(response):
                response = self._client.post(**self._request(images, top_k, entry))
        except httpx.HTTPError as error:
            raise self._failed(error) from error
        return self._read(response, len(images), entry)

    def is_ready(self) -> bool:
        """Whether the server would answer a request now."""
        try:
            return bool(self._client.get("/v2/health/ready").status_code == 200)
        except httpx.HTTPError:
            return False

    def service_kind(self) -> str | None:
        """The kind of the service that a pdserve server offers; None where the server does not say."""
        try:
            content = self._client.get("/v2").json()
            # Older servers have it among the extensions.
            offered = (content.get("service"), *content.get("extensions", ()))
            return next((kind for kind in SERVICES if kind in offered), None)
        except (httpx.HTTPError, ValueError, AttributeError, TypeError):
            return None

    def close(self) -> None:
        self._client.close()


class AsyncHttpClient(_Http, AsyncClient):
    """The same for asyncio; use it with ``async with``."""

    _transport = httpx.AsyncClient

    async def _ask(self, images: Sequence[bytes], top_k: int | None, entry: ServiceEntry) -> list[Any]:
        try:
            response = await self._client.post(**self._request(images, top_k, entry))
            if self._is_gateway(response):
                response = await self._client.post(**self._request(images, top_k, entry))
        except httpx.HTTPError as error:
            raise self._failed(error) from error
        return self._read(response, len(images), entry)

    async def is_ready(self) -> bool:
        """See `HttpClient.is_ready`."""
        try:
            return bool((await self._client.get("/v2/health/ready")).status_code == 200)
        except httpx.HTTPError:
            return False

    async def close(self) -> None:
        await self._client.aclose()


def _json(response: httpx.Response) -> dict[str, Any]:
    """The answer's JSON object; empty where it is something else."""
    try:
        content = response.json()
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}
