"""From the options to what is loaded. Nobody answers at these addresses."""

from pathlib import Path

import pytest

from pdserve.clients.address import is_this_machine
from pdserve.clients.credentials import Access
from pdserve.errors import UsageError
from pdserve.tools.bench.session import loads
from pdserve.tools.bench.targets import choose_targets

HTTP, RPC = "http://127.0.0.1:1", "127.0.0.1:2"


def places(*urls: str, **options: object) -> list[tuple[str, str]]:
    chosen = choose_targets(urls, service="classification", **options)  # type: ignore[arg-type]
    return [(target.route, str(target.server)) for target in chosen.targets]


def test_addresses_and_routes() -> None:
    assert places(HTTP) == [("v1", HTTP)]
    assert places(RPC) == [("grpc", RPC)]
    assert places(f"grpc://{RPC}") == [("grpc", RPC)]
    assert places(HTTP, RPC) == [("v1", HTTP)]
    assert places(RPC, HTTP, routes=("grpc", "json", "grpc")) == [("grpc", RPC), ("json", HTTP)]
    assert places() == [("v1", "http://127.0.0.1:18080")]
    assert places(routes=("grpc",)) == [("grpc", "127.0.0.1:9993")]
    assert places(routes=("grpc", "v1"), access=Access(tls=True)) == [
        ("grpc", "grpcs://127.0.0.1:9993"),
        ("v1", "https://127.0.0.1:18080"),
    ]


def test_the_service_where_nobody_says() -> None:
    assert choose_targets((HTTP,)).service == "classification"
    assert choose_targets(("127.0.0.1:9994",)).service == "recognition"
    assert choose_targets((RPC,)).service == "classification"


@pytest.mark.parametrize(
    ("urls", "routes", "says"),
    [
        ((HTTP,), ("grpc",), "Route grpc needs an address host:port"),
        ((RPC,), ("v1",), "Route v1 needs an address http://host:port"),
        ((HTTP, "http://127.0.0.1:3"), (), "more than one server"),
        ((RPC, "127.0.0.1:3"), (), "more than one server"),
        ((HTTP,), ("v2",), "'v2' is none of v1, json, form, pipeline, grpc"),
        (("ftp://127.0.0.1:3",), (), "not of the form host:port"),
        (("http://127.0.0.1:x",), (), "not of the form http://host:port"),
    ],
)
def test_what_cannot_be_loaded(urls: tuple[str, ...], routes: tuple[str, ...], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        choose_targets(urls, routes=routes)


@pytest.mark.parametrize("url", ["http://203.0.113.7:80", "203.0.113.7:9993", "https://server.invalid"])
def test_other_machines_need_a_word(url: str) -> None:
    with pytest.raises(UsageError, match="--remote"):
        choose_targets((url,), service="classification")
    with pytest.raises(UsageError, match="--remote"):
        choose_targets((HTTP, url) if "//" not in url else (RPC, url), service="classification")
    assert choose_targets((url,), service="classification", remote=True).targets
    assert not is_this_machine(
        choose_targets((url,), service="classification", remote=True).targets[0].server.host
    )


def test_notes(tmp_path: Path) -> None:
    notes: list[str] = []
    choose_targets((HTTP,), service="classification", note=notes.append)
    assert len(notes) == 1
    assert "synthetic" in notes[0]
    (tmp_path / "a.jpg").write_bytes(b"a")
    choose_targets((HTTP,), service="classification", images=[str(tmp_path)], note=notes.append)
    assert len(notes) == 1


def test_loads() -> None:
    assert [load.clients for load in loads([1, 8], None, "poisson")] == [1, 8]
    assert [load.clients for load in loads(None, None, "poisson")] == [8]
    assert [(load.rate, load.arrivals) for load in loads(None, [0.5, 8], "constant")] == [
        (0.5, "constant"),
        (8, "constant"),
    ]
    for clients, rates in (([0], None), ([1.5], None), (None, [0]), (None, [float("inf")]), ([1], [1])):
        with pytest.raises(UsageError):
            loads(clients, rates, "poisson")
