"""Paddle Serving's gRPC method: its requests and one client's connection."""

import time
from collections.abc import Sequence
from typing import Any

import grpc
import grpc.aio

from pdserve.clients.address import Address
from pdserve.clients.credentials import Access, channel_credentials
from pdserve.formats.protos import pipeline
from pdserve.tools.bench.http import pipeline_keys, to_base64
from pdserve.tools.bench.run import FailedError, Target

_OPTIONS: list[tuple[str, Any]] = [
    ("grpc.max_send_message_length", pipeline.MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", pipeline.MAX_MESSAGE_BYTES),
    ("grpc.use_local_subchannel_pool", 1),  # or all clients would share one connection
    ("grpc.enable_http_proxy", 0),
]


def messages(batches: Sequence[Sequence[bytes]]) -> list[bytes]:
    """The method's Request messages, serialised, each of a batch of image files."""
    request = pipeline.request_class()
    return [
        request(key=pipeline_keys(images), value=[to_base64(image) for image in images]).SerializeToString()
        for images in batches
    ]


def grpc_target(server: Address, requests: Sequence[bytes], batch: int, access: Access) -> Target:
    """The method with its requests. Raises UsageError for authorities that cannot be read."""
    credentials = channel_credentials(access.ca) if server.scheme == "grpcs" else None
    metadata = tuple(access.headers.items())
    return Target("grpc", server, batch, lambda: GrpcClient(server, requests, metadata, credentials))


class GrpcClient:
    """One client of the gRPC method, with its own connection; see run.Connection."""

    def __init__(
        self,
        server: Address,
        requests: Sequence[bytes],
        metadata: Sequence[tuple[str, str]],
        credentials: grpc.ChannelCredentials | None,
    ) -> None:
        self._requests = requests
        self._metadata = metadata
        if credentials is None:
            self._channel = grpc.aio.insecure_channel(server.netloc, _OPTIONS)
        else:
            self._channel = grpc.aio.secure_channel(server.netloc, credentials, _OPTIONS)
        # Without serialisers bytes go as they are: the requests have been serialised before.
        self._call: Any = self._channel.unary_unary(pipeline.METHOD)
        self._read = pipeline.response_class().FromString

    async def ask(self, number: int, timeout_s: float) -> None:
        request = self._requests[number % len(self._requests)]
        sent = time.perf_counter()
        try:
            answer = await self._call(request, timeout=timeout_s, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            raise _failed(error, time.perf_counter() - sent >= timeout_s) from None
        response = self._read(answer)
        if response.err_no:
            raise FailedError(f"err_no {response.err_no}", response.err_msg)

    async def close(self) -> None:
        await self._channel.close(None)


def _failed(error: grpc.aio.AioRpcError, is_late: bool) -> FailedError:
    code, detail = error.code(), error.details() or ""
    if code is grpc.StatusCode.UNAVAILABLE:
        kind = "connection refused" if "refused" in detail.lower() else code.name
        return FailedError(kind, detail, no_connection=True)
    # The client's own clock and the server's end a request with the same status.
    if code is grpc.StatusCode.DEADLINE_EXCEEDED and is_late:
        return FailedError("timeout", detail)
    return FailedError(code.name, detail)
