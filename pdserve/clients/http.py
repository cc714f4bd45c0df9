"""HTTP clients, sync and async, of a pdserve server's ``/v1`` routes, and of Paddle Serving's own route."""

import asyncio
import base64
import ssl
from collections.abc import Mapping, Sequence
from contextlib import aclosing, closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

from pdserve.clients.address import http_address
from pdserve.clients.answers import from_pipeline, from_results
from pdserve.clients.base import AsyncClient, Client, busy, service_entry, unreachable
from pdserve.clients.credentials import Access, key_refused, no_tls, tls_context
from pdserve.clients.transport import (
    MAX_ANSWER_BYTES,
    MAX_ERROR_BYTES,
    Body,
    Transport,
    parse_json,
    within,
)
from pdserve.errors import ClientError, OverloadedError, UnauthorizedError, UnreachableError, UsageError
from pdserve.pipelines import SERVICES, ServiceEntry
from pdserve.proxies import find_proxy


class _Http:
    """What the two clients share: how a request is built and an answer read."""

    _open: type[Any]

    def __init__(
        self,
        url: str | None = None,
        service: str = "classification",
        timeout: float = 60,
        name: str = "",
        *,
        api_key: str | None = None,
        tls: bool = False,
        ca: Path | None = None,
        max_answer_bytes: int = MAX_ANSWER_BYTES,
    ) -> None:
        access = Access(api_key, tls, ca)
        self.max_answer_bytes = max_answer_bytes
        self.service = service
        self.timeout = timeout
        self.name = name
        self._is_paddle_serving = False
        scheme = "https" if access.wants_tls else "http"
        self.address = http_address(url or f"{scheme}://127.0.0.1:{service_entry(service).http_port}")
        if access.wants_tls and self.address.scheme == "http":
            raise UsageError(f"{self.address} asks without TLS; write https:// with --tls and --ca.")
        self._sends_key = access.api_key is not None
        self._proxy = find_proxy(self.address.scheme, self.address.host, self.address.port)
        # Reading the system's certificates costs 30 ms, which plain HTTP need not pay.
        verify = tls_context(access.ca) if self.address.scheme == "https" else None
        self._client = self._open(
            base_url=str(self.address),
            timeout=timeout,
            # The key is in httpx's Headers, whose repr leaves it out.
            headers=httpx.Headers(access.headers | {"accept-encoding": "gzip, deflate"}),
            follow_redirects=False,  # the key is for this server, the images too
            trust_env=False,  # its proxies are ours to choose
            transport=self._connections(verify),
        )

    def _connections(self, verify: ssl.SSLContext | None) -> Any:
        raise NotImplementedError

    def _request(self, images: Sequence[bytes], top_k: int | None, entry: ServiceEntry) -> dict[str, Any]:
        if self._is_paddle_serving:
            keys = [f"image_{i}" for i in range(len(images))]
            values = [base64.b64encode(image).decode("ascii") for image in images]
            path = f"/{quote(self.name or entry.name, safe='')}/prediction"
            return {"url": path, "json": {"key": keys, "value": values}}
        route = f"{entry.route}/{quote(self.name, safe='')}" if self.name else entry.route
        request: dict[str, Any] = {"url": route, "params": {"top_k": top_k} if top_k else None}
        if len(images) == 1:
            request |= {"content": images[0], "headers": {"Content-Type": "application/octet-stream"}}
        else:
            request["files"] = [("images", (f"{i}", image)) for i, image in enumerate(images)]
        return request

    def _body(self, response: httpx.Response) -> Body:
        """What collects an answer; of a failure little is read."""
        limit = self.max_answer_bytes if response.is_success else min(self.max_answer_bytes, MAX_ERROR_BYTES)
        return Body(response.headers, limit, str(self.address))

    def _is_gateway(self, response: httpx.Response, content: Mapping[str, Any]) -> bool:
        """Whether Paddle Serving's own gateway answers, which takes /v1/… for a service's name and method.

        The request is to be repeated then; it and all later ones go to the gateway's own route.
        """
        if self._is_paddle_serving or response.status_code != 400:
            return False
        self._is_paddle_serving = {"code", "message", "details"} <= content.keys()
        return self._is_paddle_serving

    def _read(
        self, response: httpx.Response, content: Mapping[str, Any], count: int, entry: ServiceEntry
    ) -> list[Any]:
        if "err_no" in content:
            if content["err_no"]:
                message = content.get("err_msg")
                raise ClientError(f"{self.address} answers error {content['err_no']}: {message}")
            keys, values = content.get("key"), content.get("value")
            if not isinstance(keys, list) or not isinstance(values, list):
                raise ClientError(f"{self.address} answers without keys and values.")
            return from_pipeline([*map(str, keys)], [*map(str, values)], count, entry.answer_type())
        if "results" in content:
            return from_results(content, count, entry.answer_type())
        error = content.get("error")
        error = error if isinstance(error, dict) else {}
        message = str(error.get("message", response.reason_phrase))
        if response.is_success and not error:  # a captive portal's page, another service's JSON
            kind = response.headers.get("content-type", "").partition(";")[0][:60] or "no type"
            message = (
                f"{kind} that is no answer of pdserve; something else listens there, so check the address"
            )
        if response.status_code == UnauthorizedError.http_status:
            raise key_refused(self.address, self._sends_key)
        if response.status_code == OverloadedError.http_status and error.get("code") == OverloadedError.code:
            raise busy(self.address, message)
        if response.has_redirect_location:
            message = (
                f"and sends on to {response.headers['location']}; no image and no key goes there. "
                "Give that address if it is right."
            )
            raise ClientError(f"{self.address} answers {response.status_code} {message}")
        if self._proxy is not None and not error:
            message += f"; it was asked through the proxy {self._proxy}"
        raise ClientError(f"{self.address} answers {response.status_code}: {message}")

    def _failed(self, error: httpx.HTTPError) -> ClientError:
        if self._proxy is not None and isinstance(error, httpx.ProxyError):
            refused = self._proxy.unreachable(f"refuses ({str(error).strip()})", self.address.host)
            return UnreachableError(refused)
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            if failed := no_tls(self.address, str(error)):
                return failed
            if self._proxy is not None:
                return UnreachableError(self._proxy.unreachable("does not answer", self.address.host))
            return unreachable(self.address, self.service)
        if isinstance(error, httpx.TimeoutException):
            return self._late()
        if (
            isinstance(error, httpx.RemoteProtocolError | httpx.NetworkError)
            and self.address.scheme == "http"
        ):
            return ClientError(
                f"{self.address} closed the connection; if it uses TLS, write https://, and if it is the "
                "port of gRPC, ask with --rpc."
            )
        return ClientError(f"The request to {self.address} failed: {str(error).rstrip('.')}.")

    def _late(self) -> ClientError:
        return ClientError(f"{self.address} did not answer within {self.timeout:g} s.")


class HttpClient(_Http, Client):
    """A client that may be shared by threads. ``timeout`` is in seconds, for a request and its answer in all.

    ``api_key`` is sent to a server that asks for one. ``tls`` asks by https where no ``url`` is given;
    with ``ca``, a PEM file, none but its authorities are trusted. An answer of more than
    ``max_answer_bytes``, decompressed, is an error. Raises UsageError.
    """

    _open = httpx.Client

    def _connections(self, verify: ssl.SSLContext | None) -> Transport:
        return Transport(verify)

    def _send(self, method: str, timeout: float, **request: Any) -> tuple[httpx.Response, dict[str, Any]]:
        """One request within a time in all; the answer, and its JSON object if it has one."""
        with within(timeout):
            built = self._client.build_request(method, timeout=timeout, **request)
            response = self._client.send(built, stream=True)
            with closing(response):
                body = self._body(response)
                for chunk in response.iter_raw():
                    body.add(chunk)
        return response, _json(body, str(self.address))

    def _ask(self, images: Sequence[bytes], top_k: int | None, entry: ServiceEntry) -> list[Any]:
        try:
            answer = self._send("POST", self.timeout, **self._request(images, top_k, entry))
            if self._is_gateway(*answer):
                answer = self._send("POST", self.timeout, **self._request(images, top_k, entry))
        except httpx.HTTPError as error:
            raise self._failed(error) from error
        return self._read(*answer, len(images), entry)

    def is_ready(self) -> bool:
        """Whether the server would answer a request now."""
        try:
            response, _ = self._send("GET", self.timeout, url="/v2/health/ready")
        except (httpx.HTTPError, ClientError):
            return False
        return bool(response.status_code == 200)

    def service_kind(self, name: str | None = None) -> str | None:
        """The kind of the service that a pdserve server offers, by name where it has several.

        None where the server does not say.
        """
        try:
            _, content = self._send("GET", self.timeout, url="/v2")
            named = [each for each in content.get("services", ()) if name in (None, each.get("name"))]
            several = {each.get("kind") for each in named}
            # Older servers have it among the extensions, where "classification" is the protocol's, too.
            says = "service" in content or several
            offered = (content.get("service"), *(several if says else content.get("extensions", ())))
            return next((kind for kind in SERVICES if kind in offered), None)
        except (httpx.HTTPError, ClientError, AttributeError, TypeError):
            return None

    def change_service(self, name: str, change: str) -> dict[str, Any]:
        """``load`` or ``unload`` a service of a server that has several; what has become of it.

        Raises UnreachableError, and ClientError with what the server says.
        """
        path = f"/v1/services/{quote(name, safe='')}/{change}"
        try:
            response, content = self._send("POST", self.timeout, url=path, headers={"X-Pdserve-Write": "1"})
        except httpx.HTTPError as error:
            raise self._failed(error) from error
        if not response.is_success:
            self._read(response, content, 0, service_entry(self.service))
        return content

    def close(self) -> None:
        self._client.close()


class AsyncHttpClient(_Http, AsyncClient):
    """The same for asyncio; use it with ``async with``."""

    _open = httpx.AsyncClient

    def _connections(self, verify: ssl.SSLContext | None) -> httpx.AsyncHTTPTransport:
        proxy = self._proxy.url if self._proxy else None
        return httpx.AsyncHTTPTransport(verify=verify or False, trust_env=False, proxy=proxy)

    async def _send(self, method: str, **request: Any) -> tuple[httpx.Response, dict[str, Any]]:
        """See `HttpClient._send`."""
        try:
            async with asyncio.timeout(self.timeout):
                built = self._client.build_request(method, **request)
                response = await self._client.send(built, stream=True)
                async with aclosing(response):
                    body = self._body(response)
                    async for chunk in response.aiter_raw():
                        body.add(chunk)
        except TimeoutError as error:
            raise self._late() from error
        return response, _json(body, str(self.address))

    async def _ask(self, images: Sequence[bytes], top_k: int | None, entry: ServiceEntry) -> list[Any]:
        try:
            answer = await self._send("POST", **self._request(images, top_k, entry))
            if self._is_gateway(*answer):
                answer = await self._send("POST", **self._request(images, top_k, entry))
        except httpx.HTTPError as error:
            raise self._failed(error) from error
        return self._read(*answer, len(images), entry)

    async def is_ready(self) -> bool:
        """See `HttpClient.is_ready`."""
        try:
            response, _ = await self._send("GET", url="/v2/health/ready")
        except (httpx.HTTPError, ClientError):
            return False
        return bool(response.status_code == 200)

    async def close(self) -> None:
        await self._client.aclose()


def _json(body: Body, source: str) -> dict[str, Any]:
    """The answer's JSON object; empty where it is something else."""
    content = parse_json(body.content(), source)
    return content if isinstance(content, dict) else {}
