"""Clients of a running service, for Python programs: HTTP and gRPC, sync and async."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pdserve.clients.grpc import AsyncRpcClient, RpcClient
    from pdserve.clients.http import AsyncHttpClient, HttpClient

__all__ = ["AsyncHttpClient", "AsyncRpcClient", "HttpClient", "RpcClient"]


def __getattr__(name: str) -> Any:
    # A program that speaks HTTP need not load gRPC, nor the other way round.
    if name in ("HttpClient", "AsyncHttpClient"):
        from pdserve.clients import http

        return getattr(http, name)
    if name in ("RpcClient", "AsyncRpcClient"):
        from pdserve.clients import grpc

        return getattr(grpc, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
