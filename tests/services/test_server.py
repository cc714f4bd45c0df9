"""A server's place in the register: while it listens, and what is left of one that was killed."""

import json
import signal
import sys
from pathlib import Path

import pytest

from pdserve.models.home import Home
from pdserve.models.servers import running
from tests.certificates import issue
from tests.running import pdserve, start
from tests.services.watching import until
from tests.tiny import build_serving_model, picture


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A home whose servers nobody else sees."""
    build_serving_model(tmp_path / "home" / "models")
    return Home(tmp_path / "home")


@pytest.fixture
def image(tmp_path: Path) -> str:
    (tmp_path / "red.png").write_bytes(picture((255, 0, 0)))
    return str(tmp_path / "red.png")


def test_predict_finds_the_server_on_any_port(home: Home, image: str) -> None:
    with start(home.root, "--model", "tiny", "--host", "0.0.0.0") as server:
        (found,) = running(home)
        assert (found.pid, found.kind, found.tls) == (server.process.pid, "classification", False)
        assert (found.http, found.rpc) == (server.url, server.target)
        assert found.models == (str(home.serving_model("tiny")),)
        assert found.index is None
        for options in ((), ("--rpc",), ("--service", "classification")):
            done = pdserve(home.root, "predict", image, "--json", *options)
            assert (done.returncode, done.stderr) == (0, "")
            assert json.loads(done.stdout)["labels"][0]["label"] == "red"
        with start(home.root, "--model", "tiny") as other:
            done = pdserve(home.root, "predict", image)
            assert done.returncode == 2
            assert done.stderr == (
                f"pdserve: Here run classification at {server.url} and classification at {other.url}; "
                "say which with --url.\n"
            )
            other.process.kill()
            other.wait()
            assert (home.servers / f"{other.process.pid}.json").is_file()
            assert pdserve(home.root, "predict", image).returncode == 0
        assert not (home.servers / f"{other.process.pid}.json").exists()
        server.interrupt(signal.SIGTERM)
        server.wait()
    assert running(home) == []
    assert list(home.servers.iterdir()) == []


@pytest.mark.full
def test_a_server_with_tls_is_asked_over_tls(home: Home, image: str, tmp_path: Path) -> None:
    made = issue(tmp_path / "tls")
    keys = tmp_path / "keys"
    keys.write_text("secret-of-the-test\n", "utf-8")
    options = ("--tls-cert", str(made.cert), "--tls-key", str(made.key), "--api-key", str(keys))
    with start(home.root, "--model", "tiny", *options) as server:
        (found,) = running(home)
        assert (found.http, found.rpc, found.tls) == (server.url, f"grpcs://{server.target}", True)
        assert "secret" not in (home.servers / f"{found.pid}.json").read_text("utf-8")
        for door in ((), ("--rpc",)):
            access = ("--ca", str(made.ca), "--api-key", str(keys))
            done = pdserve(home.root, "predict", image, "--json", *door, *access)
            assert (done.returncode, done.stderr) == (0, "")
        done = pdserve(home.root, "predict", image)
        assert (done.returncode, "--ca FILE" in done.stderr) == (1, True)


def test_a_home_that_cannot_be_written_keeps_no_server_from_starting(home: Home, image: str) -> None:
    home.servers.write_text("a file in the folder's place", "utf-8")
    with start(home.root, "--model", "tiny") as server:
        assert server.log.count("not in the register of running servers") == 1
        assert pdserve(home.root, "predict", image, "--url", server.url).returncode == 0


@pytest.mark.posix
@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGHUP")
def test_the_register_follows_a_reload(home: Home, tmp_path: Path) -> None:
    build_serving_model(tmp_path / "home" / "models", "other")
    config = tmp_path / "config.yml"
    text = "op:\n  imagenet:\n    local_service_conf:\n      model_config: {}\n"
    config.write_text(text.format("tiny"), "utf-8")
    with start(home.root, "--config", str(config)) as server:
        assert running(home)[0].models == (str(home.serving_model("tiny")),)
        config.write_text(text.format("other"), "utf-8")
        server.interrupt(signal.SIGHUP)
        until(lambda: running(home)[0].models == (str(home.serving_model("other")),))
