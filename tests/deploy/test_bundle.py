"""What is deployed: the command has what was given, the home what it names, and no file a secret."""

from pathlib import Path
from typing import Any

import httpx
import pytest

from pdserve.deploy.bundle import MARK, Bundle, bundle, write
from pdserve.errors import SettingsError, UsageError
from pdserve.index.edit import build
from pdserve.index.gallery import GalleryImage
from pdserve.models.home import Home
from pdserve.pipelines import SERVICES
from pdserve.pipelines.embedder import open_embedder
from pdserve.settings import ModelSettings
from tests.running import start
from tests.tiny import build_embedder, picture

PREFIX = ("serve", "classification", "--model", "tiny")


def made(home: Path, config: Path | None = None, name: str | None = None, **given: Any) -> Bundle:
    """The bundle of a classifier."""
    entry = SERVICES["classification"]
    environ = {key: given.pop(key) for key in list(given) if key.isupper()}
    wanted = entry.settings({"model": "tiny", **given}, environ, config)
    return bundle(entry, wanted, Home(home), name, config)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, ()),
        ({"top_k": "3", "mean": "0.5,0.5,0.4"}, ("--mean", "0.5,0.5,0.4", "--top-k", "3")),
        ({"PDSERVE_TOP_K": "2"}, ("--top-k", "2")),
        ({"cors_origins": ["https://a", "https://b"]}, ("--cors-origin", "https://a", "--cors-origin", "https://b")),
        ({"devices": ("gpu:0", "gpu:2")}, ("--gpu", "0,2")),
        ({"devices": ("cpu",)}, ("--cpu",)),
        ({"http_port": 80}, ("--http-port", "80")),
    ],
)  # fmt: skip
def test_what_was_given_is_in_the_command(
    tiny_home: Path, given: dict[str, Any], words: tuple[str, ...]
) -> None:
    command = made(tiny_home, **given).command("/home", "/secrets")
    assert command == (*PREFIX, *words, "--host", "127.0.0.1", "--offline")


def test_the_host_of_the_settings_comes_first(tiny_home: Path) -> None:
    assert made(tiny_home).command("/home", "/secrets", "0.0.0.0")[4:6] == ("--host", "0.0.0.0")
    given = made(tiny_home, host="10.0.0.1").command("/home", "/secrets", "0.0.0.0")
    assert given[4:6] == ("--host", "10.0.0.1")


def test_a_setting_without_an_option_is_a_variable(tiny_home: Path) -> None:
    assert made(tiny_home, PDSERVE_NAME="shop").environment == {"PDSERVE_NAME": "shop"}


def test_no_secret_is_written(tiny_home: Path, tmp_path: Path) -> None:
    for name in ("keys", "cert", "key"):
        (tmp_path / name).write_text("a-secret")
    plain = {"api_key_file": tmp_path / "keys", "tls_cert": tmp_path / "cert", "tls_key": tmp_path / "key"}
    found = made(tiny_home, **plain)
    secrets = {"--api-key": "keys.txt", "--tls-cert": "tls.crt", "--tls-key": "tls.key"}
    assert found.secrets == secrets
    assert found.command("/home", "/secrets")[6:12] == tuple(
        word for option, name in secrets.items() for word in (option, f"/secrets/{name}")
    )
    folder = write(found, Home(tiny_home), tmp_path / "out", {"a.txt": "text"})
    assert not [path for path in folder.rglob("*") if path.is_file() and b"a-secret" in path.read_bytes()]


def test_a_key_in_the_environment_is_said(tiny_home: Path) -> None:
    found = made(tiny_home, PDSERVE_API_KEY="a-secret-of-many-letters-0123456")
    assert found.secrets == {"--api-key": "keys.txt"}
    assert "a-secret" not in repr(found.command("/home", "/secrets"))
    assert ["PDSERVE_API_KEY" in note for note in found.notes] == [True]


def test_a_configuration_with_a_key_is_refused(tiny_home: Path, tmp_path: Path) -> None:
    (tmp_path / "c.yml").write_text(
        "http_port: 8000\npdserve: {api_key: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa}\n"
    )
    with pytest.raises(SettingsError, match="it holds a key"):
        made(tiny_home, tmp_path / "c.yml")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"http_port": 0}, "any free one"),
        ({"log_file": "x.log"}, "standard error"),
        ({"name": "Not-A-Name"}, "small letters"),
        ({"name": "a" * 53}, "at most 52"),
        ({"name": "a\nb"}, "small letters"),
    ],
)
def test_what_no_deployment_can_have(tiny_home: Path, given: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        made(tiny_home, **given)


def test_the_home_serves_alone(tiny_home: Path, tmp_path: Path) -> None:
    """With the configuration's own settings and a label file, from another folder and offline."""
    (tmp_path / "names.txt").write_text("RED\nGREEN\nBLUE\n")
    (tmp_path / "own.yml").write_text("http_port: 8123\npdserve: {top_k: 2, labels: names.txt}\n")
    found = made(tiny_home, tmp_path / "own.yml")
    folder = write(found, Home(tiny_home), tmp_path / "out", {})
    (tmp_path / "names.txt").unlink()
    home = folder / "home"
    assert sorted(path.name for path in home.iterdir()) == ["config.yml", "labels.txt", "models"]
    command = found.command(str(home), "/secrets")
    with start(home, *command[2:]) as server:
        answer = httpx.post(
            f"{server.url}/v1/classification", content=picture((0, 255, 0)), trust_env=False, timeout=60
        )
        labels = answer.json()["results"][0]["labels"]
    assert labels[0]["label"] == "GREEN"
    assert len(labels) == 2


def test_an_index_comes_along_in_its_current_version(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    build_embedder(home.models)
    (tmp_path / "a.png").write_bytes(picture((255, 0, 0)))
    images = [GalleryImage("a.png", "red", tmp_path / "a.png")]
    embedder = open_embedder(ModelSettings(model="tiny_embedder"), home)
    for _ in range(2):  # the first version stays for a rollback, and does not come along
        build(images, home.index("colours"), embedder)
    embedder.close()
    entry = SERVICES["recognition"]
    given = {"detector": "none", "embedder": "tiny_embedder", "index": "colours"}
    found = bundle(entry, entry.settings(given, {}), home, None, None)
    words = ("--detector", "none", "--embedder", "tiny_embedder", "--index", "colours")
    assert found.command("/home", "/secrets")[2:8] == words
    folder = write(found, home, tmp_path / "out", {}) / "home" / "indexes" / "colours"
    assert {path.name for path in folder.iterdir()} >= {
        "index.json",
        "vector.index",
        "id_map.pkl",
        ".versions",
    }
    assert [path.name for path in (folder / ".versions").iterdir()] == ["2"]


def test_models_of_one_name_stay_apart(tmp_path: Path) -> None:
    for parent in ("a", "b"):
        build_embedder(tmp_path / parent)
    entry = SERVICES["recognition"]
    named = {
        "detector": str(tmp_path / "a/tiny_embedder_serving"),
        "embedder": str(tmp_path / "b/tiny_embedder_serving"),
    }
    settings = entry.settings(named, {})
    from pdserve.deploy.bundle import _models

    found = _models(entry, settings, Home(tmp_path))
    assert [name for _, name in found.values()] == ["tiny_embedder", "embedder_tiny_embedder"]


def test_a_folder_of_something_else_stays(tiny_home: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    found = made(tiny_home)
    with pytest.raises(UsageError, match="was not written by"):
        write(found, Home(tiny_home), tmp_path, {"a.txt": ""})
    assert (tmp_path / "mine.txt").read_text() == "mine"
    out = tmp_path / "out"
    for text in ("one", "two"):  # one that was written is replaced
        write(found, Home(tiny_home), out, {"a.txt": text}, with_home=False)
    assert (out / "a.txt").read_text() == "two"
    assert (out / MARK).is_file()
