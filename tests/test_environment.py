"""Settings in the environment, and what Kubernetes and Docker put there beside them."""

from pathlib import Path

import pytest

from pdserve.environment import in_environment
from pdserve.errors import SettingsError
from pdserve.pipelines import SERVICES
from pdserve.settings import describe
from tests.running import pdserve, start

ENTRY = SERVICES["classification"]
SETTINGS = {each.name: each for each in describe(ENTRY)}
# What kubelet sets for services called pdserve, pdserve-http, pdserve-rpc and pdserve-prometheus.
LINKS = {
    "PDSERVE_SERVICE_HOST": "10.0.0.1",
    "PDSERVE_SERVICE_PORT": "80",
    "PDSERVE_SERVICE_PORT_HTTP": "80",
    "PDSERVE_PORT": "tcp://10.0.0.1:80",
    "PDSERVE_PORT_80_TCP": "tcp://10.0.0.1:80",
    "PDSERVE_PORT_80_TCP_PROTO": "tcp",
    "PDSERVE_PORT_80_TCP_PORT": "80",
    "PDSERVE_PORT_80_TCP_ADDR": "10.0.0.1",
    "PDSERVE_HTTP_SERVICE_HOST": "10.0.0.2",
    "PDSERVE_HTTP_PORT": "tcp://10.0.0.2:80",
    "PDSERVE_RPC_PORT": "tcp://[fd00::3]:9993",
    "PDSERVE_PROMETHEUS_PORT": "udp://10.0.0.4:9100",
}


def test_links_of_kubernetes_are_passed_over_with_a_note() -> None:
    found, notes = in_environment(SETTINGS, LINKS)
    assert found == {}
    assert [note.partition("=")[0] for note in notes] == [
        "PDSERVE_HTTP_PORT",
        "PDSERVE_RPC_PORT",
        "PDSERVE_PROMETHEUS_PORT",
    ]
    assert "tcp://10.0.0.2:80 is passed over" in notes[0]
    assert "enableServiceLinks: false" in notes[0]


def test_links_of_docker_are_passed_over() -> None:
    linked = {"PDSERVE_PORT": "tcp://172.17.0.5:80", "PDSERVE_NAME": "/web/pdserve"}
    found, notes = in_environment(SETTINGS, linked)
    assert found == {}
    assert "PDSERVE_NAME=/web/pdserve is passed over" in notes[0]
    assert in_environment(SETTINGS, {"PDSERVE_NAME": "imagenet"}) == ({"name": "imagenet"}, ())


def test_settings_are_what_they_were() -> None:
    found, notes = in_environment(SETTINGS, {"PDSERVE_HTTP_PORT": "8080", "PDSERVE_HOST": "", "OTHER": "x"})
    assert (found, notes) == ({"http_port": "8080"}, ())


def test_they_do_not_reach_the_settings() -> None:
    settings = ENTRY.settings({}, LINKS)
    assert (settings.server.http_port, settings.server.rpc_port) == (ENTRY.http_port, ENTRY.rpc_port)
    assert settings.server.prometheus_port is None
    assert len(settings.notes) == 3


@pytest.mark.parametrize("text", ["tcp://", "http://10.0.0.1:80", "tcp://10.0.0.1", "80x", "tcp://a:80/x"])
def test_what_is_no_link_is_an_error(text: str) -> None:
    with pytest.raises(SettingsError, match="PDSERVE_HTTP_PORT"):
        ENTRY.settings({}, {"PDSERVE_HTTP_PORT": text})


def test_a_server_starts_among_them_and_says_so(tiny_home: Path) -> None:
    with start(tiny_home, "--model", "tiny", **LINKS) as server:
        assert "PDSERVE_RPC_PORT=tcp://[fd00::3]:9993 is passed over" in server.log
    done = pdserve(tiny_home, "doctor", "--help", **LINKS)
    assert done.returncode == 0
