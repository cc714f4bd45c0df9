"""Which service runs at this machine's default ports."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace

import pytest

from pdserve.clients import discovery
from pdserve.clients.discovery import find_service
from pdserve.errors import UsageError
from pdserve.pipelines import SERVICES


@pytest.fixture
def ports(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, tuple[socket.socket, socket.socket]]]:
    """Two services whose default ports are free: their HTTP and gRPC sockets, bound, not listening yet."""
    with ExitStack() as stack:
        bound = {}
        for kind in ("classification", "recognition"):
            bound[kind] = stack.enter_context(socket.socket()), stack.enter_context(socket.socket())
            for each in bound[kind]:
                each.bind(("127.0.0.1", 0))
        entries = {
            kind: replace(SERVICES[kind], http_port=http.getsockname()[1], rpc_port=rpc.getsockname()[1])
            for kind, (http, rpc) in bound.items()
        }
        monkeypatch.setattr(discovery, "SERVICES", entries)
        yield bound


def test_the_service_that_listens(ports: dict[str, tuple[socket.socket, socket.socket]]) -> None:
    assert find_service(None) == "classification"  # where nothing listens
    ports["recognition"][0].listen()
    assert find_service(None) == "recognition"
    assert find_service(None, rpc=True) == "classification"
    ports["recognition"][1].listen()
    assert find_service(None, rpc=True) == "recognition"
    ports["classification"][0].listen()
    with pytest.raises(UsageError, match="classification and recognition; say which with --service"):
        find_service(None)


def test_grpc_is_known_by_its_port(ports: dict[str, tuple[socket.socket, socket.socket]]) -> None:
    port = ports["recognition"][1].getsockname()[1]
    assert find_service(f"127.0.0.1:{port}", rpc=True) == "recognition"
    assert find_service("127.0.0.1:1", rpc=True) == "classification"
