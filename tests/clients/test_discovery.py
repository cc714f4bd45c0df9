"""Which server is asked: of the register, or at this machine's default ports."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from pdserve.clients import discovery
from pdserve.clients.credentials import Access
from pdserve.clients.discovery import FoundServer, find_server, find_service
from pdserve.errors import UsageError
from pdserve.models.home import Home
from pdserve.models.servers import RunningServer, registration
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


class Register:
    """Servers of a home, each a socket that listens."""

    def __init__(self, home: Home, stack: ExitStack) -> None:
        self.home = home
        self._stack = stack
        self._pid = 100

    def add(self, kind: str, host: str = "127.0.0.1", http: str = "http://", **fields: object) -> int:
        """The port of a new one, for HTTP and gRPC alike."""
        self._pid += 1
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = self._stack.enter_context(socket.create_server((host, 0), family=family))
        port = int(listening.getsockname()[1])
        at = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        rpc = f"grpcs://{at}" if http == "https://" else at
        record = RunningServer(self._pid, kind, f"{http}{at}", rpc, http == "https://")
        place = self._stack.enter_context(registration(self.home))
        place.write(replace(record, **fields))  # type: ignore[arg-type]
        return port


@pytest.fixture
def register(tmp_path: Path, ports: object) -> Iterator[Register]:
    """An empty register, with default ports at which nothing listens."""
    with ExitStack() as stack:
        yield Register(Home(tmp_path), stack)


def test_the_service_that_listens(ports: dict[str, tuple[socket.socket, socket.socket]]) -> None:
    assert find_service(None) == "classification"  # where nothing listens
    ports["recognition"][0].listen()
    assert find_service(None) == "recognition"
    assert find_service(None, rpc=True) == "classification"
    ports["recognition"][1].listen()
    assert find_service(None, rpc=True) == "recognition"
    ports["classification"][0].listen()
    at = {kind: f"http://127.0.0.1:{http.getsockname()[1]}" for kind, (http, _) in ports.items()}
    with pytest.raises(UsageError) as several:
        find_service(None)
    assert several.value.message == (
        f"Here run classification at {at['classification']} and recognition at {at['recognition']}; "
        "say which with --service or --url."
    )


def test_grpc_is_known_by_its_port(ports: dict[str, tuple[socket.socket, socket.socket]]) -> None:
    port = ports["recognition"][1].getsockname()[1]
    assert find_service(f"127.0.0.1:{port}", rpc=True) == "recognition"
    assert find_service("127.0.0.1:1", rpc=True) == "classification"


def test_a_server_at_any_port(register: Register) -> None:
    port = register.add("recognition")
    found = FoundServer("recognition", f"http://127.0.0.1:{port}", f"127.0.0.1:{port}")
    assert find_server(home=register.home) == find_server("recognition", True, home=register.home) == found
    assert found.address(rpc=True) == f"127.0.0.1:{port}"
    assert find_service(f"127.0.0.1:{port}", rpc=True, home=register.home) == "recognition"
    other = find_server("classification", home=register.home)
    assert other.http == f"http://127.0.0.1:{discovery.SERVICES['classification'].http_port}"


def test_ipv6(register: Register) -> None:
    try:
        port = register.add("recognition", "::1")
    except OSError:
        pytest.skip("no IPv6 here")
    assert find_server(home=register.home).http == f"http://[::1]:{port}"


def test_several_are_named(register: Register) -> None:
    first, second = register.add("recognition"), register.add("recognition")
    for service in (None, "recognition"):
        with pytest.raises(UsageError) as several:
            find_server(service, home=register.home)
        assert several.value.message == (
            f"Here run recognition at http://127.0.0.1:{first} and recognition at "
            f"http://127.0.0.1:{second}; say which with --url."
        )
    third = register.add("classification")
    with pytest.raises(UsageError, match="--service or --url"):
        find_server(home=register.home)
    assert find_server("classification", home=register.home).http == f"http://127.0.0.1:{third}"
    with pytest.raises(UsageError, match=f"at 127.0.0.1:{first} and recognition at 127.0.0.1:{second}"):
        find_server("recognition", rpc=True, home=register.home)


def test_one_at_its_default_port_is_one(
    register: Register, ports: dict[str, tuple[socket.socket, socket.socket]]
) -> None:
    ports["recognition"][0].listen()
    port = ports["recognition"][0].getsockname()[1]
    register.add("recognition", http="http://", rpc=None)
    with pytest.raises(UsageError, match="recognition at"):
        find_server(home=register.home)  # one of the register and one that does not belong to it
    with registration(register.home) as place:
        place.write(RunningServer(99, "classification", f"http://127.0.0.1:{port}", None, False))
        assert find_server("classification", home=register.home).http == f"http://127.0.0.1:{port}"
        assert find_server("recognition", home=register.home).http != f"http://127.0.0.1:{port}"


def test_a_door_that_is_shut(register: Register) -> None:
    register.add("recognition", rpc=None)
    usual = discovery.SERVICES["recognition"].rpc_port
    assert find_server("recognition", rpc=True, home=register.home).rpc == f"127.0.0.1:{usual}"


def test_no_key_goes_to_another_machine(register: Register) -> None:
    register.add("recognition", http="http://", rpc="192.0.2.7:80")
    register.add("recognition", machine="another")
    register.add("no such service")
    register.add("recognition", rpc="no address")
    usual = f"http://127.0.0.1:{discovery.SERVICES['classification'].http_port}"
    assert find_server(home=register.home, access=Access("key")).http == usual


def test_who_wants_tls_gets_none_without(register: Register) -> None:
    plain = register.add("recognition")
    wanted = Access("key", tls=True)
    assert find_server("recognition", access=wanted, home=register.home).http == (
        f"https://127.0.0.1:{discovery.SERVICES['recognition'].http_port}"
    )
    secret = register.add("recognition", http="https://")
    assert find_server(access=wanted, home=register.home).http == f"https://127.0.0.1:{secret}"
    assert find_server(None, True, wanted, register.home).rpc == f"grpcs://127.0.0.1:{secret}"
    with pytest.raises(UsageError, match=f"http://127.0.0.1:{plain} and recognition at https://"):
        find_server(home=register.home)


def test_one_that_does_not_listen_any_more(register: Register) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        register.add("recognition", http=f"http://127.0.0.1:{closed.getsockname()[1]}/")
        assert find_server(home=register.home).kind == "classification"
