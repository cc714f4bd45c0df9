"""gRPC clients, sync and async, of the pipeline protocol.

A pdserve server sees from the metadata below that the caller can read full results and adds them as
the key ``results``; a published Paddle Serving server ignores the metadata and answers the best label.
"""

import base64
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from pdserve.clients.address import rpc_address
from pdserve.clients.answers import from_pipeline, from_results
from pdserve.clients.base import AsyncClient, Client, busy, service_entry, unreachable
from pdserve.clients.credentials import Access, channel_credentials, key_refused, no_tls
from pdserve.clients.transport import MAX_ANSWER_BYTES, parse_json
from pdserve.errors import ClientError, UnreachableError
from pdserve.formats.protos import pipeline, wire
from pdserve.pipelines import ServiceEntry
from pdserve.proxies import find_proxy

# Where gRPC looks for a proxy, in its order.
_PROXIES = ("grpc_proxy", "https_proxy", "http_proxy")


def limits(max_answer_bytes: int) -> list[tuple[str, int]]:
    """A channel's options that bound what it reads of an answer.

    Compressed ones are refused (bit 0 is for those that are not): their bound would be before they unpack.
    """
    return [
        ("grpc.max_receive_message_length", max_answer_bytes),
        ("grpc.compression_enabled_algorithms_bitset", 1),
    ]


class _Rpc:
    """What the two clients share: how a request is built and an answer read."""

    _transport: Any

    def __init__(
        self,
        target: str | None = None,
        service: str = "classification",
        timeout: float = 60,
        name: str = "",
        *,
        api_key: str | None = None,
        tls: bool = False,
        ca: Path | None = None,
        max_answer_bytes: int = MAX_ANSWER_BYTES,
    ) -> None:
        self._access = Access(api_key, tls, ca)
        self.service = service
        self.timeout = timeout
        self.name = name
        address = rpc_address(target or f"127.0.0.1:{service_entry(service).rpc_port}")
        self.address = replace(address, scheme="grpcs") if self._access.wants_tls else address
        self._proxy = find_proxy("http", self.address.host, self.address.port, names=_PROXIES, package=None)
        self._credentials = channel_credentials(ca) if self.address.scheme == "grpcs" else None
        options: list[tuple[str, Any]] = [
            ("grpc.max_send_message_length", pipeline.MAX_MESSAGE_BYTES),
            *limits(max_answer_bytes),
            ("grpc.enable_http_proxy", int(self._proxy is not None)),
        ]
        if self._proxy is not None:
            options.append(("grpc.http_proxy", self._proxy.url))
        self._channel = (
            self._transport.secure_channel(self.address.netloc, self._credentials, options)
            if self._credentials
            else self._transport.insecure_channel(self.address.netloc, options)
        )
        # Bytes in and out: the messages are few and small, and need no library.
        self._call = self._channel.unary_unary(pipeline.METHOD)

    def _request(self, images: Sequence[bytes], top_k: int | None, entry: ServiceEntry) -> dict[str, Any]:
        keys = [f"image_{i}" for i in range(len(images))]
        request = wire.write_request(self.name, "prediction", keys, list(map(base64.b64encode, images)))
        metadata = self._access.headers | {pipeline.RESULTS_METADATA: "1", pipeline.KIND_METADATA: entry.kind}
        if top_k:
            metadata[pipeline.TOP_K_METADATA] = str(top_k)
        return {"request": request, "timeout": self.timeout, "metadata": tuple(metadata.items())}

    def _read(self, message: bytes, count: int, entry: ServiceEntry) -> list[Any]:
        try:
            response = wire.read_response(message)
        except ValueError as error:
            said = str(error) if not isinstance(error, UnicodeError) else "a text is not UTF-8"
            raise ClientError(f"{self.address} answers with no message of the protocol: {said}.") from error
        fields = dict(zip(response.key, response.value, strict=False))
        if pipeline.RESULTS_KEY in fields:
            content = parse_json(fields[pipeline.RESULTS_KEY], str(self.address))
            return from_results(content, count, entry.answer_type())
        if response.err_no:
            raise ClientError(f"{self.address} answers error {response.err_no}: {response.err_msg}")
        return from_pipeline(response.key, response.value, count, entry.answer_type())

    def _failed(self, error: grpc.RpcError) -> ClientError:
        code, details = error.code(), error.details() or ""
        said = details.rpartition("Raise_msg: ")[2]  # without the pipeline protocol's preface
        if code is grpc.StatusCode.UNAUTHENTICATED:
            return key_refused(self.address, self._access.api_key is not None)
        if code is grpc.StatusCode.UNAVAILABLE:
            if "Socket closed" in said and not self._credentials:
                return ClientError(f"{self.address} closed the connection; if it uses TLS, add --tls.")
            if failed := no_tls(self.address, said):
                return failed
            if "http1" in said:  # gRPC's word for an answer in HTTP/1.1
                return ClientError(f"{self.address} answers in HTTP; ask it without --rpc.")
            if self._proxy is not None:
                return UnreachableError(
                    self._proxy.unreachable(f"does not answer, or refuses ({said})", self.address.host)
                )
            return unreachable(self.address, self.service)
        trailing: Any = error.trailing_metadata() or ()
        # What is too large ends with the same status, and would be too large again.
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED and pipeline.RETRY_AFTER_METADATA in dict(trailing):
            return busy(self.address, said)
        if code is grpc.StatusCode.DEADLINE_EXCEEDED and said == details:  # ours, not one of the server's
            return ClientError(f"{self.address} did not answer within {self.timeout:g} s.")
        return ClientError(f"{self.address} answers {code.name}: {said}")


class RpcClient(_Rpc, Client):
    """A client that may be shared by threads. ``timeout`` is in seconds, per request.

    ``name`` is the service's name on a published server that checks it; empty is accepted by all.
    ``api_key`` is sent to a server that asks for one. ``tls``, or an address ``grpcs://host:port``, asks
    over TLS; with ``ca``, a PEM file, none but its authorities are trusted. An answer of more than
    ``max_answer_bytes`` is an error. Raises UsageError.
    """

    _transport = grpc

    def _ask(self, images: Sequence[bytes], top_k: int | None, entry: ServiceEntry) -> list[Any]:
        try:
            response = self._call(**self._request(images, top_k, entry))
        except grpc.RpcError as error:
            raise self._failed(error) from error
        return self._read(response, len(images), entry)

    def close(self) -> None:
        self._channel.close()


class AsyncRpcClient(_Rpc, AsyncClient):
    """The same for asyncio; use it with ``async with``."""

    _transport = grpc.aio

    async def _ask(self, images: Sequence[bytes], top_k: int | None, entry: ServiceEntry) -> list[Any]:
        try:
            response = await self._call(**self._request(images, top_k, entry))
        except grpc.RpcError as error:
            raise self._failed(error) from error
        return self._read(response, len(images), entry)

    async def close(self) -> None:
        await self._channel.close(None)
