"""Clients of a running service, for Python programs: HTTP and gRPC, sync and async.

::

    with HttpClient("http://127.0.0.1:18080") as client:
        labels = client.predict(Path("cat.jpg").read_bytes())

Importing this, and using a client, loads neither NumPy nor an engine.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pdserve.answers import Detection, FoundMatch, FoundObject, Label, Labels, Objects

if TYPE_CHECKING:
    from pdserve.clients.grpc import AsyncRpcClient, RpcClient
    from pdserve.clients.http import AsyncHttpClient, HttpClient

__all__ = [
    "AsyncHttpClient", "AsyncRpcClient", "Detection", "FoundMatch", "FoundObject", "HttpClient", "Label",
    "Labels", "Objects", "RpcClient",
]  # fmt: skip

# A program that uses HTTP need not load gRPC, nor the other way round.
_MODULES = {"HttpClient": "http", "AsyncHttpClient": "http", "RpcClient": "grpc", "AsyncRpcClient": "grpc"}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
